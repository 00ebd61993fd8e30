"""Sockets that come and go while an engine runs."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from meshvpn.proto import dataplane
from meshvpn.proto.commands import AdoptSocket, apply
from meshvpn.proto.dataplane import PathSeen
from meshvpn.proto.transport import Path
from tun.engine import MAX_SOCKETS

from .sides import (
    A_HOST,
    B_HOST,
    WITHOUT,
    EngineSide,
    Side,
    TwinSide,
    install,
    introduce,
    loopback,
    packet,
    receive,
    seal,
    unseal,
)

MANY = 600


@pytest.fixture(params=WITHOUT)
def engine(request: pytest.FixtureRequest) -> Iterator[EngineSide]:
    with contextlib.closing(EngineSide(without=WITHOUT[request.param])) as side:
        introduce(side, side.far[0], B_HOST)
        install(side.plane, 1, 2, is_initiator=True)
        yield side


def test_an_added_socket_receives_sends_and_is_named(engine: EngineSide) -> None:
    with extra() as sock:
        apply(AdoptSocket(7), engine.plane, descriptor=lambda number: {7: sock.fileno()}[number])
        item = packet(B_HOST, A_HOST, 1)
        engine.ends[1].sendto(seal(1, 2, 0, item), sock.getsockname())
        assert engine.take(1) == [item]
        assert engine.events() == [PathSeen(1, Path(7, engine.far[1]))]
        engine.plane.set_endpoint(1, 7, engine.far[1].host, engine.far[1].port)
        packets = [packet(A_HOST, B_HOST, number) for number in range(40)]
        for one in packets:
            engine.push(one)
        got = [engine.ends[1].recvfrom(4096) for _ in packets]
        assert [unseal(1, 2, data)[1][:200] for data, _ in got] == packets
        assert {source for _, source in got} == {sock.getsockname()}
        engine.plane.remove_socket(7)


def test_what_waits_in_a_socket_when_it_is_added_is_received(engine: EngineSide) -> None:
    with extra() as sock:
        item = packet(B_HOST, A_HOST, 1)
        engine.ends[1].sendto(seal(1, 2, 0, item), sock.getsockname())
        engine.plane.add_socket(3, sock.fileno())
        assert engine.take(1) == [item]
        engine.plane.remove_socket(3)


def test_marks_and_trains_of_an_added_socket_are_those_of_the_first(engine: EngineSide) -> None:
    with extra() as sock:
        engine.plane.add_socket(3, sock.fileno())
        engine.udp, first = sock, engine.udp  # where `inject_joined` and `settle` send to
        items = [packet(B_HOST, A_HOST, number, tos=2) for number in range(20)]
        engine.ends[0].setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 3)
        engine.inject_joined(*(seal(1, 2, number, item) for number, item in enumerate(items)))
        assert {item[1] for item in engine.take(20)} == {3}
        engine.plane.remove_socket(3)
        engine.udp = first


def test_the_engine_does_not_touch_a_removed_socket_nor_what_has_its_descriptor(engine: EngineSide) -> None:
    stop, sender = threading.Event(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    targets: list[tuple[str, int]] = [engine.udp.getsockname()]
    flood = threading.Thread(target=lambda: flooding(stop, sender, targets))
    flood.start()
    try:
        for _ in range(200):
            with extra() as sock:
                number = sock.fileno()
                engine.plane.add_socket(9, number)
                targets[0] = sock.getsockname()
                engine.plane.take_datagrams()
                engine.plane.remove_socket(9)
            # Nothing else opens a descriptor here: the next socket has that of the last.
            with extra() as heir:
                assert heir.fileno() == number
                heir.setblocking(True)
                engine.ends[1].sendto(b"\5mine", heir.getsockname())
                assert heir.recv(100) == b"\5mine"
    finally:
        stop.set()
        flood.join()
        sender.close()
    assert all(data != b"\5mine" for _, data in engine.datagrams())


def test_packets_for_a_path_on_a_removed_socket_are_dropped_by_name(engine: EngineSide) -> None:
    with extra() as sock:
        engine.plane.add_socket(4, sock.fileno())
        engine.plane.set_endpoint(1, 4, engine.far[0].host, engine.far[0].port)
        engine.plane.remove_socket(4)
    for number in range(30):
        engine.push(packet(A_HOST, B_HOST, number))
    engine.settle()
    assert engine.drops() == {"send_failed": 30}
    with pytest.raises(ValueError, match="no such socket"):
        engine.plane.set_endpoint(1, 4, engine.far[0].host, engine.far[0].port)
    engine.plane.set_endpoint(1, 0, engine.far[0].host, engine.far[0].port)
    engine.push(packet(A_HOST, B_HOST, 99))
    assert len(engine.sent(1)) == 1


def test_a_removed_secondary_costs_the_second_copies_alone(engine: EngineSide) -> None:
    with extra() as sock:
        engine.plane.add_socket(4, sock.fileno())
        engine.plane.set_endpoint(
            1, 0, *engine.ends[0].getsockname(), secondary=(4, *engine.ends[1].getsockname(), b"")
        )
        engine.plane.remove_socket(4)
    for number in range(30):
        engine.push(packet(A_HOST, B_HOST, number))
    assert len(engine.sent(30)) == 30
    engine.settle()
    assert engine.drops() == {"send_failed": 30}


def test_hundreds_of_sockets_at_once(engine: EngineSide) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(extra()) for _ in range(MANY)]
        for number, sock in enumerate(socks, 3):
            engine.plane.add_socket(number, sock.fileno())
        items = [packet(B_HOST, A_HOST, number) for number in range(MANY)]
        for number, (sock, item) in enumerate(zip(socks, items, strict=True)):
            engine.ends[1].sendto(seal(1, 2, number, item), sock.getsockname())
        assert sorted(engine.take(MANY)) == items
        for number in range(3, 3 + MANY):
            engine.plane.remove_socket(number)
    engine.settle()


def test_a_path_may_lead_over_an_ipv6_socket_that_was_added(engine: EngineSide) -> None:
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as far,
    ):
        for one in (sock, far):
            one.bind(("::1", 0))
        engine.plane.add_socket(1, sock.fileno())
        engine.plane.set_endpoint(1, 1, "::1", far.getsockname()[1])
        engine.push(packet(A_HOST, B_HOST, 1))
        assert len(receive(far, 1)) == 1
        # A socket of another family gets the number: the kernel refuses the address.
        engine.plane.remove_socket(1)
        with extra() as other:
            engine.plane.add_socket(1, other.fileno())
            engine.push(packet(A_HOST, B_HOST, 2, tos=0xB8))
            engine.settle()
            assert engine.drops() == {"send_failed": 1}
            engine.plane.remove_socket(1)


def test_sockets_may_be_added_and_removed_while_the_engine_is_stopped(engine: EngineSide) -> None:
    engine.plane.stop()
    with extra() as sock, extra() as gone:
        engine.plane.add_socket(3, sock.fileno())
        engine.plane.add_socket(4, gone.fileno())
        engine.plane.remove_socket(4)
        engine.plane.start()
        item = packet(B_HOST, A_HOST, 1)
        engine.ends[1].sendto(seal(1, 2, 0, item), gone.getsockname())
        engine.ends[1].sendto(seal(1, 2, 1, item), sock.getsockname())
        assert engine.take(1) == [item]
        assert gone.recv(4096) == seal(1, 2, 0, item)
        engine.plane.remove_socket(3)


@pytest.fixture(params=["engine", "twin"])
def either(request: pytest.FixtureRequest) -> Iterator[Side]:
    with contextlib.closing(TwinSide() if request.param == "twin" else EngineSide()) as side:
        yield side


@pytest.mark.parametrize("number", [-1, 0, MAX_SOCKETS])
def test_a_number_is_in_range_and_used_once(either: Side, number: int) -> None:
    with extra() as sock, pytest.raises(ValueError, match="socket number"):
        either.plane.add_socket(number, sock.fileno())


@pytest.mark.parametrize("number", [-1, 7, MAX_SOCKETS])
def test_what_was_not_added_is_not_removed(either: Side, number: int) -> None:
    with pytest.raises(ValueError, match="no socket"):
        either.plane.remove_socket(number)


def test_what_is_no_socket_is_refused_and_its_number_stays_free() -> None:
    with contextlib.closing(EngineSide()) as side, extra() as sock:
        with open(os.devnull, "rb") as file, pytest.raises(OSError, match="is no socket"):
            side.plane.add_socket(3, file.fileno())
        with pytest.raises(OSError, match="is no socket"):
            side.plane.add_socket(3, -1)
        side.plane.add_socket(3, sock.fileno())
        with pytest.raises(OSError, match="cannot be waited for"):
            side.plane.add_socket(4, sock.fileno())
        side.plane.remove_socket(3)


def test_the_twin_has_as_many_sockets_and_drops_by_the_same_name() -> None:
    assert dataplane.MAX_SOCKETS == MAX_SOCKETS
    side = TwinSide()
    introduce(side, side.far[0], B_HOST)
    install(side.plane, 1, 2, is_initiator=True)
    with pytest.raises(ValueError, match="no such socket"):
        side.plane.set_endpoint(1, 4, "127.0.0.1", 1)
    apply(AdoptSocket(4), side.plane)
    side.plane.set_endpoint(1, 4, side.far[0].host, side.far[0].port)
    side.push(packet(A_HOST, B_HOST, 1))
    assert len(side.sent(2)) == 1
    side.plane.remove_socket(4)
    side.push(packet(A_HOST, B_HOST, 2))
    assert side.sent(1) == []
    assert side.drops() == {"send_failed": 1}


@contextlib.contextmanager
def extra() -> Iterator[socket.socket]:
    """A nonblocking UDP socket on loopback."""
    with loopback() as sock:
        sock.setblocking(False)
        yield sock


def flooding(stop: threading.Event, sender: socket.socket, targets: list[tuple[str, int]]) -> None:
    while not stop.is_set():
        with contextlib.suppress(ConnectionRefusedError):
            sender.sendto(b"\1\0\0\0flood", targets[0])
