"""The compiled relay pump on loopback: rules, runs, marks, quota, and what reaches Python."""

from __future__ import annotations

import gc
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator

import pytest

from meshvpn.proto.transport import RELAY_HEADER, RELAY_WORD
from tun.relay import Datagram, RelayPump

WAIT = 5.0
HOST = "127.0.0.1"
ONE, OTHER = b"1" * 16, b"2" * 16
UDP_SEGMENT, UDP_GRO, SOL_UDP = 103, 104, 17


class Member:
    """A member's socket."""

    def __init__(self, relay: socket.socket) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((HOST, 0))
        self.udp.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        self.udp.settimeout(WAIT)
        self._relay = relay.getsockname()

    @property
    def port(self) -> int:
        return int(self.udp.getsockname()[1])

    def send(self, data: bytes, *, tos: int = 0) -> None:
        self.udp.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        self.udp.sendto(data, self._relay)

    def send_run(self, frames: list[bytes]) -> None:
        """Equal sizes, the last one may be shorter: one message for the kernel."""
        size = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", len(frames[0])))]
        self.udp.sendmsg([b"".join(frames)], size, 0, self._relay)

    def take(self, count: int) -> list[bytes]:
        return [self.udp.recv(65536) for _ in range(count)]


class Bench:
    """A pump with one network of two, and one of one."""

    def __init__(self, *, byte_rate: float = 1e9, byte_burst: float = 1e9, without: Collection[str] = ()) -> None:
        self.sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        for sock in self.sockets:
            sock.bind((HOST, 0))
            sock.setblocking(False)
        self.pump = RelayPump(
            [sock.fileno() for sock in self.sockets], byte_rate=byte_rate, byte_burst=byte_burst, without=without
        )
        self.a, self.b, self.stranger = (Member(self.sockets[0]) for _ in range(3))
        self.pump.bind(10, ONE, 0, HOST, self.a.port)
        self.pump.bind(20, ONE, 0, HOST, self.b.port)
        self.pump.bind(30, OTHER, 0, HOST, self.stranger.port)
        self.pump.start()

    def drops(self) -> dict[str, int]:
        return {name: count for name, count in self.pump.drops().items() if count}

    def close(self) -> None:
        self.pump.stop()
        for sock in (*self.sockets, self.a.udp, self.b.udp, self.stranger.udp):
            sock.close()


PLAIN = ("udp_gso", "udp_gro", "sendmmsg", "recvmmsg")


@pytest.fixture(params=[(), *((name,) for name in PLAIN), PLAIN], ids=lambda names: "without " + " ".join(names))
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(without=request.param)
    yield made
    made.close()


def test_frames_pass_unchanged_and_in_order(bench: Bench) -> None:
    frames = [frame(10, 20, number.to_bytes(4, "big") + bytes(number % 7)) for number in range(200)]
    for item in frames:
        bench.a.send(item)
    assert bench.b.take(200) == frames
    assert bench.pump.forwarded() == (200, sum(map(len, frames)))
    bench.b.send(frame(20, 10, b"back"))
    assert bench.a.take(1) == [frame(20, 10, b"back")]
    assert bench.drops() == {}


def test_a_run_that_the_kernel_joined_arrives_as_the_frames_that_it_was(bench: Bench) -> None:
    frames = [frame(10, 20, bytes([number]) * 200) for number in range(40)] + [frame(10, 20, b"short")]
    bench.a.send_run(frames)
    assert bench.b.take(41) == frames


