"""The replay window, from outside: which counters of authentic packets are accepted, by both, over random sequences."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto.constants import REJECT_AFTER_MESSAGES
from meshvpn.proto.replay import WINDOW_BITS

from .sides import A_HOST, B_HOST, Side, install, introduce, open_side, packet, seal

FAR_AHEAD = 1 << 40


def test_each_counter_is_accepted_once(joined: Side) -> None:
    assert accepted(joined, [0, 0, 1, 1, 5, 3, 5, 3, 4, 2, 2]) == [0, 1, 5, 3, 4, 2]
    assert joined.drops() == {"replayed": 5}


def test_the_window_reaches_back_its_whole_length_and_no_further(joined: Side) -> None:
    top = FAR_AHEAD
    order = [top, top - WINDOW_BITS + 1, top - WINDOW_BITS, top - WINDOW_BITS + 1, top - 1]
    assert accepted(joined, order) == [top, top - WINDOW_BITS + 1, top - 1]


def test_a_leap_ahead_forgets_nothing_that_is_still_inside(joined: Side) -> None:
    order = [10, 11, 11 + WINDOW_BITS - 1, 11, 12, 10]
    assert accepted(joined, order) == [10, 11, 11 + WINDOW_BITS - 1, 12]


@pytest.mark.parametrize("leap", [63, 64, 65, 8191, 8192, 8193, 16383, 16384, 16385, FAR_AHEAD])
def test_after_a_leap_the_words_of_the_earlier_round_are_clear(joined: Side, leap: int) -> None:
    behind = [leap - back for back in (1, 2, 63, 64, 65, 8190) if leap - back > 0]
    assert accepted(joined, [0, leap, *behind]) == [0, leap, *behind]


def test_a_round_later_every_word_of_the_ring_is_clear(joined: Side) -> None:
    words = 256
    first = [64 * word + 5 for word in range(words)]
    second = [64 * (words + word) + bit for word in range(1, words, 2) for bit in (9, 5 - 64)]
    assert accepted(joined, first + second) == first + second


def test_the_last_counter_of_a_keypair_is_refused(joined: Side) -> None:
    assert accepted(joined, [REJECT_AFTER_MESSAGES - 1, REJECT_AFTER_MESSAGES, 2**64 - 1]) == [
        REJECT_AFTER_MESSAGES - 1
    ]
    assert joined.drops() == {"expired_key": 2}


def test_a_forged_packet_moves_no_window(joined: Side) -> None:
    forged = bytearray(seal(1, 2, FAR_AHEAD, b""))
    forged[20] ^= 1
    joined.inject(bytes(forged))
    assert accepted(joined, [0, 1]) == [0, 1]


def test_loss_is_what_is_missing_below_the_greatest(joined: Side) -> None:
    accepted(joined, [0, 1, 4, 9, 5])
    assert joined.stats().lost_packets == 5


STEPS = st.one_of(st.integers(-3, 3), st.integers(-130, 130), st.integers(-9000, 20000))


@pytest.mark.parametrize("gro", [True, False])
def test_the_engine_and_its_twin_accept_the_same_sequences(*, gro: bool) -> None:
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(open_side("engine" if gro else "engine-no-gro"))
        twin = stack.enter_context(open_side("twin"))
        for one in (engine, twin):
            introduce(one, one.far[0], B_HOST)
        keypairs = iter(range(10, 100_000, 2))

        @given(st.lists(STEPS, min_size=1, max_size=120), st.integers(0, 1 << 50))
        @settings(max_examples=60, deadline=None, derandomize=True)
        def check(steps: list[int], start: int) -> None:
            local, counter, counters = next(keypairs), start, []
            for step in steps:
                counter = max(0, counter + step)
                counters.append(counter)
            for one in (engine, twin):
                install(one.plane, local, local + 1, is_initiator=True)
            assert accepted(engine, counters, local) == accepted(twin, counters, local)

        check()


def accepted(side: Side, counters: list[int], local: int = 1) -> list[int]:
    """The counters whose packets reached the TUN, in that order."""
    before = side.stats().rx_packets
    side.inject(
        *(seal(local, local + 1, counter, packet(B_HOST, A_HOST, number)) for number, counter in enumerate(counters))
    )
    taken = side.take(side.stats().rx_packets - before)
    return [counters[int.from_bytes(item[20:24], "big")] for item in taken]
