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
    """Paths of certificate and key in the data directory, made if they are not there."""
    certificate, key = directory / "server.crt", directory / "server.key"
    if not key.exists() or not certificate.exists():
        private_key = ec.generate_private_key(ec.SECP256R1())
        pem = private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write(key, pem, 0o600)
        _write(certificate, _self_signed(private_key).public_bytes(serialization.Encoding.PEM), 0o644)
    return certificate, key


def pin_of(certificate: Path) -> str:
    """`sha256:<hex>` of the first certificate in a PEM file. Raises ConfigError."""
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(str(certificate), "no certificate can be read from it", "give a PEM file") from error
    return "sha256:" + hashlib.sha256(loaded.public_bytes(serialization.Encoding.DER)).hexdigest()


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        problem = f"it does not load with {key} ({error})"
        raise ConfigError(str(certificate), problem, "give a PEM certificate and its key") from error
    return context


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
