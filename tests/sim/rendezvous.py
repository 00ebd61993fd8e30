"""The rendezvous in virtual time: service and relay as they are, storage in memory, control connections as queues.

What is simulated is rendezvous/server.py and the connections, which are never slow. A test may make it lie: `tamper`
sees every message before it leaves and says what leaves instead.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

from meshvpn.proto import control
from meshvpn.proto.control import Welcome
from rendezvous.connection import Connection
from rendezvous.core import NetworkDoc
from rendezvous.limits import Limits
from rendezvous.metrics import Metrics
from rendezvous.relay import Relay
from rendezvous.service import Service
from rendezvous.store import Stored
from tests.rendezvous.memory_store import MemoryStore

from .network import Network
from .nodes import RelayMachine
from .streams import Streams

T = TypeVar("T")

LATENCY = (0.03, 0.05)
"""Seconds one way between a member and the server: from … to, drawn for each connection."""
HANDSHAKES = 2
"""Round trips until a connection is open: TCP and TLS."""
WALL = 1_700_000_000
"""Unix time at the start of the simulation."""

Tamper = Callable[[control.Response], list[control.Response]]
"""From what is meant for a member to what it gets."""


class Client(Protocol):
    """The member's end of a connection."""

    def handle_open(self, wire: Wire) -> None: ...

    def handle_message(self, wire: Wire, data: bytes) -> None: ...

    def handle_closed(self, wire: Wire) -> None: ...


class Wire(Connection):
    """One control connection: what is sent arrives in order, unless the connection breaks before."""

    def __init__(self, server: Rendezvous, client: Client, nonce: bytes, latency: float, limits: Limits) -> None:
        super().__init__("somewhere", nonce, limits, now=server.network.now)
        self.client = client
        self.latency = latency
        self.is_open = True
        self._server = server

    def send(self, message: bytes) -> None:
        if not self.is_closing:
            self._server.carry(self, message)

    def close(self) -> None:
        if not self.is_closing:
            self.is_closing = True
            self._server.call_later(self.latency, lambda: self._server.cut(self))


class Rendezvous:
    """The server; `store` is its disk."""

    def __init__(self, network: Network, machine: RelayMachine) -> None:
        self.network = network
        self.store = MemoryStore()
        self.tamper: Tamper | None = None
        self.is_up = True
        self._machine = machine
        self._limits = Limits()
        self._entropy = network.entropy("rendezvous")
        self._open: dict[Wire, None] = {}
        self._transcript = blake2b(digest_size=16)
        self._service = self._make_service()

    @property
    def transcript(self) -> str:
        """A hash over all control messages that arrived."""
        return self._transcript.hexdigest()

    @property
    def streams(self) -> Streams:
        return self._machine.streams

    # What happens to the server.

    def stop(self) -> None:
        """The machine is gone from one moment to the next; the disk stays."""
        self.is_up, self.streams.is_blocked = False, True
        for wire in list(self._open):
            self.cut(wire)
        self._machine.streams.cut()
        self._machine.relay = Relay(self._limits, entropy=self._entropy)
        self._service = self._make_service()

    def start(self) -> None:
        self.is_up, self.streams.is_blocked = True, False

    def cut(self, wire: Wire) -> None:
        """The connection breaks; both ends notice at once."""
        if wire.is_open:
            self.hang_up(wire)
            wire.client.handle_closed(wire)

    def stored(self, uid: bytes) -> Stored:
        stored = complete(self.store.get(uid))
        assert stored is not None
        return stored

    def roll_back(self, uid: bytes, document: NetworkDoc) -> None:
        """The disk shows an older state again."""
        complete(self.store.put(document, self.stored(uid).revision))

    # The member's side calls these.

    def connect(self, client: Client) -> Wire:
        nonce, (least, most) = self._entropy(32), LATENCY
        wire = Wire(self, client, nonce, least + (most - least) * self._entropy(1)[0] / 255, self._limits)
        if self.is_up:
            self.call_later(2 * HANDSHAKES * wire.latency, lambda: self._accept(wire))
        else:
            self.call_later(2 * wire.latency, lambda: self.cut(wire))
        return wire

    def submit(self, wire: Wire, data: bytes) -> None:
        """A message of the member on its way."""
        self.call_later(wire.latency, lambda: self._handle(wire, data))

    def hang_up(self, wire: Wire) -> None:
        """The member closed the connection, or it broke."""
        wire.is_open = False
        if wire in self._open:
            del self._open[wire]
            self._service.handle_closed(wire)
            self._arm()

    # Like rendezvous/server.py.

    def _make_service(self) -> Service:
        return Service(
            self.store,
            self._machine.relay,
            self._limits,
            Metrics(),
            clock=lambda: self.network.now,
            wall=lambda: WALL + self.network.now,
        )

    def _accept(self, wire: Wire) -> None:
        if not wire.is_open:
            return
        if not self.is_up:
            return self.cut(wire)
        self._open[wire] = None
        wire.client.handle_open(wire)
        welcome = Welcome(
            version=control.PROTOCOL_VERSION,
            nonce=wire.nonce,
            observed_host="",
            udp_port=7770,
            udp_port2=7771,
            software="simulation",
        )
        wire.send(control.encode(welcome))

    def _handle(self, wire: Wire, data: bytes) -> None:
        if wire.is_open:
            self._note(wire, b">" + data)
            complete(self._service.handle_message(wire, data))
            self._arm()

    def _arm(self) -> None:
        service = self._service
        if (at := service.next_timeout()) is not None:
            self.network.call_at(at, lambda: complete(service.handle_timeout()))

    # Delivery.

    def carry(self, wire: Wire, data: bytes) -> None:
        """A message for the member on its way."""
        told = [data] if self.tamper is None else map(control.encode, self.tamper(control.decode_response(data)))
        for message in told:
            self.call_later(wire.latency, lambda message=message: self._deliver(wire, message))  # type: ignore[misc]

    def call_later(self, delay: float, action: Callable[[], None]) -> None:
        self.network.call_at(self.network.now + delay, action)

    def _deliver(self, wire: Wire, data: bytes) -> None:
        if wire.is_open:
            self._note(wire, b"<" + data)
            wire.client.handle_message(wire, data)

    def _note(self, wire: Wire, data: bytes) -> None:
        self._transcript.update(f"{self.network.now:.9f} ".encode() + wire.nonce + data)


def complete(work: Coroutine[Any, None, T]) -> T:
    """Run it to its end at once: nobody else is served meanwhile, so there is nothing to wait for."""
    while True:
        try:
            work.send(None)
        except StopIteration as end:
            result: T = end.value
            return result
