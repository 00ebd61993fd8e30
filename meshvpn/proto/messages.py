"""WireGuard's messages 1, 2 and 3 (whitepaper §5.4.2, §5.4.3, §5.4.7); type 4 is the engine's.

    initiation  1 ‖ 000 ‖ sender(4) ‖ noise(108) ‖ mac1(16) ‖ mac2(16)                    148 bytes
    response    2 ‖ 000 ‖ sender(4) ‖ receiver(4) ‖ noise(48) ‖ mac1(16) ‖ mac2(16)        92 bytes
    cookie      3 ‖ 000 ‖ receiver(4) ‖ nonce(24) ‖ encrypted cookie(16 + 16)              64 bytes

Integers are little-endian. `noise` is the message of the Noise protocol: ephemeral, encrypted static, encrypted
timestamp in the initiation; ephemeral, encrypted nothing in the response.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from .drops import DropReason
from .errors import MalformedMessage

TYPE_INITIATION = 1
TYPE_RESPONSE = 2
TYPE_COOKIE = 3
TYPE_TRANSPORT = 4

_INITIATION = struct.Struct("<II108s16s16s")
_RESPONSE = struct.Struct("<III48s16s16s")
_COOKIE = struct.Struct("<II24s32s")
MACS_BYTES = 32
"""mac1 and mac2 stand at the end of messages 1 and 2."""


@dataclass(frozen=True, slots=True)
class Initiation:
    """Message 1."""

    sender: int
    noise: bytes
    mac1: bytes = bytes(16)
    mac2: bytes = bytes(16)

    def encode(self) -> bytes:
        """The 148 bytes."""
        return _INITIATION.pack(TYPE_INITIATION, self.sender, self.noise, self.mac1, self.mac2)


@dataclass(frozen=True, slots=True)
class Response:
    """Message 2."""

    sender: int
    receiver: int
    noise: bytes
    mac1: bytes = bytes(16)
    mac2: bytes = bytes(16)

    def encode(self) -> bytes:
        """The 92 bytes."""
        return _RESPONSE.pack(TYPE_RESPONSE, self.sender, self.receiver, self.noise, self.mac1, self.mac2)


@dataclass(frozen=True, slots=True)
class CookieReply:
    """Message 3."""

    receiver: int
    nonce: bytes
    cookie: bytes

    def encode(self) -> bytes:
        """The 64 bytes."""
        return _COOKIE.pack(TYPE_COOKIE, self.receiver, self.nonce, self.cookie)


def parse(data: bytes) -> Initiation | Response | CookieReply:
    """Parse a message of type 1, 2 or 3. Raises MalformedMessage (too_short, bad_length, unknown_type)."""
    if len(data) < 4:
        raise MalformedMessage(DropReason.TOO_SHORT)
    # The three reserved bytes are part of the type: whatever is not zero there is another protocol.
    match int.from_bytes(data[:4], "little"):
        case 1:
            return Initiation(*_unpack(_INITIATION, data))
        case 2:
            return Response(*_unpack(_RESPONSE, data))
        case 3:
            return CookieReply(*_unpack(_COOKIE, data))
        case _:
            raise MalformedMessage(DropReason.UNKNOWN_TYPE)


def _unpack(layout: struct.Struct, data: bytes) -> tuple[Any, ...]:
    if len(data) != layout.size:
        raise MalformedMessage(DropReason.BAD_LENGTH)
    return layout.unpack(data)[1:]
