"""PCP (RFC 6887) and NAT-PMP (RFC 6886), what is needed to keep one UDP port of ours open at the router: the codec.

    PCP request    2 ‖ opcode ‖ 0(2) ‖ lifetime(4) ‖ our address(16)                          RFC 6887 §7.1
    PCP response   2 ‖ 0x80 + opcode ‖ 0 ‖ result ‖ lifetime(4) ‖ epoch(4) ‖ 0(12)            RFC 6887 §7.2
    MAP adds       nonce(12) ‖ protocol ‖ 0(3) ‖ internal port(2) ‖ external port(2) ‖ external address(16)   §11.1

    NAT-PMP question  0 ‖ 0                         its answer  0 ‖ 128 ‖ result(2) ‖ epoch(4) ‖ external address(4)
    NAT-PMP mapping   0 ‖ 1 ‖ 0(2) ‖ internal port(2) ‖ external port(2) ‖ lifetime(4)         RFC 6886 §3.2, §3.3
            answer    0 ‖ 129 ‖ result(2) ‖ epoch(4) ‖ internal port(2) ‖ external port(2) ‖ lifetime(4)

Integers are big-endian, durations seconds, the epoch the seconds since the router lost what it knew. IPv4 addresses in
PCP are IPv4-mapped IPv6. Both are spoken on one port; a router tells by the first byte which one it got.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from .drops import DropReason
from .errors import MalformedMessage

PORT = 5351
"""Of the router, UDP."""
ANNOUNCE_PORT = 5350
"""Of the hosts: to it, by multicast, a router says that it has started anew (RFC 6886 §3.2.1, RFC 6887 §14.1)."""
ANNOUNCE_GROUP = "224.0.0.1"
NONCE_BYTES = 12
MAX_MESSAGE = 1100  # RFC 6887 §7

_UDP = 17
_IS_RESPONSE = 0x80
_REQUEST = struct.Struct(">BBxxI16s")
_RESPONSE = struct.Struct(">BBxBII12x")
_MAP = struct.Struct(">12sB3xHH16s")
_PMP_MAP = struct.Struct(">BBxxHHI")
_PMP_RESPONSE = struct.Struct(">BBHI")
_PMP_MAPPED = struct.Struct(">HHI")


class Version(IntEnum):
    """The first byte."""

    PCP = 2
    NAT_PMP = 0


class Opcode(IntEnum):
    """What is asked: whether the router is there, or for a mapping. NAT-PMP has the same numbers for UDP."""

    ANNOUNCE = 0
    MAP = 1


SUCCESS = 0
"""The result code of both; every other one is a refusal (RFC 6886 §3.5, RFC 6887 §7.4)."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer of either protocol. What its kind does not tell is 0, empty or None."""

    version: Version
    opcode: Opcode
    result: int
    epoch: int
    lifetime: int = 0
    nonce: bytes = b""
    internal_port: int = 0
    external_port: int = 0
    external_host: str | None = None


def announce_request(version: Version, local: str) -> bytes:
    """Asks whether the router is there, since when, and (NAT-PMP) for its address. `local` is our own address."""
    if version is Version.NAT_PMP:
        return bytes((Version.NAT_PMP, Opcode.ANNOUNCE))
    return _REQUEST.pack(Version.PCP, Opcode.ANNOUNCE, 0, _mapped(local))


def map_request(
    version: Version, local: str, port: int, external_port: int, lifetime: int, *, nonce: bytes = bytes(NONCE_BYTES)
) -> bytes:
    """Asks for (or renews, or with lifetime 0 ends) the mapping of our UDP port; `external_port` is a wish, 0: any."""
    if version is Version.NAT_PMP:
        return _PMP_MAP.pack(Version.NAT_PMP, Opcode.MAP, port, external_port, lifetime)
    head = _REQUEST.pack(Version.PCP, Opcode.MAP, lifetime, _mapped(local))
    anywhere = bytes(16) if ":" in local else _mapped("0.0.0.0")  # RFC 6887 §11.1: of the family that is wanted
    return head + _MAP.pack(nonce, _UDP, port, external_port, anywhere)


def parse(data: bytes) -> Response:
    """An answer or announcement of a router. Raises MalformedMessage."""
    if len(data) < _PMP_RESPONSE.size:
        raise MalformedMessage(DropReason.TOO_SHORT)
    if len(data) > MAX_MESSAGE:
        raise MalformedMessage(DropReason.BAD_LENGTH)
    version, kind = data[0], data[1]
    if not kind & _IS_RESPONSE or kind & ~_IS_RESPONSE not in tuple(Opcode):
        raise MalformedMessage(DropReason.UNKNOWN_TYPE)
    opcode = Opcode(kind & ~_IS_RESPONSE)
    if version == Version.NAT_PMP:
        return _parse_nat_pmp(data, opcode)
    if version == Version.PCP:
        return _parse_pcp(data, opcode)
    raise MalformedMessage(DropReason.UNKNOWN_TYPE)


def _parse_nat_pmp(data: bytes, opcode: Opcode) -> Response:
    _, _, result, epoch = _PMP_RESPONSE.unpack_from(data)
    if result != SUCCESS:
        # Some routers leave the rest away when they refuse.
        return Response(Version.NAT_PMP, opcode, result, epoch)
    rest = data[_PMP_RESPONSE.size :]
    if opcode is Opcode.ANNOUNCE:
        if len(rest) < 4:
            raise MalformedMessage(DropReason.TOO_SHORT)
        return Response(Version.NAT_PMP, opcode, result, epoch, external_host=_host(rest[:4]))
    if len(rest) < _PMP_MAPPED.size:
        raise MalformedMessage(DropReason.TOO_SHORT)
    internal_port, external_port, lifetime = _PMP_MAPPED.unpack_from(rest)
    return Response(
        Version.NAT_PMP, opcode, result, epoch, lifetime, internal_port=internal_port, external_port=external_port
    )


def _parse_pcp(data: bytes, opcode: Opcode) -> Response:
    if len(data) < _RESPONSE.size:
        raise MalformedMessage(DropReason.TOO_SHORT)
    if len(data) % 4:
        raise MalformedMessage(DropReason.BAD_LENGTH)
    _, _, result, lifetime, epoch = _RESPONSE.unpack_from(data)
    if opcode is Opcode.ANNOUNCE:
        return Response(Version.PCP, opcode, result, epoch, lifetime)
    if len(data) < _RESPONSE.size + _MAP.size:
        raise MalformedMessage(DropReason.TOO_SHORT)
    nonce, protocol, internal_port, external_port, address = _MAP.unpack_from(data, _RESPONSE.size)
    if protocol != _UDP:
        raise MalformedMessage(DropReason.UNKNOWN_TYPE)
    return Response(Version.PCP, opcode, result, epoch, lifetime, nonce, internal_port, external_port, _host(address))


def _mapped(host: str) -> bytes:
    address = ip_address(host)
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def _host(packed: bytes) -> str | None:
    address = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed).ipv4_mapped or IPv6Address(packed)
    return None if address.is_unspecified else str(address)
