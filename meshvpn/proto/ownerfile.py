"""The owner's key in a file, under a passphrase: whoever has both owns the network, on whatever host. Pure.

"MVOWNER1" ‖ salt(16) ‖ nonce(24) ‖ secretbox(msgpack OwnerKey) under Argon2id(passphrase, salt, 3 passes, 128 MiB)
"""

from __future__ import annotations

import msgspec

from . import keys as key_rules
from . import primitives
from .codec import decode
from .errors import ConfigError, MalformedMessage
from .keys import Entropy, Identity

MAGIC = b"MVOWNER1"
SALT = 16
MAX_FILE = 4096
MAX_SERVERS = 16
VERSION = 1


class OwnerKey(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What is sealed. Fields may be added at the end."""

    version: int
    uid: bytes
    name: str
    servers: list[str]  # URLs
    pin: str | None
    seed: bytes  # 32 bytes: the network's own Ed25519 key

    def __repr__(self) -> str:
        """Without the key."""
        return f"OwnerKey({self.uid.hex()[:8]})"

    @property
    def identity(self) -> Identity:
        """The network's own key pair."""
        return Identity(self.seed)


_decoder = msgspec.msgpack.Decoder(OwnerKey)


def derive_key(passphrase: str | bytearray, salt: bytes) -> bytes:
    """Takes about 0.3 s and 128 MiB; a bytearray is not copied, so that the caller can wipe it.

    Raises ConfigError for a passphrase that is empty or enormous, MemoryError.
    """
    key_rules.check_password(passphrase)
    secret = passphrase.encode() if isinstance(passphrase, str) else passphrase
    operations, memory = key_rules.ARGON2_OPERATIONS, key_rules.ARGON2_MEMORY
    return primitives.argon2id(secret, salt, 32, operations=operations, memory=memory)


def salt_of(file: bytes) -> bytes:
    """What `derive_key` needs. Raises ConfigError for what is no such file."""
    if len(file) > MAX_FILE or len(file) < len(MAGIC) + SALT or not file.startswith(MAGIC):
        raise ConfigError("owner file", "it is not one that `meshvpn owner export` wrote", "check which file it is")
    return file[len(MAGIC) : len(MAGIC) + SALT]


def seal(owner: OwnerKey, salt: bytes, key: bytes, entropy: Entropy) -> bytes:
    """The file's contents."""
    return MAGIC + salt + key_rules.seal_secret(key, msgspec.msgpack.encode(owner), entropy)


def open_file(file: bytes, key: bytes) -> OwnerKey:
    """What is in the file. Raises ConfigError: a wrong passphrase and a damaged file look the same."""
    salt_of(file)
    plaintext = key_rules.open_secret(key, file[len(MAGIC) + SALT :])
    if plaintext is None:
        problem = "it does not open: the passphrase is another one, or the file is damaged"
        raise ConfigError("owner file", problem, "try again, or take another copy")
    try:
        owner = decode(_decoder, plaintext, limit=MAX_FILE)
    except MalformedMessage:
        raise _foreign() from None
    is_whole = len(owner.seed) == 32 and len(owner.servers) <= MAX_SERVERS
    if owner.version != VERSION or not is_whole or key_rules.network_uid(owner.identity.public) != owner.uid:
        raise _foreign()
    return owner


def _foreign() -> ConfigError:
    return ConfigError("owner file", "another version of meshvpn wrote it", "import it with that version")