def test_a_run_to_several_receivers_is_taken_apart(bench: Bench) -> None:
    third = Member(bench.sockets[0])
    bench.pump.bind(40, ONE, 1, HOST, third.port)
    frames = [frame(10, (20, 40)[number // 3 % 2], bytes([number]) * 100) for number in range(12)]
    bench.a.send_run(frames)
    assert bench.b.take(6) == [item for item in frames if item[8:12] == frames[0][8:12]]
    assert third.take(6) == [item for item in frames if item[8:12] == frames[3][8:12]]
    third.udp.close()


def test_the_outer_mark_is_kept(bench: Bench) -> None:
    bench.a.send(frame(10, 20, b"voice"), tos=0xB8)
    _, control, _, _ = bench.b.udp.recvmsg(2048, 64)
    assert [(level, kind, data[0]) for level, kind, data in control] == [(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)]


@pytest.mark.parametrize(
    ("source", "destination", "reason"),
    [
        (20, 10, "disallowed_source"),  # somebody else's id
        (99, 20, "disallowed_source"),
        (0, 20, "disallowed_source"),
        (10, 99, "unknown_peer"),
        (10, 0, "unknown_peer"),
        (10, 30, "unknown_peer"),  # another network's
    ],
)
def test_what_breaks_a_rule_is_dropped_by_name(bench: Bench, source: int, destination: int, reason: str) -> None:
    bench.a.send(frame(source, destination, b"x"))
    bench.a.send(frame(10, 20, b"good"))
    assert bench.b.take(1) == [frame(10, 20, b"good")]
    assert bench.drops() == {reason: 1}


def test_a_seat_that_moved_or_left_is_followed(bench: Bench) -> None:
    bench.pump.bind(20, ONE, 1, HOST, bench.stranger.port)
    bench.a.send(frame(10, 20, b"moved"))
    assert bench.stranger.take(1) == [frame(10, 20, b"moved")]
    bench.b.send(frame(20, 10, b"from the old place"))
    until(lambda: bench.drops() == {"disallowed_source": 1})
    bench.pump.unbind(20)
    bench.pump.unbind(20)
    bench.a.send(frame(10, 20, b"gone"))
    until(lambda: bench.drops() == {"disallowed_source": 1, "unknown_peer": 1})


def test_what_is_no_frame_reaches_python_with_its_origin(bench: Bench) -> None:
    strange = [b"\0\1\0\0STUN", b"\5", b"\5\0\0\0\1\0\0\0\2\0\0", b"\5\1\0\0" + bytes(20)]
    for data in strange:
        bench.a.send(data)
    taken: list[Datagram] = []

    def all_came() -> bool:
        taken.extend(bench.pump.take_datagrams())
        return len(taken) == len(strange)

    until(all_came)
    assert taken == [Datagram(0, HOST, bench.a.port, data) for data in strange]
    assert bench.drops() == {}


def test_what_is_too_long_for_python_is_dropped(bench: Bench) -> None:
    bench.a.send(bytes(3000))
    until(lambda: bench.drops() == {"too_big": 1})


def test_an_empty_datagram_is_dropped(bench: Bench) -> None:
    bench.a.send(b"")
    until(lambda: bench.drops() == {"too_short": 1})


def test_a_seat_sends_no_more_than_its_quota() -> None:
    bench = Bench(byte_rate=0.001, byte_burst=2500)
    try:
        frames = [frame(10, 20, bytes([number]) * 1000) for number in range(3)]
        for item in frames:
            bench.a.send(item)
        assert bench.b.take(2) == frames[:2]
        until(lambda: bench.drops() == {"over_limit": 1})
        bench.b.send(frame(20, 10, b"the other's quota is its own"))
        assert bench.a.take(1) == [frame(20, 10, b"the other's quota is its own")]
    finally:
        bench.close()


def test_a_members_seats_share_one_quota_while_the_older_one_is_bound() -> None:
    bench = Bench(byte_rate=0.001, byte_burst=1500)
    try:
        bench.pump.bind(11, ONE, 0, HOST, bench.a.port, account=10)
        bench.a.send(frame(10, 20, bytes(1000)))
        bench.a.send(frame(11, 20, bytes(1000)))
        bench.b.take(1)
        until(lambda: bench.drops() == {"over_limit": 1})
        bench.pump.unbind(10)
        bench.a.send(frame(11, 20, bytes(1000)))
        assert bench.b.take(1) == [frame(11, 20, bytes(1000))]
    finally:
        bench.close()


def test_seats_are_found_whatever_was_bound_and_unbound() -> None:
    bench = Bench()
    try:
        # Numbers that differ by the table's size stand in one probe run.
        seats = [7 + (number << 18) for number in range(1, 40)]
        for seat in seats:
            bench.pump.bind(seat, ONE, 0, HOST, bench.b.port)
        for seat in seats[::2]:
            bench.pump.unbind(seat)
        for seat in seats:
            bench.a.send(frame(10, seat, b"x"))
        assert bench.b.take(len(seats[1::2])) == [frame(10, seat, b"x") for seat in seats[1::2]]
        until(lambda: bench.drops() == {"unknown_peer": len(seats[::2])})
    finally:
        bench.close()


@pytest.mark.parametrize(("seat", "number", "host"), [(0, 0, HOST), (1, 2, HOST), (1, 0, "::1"), (1, 0, "name")])
def test_what_cannot_be_bound_is_refused(bench: Bench, seat: int, number: int, host: str) -> None:
    with pytest.raises(ValueError, match=r"seat|address"):
        bench.pump.bind(seat, ONE, number, host, 7000)


def test_it_starts_and_stops_without_leaving_anything() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        Bench().close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def frame(source: int, destination: int, packet: bytes) -> bytes:
    return RELAY_HEADER.pack(RELAY_WORD, source, destination) + packet
