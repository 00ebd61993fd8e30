"""STUN Binding (RFC 8489): who asks learns the address that the server sees. Also binds members to the relay.

    type(2) ‖ length(2) ‖ magic cookie 0x2112A442 ‖ transaction id(12) ‖ attributes
    attribute: type(2) ‖ length(2) ‖ value, padded to a multiple of four

Integers are big-endian. Own codec: the candidate library's is asyncio code and compares integrity tags with `!=`.
"""

from __future__ import annotations

import hmac
import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv6Address, ip_address

from .drops import DropReason
from .errors import MalformedMessage
from .transport import Address

MAGIC_COOKIE = 0x2112A442  # RFC 8489 §5
_HEADER = struct.Struct(">HHI12s")
_ATTRIBUTE = struct.Struct(">HH")
_FINGERPRINT_BYTES = 8
_FINGERPRINT_XOR = 0x5354554E  # RFC 8489 §14.7
MAX_ATTRIBUTES = 16
PADDED_SOFTWARE_BYTES = 20
"""Makes a plain request 52 bytes, as long as the answer with an IPv6 address."""
PADDED_BINDING_BYTES = 4
"""Makes a relay binding at least 88 bytes, as long as its authenticated answer with an IPv6 address."""


class MessageType(IntEnum):
    """Binding method with its classes (RFC 8489 §5)."""

    REQUEST = 0x0001
    SUCCESS = 0x0101
    ERROR = 0x0111


class AttributeType(IntEnum):
    """Attributes that are used here (RFC 8489 §18.3)."""

    MAPPED_ADDRESS = 0x0001
    CHANGE_REQUEST = 0x0003  # RFC 5780 §7.2
    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    MESSAGE_INTEGRITY_SHA256 = 0x001C
    XOR_MAPPED_ADDRESS = 0x0020
    PADDING = 0x0026  # RFC 5780 §7.6
    SOFTWARE = 0x8022
    FINGERPRINT = 0x8028


_CHANGE_PORT = b"\0\0\0\x02"

_INTEGRITY = {
    AttributeType.MESSAGE_INTEGRITY: ("sha1", 20),
    AttributeType.MESSAGE_INTEGRITY_SHA256: ("sha256", 32),
}


@dataclass(frozen=True, slots=True)
class Message:
    """A parsed message. `attributes` are raw values by type, the first of each; `raw` is the whole datagram."""

    type: int
    transaction_id: bytes
    attributes: dict[int, bytes] = field(default_factory=dict)
    raw: bytes = b""
    integrity_at: int | None = None
    """Offset of the integrity attribute in `raw`."""

    @property
    def username(self) -> str | None:
        """USERNAME, if it is there and UTF-8."""
        value = self.attributes.get(AttributeType.USERNAME)
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            return None

    @property
    def wants_other_port(self) -> bool:
        """The answer is to come from the server's other port: does our NAT let that in?"""
        return self.attributes.get(AttributeType.CHANGE_REQUEST) == _CHANGE_PORT

    @property
    def mapped_address(self) -> Address | None:
        """XOR-MAPPED-ADDRESS, else MAPPED-ADDRESS."""
        if (value := self.attributes.get(AttributeType.XOR_MAPPED_ADDRESS)) is not None:
            return _unpack_address(_xor_address(value, self.transaction_id))
        if (value := self.attributes.get(AttributeType.MAPPED_ADDRESS)) is not None:
            return _unpack_address(value)
        return None

    def is_authentic(self, key: bytes) -> bool:
        """True if MESSAGE-INTEGRITY-SHA256 (or the SHA-1 one, alone) was made with this key (RFC 8489 §14.5, §14.6)."""
        if self.integrity_at is None:
            return False
        kind = AttributeType(int.from_bytes(self.raw[self.integrity_at : self.integrity_at + 2], "big"))
        expected = _integrity(kind, key, self.raw[: self.integrity_at])
        return hmac.compare_digest(expected, self.attributes[kind])


def is_stun(data: bytes) -> bool:
    """Cheap test by the magic cookie and the two zero bits."""
    return len(data) >= _HEADER.size and data[0] < 0x40 and data[4:8] == MAGIC_COOKIE.to_bytes(4, "big")


def parse(data: bytes) -> Message:
    """Parse a message and check its FINGERPRINT if it has one. Raises MalformedMessage."""
    if len(data) < _HEADER.size:
        raise MalformedMessage(DropReason.TOO_SHORT)
    kind, length, cookie, transaction_id = _HEADER.unpack_from(data)
    if cookie != MAGIC_COOKIE or kind & 0xC000:
        raise MalformedMessage(DropReason.UNKNOWN_TYPE)
    if length % 4 or length != len(data) - _HEADER.size:
        raise MalformedMessage(DropReason.BAD_LENGTH)
    attributes: dict[int, bytes] = {}
    integrity_at = None
    offset, count = _HEADER.size, 0
    while offset < len(data):
        number, size = _ATTRIBUTE.unpack_from(data, offset)
        value = data[offset + 4 : offset + 4 + size]
        count += 1
        if len(value) != size or count > MAX_ATTRIBUTES:
            raise MalformedMessage(DropReason.BAD_LENGTH)
        if number == AttributeType.FINGERPRINT:
            _check_fingerprint(data, offset, value)
        elif integrity_at is None:
            # What follows the integrity attribute is not protected by it and is ignored (RFC 8489 §14.5).
            attributes.setdefault(number, value)
            if number in _INTEGRITY:
                integrity_at = _check_integrity_size(number, value, offset)
        offset += 4 + size + (-size % 4)
    if offset != len(data):
        raise MalformedMessage(DropReason.BAD_LENGTH)
    return Message(kind, transaction_id, attributes, data, integrity_at)


