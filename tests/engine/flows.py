"""TCP and UDP flows as they cross a TUN device with virtio_net_hdr: packets one by one, or several as a large one."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from .sides import A_HOST, B_HOST, EngineSide, checksum

ACK, PSH, FIN, CWR = 0x10, 0x08, 0x01, 0x80
NEEDS_CSUM, TCP4, TCP6, UDP_TRAIN = 1, 1, 4, 5
A_HOST6, B_HOST6 = "fd00::1", "fd00::2"
VNET = struct.Struct("<BBHHHH")
PLAIN = bytes(10)


@dataclass(frozen=True, slots=True)
class Flow:
    """TCP if `options` is not None, else UDP."""

    source: str = A_HOST
    destination: str = B_HOST
    port: int = 5060
    options: bytes | None = b"\1\1\x08\x0a" + bytes(8)

    @property
    def header_bytes(self) -> int:
        return (40 if ":" in self.source else 20) + (8 if self.options is None else 20 + len(self.options))

    def packet(
        self, sequence: int, payload: bytes, flags: int = ACK, number: int = 0, *, is_whole: bool = True
    ) -> bytes:
        """`is_whole`: with its checksum; else with the sum of the pseudo-header, as the kernel leaves it."""
        kind = 17 if self.options is None else 6
        if self.options is None:
            body = struct.pack("!HHHH", 4000, self.port, 8 + len(payload), 0) + payload
        else:
            words = (20 + len(self.options)) // 4
            body = struct.pack("!HHIIBBHHH", 4000, self.port, sequence & 0xFFFFFFFF, 77, words << 4, flags, 500, 0, 0)
            body += self.options + payload
        family = socket.AF_INET6 if ":" in self.source else socket.AF_INET
        addresses = socket.inet_pton(family, self.source) + socket.inet_pton(family, self.destination)
        pseudo = checksum(addresses + struct.pack("!II", len(body), kind))
        at = 6 if self.options is None else 16
        total = pseudo if not is_whole else 0xFFFF - checksum(pseudo.to_bytes(2, "big") + body + bytes(len(body) % 2))
        if is_whole and not total and self.options is None:
            total = 0xFFFF
        body = body[:at] + total.to_bytes(2, "big") + body[at + 2 :]
        if family == socket.AF_INET6:
            return struct.pack("!IHBB", 6 << 28, len(body), kind, 64) + addresses + body
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), number, 0x4000, 64, kind, 0) + addresses
        return head[:10] + (0xFFFF - checksum(head)).to_bytes(2, "big") + head[12:] + body

    def vnet(self, gso_size: int = 0) -> bytes:
        start = 40 if ":" in self.source else 20
        gso = 0 if not gso_size else UDP_TRAIN if self.options is None else TCP6 if ":" in self.source else TCP4
        return VNET.pack(NEEDS_CSUM, gso, self.header_bytes, gso_size, start, 6 if self.options is None else 16)

    def cut(self, sequence: int, payload: bytes, gso_size: int, flags: int = ACK, first: int = 0) -> list[bytes]:
        """The packets that a large one stands for."""
        pieces = [payload[at : at + gso_size] for at in range(0, len(payload), gso_size)]
        packets = []
        for number, piece in enumerate(pieces):
            kept = flags & ~(CWR if number else 0) & ~(0 if number == len(pieces) - 1 else PSH | FIN)
            packets.append(self.packet(sequence + number * gso_size, piece, kept, (first + number) & 0xFFFF))
        return packets

    def back(self) -> Flow:
        """The same from B to A."""
        return Flow(self.destination, self.source, self.port, self.options)


TCP, UDP = Flow(), Flow(options=None)
TCP_6, UDP_6 = Flow(A_HOST6, B_HOST6), Flow(A_HOST6, B_HOST6, options=None)


def take_packets(engine: EngineSide, expected: list[bytes]) -> list[bytes]:
    """As many packets as expected, out of single ones and trains."""
    taken: list[bytes] = []
    while len(taken) < len(expected) and (items := engine.take(1)):
        taken += resplit(items[0], flow_of(items[0][10:]))
    return taken


def resplit(item: bytes, flow: Flow) -> list[bytes]:
    """What the kernel makes of a packet that the engine wrote."""
    flags, kind, header_bytes, gso_size, start, offset = VNET.unpack_from(item)
    whole = item[10:]
    if item[:10] == PLAIN:
        return [whole]
    assert (flags, header_bytes) == (NEEDS_CSUM, flow.header_bytes)
    payload = whole[header_bytes:]
    sequence = int.from_bytes(whole[start + 4 : start + 8])
    tcp_flags = whole[start + 13] if kind != UDP_TRAIN else ACK
    number = int.from_bytes(whole[4:6]) if start == 20 else 0
    assert len(payload) > gso_size
    assert whole == flow.packet(sequence, payload, tcp_flags, number, is_whole=False)
    assert offset == (6 if kind == UDP_TRAIN else 16)
    return flow.cut(sequence, payload, gso_size, tcp_flags, number)


def flow_of(item: bytes) -> Flow:
    is_6 = item[0] >> 4 == 6
    start, kind = (40, item[6]) if is_6 else (20, item[9])
    family, at, size = (socket.AF_INET6, 8, 16) if is_6 else (socket.AF_INET, 12, 4)
    source, destination = (socket.inet_ntop(family, item[where : where + size]) for where in (at, at + size))
    options = item[start + 20 : start + (item[start + 12] >> 4) * 4] if kind == 6 else None
    return Flow(source, destination, int.from_bytes(item[start + 2 : start + 4]), options)
