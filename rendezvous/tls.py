"""The server's certificate: one that is given, or self-signed at the first start. Clients pin the latter."""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meshvpn.proto.errors import ConfigError

LIFETIME = datetime.timedelta(days=3650)
"""Ten years: the pin is what is checked, and a new certificate would have to be pinned by every member anew."""


def ensure_certificate(directory: Path) -> tuple[Path, Path]:
    """Paths of certificate and key in the data directory, made at the first start. Raises ConfigError.

    If one of the two is lost, nothing is made: another certificate would lock out all members, who pinned that one.
    """
    certificate, key, pending = (directory / name for name in ("server.crt", "server.key", "server.crt.pending"))
    try:
        if not certificate.exists() and not key.exists():
            private_key = ec.generate_private_key(ec.SECP256R1())
            _write(pending, _self_signed(private_key).public_bytes(serialization.Encoding.PEM), 0o644)
            _write(key, _pem(private_key), 0o600)
        if pending.exists() and not certificate.exists():
            # Also when a first start was cut short after it had written the key.
            pending.rename(certificate)
            _sync(directory)
    except OSError as error:
        problem = f"the certificate cannot be stored ({(error.strerror or str(error)).lower()})"
        raise ConfigError(str(directory), problem, "make room or give the rights to it") from error
    for path in (certificate, key):
        if not path.exists():
            remedy = f"restore it from a backup, or remove {'server.key' if path == certificate else 'server.crt'} too"
            raise ConfigError(str(path), "it is missing", f"{remedy}: then all members have to pin a new certificate")
    return certificate, key


def pin_of(certificate: Path) -> str:
    """`sha256:<hex>` of the first certificate in a PEM file. Raises ConfigError."""
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        remedy = (
            "the first start of the server makes one" if isinstance(error, FileNotFoundError) else "give a PEM file"
        )
        raise ConfigError(str(certificate), "no certificate can be read from it", remedy) from error
    return "sha256:" + hashlib.sha256(loaded.public_bytes(serialization.Encoding.DER)).hexdigest()


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password given, OpenSSL would ask on the terminal for the one of an encrypted key.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        problem = f"it does not load with {key} ({_why(error)})"
        raise ConfigError(
            str(certificate), problem, "give a PEM certificate and its key, without a password"
        ) from error
    return context


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return ((isinstance(error, OSError) and error.strerror) or str(error)).lower()


def _pem(private_key: ec.EllipticCurvePrivateKey) -> bytes:
    return private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _self_signed(private_key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meshvpn-rendezvous")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("meshvpn-rendezvous")]), critical=False)
    )
    return builder.sign(private_key, hashes.SHA256())


def _write(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
