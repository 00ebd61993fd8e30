"""What a handshake does to a peer's stamps and to the keypairs in use, in the engine and in its twin.

The peer is played by the test: it seals with the keys that `install` gave.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from meshvpn.proto import primitives
from meshvpn.proto.dataplane import DataPlane
from meshvpn.proto.transport import Address, Path
from tun.engine import Engine

WAIT = 5.0
"""Seconds after which a packet has not come."""
OWN, OTHER = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")


def test_a_handshake_is_an_answer_to_what_was_sent(side: Side) -> None:
    side.install(1, 2, is_initiator=True)
    side.send()
    assert side.plane.stats(1).first_sent_at > 0
    side.install(3, 4, is_initiator=True)
    assert side.plane.stats(1).first_sent_at == 0


def test_ends_that_started_at_once_lose_nothing_that_is_under_way_when_one_asks_again(side: Side) -> None:
    side.install(21, 22, is_initiator=False)  # the peer's, which it sends with
    side.install(11, 12, is_initiator=True)  # ours
    side.receive(21, 1)
    side.install(31, 32, is_initiator=True)
    side.receive(21, 2)  # sealed before the peer had heard of the new one
    side.receive(31, 3)
    assert side.received == [1, 2, 3]


def test_who_hears_the_peer_on_the_keypair_in_use_keeps_that_one(side: Side) -> None:
    side.install(21, 22, is_initiator=False)
    side.install(11, 12, is_initiator=True)
    side.receive(21, 1)
    side.receive(11, 2)
    side.install(31, 32, is_initiator=True)
    side.receive(11, 3)
    assert side.received == [1, 2, 3]


def test_an_answer_of_which_the_peer_makes_no_use_displaces_nothing_when_we_ask(side: Side) -> None:
    side.install(11, 12, is_initiator=True)
    side.receive(11, 1)
    side.install(21, 22, is_initiator=False)  # the peer found out meanwhile that it has a session
    side.install(31, 32, is_initiator=True)
    side.receive(11, 2)
    side.receive(31, 3)
    side.receive(21, 4)  # it may come yet
    assert side.received == [1, 2, 3, 4]


class Side:
    """The twin with one peer."""

    def __init__(self, plane: DataPlane | Engine, peer: Address) -> None:
        self.plane = plane
        self.received: list[int] = []
        self._counters: dict[int, int] = {}
        plane.add_peer(1)
        plane.add_route(OTHER, 32, 1)
        plane.set_endpoint(1, 0, peer.host, peer.port)

    def install(self, local: int, remote: int, *, is_initiator: bool) -> None:
        self._counters[local] = 0
        self.plane.install_keypair(
            1,
            local_index=local,
            remote_index=remote,
            send_key=bytes([remote]) * 32,
            receive_key=bytes([local]) * 32,
            is_initiator=is_initiator,
            created_at=time.monotonic(),
        )

    def send(self) -> None:
        """One packet to the peer."""
        self.push(packet(OWN, OTHER, 0))

    def receive(self, index: int, number: int) -> None:
        """One packet of the peer's, on the keypair with our index `index`."""
        counter = self._counters[index]
        self._counters[index] += 1
        body = primitives.aead_encrypt(bytes([index]) * 32, counter, packet(OTHER, OWN, number), b"")
        self.deliver(struct.pack("<IIQ", 4, index, counter) + body)

    def push(self, inner: bytes) -> None:
        assert isinstance(self.plane, DataPlane)
        self.plane.handle_packet(inner, now=time.monotonic())

    def deliver(self, datagram: bytes) -> None:
        assert isinstance(self.plane, DataPlane)
        self.plane.handle_datagram(datagram, Path(0, Address("127.0.0.1", 1)), now=time.monotonic())
        self.received += [number_of(inner) for inner in self.plane.take_packets()]


class EngineSide(Side):
    """The engine with one peer; a socket pair stands for the TUN, the peer's socket is on loopback."""

    def __init__(self, stack: ExitStack) -> None:
        tun_pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        inner, self._tun = (stack.enter_context(sock) for sock in tun_pair)
        udp, self._peer = (stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
        for sock in (udp, self._peer):
            sock.bind(("127.0.0.1", 0))
        inner.setblocking(False)
        udp.setblocking(False)
        self._tun.settimeout(WAIT)
        self._peer.settimeout(WAIT)
        self._peer.connect(udp.getsockname())
        engine = Engine(inner.fileno(), [udp.fileno()])
        engine.start()
        stack.callback(engine.stop)
        super().__init__(engine, Address(*self._peer.getsockname()))

    def push(self, inner: bytes) -> None:
        self._tun.send(inner)
        self._peer.recv(2048)

    def deliver(self, datagram: bytes) -> None:
        self._peer.send(datagram)
        self.received.append(number_of(self._tun.recv(2048)))


@pytest.fixture(params=["engine", "twin"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    with ExitStack() as stack:
        yield EngineSide(stack) if request.param == "engine" else Side(DataPlane(), Address("127.0.0.1", 1))


def packet(source: bytes, destination: bytes, number: int) -> bytes:
    return struct.pack("!BBHHHBBH", 0x45, 0, 32, 0, 0, 64, 17, 0) + source + destination + number.to_bytes(12, "big")


def number_of(inner: bytes) -> int:
    return int.from_bytes(inner[20:32], "big")
