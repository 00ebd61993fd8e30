"""The sliding window: a table of cases, and an oracle that remembers everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto.replay import WINDOW_BITS, ReplayWindow

W = WINDOW_BITS
GREATEST = 2**64 - 2**13 - 2
"""The last counter before REJECT_AFTER_MESSAGES."""

NUMBERED = [
    # (number of the case, counters in order, what each must give)
    (1, [0, 0], [True, False]),
    (2, [1, 0, 1, 0], [True, True, False, False]),
    (3, [5, 3, 4, 5, 4, 3], [True, True, True, False, False, False]),
    (4, [W, 0], [True, False]),
    (5, [W - 1, 0], [True, True]),
    (6, [W, 1, 0, 1], [True, True, False, False]),
    (7, [0, W, 0, 1, 1], [True, True, False, True, False]),
    (8, [0, 2 * W, W, W + 1, W + 1], [True, True, False, True, False]),
    (9, [0, 100 * W, 99 * W + 1, 99 * W, 0], [True, True, True, False, False]),
    (10, [63, 64, 62, 65, 63], [True, True, True, True, False]),
    (11, [W, W - 1, W - 2, 1, W + 1, 1, 2], [True, True, True, True, True, False, True]),
    (12, [GREATEST, GREATEST - W + 1, GREATEST - W, GREATEST], [True, True, False, False]),
    (13, list(range(3 * W, 2 * W, -1)), [True] * W),
    (14, [3 * W, *range(W, 2 * W + 1)], [True] + [False] * (W + 1)),
    (15, [*range(200), *range(200)], [True] * 200 + [False] * 200),
]


@pytest.mark.parametrize(("counters", "expected"), [case[1:] for case in NUMBERED], ids=[case[0] for case in NUMBERED])
def test_numbered(counters: list[int], expected: list[bool]) -> None:
    window = ReplayWindow()
    assert [window.accept(counter) for counter in counters] == expected


ordered = st.integers(0, 3 * W)
near_the_edge = st.builds(lambda base, offset: max(0, base * W + offset), st.integers(0, 4), st.integers(-2, 2))


@given(st.lists(ordered | near_the_edge, max_size=300))
def test_the_window_agrees_with_a_set_of_all_counters(counters: list[int]) -> None:
    window, seen = ReplayWindow(), set[int]()
    for counter in counters:
        is_old = bool(seen) and counter <= max(seen) - W
        expected = counter not in seen and not is_old
        assert window.may_accept(counter) == expected
        assert window.accept(counter) == expected
        if expected:
            seen.add(counter)
        assert window.received == len(seen)
        assert window.lost == max(seen) + 1 - len(seen)


@given(st.lists(ordered, max_size=50), ordered)
def test_asking_changes_nothing(counters: list[int], question: int) -> None:
    asked, unasked = ReplayWindow(), ReplayWindow()
    for counter in counters:
        asked.may_accept(question)
        assert asked.accept(counter) == unasked.accept(counter)
    assert asked.may_accept(question) == unasked.accept(question)


def test_a_new_window_has_lost_nothing() -> None:
    assert ReplayWindow().lost == 0
