"""Inputs for fuzz_engine.pyx that reach every part of the engine's parser, made from packets that make sense."""

from __future__ import annotations

import struct
from ipaddress import ip_address

DATAGRAM, SEALED, DEVICE, RELAYED = range(4)
US, PEER, OTHER = "10.77.0.1", "10.77.0.2", "10.77.0.3"
US6, PEER6 = "fd00::1", "fd00::2"
TCP, UDP = 6, 17
GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_UDP = 0, 1, 4, 5
NEEDS_CSUM = 1


def packet(kind: int, data: bytes, *, mark: int = 0, number: int = 0) -> bytes:
    """One packet of an input."""
    return struct.pack("<BBHH", kind, mark, number, len(data)) + data


def ipv4(source: str, destination: str, protocol: int, payload: bytes, *, mark: int = 0) -> bytes:
    """An IPv4 packet; its checksum is right."""
    header = struct.pack(">BBHHHBBH", 0x45, mark, 20 + len(payload), 1, 0x4000, 64, protocol, 0)
    header += ip_address(source).packed + ip_address(destination).packed
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + payload


def ipv6(source: str, destination: str, protocol: int, payload: bytes, *, mark: int = 0) -> bytes:
    """An IPv6 packet."""
    header = struct.pack(">IHBB", 6 << 28 | mark << 20, len(payload), protocol, 64)
    return header + ip_address(source).packed + ip_address(destination).packed + payload


def udp(payload: bytes) -> bytes:
    """A UDP datagram without checksum."""
    return struct.pack(">HHHH", 5004, 5004, 8 + len(payload), 0) + payload


def tcp(payload: bytes, sequence: int = 1, flags: int = 0x10) -> bytes:
    """A TCP segment."""
    return struct.pack(">HHIIBBHHH", 80, 40000, sequence, 1, 0x50, flags, 1000, 0, 0) + payload


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def device(inner: bytes, *, kind: int = GSO_NONE, header: int = 0, size: int = 0, start: int = 0, at: int = 0) -> bytes:
    """A packet of the device with its virtio_net_hdr."""
    flags = NEEDS_CSUM if start else 0
    return packet(DEVICE, struct.pack("<BBHHHH", flags, kind, header, size, start, at) + inner)


def seeds() -> dict[str, bytes]:
    """Inputs by name."""
    voice, voice6 = ipv4(PEER, US, UDP, udp(bytes(172)), mark=0xB8), ipv6(PEER6, US6, UDP, udp(bytes(60)), mark=0xB8)
    segments = [ipv4(PEER, US, TCP, tcp(bytes(100), 1 + 100 * i)) for i in range(4)]
    segments6 = [ipv6(PEER6, US6, TCP, tcp(bytes(100), 1 + 100 * i, 0x18)) for i in range(3)]
    out, out6 = ipv4(US, PEER, UDP, udp(bytes(172)), mark=0xB8), ipv6(US6, PEER6, UDP, udp(bytes(172)))
    return {
        "voice": packet(SEALED, voice, mark=0xB8),
        "voice6": packet(SEALED, voice6, number=1),
        "two-of-a-flow": packet(SEALED, voice, number=1) + packet(SEALED, voice, number=2, mark=3),
        "replayed": packet(SEALED, voice, number=1) + packet(SEALED, voice, number=1),
        "far-ahead": packet(SEALED, voice, number=60_000) + packet(SEALED, voice, number=1),
        "relayed": packet(RELAYED, voice, number=3),
        "keepalive": packet(SEALED, b""),
        "not-ip": packet(SEALED, bytes(40)),
        "foreign-source": packet(SEALED, ipv4(OTHER, US, UDP, udp(b"x"))),
        "congested": packet(SEALED, ipv4(PEER, US, UDP, udp(b"x"), mark=2), mark=3),
        "train": b"".join(packet(SEALED, one, number=i) for i, one in enumerate(segments)),
        "train6": b"".join(packet(SEALED, one, number=i) for i, one in enumerate(segments6)),
        "handshake": packet(DATAGRAM, b"\x01\0\0\0" + bytes(144)),
        "relay-frame": packet(DATAGRAM, b"\x05\0\0\0" + bytes(8) + b"\x02\0\0\0" + bytes(88)),
        "for-another": packet(DATAGRAM, struct.pack("<IIII", 5, 1, 2, 4) * 5, number=16),
        "joined": packet(DATAGRAM, (b"\x04\0\0\0\x07\0\0\0" + bytes(40)) * 4, number=48),
        "short": packet(DATAGRAM, b"\x04\0\0") + packet(DATAGRAM, b""),
        "out": device(out) + device(out6),
        "out-nowhere": device(ipv4(US, "10.9.9.9", UDP, udp(b"x"))) + device(ipv4(US, OTHER, UDP, udp(b"staged"))),
        "out-checksum": device(out, start=20, at=6),
        "out-tso": device(ipv4(US, PEER, TCP, tcp(bytes(1000))), kind=GSO_TCP4, header=40, size=300, start=20, at=16),
        "out-tso6": device(ipv6(US6, PEER6, TCP, tcp(bytes(900))), kind=GSO_TCP6, header=60, size=400, start=40, at=16),
        "out-uso": device(ipv4(US, PEER, UDP, udp(bytes(800))), kind=GSO_UDP, header=28, size=200, start=20, at=6),
        "out-uso6": device(ipv6(US6, PEER6, UDP, udp(bytes(500))), kind=GSO_UDP, header=48, size=100, start=40, at=6),
    }
