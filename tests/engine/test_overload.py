"""More than fits: what goes first, what is dropped, and by which name. Nothing grows."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from meshvpn.proto.dataplane import STAGED_BYTES, STAGED_LIMIT
from tun.engine import memory_blocks

from .network import own_network, run
from .sides import (
    A_HOST,
    B_HOST,
    WITHOUT,
    EngineSide,
    Side,
    install,
    introduce,
    packet,
    seal,
    unseal,
    until,
)

EF, CS5, CS3, AF31, AF41, CS1 = (dscp << 2 for dscp in (46, 40, 24, 26, 34, 8))
BUFFER = 128 << 10
EVENT_LIMIT = 4096
SO_SNDBUFFORCE = 32
VOICE, BULK = 200, 1400
ROUNDS = 200
PRIORITY = 0x10002
"""A socket's that is of the class 1:2."""


@pytest.fixture(params=WITHOUT)
def slow(request: pytest.FixtureRequest) -> Iterator[EngineSide]:
    with open_slow(request.param, "20mbit") as side:
        yield side


@contextlib.contextmanager
def open_slow(kind: str, rate: str, *, is_only_for_us: bool = False) -> Iterator[EngineSide]:
    """A joined side whose network takes so much, and whose socket has a small buffer.

    `is_only_for_us`: what sockets of PRIORITY send passes at once.
    """
    with own_network():
        if is_only_for_us:
            run("tc qdisc add dev lo root handle 1: htb default 1")
            run(f"tc class add dev lo parent 1: classid 1:1 htb rate {rate} burst 64kb quantum 9000")
            run("tc class add dev lo parent 1: classid 1:2 htb rate 10gbit quantum 9000")
            run("tc qdisc add dev lo parent 1:1 bfifo limit 16mb")
        else:
            run(f"tc qdisc add dev lo root tbf rate {rate} burst 64kb limit 16mb")
        side = EngineSide(without=WITHOUT[kind])
    with contextlib.closing(side):
        side.udp.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
        introduce(side, side.far[0], B_HOST)
        install(side.plane, 1, 2, is_initiator=True)
        yield side


@pytest.mark.netns
@pytest.mark.parametrize("mark", [EF, CS5, CS3, AF31])
def test_voice_and_signalling_pass_a_full_socket_and_bulk_is_dropped(slow: EngineSide, mark: int) -> None:
    offer(slow, [packet(A_HOST, B_HOST, 0, 800, tos=mark)])
    got = arrived(slow)
    assert got[mark, 800] == ROUNDS
    assert got[0, BULK] > 0
    drops = slow.drops()
    assert drops == {"send_full_bulk": drops["send_full_bulk"]}
    assert slow.plane.stats(1).tx_packets == sum(got.values()) + drops["send_full_bulk"]


@pytest.mark.netns
def test_small_packets_pass_without_a_mark(slow: EngineSide) -> None:
    offer(slow, [packet(A_HOST, B_HOST, 0, VOICE)])
    # Small packets have three quarters of the buffer, of which bulk takes two: on a busy machine they may meet its end.
    assert arrived(slow)[0, VOICE] >= 0.9 * ROUNDS
    assert slow.drops().keys() <= {"send_full_bulk", "send_full_small"}


@pytest.mark.netns
def test_a_mark_that_asks_for_less_or_for_video_is_bulk(slow: EngineSide) -> None:
    offer(slow, [packet(A_HOST, B_HOST, 0, 900, tos=AF41), packet(A_HOST, B_HOST, 0, 900, tos=CS1)])
    got = arrived(slow)
    assert max(got[AF41, 900], got[CS1, 900]) < ROUNDS


@pytest.mark.netns
@pytest.mark.parametrize("kind", WITHOUT)
def test_the_ranks_have_their_shares_where_each_alone_is_too_much(kind: str) -> None:
    with open_slow(kind, "4mbit") as side:
        named = set()
        for name, size, tos in (("bulk", BULK, 0), ("small", VOICE, 0), ("expedited", VOICE, EF)):
            named.add(f"send_full_{name}")
            for _ in range(1000):
                side.push(packet(A_HOST, B_HOST, 0, size, tos=tos))
            until(lambda: side.drops().keys() >= named)
            assert side.drops().keys() == named


@pytest.mark.netns
def test_when_the_socket_has_room_again_bulk_goes_as_before(slow: EngineSide) -> None:
    offer(slow, [])
    assert slow.drops()["send_full_bulk"] > 0
    arrived(slow)
    dropped = slow.drops()
    for number in range(20):
        slow.push(packet(A_HOST, B_HOST, number, BULK))
    assert len(slow.sent(20)) == 20
    assert slow.drops() == dropped


@pytest.mark.netns
@pytest.mark.parametrize("kind", ["engine", "engine-plain"])
def test_voice_that_is_relayed_for_others_passes_a_full_socket_and_bulk_is_dropped(kind: str) -> None:
    with open_slow(kind, "20mbit", is_only_for_us=True) as side:
        for peer, relay_id in ((2, 20), (3, 30)):
            side.plane.add_peer(peer)
            side.plane.set_relay_paths(peer, relay_id, [(0, side.far[peer - 1].host, side.far[peer - 1].port)])
        side.plane.set_relaying(1e9, 1e9)
        head = struct.pack("<III", 5, 20, 30)
        bulk, voice, marked = (
            head + name + bytes(size) for name, size in ((b"bulk", BULK), (b"plai", 216), (b"mark", 800))
        )
        for _ in range(ROUNDS):
            at = time.monotonic() + 0.002
            set_source(side.ends[1], 0)
            side.inject(*[bulk] * 25, voice, far=1)
            set_source(side.ends[1], EF)
            side.inject(marked, far=1)
            time.sleep(max(0.0, at - time.monotonic()))
        until(lambda: side.plane.relayed()[0] == 27 * ROUNDS)
        got = Counter(data[12:16] for data in everything(side.ends[2]))
        assert got[b"mark"] == ROUNDS
        assert got[b"plai"] >= 0.9 * ROUNDS
        assert 0 < got[b"bulk"] < 25 * ROUNDS
        drops = side.drops()
        assert drops.keys() <= {"send_full_bulk", "send_full_small"}
        assert got.total() + sum(drops.values()) == 27 * ROUNDS


