"""Keys and names: what is derived from a network's name and password, who a member is, what pairs share.

All keys are 32 bytes. The libsodium calls behind (PyNaCl): Argon2id, Ed25519, X25519, crypto_box_seal, secretbox.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network

from nacl import bindings
from nacl.exceptions import CryptoError

from . import primitives
from .errors import ConfigError
from .signed import Signed

Entropy = Callable[[int], bytes]
"""Gives so many random bytes."""

MAX_NAME = 64
MAX_PASSWORD_BYTES = 1024
MAX_NICK = 32
ARGON2_OPERATIONS = 3
ARGON2_MEMORY = 128 << 20
"""libsodium's figures for an interactive login, doubled: about 0.3 s and 128 MiB for each guess at a password."""

_NAME_KEY = b"meshvpn name v1"
_PSK_LABEL = b"meshvpn psk v1"
_RELAY_ID_LABEL = b"meshvpn relay id v1"
_MAPPING_LABEL = b"meshvpn pcp nonce v1"
_NONCE_LABEL = b"meshvpn nonce v1"
_LAN_LABEL = b"meshvpn lan tag v1"
_NONCE = 24
_ANY_SCALAR = bytes(range(1, 33))
_NICK = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_PRIVATE = (IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16"))


@dataclass(frozen=True, slots=True, repr=False)
class NetworkKeys:
    """What name and password give: the server finds the network by `locator` and never sees `wrap_key`."""

    locator: bytes
    wrap_key: bytes

    def __repr__(self) -> str:
        """Without the keys."""
        return "NetworkKeys(…)"


class Identity:
    """A member's (or a network owner's) Ed25519 key pair, from a seed of 32 bytes."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self.public, self._secret = bindings.crypto_sign_seed_keypair(seed)

    def __repr__(self) -> str:
        """Without the secret."""
        return f"Identity({self.public.hex()[:8]})"

    def sign(self, domain: bytes, body: bytes) -> Signed:
        """Sign a body under a domain (see signed.py)."""
        signed = bindings.crypto_sign(domain + body, self._secret)
        return Signed(body, self.public, signed[: bindings.crypto_sign_BYTES])

    def open_sealed(self, sealed: bytes) -> bytes | None:
        """Open what `seal_to_identity` made for us."""
        secret = bindings.crypto_sign_ed25519_sk_to_curve25519(self._secret)
        public = bindings.crypto_sign_ed25519_pk_to_curve25519(self.public)
        try:
            return bindings.crypto_box_seal_open(sealed, public, secret)
        except (CryptoError, ValueError, TypeError):
            return None


def verify(signed: Signed, domain: bytes) -> bool:
    """True if the signature holds."""
    return verify_detached(signed.signer, signed.signature, domain + signed.body)


def verify_detached(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """True if the Ed25519 signature (64 bytes) over the message holds."""
    if len(public_key) != bindings.crypto_sign_PUBLICKEYBYTES or len(signature) != bindings.crypto_sign_BYTES:
        return False
    try:
        bindings.crypto_sign_open(signature + message, public_key)
    except CryptoError:
        return False
    return True


def is_identity(public: bytes) -> bool:
    """True if this Ed25519 public key can also be sealed to.

    Signatures verify under some keys outside the prime-order group (RFC 8032 §8.9 leaves that open), but such a key has
    no X25519 form: its holder would be a member that nobody can seal an epoch key to.
    """
    try:
        bindings.crypto_sign_ed25519_pk_to_curve25519(public)
    except (CryptoError, ValueError, TypeError):
        return False
    return True


def is_exchange_key(public: bytes) -> bool:
    """True for an X25519 public key of 32 bytes and not of low order (RFC 7748 §6.1)."""
    if len(public) != 32:
        return False
    try:
        primitives.x25519(_ANY_SCALAR, public)
    except ValueError:
        return False
    return True


# Names and passwords.


def normalise_name(name: str) -> str:
    """The form that counts: NFKC, without case, without space around it. Raises ConfigError."""
    normal = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).strip()
    if not normal:
        raise ConfigError("network name", "it is empty", f"choose one of 1 to {MAX_NAME} characters")
    if len(normal) > MAX_NAME:
        raise ConfigError(
            "network name", f"it has {len(normal)} characters", f"choose one of 1 to {MAX_NAME} characters"
        )
    if any(unicodedata.category(character)[0] == "C" for character in normal):
        raise ConfigError("network name", "it has control characters", "use letters, digits and punctuation")
    if normal in (".", ".."):
        raise ConfigError("network name", "it is a step of a path", "choose one with a letter or a digit")
    return normal


def check_password(password: str | bytearray) -> None:
    """Raise ConfigError for an empty or an enormous password, or one that is not UTF-8."""
    if not password:
        raise ConfigError("password", "it is empty", "choose one; several words are better than one")
    try:
        # In pieces of a character each: a copy as a whole could not be wiped.
        decoder = codecs.getincrementaldecoder("utf-8")()
        size = len(password.encode()) if isinstance(password, str) else len(password)
        for byte in b"" if isinstance(password, str) else password:
            decoder.decode(bytes((byte,)))
        decoder.decode(b"", final=True)
    except UnicodeError:
        # `from None`: the error carries the password.
        raise ConfigError("password", "it is not valid UTF-8", "check the terminal's or the file's encoding") from None
    if size > MAX_PASSWORD_BYTES:
        raise ConfigError("password", f"it has more than {MAX_PASSWORD_BYTES} bytes", "choose a shorter one")


def derive_network_keys(name: str, password: str | bytearray) -> NetworkKeys:
    """Argon2id over the password, salted by the name: takes about 0.3 s and 128 MiB.

    A bytearray is not copied, so that the caller can wipe it. Raises ConfigError, MemoryError.
    """
    normal = normalise_name(name)
    check_password(password)
    secret = password.encode() if isinstance(password, str) else password
    salt = primitives.blake2b(normal.encode(), 16, _NAME_KEY)
    derived = primitives.argon2id(secret, salt, 64, operations=ARGON2_OPERATIONS, memory=ARGON2_MEMORY)
    return NetworkKeys(derived[:32], derived[32:])


def check_nick(nick: str) -> str:
    """A nickname fit for DNS and for an Asterisk section name; returned as given. Raises ConfigError."""
    if len(nick) > MAX_NICK or not _NICK.fullmatch(nick):
        raise ConfigError(
            f"nickname {nick!r}",
            "it is not usable as a host and trunk name",
            f"use 1 to {MAX_NICK} letters, digits, dots, dashes and underscores, a letter or digit at both ends",
        )
    return nick


def nick_from_hostname(hostname: str) -> str:
    """A valid nickname like the host's name."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", hostname.partition(".")[0])[:MAX_NICK].strip("._-")
    return kept or "pbx"


def check_interface(name: str) -> str:
    """A name that Linux accepts for an interface. Raises ConfigError."""
    if not _INTERFACE.fullmatch(name) or name in (".", ".."):
        raise ConfigError(
            f"interface {name!r}",
            "it is no interface name",
            "use 1 to 15 letters, digits, dots, dashes, underscores",
        )
    return name


# Addresses.


def network_uid(owner: bytes) -> bytes:
    """16 bytes that name a network for good."""
    return primitives.blake2b(owner, 16)


def ula_prefix(uid: bytes) -> IPv6Network:
    """The network's IPv6 /64 (RFC 4193: fd, then 40 bits of global id and 16 of subnet from the uid)."""
    return IPv6Network((b"\xfd" + uid[:7] + bytes(8), 64))


def address6(uid: bytes, tunnel_key: bytes) -> IPv6Address:
    """A member's IPv6 address: it follows from its key, so nobody has to hand it out."""
    return IPv6Address(ula_prefix(uid).network_address.packed[:8] + primitives.blake2b(tunnel_key, 8))


def check_pool(cidr: str) -> IPv4Network:
    """A pool of private addresses between /8 and /30. Raises ConfigError."""
    try:
        pool = IPv4Network(cidr)
    except ValueError as error:
        raise ConfigError(f"address pool {cidr!r}", str(error), "give a network such as 10.77.5.0/24") from error
    if not 8 <= pool.prefixlen <= 30:
        raise ConfigError(f"address pool {pool}", "its size is not usable", "choose a length from /8 to /30")
    if not any(pool.subnet_of(private) for private in _PRIVATE):
        raise ConfigError(
            f"address pool {pool}",
            "it is not private, so it is or may become somebody else's",
            "choose one inside 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16",
        )
    return pool


def pick_pool(taken: Sequence[IPv4Network], entropy: Callable[[int], bytes]) -> IPv4Network:
    """A random /24 of 10.0.0.0/8 that overlaps nothing in `taken`. Raises ConfigError when there is none."""
    start = int.from_bytes(entropy(2), "big")
    for step in range(1 << 16):
        number = (start + step) % (1 << 16)
        pool = IPv4Network(((10 << 24) | (number << 8), 24))
        if number and not any(pool.overlaps(network) for network in taken):
            return pool
    raise ConfigError("address pool", "all of 10.0.0.0/8 is in use on this host", "choose one with --subnet")


# Secrets shared.


def pair_psk(epoch_key: bytes, key_a: bytes, key_b: bytes) -> bytes:
    """The preshared key of two members' WireGuard sessions in an epoch; both ends get the same."""
    return primitives.blake2b(_PSK_LABEL + b"".join(sorted((key_a, key_b))), 32, epoch_key)


def member_relay_id(uid: bytes, identity: bytes) -> int:
    """Which 32-bit number means this member in frames that other members relay; never 0."""
    digest = primitives.blake2b(_RELAY_ID_LABEL + identity, 4, uid)
    return int.from_bytes(digest, "little") or 1


def lan_tag(epoch_key: bytes, identity: bytes) -> bytes:
    """16 bytes by which members recognise a member in their LAN; to everybody else they are noise."""
    return primitives.blake2b(_LAN_LABEL + identity, 16, epoch_key)


def mapping_nonce(tunnel_secret: bytes) -> bytes:
    """12 bytes that own our port mapping at a router, the same after each restart."""
    return primitives.blake2b(_MAPPING_LABEL, 12, tunnel_secret)


def seal_secret(key: bytes, plaintext: bytes, entropy: Callable[[int], bytes]) -> bytes:
    """Secretbox with the nonce (24 bytes) in front."""
    nonce = entropy(_NONCE)
    return nonce + bindings.crypto_secretbox(plaintext, nonce, key)


def seal_repeatably(key: bytes, plaintext: bytes, context: bytes) -> bytes:
    """The same, with a nonce that follows from what is sealed: it needs no randomness, and equal things in equal
    contexts look equal."""
    nonce = primitives.blake2b(_NONCE_LABEL + primitives.blake2b(context, 32) + plaintext, _NONCE, key)
    return nonce + bindings.crypto_secretbox(plaintext, nonce, key)


def open_secret(key: bytes, sealed: bytes) -> bytes | None:
    """What `seal_secret` sealed, or None."""
    if len(sealed) < _NONCE + bindings.crypto_secretbox_MACBYTES:
        return None
    try:
        return bindings.crypto_secretbox_open(sealed[_NONCE:], sealed[:_NONCE], key)
    except CryptoError:
        return None


def seal_to_identity(public: bytes, plaintext: bytes, entropy: Callable[[int], bytes]) -> bytes:
    """A libsodium sealed box to an Ed25519 identity, with the ephemeral key from `entropy`. Raises ValueError."""
    try:
        receiver = bindings.crypto_sign_ed25519_pk_to_curve25519(public)
    except (CryptoError, RuntimeError) as error:
        raise ValueError("no valid identity") from error
    secret = entropy(32)
    ephemeral = primitives.x25519_public(secret)
    nonce = primitives.blake2b(ephemeral + receiver, _NONCE)
    return ephemeral + bindings.crypto_box(plaintext, nonce, receiver, secret)
