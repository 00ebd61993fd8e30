"""The engine and its readable twin: one test class, run against both. Two planes, A and B, joined as each needs."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from meshvpn.proto.commands import DataPlane as Plane
from meshvpn.proto.dataplane import DataPlane
from meshvpn.proto.transport import Address, Path
from tun.engine import DROP_REASONS, Engine

A_HOST, B_HOST = "10.0.0.1", "10.0.0.2"
WAIT = 5.0
"""Seconds after which what should have arrived has not."""


class Side(Protocol):
    """One plane with its TUN."""

    @property
    def plane(self) -> Plane: ...

    def push(self, packet: bytes) -> None: ...

    def take(self, count: int) -> list[bytes]: ...

    def drops(self) -> dict[str, int]: ...


class EngineSide:
    """The compiled engine; a socket pair stands for the TUN, UDP is loopback's."""

    def __init__(self) -> None:
        self.inner, self.tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        for sock in (self.inner, self.udp):
            sock.setblocking(False)
        for sock in (self.inner, self.tun):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.plane = Engine(self.inner.fileno(), [self.udp.fileno()])
        self.plane.start()
        self.address = Address("127.0.0.1", self.udp.getsockname()[1])

    def push(self, packet: bytes) -> None:
        self.tun.send(packet)

    def take(self, count: int) -> list[bytes]:
        taken: list[bytes] = []
        deadline = time.monotonic() + WAIT
        while len(taken) < count and select.select([self.tun], [], [], max(0.0, deadline - time.monotonic()))[0]:
            taken.append(self.tun.recv(65536))
        return taken

    def drops(self) -> dict[str, int]:
        return {name: count for name, count in self.plane.drops().items() if count}

    def close(self) -> None:
        self.plane.stop()
        for sock in (self.inner, self.tun, self.udp):
            sock.close()


class TwinSide:
    """The twin; its transmits go straight to the other side."""

    def __init__(self, port: int) -> None:
        self.plane = DataPlane()
        self.address = Address("127.0.0.1", port)
        self.other: TwinSide = self
        self._taken: list[bytes] = []

    def push(self, packet: bytes) -> None:
        self.plane.handle_packet(packet, now=time.monotonic())

    def take(self, count: int) -> list[bytes]:
        for side in (self.other, self, self.other, self):
            for transmit in side.plane.take_transmits():
                path = Path(0, side.address)
                data = transmit.data if transmit.path.relay is None else transmit.path.relay.header() + transmit.data
                side.other.plane.handle_datagram(data, path, now=time.monotonic())
        self._taken += self.plane.take_packets()
        taken, self._taken = self._taken[:count], self._taken[count:]
        return taken

    def drops(self) -> dict[str, int]:
        return self.plane.drops()


Sides = tuple[Side, Side]


@pytest.fixture(params=["engine", "twin"])
def sides(request: pytest.FixtureRequest) -> Iterator[Sides]:
    with contextlib.ExitStack() as stack:
        if request.param == "engine":
            a, b = EngineSide(), EngineSide()
            stack.callback(a.close)
            stack.callback(b.close)
            introduce(a.plane, b.address, B_HOST)
            introduce(b.plane, a.address, A_HOST)
            yield a, b
        else:
            left, right = TwinSide(1001), TwinSide(1002)
            left.other, right.other = right, left
            introduce(left.plane, right.address, B_HOST)
            introduce(right.plane, left.address, A_HOST)
            yield left, right


class TestPump:
    """What both must do."""

    def test_packets_arrive_whole_and_in_order(self, sides: Sides) -> None:
        a, b = sides
        handshake(a.plane, b.plane, 1)
        packets = [packet(A_HOST, B_HOST, number, size) for number in range(50) for size in (200, 60, 1400)]
        for item in packets:
            a.push(item)
        assert b.take(len(packets)) == packets
        assert a.drops() == b.drops() == {}

    def test_a_hundred_calls_that_start_before_the_handshake_lose_nothing(self, sides: Sides) -> None:
        a, b = sides
        packets = [packet(A_HOST, B_HOST, number) for number in range(300)]
        for item in packets[:200]:
            a.push(item)
        handshake(a.plane, b.plane, 1)
        for item in packets[200:]:
            a.push(item)
        assert sorted(b.take(300)) == sorted(packets)
        assert a.drops() == {}

    def test_what_the_peer_still_sends_with_survives_another_handshake_of_its(self, sides: Sides) -> None:
        a, b = sides
        # Both start at once: A holds B's keypair as previous and its own as current.
        install(a.plane, 22, 12, is_initiator=False)
        install(a.plane, 21, 11, is_initiator=True)
        install(b.plane, 12, 22, is_initiator=True)
        # B asks once more; until it has the answer it goes on with what it has.
        install(a.plane, 23, 13, is_initiator=False)
        sent = packet(B_HOST, A_HOST, 7)
        b.push(sent)
        assert a.take(1) == [sent]

    def test_a_packet_from_an_address_that_is_not_the_peers_is_dropped(self, sides: Sides) -> None:
        a, b = sides
        handshake(a.plane, b.plane, 1)
        good = packet(A_HOST, B_HOST, 2)
        a.push(packet("10.0.0.9", B_HOST, 1))
        a.push(good)
        assert b.take(1) == [good]
        assert b.drops() == {"disallowed_source": 1}

    def test_what_is_no_ip_or_has_no_route_is_dropped_by_name(self, sides: Sides) -> None:
        a, b = sides
        handshake(a.plane, b.plane, 1)
        good = packet(A_HOST, B_HOST, 3)
        for item in (b"rubbish", packet(A_HOST, "10.9.9.9", 1), good):
            a.push(item)
        assert b.take(1) == [good]
        assert a.drops() == {"not_ip": 1, "no_route": 1}

    def test_a_removed_peer_gets_and_sends_nothing(self, sides: Sides) -> None:
        a, b = sides
        handshake(a.plane, b.plane, 1)
        b.plane.remove_peer(1)
        b.plane.add_peer(2)
        a.push(packet(A_HOST, B_HOST, 1))
        until(lambda: b.take(0) == [] and b.drops() == {"unknown_index": 1})


def test_the_engines_names_of_drops_are_the_protocols() -> None:
    from meshvpn.proto.drops import DropReason

    assert tuple(reason.value for reason in list(DropReason)[: len(DROP_REASONS)]) == DROP_REASONS


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def introduce(plane: Plane, address: Address, host: str) -> None:
    plane.add_peer(1)
    plane.add_route(socket.inet_aton(host), 32, 1)
    plane.set_endpoint(1, 0, address.host, address.port)


def handshake(initiator: Plane, responder: Plane, number: int) -> None:
    """Installed in the order of a real one: the responder first."""
    install(responder, 2 * number, 2 * number + 1, is_initiator=False)
    install(initiator, 2 * number + 1, 2 * number, is_initiator=True)


def install(plane: Plane, local: int, remote: int, *, is_initiator: bool) -> None:
    """Keys follow from the indices, so that both ends agree."""
    plane.install_keypair(
        1,
        local_index=local,
        remote_index=remote,
        send_key=bytes([remote, local]) * 16,
        receive_key=bytes([local, remote]) * 16,
        is_initiator=is_initiator,
        created_at=time.monotonic(),
    )


def packet(source: str, destination: str, number: int, size: int = 200) -> bytes:
    """An IPv4 packet of `size` bytes."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, 17, 0) + addresses
    return head + number.to_bytes(4, "big") + bytes(size - 24)