class TestTheDevice:
    @pytest.fixture
    def full(self) -> Iterator[EngineSide]:
        """A joined side whose device takes some packets, and none any more until they are taken from it."""
        with contextlib.closing(EngineSide()) as side:
            introduce(side, side.far[0], B_HOST)
            install(side.plane, 1, 2, is_initiator=True)
            side.inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            self.counter = 0
            yield side

    def arrive(self, side: EngineSide, size: int, tos: int = 0) -> Counter[str]:
        """A packet for the device; returns what was dropped."""
        before = Counter(side.drops())
        side.inject(seal(1, 2, self.counter, packet(B_HOST, A_HOST, 0, size, tos=tos)))
        side.settle()
        self.counter += 1
        return Counter(side.drops()) - before

    def fill(self, side: EngineSide) -> int:
        """Returns how many packets it took."""
        before = self.counter
        until(lambda: self.arrive(side, BULK) == {"tun_full_bulk": 1})
        return self.counter - before - 1

    def test_what_it_refuses_is_dropped_by_rank(self, full: EngineSide) -> None:
        self.fill(full)
        assert self.arrive(full, VOICE) == {"tun_full_small": 1}
        assert self.arrive(full, BULK, EF) == {"tun_full_expedited": 1}
        assert self.arrive(full, BULK) == {"tun_full_bulk": 1}

    def test_for_a_while_after_that_it_is_not_for_bulk(self, full: EngineSide) -> None:
        def yields() -> bool:
            # Unless this takes longer than that while.
            full.take(self.fill(full))
            dropped = self.arrive(full, BULK) + self.arrive(full, VOICE) + self.arrive(full, 800, EF)
            full.take(3 - dropped.total())
            return dropped == {"tun_full_bulk": 1}

        until(yields)
        until(lambda: not self.arrive(full, BULK))
        assert full.take(1) == [packet(B_HOST, A_HOST, 0, BULK)]


def test_packets_that_wait_for_a_keypair_are_bounded_and_the_newest_stay(side: Side) -> None:
    flood = [packet(A_HOST, B_HOST, number) for number in range(STAGED_LIMIT + 300)]
    for item in flood:
        side.push(item)
    side.settle()
    assert side.drops() == {"no_keypair": 300}
    install(side.plane, 1, 2, is_initiator=True)
    assert [unseal(1, 2, message)[1][:200] for message in side.sent(STAGED_LIMIT)] == flood[300:]


def test_packets_that_wait_for_all_peers_together_are_bounded(side: Side) -> None:
    size, each = 8000, 400
    for number in range(4):
        introduce(side, side.far[1], f"10.0.1.{number}", peer=2 + number)
        for _ in range(each):
            side.push(packet(A_HOST, f"10.0.1.{number}", 0, size))
    side.settle()
    assert side.drops() == {"no_keypair": 4 * each - STAGED_BYTES // size}


@pytest.mark.parametrize("kind", WITHOUT)
def test_events_for_python_are_bounded(kind: str) -> None:
    with contextlib.closing(EngineSide(without=WITHOUT[kind])) as side:
        introduce(side, side.far[0], B_HOST)
        side.settle()
        side.plane.take_events(1_000)
        install(side.plane, 1, 2, is_initiator=False)
        side.inject(seal(1, 2, 0, b""))
        side.settle()
        before = memory_blocks()
        for number in range(3, 2 * EVENT_LIMIT + 601, 2):
            # Each first use of a keypair is an event.
            install(side.plane, number, number + 1, is_initiator=False)
            side.inject(seal(number, number + 1, 0, b""))
            side.settle()
        assert side.drops() == {"queue_full": 300}
        assert memory_blocks() < before + 10
        assert len(side.events()) == EVENT_LIMIT


def offer(side: EngineSide, items: list[bytes]) -> None:
    """Seven times what the network takes, most of it bulk, and each of `items` once a round."""
    for _ in range(ROUNDS):
        at = time.monotonic() + 0.002
        for _ in range(25):
            side.push(packet(A_HOST, B_HOST, 0, BULK))
        for item in items:
            side.push(item)
        time.sleep(max(0.0, at - time.monotonic()))
    side.settle()


def arrived(side: EngineSide) -> Counter[tuple[int, int]]:
    """What came to the far end, by mark and length, when no more comes."""
    packets = (unseal(1, 2, message)[1] for message in everything(side.ends[0]))
    return Counter((inner[1], int.from_bytes(inner[2:4])) for inner in packets)


def everything(sock: socket.socket) -> Iterator[bytes]:
    """What comes until no more comes."""
    sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            yield sock.recv(65536)


def set_source(sock: socket.socket, mark: int) -> None:
    """What it sends is marked so and passes a network that is slow for others."""
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, mark)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, PRIORITY)
