"""The E-model: published points, and that worse networks never score better."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto.score import BASE_R, loss_bounds, mos, one_way_loss, r_factor

SECONDS = st.floats(0, 5, allow_nan=False)
SHARES = st.floats(0, 1, allow_nan=False)


def test_a_perfect_network_leaves_only_the_packetisation_delay() -> None:
    assert r_factor(0.0, 0.0, 0.0) == pytest.approx(BASE_R - 0.024 * 20)


@pytest.mark.parametrize(
    ("rtt", "expected"),
    # d = rtt/2 + 20 ms; Id = 0.024·d + 0.11·(d - 177.3)·H(d - 177.3), computed by hand.
    [(0.26, 93.2 - 3.6), (0.3146, 93.2 - 4.2552), (0.36, 93.2 - 4.8 - 0.11 * 22.7), (0.76, 93.2 - 9.6 - 0.11 * 222.7)],
)
def test_delay_costs_little_up_to_177_ms_and_much_beyond(rtt: float, expected: float) -> None:
    assert r_factor(rtt, 0.0, 0.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("loss", "cost"),
    # ITU-T G.113 Appendix I: Bpl = 25.1 for G.711 with concealment. 25.1 % loss costs half of 95.
    [(0.01, 95 * 1 / 26.1), (0.05, 95 * 5 / 30.1), (0.251, 47.5), (1.0, 95 * 100 / 125.1)],
)
def test_loss_costs_what_g113_says(loss: float, cost: float) -> None:
    assert r_factor(0.0, 0.0, 0.0) - r_factor(0.0, 0.0, loss) == pytest.approx(cost)


def test_jitter_counts_as_the_delay_of_the_buffer_that_absorbs_it() -> None:
    assert r_factor(0.0, 0.03, 0.0) == pytest.approx(r_factor(0.12, 0.0, 0.0))


@pytest.mark.parametrize(
    ("r", "expected"),
    # ITU-T G.107 Annex B, Table B.1: R 90, 80, 70, 60, 50 are MOS 4.34, 4.03, 3.60, 3.10, 2.58.
    [(90, 4.34), (80, 4.03), (70, 3.60), (60, 3.10), (50, 2.58), (0, 1.0), (-5, 1.0), (100, 4.5), (120, 4.5)],
)
def test_mos_matches_the_published_table(r: float, expected: float) -> None:
    assert mos(r) == pytest.approx(expected, abs=0.01)


@given(SECONDS, SECONDS, SHARES, SECONDS, SECONDS, SHARES)
def test_what_is_worse_in_every_respect_never_scores_better(
    rtt: float, jitter: float, loss: float, more_rtt: float, more_jitter: float, more_loss: float
) -> None:
    better = r_factor(rtt, jitter, loss)
    worse = r_factor(rtt + more_rtt, jitter + more_jitter, min(1.0, loss + more_loss))
    assert worse <= better + 1e-9
    assert 0.0 <= worse <= BASE_R


@given(st.floats(-10, 110), st.floats(0, 10))
def test_a_higher_r_is_never_a_lower_opinion(r: float, more: float) -> None:
    assert mos(r) <= mos(r + more) + 1e-9
    assert 1.0 <= mos(r) <= 4.5


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_share_outside_its_range_is_taken_as_its_nearest_bound(loss: float) -> None:
    assert r_factor(0.05, 0.0, loss) == r_factor(0.05, 0.0, min(max(loss, 0.0), 1.0))


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_bounds_of_a_loss_enclose_it_and_narrow_with_evidence(lost: int, answered: int) -> None:
    total = lost + answered
    low, high = loss_bounds(lost, total)
    assert 0.0 <= low <= high <= 1.0
    if total:
        assert low <= lost / total + 1e-9
        assert high >= lost / total - 1e-9
        more = loss_bounds(10 * lost, 10 * total)
        assert more[1] - more[0] <= high - low + 1e-9


@pytest.mark.parametrize(
    ("lost", "total", "low", "high"),
    # Wilson's interval for z = 1.28, as the roots of (share - x)² = z²·x·(1 - x)/total.
    [(0, 0, 0.0, 1.0), (0, 10, 0.0, 0.14078), (4, 10, 0.22973, 0.59843), (1, 1, 0.37902, 1.0)],
)
def test_the_bounds_are_wilsons(lost: int, total: int, low: float, high: float) -> None:
    assert loss_bounds(lost, total) == pytest.approx((low, high), abs=1e-4)


@given(SHARES)
def test_a_round_trip_is_lost_if_either_way_is(one_way: float) -> None:
    assert one_way_loss(1 - (1 - one_way) ** 2) == pytest.approx(one_way, abs=1e-6)
