"""Loss on the direct path: voice is on a clean relay within three seconds, for any seed and direction of the loss."""

from __future__ import annotations

import pytest

from .duel import Duel

HEAVY = 0.3
LIMIT = 3.0
"""Seconds from the loss's start to the last packet that is sent where it is lost."""
DIRECTIONS = {"there": (0,), "back": (1,), "both": (0, 1)}
RTTS = [0.01, 0.08, 0.2]
SEEDS = range(1, 26)
FAULTS = [19, 58, 184]
"""Seeds that took longest when this was made."""


@pytest.mark.parametrize("rtt", RTTS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_third_of_voice_that_is_lost_moves_it_within_three_seconds(direction: str, rtt: float) -> None:
    for seed in (*SEEDS, *FAULTS):
        duel = talking(seed, rtt)
        started_at = duel.now
        for number in DIRECTIONS[direction]:
            duel.ways[0][number].loss = HEAVY
        duel.run(LIMIT + 1.0)
        for number, end in enumerate(duel.ends):
            if number in DIRECTIONS[direction]:
                assert end.direct_at - started_at <= LIMIT, seed
            else:
                assert end.moves_since(started_at) == 0, seed


@pytest.mark.parametrize("rtt", RTTS)
def test_voice_is_back_when_the_path_heals_and_stays(rtt: float) -> None:
    for seed in range(1, 6):
        duel = talking(seed, rtt)
        started_at = duel.now
        duel.lose(HEAVY)
        duel.run(20.0)
        healed_at = duel.now
        duel.lose(0.0)
        duel.run(40.0)
        assert all(end.is_direct for end in duel.ends), seed
        # To the relay, perhaps once more to try, and back.
        assert max(end.moves_since(started_at) for end in duel.ends) <= 4, seed
        assert max(end.moves_since(healed_at) for end in duel.ends) == 1, seed


def test_a_peer_that_does_not_tell_what_it_misses_is_left_by_pings_alone() -> None:
    for seed in range(1, 6):
        duel = talking(seed, 0.08, says_loss=False)
        started_at = duel.now
        duel.lose(HEAVY)
        duel.run(12.0)
        assert all(0.0 < end.direct_at - started_at <= 10.0 for end in duel.ends), seed


@pytest.mark.parametrize("burst", [3, 15])
def test_a_burst_moves_nothing(burst: int) -> None:
    for seed in range(1, 11):
        duel = talking(seed, 0.08)
        started_at = duel.now
        for way in duel.ways[0]:
            way.burst = burst
        duel.run(12.0)
        assert [end.moves_since(started_at) for end in duel.ends] == [0, 0], seed


def test_loss_of_the_other_path_moves_nothing() -> None:
    for seed in range(1, 11):
        duel = talking(seed, 0.08)
        started_at = duel.now
        for way in duel.ways[1]:
            way.loss = HEAVY
        duel.run(10.0)
        assert [end.moves_since(started_at) for end in duel.ends] == [0, 0], seed


def test_what_was_lost_on_the_relay_is_not_held_against_the_direct_path() -> None:
    duel = talking(1, 0.08)
    duel.lose(1.0)
    duel.run(8.0)
    assert not any(end.is_direct for end in duel.ends)
    for way in duel.ways[1]:
        way.loss = HEAVY
    duel.lose(0.0)
    duel.run(15.0)
    assert all(end.is_direct for end in duel.ends)
    since = duel.now
    duel.run(20.0)
    assert [end.moves_since(since) for end in duel.ends] == [0, 0]


def test_jitter_and_slight_loss_everywhere_are_no_reason_to_flap() -> None:
    for seed in range(1, 4):
        duel = talking(seed, 0.06, jitter=0.01, loss=0.02)
        started_at = duel.now
        duel.run(120.0)
        assert max(end.moves_since(started_at) for end in duel.ends) <= 2, seed


def talking(seed: int, rtt: float, *, jitter: float = 0.0, loss: float = 0.0, says_loss: bool = True) -> Duel:
    """A call that has been on for some seconds. The relay takes 80 ms more."""
    duel = Duel(seed, rtt, rtt + 0.08, says_loss=says_loss)
    for place in duel.ways:
        for way in place:
            way.jitter, way.loss = jitter, loss
    duel.call()
    duel.run(8.0 + seed % 20 / 10)
    return duel
