"""What a password leaves in the memory of the command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshvpn.cli import passwords
from meshvpn.cli.client import Client, CliError
from meshvpn.proto.keys import MAX_PASSWORD_BYTES, NetworkKeys, derive_network_keys


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[bytearray]:
    """The very buffers that passwords were derived from."""
    seen: list[bytearray] = []

    def derive(name: str, password: bytearray) -> NetworkKeys:
        seen.append(password)
        return derive_network_keys(name, password)

    monkeypatch.setattr(passwords, "derive_network_keys", derive)
    monkeypatch.setattr(Client, "check", lambda _client: None)
    monkeypatch.setattr(Client, "get", lambda _client, _route, _kind: [])
    return seen


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "password"
    found.write_text("correct horse battery\r\nsecond line\n")
    found.chmod(0o600)
    return found


def test_a_password_is_wiped_as_soon_as_its_keys_are_derived(given: list[bytearray], file: Path) -> None:
    expected = derive_network_keys("n", "correct horse battery")
    assert passwords.join_keys(Client("/none"), "n", str(file)) == expected
    assert passwords.new_keys(Client("/none"), "n", str(file), force=False) == expected
    assert given == [bytearray(21), bytearray(21)]


def test_a_password_that_is_no_password_is_wiped_too(given: list[bytearray], file: Path) -> None:
    file.write_bytes(b"x" * (MAX_PASSWORD_BYTES + 1))
    with pytest.raises(CliError, match="more than 1024 bytes"):
        passwords.join_keys(Client("/none"), "n", str(file))
    assert given == [bytearray(MAX_PASSWORD_BYTES + 1)]


def test_a_line_may_come_in_pieces_and_without_an_end() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"hal")
    os.write(writer, b"f")
    os.close(writer)
    assert passwords._read_line(reader) == bytearray(b"half")
    os.close(reader)
