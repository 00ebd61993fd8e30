"""The relay's streams in virtual time: TCP passes where UDP does not, in order and without loss.

What is simulated is rendezvous/streams.py and net/stream.py; readers are never slow.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Protocol

from meshvpn.proto.transport import Address, Transmit

from .network import Network

HANDSHAKES = 3
"""Round trips until a stream is open: TCP, TLS and HTTP."""
LATENCY = 0.04
"""Seconds one way between a member and the server."""
LOOPBACK = "127.0.0.1"


class Client(Protocol):
    """A member's shell."""

    def handle_stream_open(self, stream: Stream) -> None: ...

    def handle_stream_data(self, stream: Stream, data: bytes) -> None: ...

    def handle_stream_closed(self, stream: Stream) -> None: ...


class Server(Protocol):
    """The relay."""

    def handle_stream_data(self, data: bytes, source: Address) -> None: ...

    def handle_stream_closed(self, source: Address) -> None: ...


class Stream:
    """One of them. `address` is its loopback address at the server, `local` that of the member's socket 2."""

    def __init__(self, streams: Streams, client: Client, address: Address) -> None:
        self.client = client
        self.address = address
        self.local = Address(LOOPBACK, 9)
        self.is_over = False
        self._streams = streams

    def send(self, transmit: Transmit) -> None:
        """What the member sends by socket 2."""
        relay = transmit.path.relay
        data = transmit.data if relay is None else relay.header() + transmit.data
        self._streams.later(self, lambda: self._streams.server.handle_stream_data(data, self.address))

    def close(self) -> None:
        """The member closes it, and hears no more of it."""
        self._streams.end(self)


class Streams:
    """All of them. `is_blocked`: TCP to the relay's streams does not pass either."""

    def __init__(self, network: Network, server: Server) -> None:
        self.server = server
        self.is_blocked = False
        self.opened: list[float] = []
        self._network = network
        self._open: dict[Address, Stream] = {}
        self._ports = count(50_000)

    def __len__(self) -> int:
        return len(self._open)

    def open(self, client: Client) -> Stream:
        """A member connects."""
        stream = Stream(self, client, Address(LOOPBACK, next(self._ports)))
        self.opened.append(self._network.now)
        self.later(stream, lambda: self._accept(stream), legs=2 * HANDSHAKES)
        return stream

    def deliver(self, to: Address, data: bytes) -> None:
        """The relay sends to a stream."""
        if (stream := self._open.get(to)) is not None:
            self.later(stream, lambda: stream.client.handle_stream_data(stream, data))

    def later(self, stream: Stream, action: Callable[[], None], *, legs: int = 1) -> None:
        """After so many one-way trips, if the stream is there still."""
        self._network.call_at(self._network.now + legs * LATENCY, lambda: None if stream.is_over else action())

    def end(self, stream: Stream) -> None:
        """It breaks; the server notices."""
        stream.is_over = True
        if self._open.pop(stream.address, None) is not None:
            self.server.handle_stream_closed(stream.address)

    def cut(self) -> None:
        """All of them break; both ends notice."""
        for stream in list(self._open.values()):
            self.end(stream)
            stream.client.handle_stream_closed(stream)

    def _accept(self, stream: Stream) -> None:
        if self.is_blocked:
            stream.is_over = True
            return stream.client.handle_stream_closed(stream)
        self._open[stream.address] = stream
        return stream.client.handle_stream_open(stream)
