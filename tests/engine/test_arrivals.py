"""What the engine and its twin count of how a peer's packets arrive."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from .sides import A_HOST, B_HOST, WITHOUT, EngineSide, Side, install, introduce, packet, seal

EF = 46 << 2
GAPS = (0.004, 0.016)


def test_packets_that_others_overtook_are_counted(joined: Side) -> None:
    inject(joined, [0, 1, 4, 2, 3, 5, 9, 8])
    stats = joined.stats()
    assert (stats.reordered_packets, stats.duplicate_packets, stats.lost_packets) == (3, 0, 2)


def test_copies_and_what_is_too_late_are_duplicates(joined: Side) -> None:
    inject(joined, [0, 0, 20_000, 1, 20_000, 19_999])
    stats = joined.stats()
    assert (stats.reordered_packets, stats.duplicate_packets) == (1, 3)
    assert joined.drops() == {"replayed": 3}


def test_the_counts_outlive_a_keypair(joined: Side) -> None:
    inject(joined, [1, 0, 0])
    install(joined.plane, 3, 4, is_initiator=True)
    joined.inject(*(seal(3, 4, counter, b"") for counter in (1, 0, 0)))
    stats = joined.stats()
    assert (stats.reordered_packets, stats.duplicate_packets, stats.lost_packets) == (2, 2, 0)
    joined.plane.forget_keypairs(1)
    assert joined.stats()[4:8] == stats[4:8]


def test_received_and_lost_count_keepalives_too_and_each_keypair_once(joined: Side) -> None:
    inject(joined, [0, 3])
    joined.inject(seal(1, 2, 5, b""))
    for number in range(3, 13, 2):
        # The peer uses each at once, and what was before goes.
        install(joined.plane, number, number + 1, is_initiator=False)
        joined.inject(seal(number, number + 1, 1, b""))
        joined.settle()
    stats = joined.stats()
    assert (stats.rx_packets, stats.received_packets, stats.lost_packets) == (2, 8, 8)


def test_a_late_packet_is_received_and_no_longer_lost(joined: Side) -> None:
    inject(joined, [0, 2])
    assert joined.stats()[4:6] == (2, 1)
    inject(joined, [1])
    assert joined.stats()[4:6] == (3, 0)


def test_the_engine_counts_as_its_twin_does(joined: Side) -> None:
    chance = random.Random(7)
    counters = [number for number in range(400) if chance.random() > 0.1]
    counters += chance.sample(counters, 40)
    counters.sort(key=lambda counter: counter + chance.uniform(0, 12))
    inject(joined, counters)
    greatest, seen, late = -1, set(), 0
    for counter in counters:
        late += counter < greatest and counter not in seen
        greatest = max(greatest, counter)
        seen.add(counter)
    stats = joined.stats()
    assert stats.reordered_packets == late > 0
    assert stats.duplicate_packets == 40
    assert stats.lost_packets == greatest + 1 - len(seen)


def test_uneven_arrivals_are_jitter(joined: Side) -> None:
    at = time.monotonic()
    for counter in range(60):
        at += GAPS[counter % 2]
        time.sleep(max(0.0, at - time.monotonic()))
        joined.inject(seal(1, 2, counter, b""))
    # RFC 3550 has 6 ms for these gaps; a machine that stalls adds to it.
    assert 0.002 < joined.stats().jitter < 0.2


@pytest.mark.parametrize("kind", WITHOUT)
def test_what_the_engine_takes_together_is_one_sample(kind: str) -> None:
    with contextlib.closing(EngineSide(without=WITHOUT[kind])) as side:
        introduce(side, side.far[0], B_HOST)
        install(side.plane, 1, 2, is_initiator=True)
        side.plane.stop()
        side.inject(*(seal(1, 2, counter, packet(B_HOST, A_HOST, counter)) for counter in range(16)))
        side.plane.start()
        assert len(side.take(16)) == 16
        assert side.stats().jitter == 0.0


@pytest.mark.parametrize(("source", "destination"), [(B_HOST, A_HOST), ("fd00::2", "fd00::1")])
def test_marks_that_survive_the_path_are_counted(joined: Side, source: str, destination: str) -> None:
    joined.plane.add_route(bytes.fromhex("fd00") + bytes(14), 16, 1)
    marked, plain = packet(source, destination, 1, tos=EF), packet(source, destination, 2)
    joined.inject(seal(1, 2, 0, marked), seal(1, 2, 1, plain), seal(1, 2, 2, marked), tos=EF)
    joined.inject(seal(1, 2, 3, marked), seal(1, 2, 4, plain), seal(1, 2, 5, b""))
    joined.inject(seal(1, 2, 6, marked), tos=EF ^ 4)
    stats = joined.stats()
    assert (stats.marked_packets, stats.kept_marks) == (4, 2)


def test_no_marks_are_counted_where_none_are_read() -> None:
    with contextlib.closing(EngineSide(without=frozenset({"send_tos", "recv_tos"}))) as side:
        introduce(side, side.far[0], B_HOST)
        install(side.plane, 1, 2, is_initiator=True)
        side.inject(seal(1, 2, 0, packet(B_HOST, A_HOST, 1, tos=EF)), tos=EF)
        assert len(side.take(1)) == 1
        assert side.stats().marked_packets == 0


def inject(side: Side, counters: list[int]) -> None:
    side.inject(*(seal(1, 2, counter, packet(B_HOST, A_HOST, counter)) for counter in counters))
