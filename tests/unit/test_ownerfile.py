"""The owner's key in a file: who has file and passphrase has the network, who lacks one has nothing."""

from __future__ import annotations

import random

import pytest
from msgspec import structs

from meshvpn.proto import ownerfile
from meshvpn.proto.errors import ConfigError
from meshvpn.proto.keys import Identity, network_uid
from meshvpn.proto.ownerfile import OwnerKey

SEED = b"s" * 32
OWNED = OwnerKey(
    version=1,
    uid=network_uid(Identity(SEED).public),
    name="piaf",
    servers=["https://vpn.example.net:7770"],
    pin="ab" * 32,
    seed=SEED,
)
KEY, SALT = b"k" * 32, b"t" * 16
entropy = random.Random(1).randbytes


def test_what_was_exported_is_imported_with_the_passphrase_alone() -> None:
    salt = entropy(16)
    file = ownerfile.seal(OWNED, salt, ownerfile.derive_key("correct horse", salt), entropy)
    assert ownerfile.open_file(file, ownerfile.derive_key("correct horse", ownerfile.salt_of(file))) == OWNED
    with pytest.raises(ConfigError, match="does not open"):
        ownerfile.open_file(file, ownerfile.derive_key("wrong horse", ownerfile.salt_of(file)))


@pytest.mark.parametrize("data", [b"", b"MVOWNER1", b"-----BEGIN KEY-----" * 9, bytes(5000)])
def test_another_file_is_no_owner_file(data: bytes) -> None:
    with pytest.raises(ConfigError, match="owner export"):
        ownerfile.open_file(data, KEY)


def test_a_damaged_file_opens_in_no_place() -> None:
    file = bytearray(ownerfile.seal(OWNED, SALT, KEY, entropy))
    for at in range(len(ownerfile.MAGIC) + ownerfile.SALT, len(file)):
        file[at] ^= 1
        with pytest.raises(ConfigError, match="does not open"):
            ownerfile.open_file(bytes(file), KEY)
        file[at] ^= 1
    assert ownerfile.open_file(bytes(file), KEY) == OWNED


@pytest.mark.parametrize("changes", [{"version": 2}, {"uid": bytes(16)}, {"seed": b"short"}, {"servers": ["u"] * 99}])
def test_what_makes_no_sense_inside_is_refused(changes: dict[str, object]) -> None:
    file = ownerfile.seal(structs.replace(OWNED, **changes), SALT, KEY, entropy)
    with pytest.raises(ConfigError, match="another version"):
        ownerfile.open_file(file, KEY)


def test_an_empty_passphrase_protects_nothing() -> None:
    with pytest.raises(ConfigError, match="empty"):
        ownerfile.derive_key("", SALT)


def test_the_key_shows_nowhere() -> None:
    assert SEED.hex() not in repr(OWNED)
    assert repr(SEED) not in repr(OWNED)
    assert SEED not in ownerfile.seal(OWNED, SALT, KEY, entropy)
