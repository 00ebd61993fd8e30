"""The server's certificate: made once, kept, pinned; and one clear line for every way in which the files are wrong."""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshvpn.proto.errors import ConfigError
from rendezvous import tls


def test_the_first_start_makes_a_certificate_whose_key_only_its_owner_reads(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        certificate, key = tls.ensure_certificate(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(certificate.stat().st_mode) == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == ["server.crt", "server.key"]
    tls.server_context(certificate, key)


def test_later_starts_keep_it(tmp_path: Path) -> None:
    certificate, key = tls.ensure_certificate(tmp_path)
    contents = certificate.read_bytes(), key.read_bytes()
    assert tls.ensure_certificate(tmp_path) == (certificate, key)
    assert (certificate.read_bytes(), key.read_bytes()) == contents


def test_two_servers_have_different_pins(tmp_path: Path) -> None:
    pins = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pins.add(tls.pin_of(tls.ensure_certificate(tmp_path / name)[0]))
    assert len(pins) == 2


def test_the_pin_is_the_hash_of_the_certificate_as_it_is_sent(tmp_path: Path) -> None:
    certificate, _ = tls.ensure_certificate(tmp_path)
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    assert tls.pin_of(certificate) == "sha256:" + hashlib.sha256(der).hexdigest()


def test_the_certificate_is_valid_now_and_for_years(tmp_path: Path) -> None:
    certificate, _ = tls.ensure_certificate(tmp_path)
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    assert loaded.not_valid_after_utc - loaded.not_valid_before_utc > tls.LIFETIME


def test_old_protocols_are_refused(tmp_path: Path) -> None:
    context = tls.server_context(*tls.ensure_certificate(tmp_path))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("lost", ["server.crt", "server.key"])
def test_if_half_of_the_pair_is_lost_no_other_is_made(tmp_path: Path, lost: str) -> None:
    certificate, key = tls.ensure_certificate(tmp_path)
    (tmp_path / lost).unlink()
    kept = certificate if lost == "server.key" else key
    content = kept.read_bytes()
    with pytest.raises(
        ConfigError, match=rf"{lost}: it is missing; restore it from a backup, or remove {kept.name} too"
    ):
        tls.ensure_certificate(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    assert kept.read_bytes() == content


@pytest.mark.parametrize("moment", ["before the key", "after the key"])
def test_a_first_start_that_was_cut_short_is_finished(tmp_path: Path, moment: str) -> None:
    certificate, key = tls.ensure_certificate(tmp_path)
    pin = tls.pin_of(certificate)
    certificate.rename(tmp_path / "server.crt.pending")
    if moment == "before the key":
        key.unlink()
    certificate, key = tls.ensure_certificate(tmp_path)
    tls.server_context(certificate, key)
    assert (tls.pin_of(certificate) == pin) == (moment == "after the key")
    assert not (tmp_path / "server.crt.pending").exists()


@pytest.mark.parametrize("damaged", ["server.crt", "server.key"])
@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, damaged: str, content: bytes) -> None:
    certificate, key = tls.ensure_certificate(tmp_path)
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        tls.server_context(certificate, key)
    assert str(refused.value).startswith(f"{certificate}: it does not load with {key} (")
    assert "\n" not in str(refused.value)
    assert (tmp_path / damaged).read_bytes() == content


def test_a_key_of_another_certificate_is_one_clear_line(tmp_path: Path) -> None:
    certificate, _ = tls.ensure_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = tls.ensure_certificate(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"it does not load with .*other/server.key \(key values mismatch\)"):
        tls.server_context(certificate, other)


def test_a_key_with_a_password_is_refused_instead_of_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    certificate, key = tls.ensure_certificate(tmp_path)
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a password"),
        )
    )
    with pytest.raises(ConfigError, match=r"does not load .*; give a PEM certificate and its key, without a password"):
        tls.server_context(certificate, key)
    assert "pass phrase" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (None, "the first start of the server makes one"),
        (b"", "give a PEM file"),
        (b"nonsense", "give a PEM file"),
    ],
)
def test_a_pin_of_no_certificate_is_one_clear_line(tmp_path: Path, content: bytes | None, remedy: str) -> None:
    path = tmp_path / "server.crt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"server.crt: no certificate can be read from it; {remedy}"):
        tls.pin_of(path)


def test_a_directory_that_takes_no_files_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the certificate cannot be stored \(no such file or directory\)"):
        tls.ensure_certificate(tmp_path / "missing")