def binding_request(
    transaction_id: bytes,
    *,
    username: str | None = None,
    key: bytes | None = None,
    other_port: bool = False,
    size: int = 0,
) -> bytes:
    """A Binding request; with `key` it carries MESSAGE-INTEGRITY-SHA256.

    It is padded to the longest answer, so that a server need not send more than it got, and (without `username`) to
    `size` bytes, a multiple of four. `other_port`: the answer is to come from the server's other port.
    """
    if username is None:
        body = _attribute(AttributeType.SOFTWARE, b"meshvpn".ljust(PADDED_SOFTWARE_BYTES))
        if other_port:
            body += _attribute(AttributeType.CHANGE_REQUEST, _CHANGE_PORT)
        if (missing := size - _HEADER.size - len(body) - _ATTRIBUTE.size - _FINGERPRINT_BYTES) >= 0:
            body += _attribute(AttributeType.PADDING, bytes(missing))
    else:
        body = _attribute(AttributeType.USERNAME, username.encode())
        body += _attribute(AttributeType.SOFTWARE, b"mesh".ljust(PADDED_BINDING_BYTES))
    return _finish(MessageType.REQUEST, transaction_id, body, key)


def binding_success(transaction_id: bytes, mapped: Address, *, key: bytes | None = None) -> bytes:
    """The answer with the address that was seen: 40 bytes for IPv4, 52 for IPv6; with `key` 36 more."""
    value = _xor_address(_pack_address(mapped), transaction_id)
    return _finish(MessageType.SUCCESS, transaction_id, _attribute(AttributeType.XOR_MAPPED_ADDRESS, value), key)


def binding_error(transaction_id: bytes, code: int) -> bytes:
    """An error without words: 40 bytes or fewer, never more than was asked with."""
    value = struct.pack(">HBB", 0, code // 100, code % 100)
    return _finish(MessageType.ERROR, transaction_id, _attribute(AttributeType.ERROR_CODE, value), None)


def relay_username(relay_id: int, counter: int) -> str:
    """USERNAME of a relay binding (see control.RelayGrant)."""
    return f"{relay_id:08x}:{counter}"


def parse_relay_username(username: str) -> tuple[int, int] | None:
    """Relay id and counter, or None if it is something else."""
    relay_id, separator, counter = username.partition(":")
    if len(relay_id) != 8 or not separator or not 0 < len(counter) <= 19:
        return None
    try:
        parsed = int(relay_id, 16), int(counter)
    except ValueError:
        return None
    # int() also reads signs, underscores, blanks and other scripts' digits: one name has one spelling.
    return parsed if min(parsed) >= 0 and relay_username(*parsed) == username else None


def _finish(kind: MessageType, transaction_id: bytes, body: bytes, key: bytes | None) -> bytes:
    if key is not None:
        head = _HEADER.pack(kind, len(body), MAGIC_COOKIE, transaction_id) + body
        integrity = AttributeType.MESSAGE_INTEGRITY_SHA256
        body += _attribute(integrity, _integrity(integrity, key, head))
    head = _HEADER.pack(kind, len(body) + 8, MAGIC_COOKIE, transaction_id) + body
    return head + _attribute(AttributeType.FINGERPRINT, (zlib.crc32(head) ^ _FINGERPRINT_XOR).to_bytes(4, "big"))


def _attribute(kind: AttributeType, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) % 4)


def _integrity(kind: AttributeType, key: bytes, covered: bytes) -> bytes:
    # The length field counts up to and including the integrity attribute, whatever follows it.
    algorithm, size = _INTEGRITY[kind]
    length = len(covered) - _HEADER.size + 4 + size
    return hmac.digest(key, covered[:2] + length.to_bytes(2, "big") + covered[4:], algorithm)


def _check_integrity_size(number: int, value: bytes, offset: int) -> int:
    if len(value) != _INTEGRITY[AttributeType(number)][1]:
        raise MalformedMessage(DropReason.BAD_LENGTH)
    return offset


def _check_fingerprint(data: bytes, offset: int, value: bytes) -> None:
    if len(value) != 4 or offset + 8 != len(data):
        raise MalformedMessage(DropReason.BAD_LENGTH)
    if int.from_bytes(value, "big") != zlib.crc32(data[:offset]) ^ _FINGERPRINT_XOR:
        raise MalformedMessage(DropReason.MALFORMED)


def _pack_address(address: Address) -> bytes:
    packed = ip_address(address.host).packed
    return struct.pack(">xBH", 1 if len(packed) == 4 else 2, address.port) + packed


def _unpack_address(value: bytes) -> Address | None:
    if (len(value), value[1:2]) not in ((8, b"\x01"), (20, b"\x02")):
        return None
    host = ip_address(value[4:])
    if isinstance(host, IPv6Address) and host.ipv4_mapped is not None:
        return None  # an IPv4 address has one form only, see Address
    return Address(str(host), int.from_bytes(value[2:4], "big"))


def _xor_address(value: bytes, transaction_id: bytes) -> bytes:
    # RFC 8489 §14.2: the port with the cookie's upper half, the address with cookie ‖ transaction id.
    pad = MAGIC_COOKIE.to_bytes(4, "big") + transaction_id
    mask = b"\0\0" + pad[:2] + pad
    return bytes(left ^ right for left, right in zip(value, mask, strict=False))
