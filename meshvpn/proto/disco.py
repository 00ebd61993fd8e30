"""Disco: authenticated probes between two members, beside WireGuard on the same sockets.

    magic(6) ‖ sender's disco public key(32) ‖ nonce(24) ‖ crypto_box(message)

    ping  1 ‖ transaction id(12) ‖ sequence(8) ‖ padding
    pong  2 ‖ transaction id(12) ‖ family(1) ‖ observed address(16) ‖ port(2) ‖ packets received(4) ‖ pings arrived(4)
          ‖ packets lost(4)

crypto_box is X25519, XSalsa20 and Poly1305 with a precomputed key; integers are big-endian. A pong is never longer than
the ping it answers: short pings, which older versions send, get a pong without its last field. Bytes after a known
message are ignored, so that later versions may add to it.

The sequence grows with each ping between two keys; the receiver takes each once. Without it, who recorded a ping could
play it back from anywhere, be answered there, and fill the table of paths. `packets received` counts the data that came
from the other end, on whatever path: pings may pass where data does not; `packets lost` those that did not come, as
their counters tell: loss is sooner seen in fifty a second than in two pings. `pings arrived` counts those that came on
this path, so that the sender can tell pings that were lost from pongs that were: each end chooses the way for what it
sends. A ping that is padded further (path_mtu.py) is not counted: it may be too long for the path.

Both ends share one key, and the sender's key in front is not authenticated: who swaps it could send a datagram back to
its maker, who would take it for the peer's, and his own pong for a round trip. So the nonce's last bit is the
direction: 1 from the end with the greater public key.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from nacl import bindings
from nacl.exceptions import CryptoError

from . import primitives
from .drops import DropReason
from .errors import MalformedMessage
from .transport import Address

MAGIC = b"MVdsc1"
_KEY = 32
_NONCE = 24
_MAC = 16
OVERHEAD = len(MAGIC) + _KEY + _NONCE + _MAC
TRANSACTION_ID_BYTES = 12
_TYPE_PING = 1
_TYPE_PONG = 2
_PONG = struct.Struct(">B12sB16sHII")
_LOST = struct.Struct(">I")
_PING = struct.Struct(">B12sQ")
PING_BYTES = _PONG.size + _LOST.size
"""A ping is padded to the pong's size: 44 bytes, 122 on the wire."""
SHORT_PING_BYTES = _PONG.size
"""Pings of versions whose pongs did not tell what was lost."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? `size` is the message's length with padding."""

    transaction_id: bytes
    sequence: int
    size: int = PING_BYTES


@dataclass(frozen=True, slots=True)
class Pong:
    """I am; your ping came from `observed`. I got `received` data packets of yours so far, and missed `lost`; on this
    path `arrived` pings (all modulo 2³²). `lost` is None where nothing is said of it."""

    transaction_id: bytes
    observed: Address
    received: int
    arrived: int
    lost: int | None = None


def is_disco(data: bytes) -> bool:
    """Cheap test by the magic."""
    return data.startswith(MAGIC) and len(data) >= OVERHEAD


def sender_key(data: bytes) -> bytes:
    """The disco public key that the datagram claims to come from; the box proves it."""
    return data[len(MAGIC) : len(MAGIC) + _KEY]


def public_key(secret: bytes) -> bytes:
    """The public half of a disco key."""
    return primitives.x25519_public(secret)


class DiscoBox:
    """What two disco keys share."""

    def __init__(self, local_secret: bytes, remote_public: bytes) -> None:
        self.remote_public = remote_public
        self._local_public = primitives.x25519_public(local_secret)
        self._shared = _shared_key(remote_public, local_secret)
        self._direction = int(self._local_public > remote_public)

    @property
    def leads(self) -> bool:
        """True at one of the two ends, where both must not do the same."""
        return self._direction == 1

    def seal(self, message: Ping | Pong, entropy: Callable[[int], bytes]) -> bytes:
        """The datagram."""
        nonce = bytearray(entropy(_NONCE))
        nonce[-1] = nonce[-1] & 0xFE | self._direction
        sealed = bindings.crypto_box_afternm(_encode(message), bytes(nonce), self._shared)
        return MAGIC + self._local_public + nonce + sealed

    def open(self, data: bytes) -> Ping | Pong:
        """The message of a datagram from the other end. Raises MalformedMessage."""
        if not is_disco(data) or sender_key(data) != self.remote_public:
            raise MalformedMessage(DropReason.UNKNOWN_PEER)
        start = len(MAGIC) + _KEY
        nonce = data[start : start + _NONCE]
        if nonce[-1] & 1 == self._direction:
            raise MalformedMessage(DropReason.NOT_FOR_US)
        try:
            plaintext = bindings.crypto_box_open_afternm(data[start + _NONCE :], nonce, self._shared)
        except CryptoError as error:
            raise MalformedMessage(DropReason.DECRYPT_FAILED) from error
        return _decode(plaintext)


def _shared_key(remote_public: bytes, local_secret: bytes) -> bytes:
    try:
        return bindings.crypto_box_beforenm(remote_public, local_secret)
    except CryptoError:
        # A key of low order, which only a broken member publishes: nothing it sends will ever open.
        return primitives.blake2s(local_secret)


def _encode(message: Ping | Pong) -> bytes:
    if isinstance(message, Ping):
        return _PING.pack(_TYPE_PING, message.transaction_id, message.sequence).ljust(message.size, b"\0")
    packed = ip_address(message.observed.host).packed
    pong = _PONG.pack(
        _TYPE_PONG,
        message.transaction_id,
        len(packed),
        packed.ljust(16, b"\0"),
        message.observed.port,
        message.received & 0xFFFFFFFF,
        message.arrived & 0xFFFFFFFF,
    )
    return pong if message.lost is None else pong + _LOST.pack(message.lost & 0xFFFFFFFF)


def _decode(plaintext: bytes) -> Ping | Pong:
    if not plaintext:
        raise MalformedMessage(DropReason.TOO_SHORT)
    if plaintext[0] == _TYPE_PING and len(plaintext) >= SHORT_PING_BYTES:
        _, transaction_id, sequence = _PING.unpack_from(plaintext)
        return Ping(transaction_id, sequence, len(plaintext))
    if plaintext[0] == _TYPE_PONG and len(plaintext) >= _PONG.size:
        _, transaction_id, size, packed, port, received, arrived = _PONG.unpack_from(plaintext)
        if size not in (4, 16):
            raise MalformedMessage(DropReason.MALFORMED)
        host = ip_address(packed[:4]) if size == 4 else IPv6Address(packed)
        says_lost = len(plaintext) >= _PONG.size + _LOST.size
        lost = _LOST.unpack_from(plaintext, _PONG.size)[0] if says_lost else None
        return Pong(transaction_id, Address(str(host), port), received, arrived, lost)
    raise MalformedMessage(DropReason.UNKNOWN_TYPE)
