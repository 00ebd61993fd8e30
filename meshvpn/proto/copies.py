"""Which packets go on two paths at once, where not all do: what a call cannot miss.

    SIGNALLING  SIP (TCP and UDP port 5060, 5061), DUNDi (4520), full frames of IAX2 (UDP 4569, first bit set: RFC 5456
                §8.1.1), what is marked CS3, AF31 (habits of PBXs and phones) or CS5 (RFC 4594 §4.1), and the further
                fragments of UDP datagrams: nearly always the rest of a long SIP message, and without ports
    VOICE       that, all of IAX2, what is marked EF (RFC 3246) or VOICE-ADMIT (RFC 5865), and UDP packets of at most
                400 bytes: 20 ms of G.711 are 200, 40 ms are 360

A port counts at either end. Empty packets always go on both paths: they are rare, and tell that we live. TLS inside the
tunnel, or signalling on another port, is told by its mark alone. Twin: tun/copies.pxd.
"""

from __future__ import annotations

from enum import IntEnum

VOICE_BYTES = 400
_TCP, _UDP, _FRAGMENT_HEADER = 6, 17, 44
_SIGNALLING_PORTS = frozenset({5060, 5061, 4520})
_IAX2 = 4569
_SIGNALLING_MARKS = frozenset({24, 26, 40})  # CS3, AF31, CS5
_VOICE_MARKS = frozenset({46, 44})  # EF, VOICE-ADMIT


class Copies(IntEnum):
    """Which packets also go to the secondary path, if there is one."""

    ALL = 0
    SIGNALLING = 1
    VOICE = 2


def is_copied(copies: Copies, packet: bytes) -> bool:
    """Whether an IP packet, of at least its version's fixed header, or an empty one goes on both paths."""
    if copies is Copies.ALL or not packet:
        return True
    is_voice = copies is Copies.VOICE
    dscp = int.from_bytes(packet[:2], "big") >> 6 & 63 if packet[0] >> 4 == 6 else packet[1] >> 2
    if dscp in _SIGNALLING_MARKS or (is_voice and dscp in _VOICE_MARKS):
        return True
    protocol, at, is_first = _transport(packet)
    if protocol == _UDP and (not is_first or (is_voice and len(packet) <= VOICE_BYTES)):
        return True
    if not is_first or len(packet) < at + 8 or protocol not in (_TCP, _UDP):
        return False
    ports = {int.from_bytes(packet[at : at + 2], "big"), int.from_bytes(packet[at + 2 : at + 4], "big")}
    if ports & _SIGNALLING_PORTS:
        return True
    is_full_frame = len(packet) > at + 8 and bool(packet[at + 8] & 0x80)
    return protocol == _UDP and _IAX2 in ports and (is_voice or is_full_frame)


def _transport(packet: bytes) -> tuple[int, int, bool]:
    """The transport protocol, where its header begins, and whether it is there (no further fragment)."""
    if packet[0] >> 4 == 4:
        return packet[9], (packet[0] & 15) * 4, int.from_bytes(packet[6:8], "big") & 0x1FFF == 0
    if packet[6] == _FRAGMENT_HEADER and len(packet) >= 48:
        return packet[40], 48, int.from_bytes(packet[42:44], "big") >> 3 == 0
    return packet[6], 40, True
