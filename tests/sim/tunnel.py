"""Reliable streams through the simulated tunnel: what TCP does, as far as members' links need it.

Each side numbers its segments, repeats what is not acknowledged, and gives up after a while. They are IP packets like
any other, so a link needs what a call needs: a path, a session, an engine that lets the sender's address pass.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Protocol

from .network import Network

PROTOCOL = 6
_HEAD = struct.Struct(">IBI")
_OPEN, _DATA, _CLOSE, _ACK = range(4)
MAX_SEGMENT = 1200
REPEAT = 0.3
"""Seconds after which what was not acknowledged is sent again."""
MAX_REPEATS = 20


class Owner(Protocol):
    """Who is told."""

    @property
    def address(self) -> str: ...

    def send_packet(self, packet: bytes) -> None: ...

    def handle_link(self, stream: TunnelStream) -> bool: ...

    def handle_link_open(self, stream: TunnelStream) -> None: ...

    def handle_link_frame(self, stream: TunnelStream, data: bytes) -> None: ...

    def handle_link_closed(self, stream: TunnelStream) -> None: ...


@dataclass(slots=True, eq=False)
class TunnelStream:
    """One end."""

    host: str
    number: int
    is_ours: bool
    link: int = 0
    is_open: bool = False
    is_closing: bool = False
    sent: int = 0
    unacknowledged: dict[int, bytes] = field(default_factory=dict)
    received: dict[int, bytes] = field(default_factory=dict)
    expected: int = 0
    buffer: bytes = b""
    repeats: int = 0
    is_armed: bool = False


class TunnelStreams:
    """All of one member. `is_firewalled`: it lets nobody in."""

    def __init__(self, network: Network, owner: Owner) -> None:
        self.is_firewalled = False
        self.opened = 0
        self._network = network
        self._owner = owner
        self._streams: dict[tuple[str, int, bool], TunnelStream] = {}
        self._numbers = 0

    def clear(self) -> None:
        """The daemon ends."""
        self._streams.clear()

    def open(self, link: int, host: str) -> TunnelStream:
        self._numbers += 1
        self.opened += 1
        number = self._numbers + (int(self._network.now * 1000) << 8)
        stream = TunnelStream(host, number & 0xFFFFFFFF, True, link)
        self._streams[host, stream.number, True] = stream
        self._queue(stream, _OPEN, b"")
        return stream

    def send(self, stream: TunnelStream, frame: bytes) -> None:
        data = len(frame).to_bytes(4, "big") + frame
        for start in range(0, len(data), MAX_SEGMENT):
            self._queue(stream, _DATA, data[start : start + MAX_SEGMENT])

    def close(self, stream: TunnelStream) -> None:
        """After what was sent; the owner hears no more of it."""
        if not stream.is_closing:
            stream.is_closing = True
            self._queue(stream, _CLOSE, b"")

    def handle_packet(self, packet: bytes) -> None:
        """An inner packet of this protocol."""
        host = str(IPv4Address(packet[12:16]))
        number, flags, sequence = _HEAD.unpack_from(packet, 20)
        kind, is_theirs, data = flags & 0x7F, bool(flags & 0x80), packet[20 + _HEAD.size :]
        if self.is_firewalled and is_theirs:
            return
        stream = self._streams.get((host, number, not is_theirs))
        if kind == _ACK:
            if stream is not None and stream.unacknowledged.pop(sequence, None) is not None:
                stream.repeats = 0
                self._note_progress(stream)
            return
        if stream is None:
            if kind != _OPEN or not is_theirs:
                return
            stream = TunnelStream(host, number, False)
            if not self._owner.handle_link(stream):
                return
            self._streams[host, number, False] = stream
        self._transmit(stream, _ACK, sequence, b"")
        if sequence >= stream.expected:
            stream.received[sequence] = bytes([kind]) + data
        while (segment := stream.received.pop(stream.expected, None)) is not None:
            stream.expected += 1
            self._take(stream, segment[0], segment[1:])

    def _note_progress(self, stream: TunnelStream) -> None:
        if stream.is_ours and not stream.is_open:
            stream.is_open = True
            if not stream.is_closing:
                self._owner.handle_link_open(stream)
        if stream.is_closing and not stream.unacknowledged:
            self._streams.pop((stream.host, stream.number, stream.is_ours), None)

    def _take(self, stream: TunnelStream, kind: int, data: bytes) -> None:
        if kind == _CLOSE and not stream.is_closing:
            self._streams.pop((stream.host, stream.number, stream.is_ours), None)
            stream.is_closing = True
            self._owner.handle_link_closed(stream)
        stream.buffer += data
        while len(stream.buffer) >= 4 and not stream.is_closing:
            size = int.from_bytes(stream.buffer[:4], "big")
            if len(stream.buffer) < 4 + size:
                return
            frame, stream.buffer = stream.buffer[4 : 4 + size], stream.buffer[4 + size :]
            self._owner.handle_link_frame(stream, frame)

    def _queue(self, stream: TunnelStream, kind: int, data: bytes) -> None:
        sequence, stream.sent = stream.sent, stream.sent + 1
        stream.unacknowledged[sequence] = bytes([kind]) + data
        self._transmit(stream, kind, sequence, data)
        if not stream.is_armed:
            stream.is_armed = True
            self._network.call_at(self._network.now + REPEAT, lambda: self._repeat(stream))

    def _repeat(self, stream: TunnelStream) -> None:
        stream.is_armed = False
        key = (stream.host, stream.number, stream.is_ours)
        if self._streams.get(key) is not stream or not stream.unacknowledged:
            return
        stream.repeats += 1
        if stream.repeats > MAX_REPEATS:
            del self._streams[key]
            if not stream.is_closing:
                stream.is_closing = True
                self._owner.handle_link_closed(stream)
            return
        for sequence, segment in list(stream.unacknowledged.items()):
            self._transmit(stream, segment[0], sequence, segment[1:])
        stream.is_armed = True
        self._network.call_at(self._network.now + REPEAT, lambda: self._repeat(stream))

    def _transmit(self, stream: TunnelStream, kind: int, sequence: int, data: bytes) -> None:
        flags = kind | (0x80 if stream.is_ours else 0)
        payload = _HEAD.pack(stream.number, flags, sequence) + data
        self._owner.send_packet(ip_packet(self._owner.address, stream.host, PROTOCOL, payload))


def ip_packet(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    """An IPv4 packet, marked like voice."""
    head = bytes([0x45, 0xB8]) + (20 + len(payload)).to_bytes(2, "big") + bytes([0, 0, 0, 0, 64, protocol, 0, 0])
    return head + IPv4Address(source).packed + IPv4Address(destination).packed + payload
