"""Jitter from counters and arrival times, against RFC 3550's with the sender's clock; and what else arrives oddly."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto.arrivals import SILENCE, Arrivals

FRAME = 0.02
"""Seconds between two packets of a call."""


def test_an_even_stream_has_no_jitter() -> None:
    assert jitter([100.0 + FRAME * number for number in range(500)]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("spread", [0.001, 0.005, 0.015])
@pytest.mark.parametrize("seed", range(3))
def test_a_call_has_the_jitter_that_its_senders_clock_would_tell(spread: float, seed: int) -> None:
    chance = random.Random(seed)
    arrivals = [100.0 + FRAME * number + chance.uniform(0.0, spread) for number in range(2000)]
    # Over the last packets: one value of either varies.
    ours = sum(jitter(arrivals[:end]) for end in range(1000, 2000, 50)) / 20
    theirs = sum(rfc_3550(arrivals[:end]) for end in range(1000, 2000, 50)) / 20
    assert ours == pytest.approx(theirs, rel=0.1)


def test_lost_packets_are_no_jitter() -> None:
    figures = Arrivals()
    for counter in range(500):
        if counter % 7:
            note(figures, counter, 100.0 + FRAME * counter)
    assert figures.jitter == pytest.approx(0.0, abs=1e-9)


def test_a_rate_that_changes_is_followed() -> None:
    figures, now = Arrivals(), 100.0
    for counter in range(400):
        now += FRAME if counter < 200 else FRAME / 50
        note(figures, counter, now)
    assert figures.jitter < 1e-4


def test_silence_ends_a_stream_and_is_no_jitter() -> None:
    figures, now = Arrivals(), 100.0
    for counter in range(100):
        now += 5.0 if counter % 10 == 0 else FRAME
        note(figures, counter, now)
    assert figures.jitter == pytest.approx(0.0, abs=1e-9)


def test_what_is_taken_together_is_one_sample() -> None:
    figures, counter = Arrivals(), 0
    for look in range(200):
        for _ in range(20):
            note(figures, counter, 100.0 + look * 0.002)
            counter += 1
    assert figures.jitter == pytest.approx(0.0, abs=1e-9)


def test_a_new_keypair_is_a_new_stream() -> None:
    figures = Arrivals()
    for index in (1, 2, 2, 1):
        for counter in range(50):
            figures.note(index, counter, counter, now=100.0 + index * 50.0 + counter * FRAME)
    assert figures.jitter == pytest.approx(0.0, abs=1e-9)
    assert figures.reordered_packets == 0


def test_late_packets_are_counted_and_disturb_nothing() -> None:
    figures, expected = Arrivals(), 0
    for number in range(300):
        counter = number - 2 if number % 10 == 7 else number + 1 if number % 10 in (5, 6) else number
        figures.note(1, counter, expected, now=100.0 + FRAME * (counter if counter >= expected else number))
        expected = max(expected, counter + 1)
    assert figures.reordered_packets == 30
    assert figures.jitter == pytest.approx(0.0, abs=1e-9)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2**64 - 1), st.floats(0.0, 0.3)), max_size=60))
def test_any_sequence_gives_a_figure_within_bounds(steps: list[tuple[int, int, float]]) -> None:
    figures, now = Arrivals(), 0.0
    for index, counter, passed in steps:
        now += passed
        figures.note(index, counter, 0, now=now)
    assert 0.0 <= figures.jitter < SILENCE * 2**64
    assert figures.jitter == 0.0 or any(0.0 < passed <= SILENCE for _, _, passed in steps)


@pytest.mark.parametrize(
    ("inner", "outer", "marked", "kept"), [(0xB8, 0xB8, 1, 1), (0xBA, 0xB9, 1, 1), (0xB8, 0, 1, 0), (3, 0xB8, 0, 0)]
)
def test_a_mark_is_kept_if_the_dscp_is_the_same(inner: int, outer: int, marked: int, kept: int) -> None:
    figures = Arrivals()
    figures.note_marks(inner, outer)
    assert (figures.marked_packets, figures.kept_marks) == (marked, kept)


def note(figures: Arrivals, counter: int, now: float) -> None:
    figures.note(1, counter, counter, now=now)


def jitter(arrivals: list[float]) -> float:
    figures = Arrivals()
    for counter, at in enumerate(arrivals):
        note(figures, counter, at)
    return figures.jitter


def rfc_3550(arrivals: list[float]) -> float:
    """§6.4.1, of packets sent every FRAME."""
    value = 0.0
    for before, after in itertools.pairwise(arrivals):
        value += (abs(after - before - FRAME) - value) / 16
    return value
