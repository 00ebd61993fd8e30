from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto.replay import WINDOW_BITS, ReplayWindow


@given(st.lists(st.integers(0, 3 * WINDOW_BITS), max_size=300))
def test_the_window_agrees_with_a_set_of_all_counters(counters: list[int]) -> None:
    window, seen = ReplayWindow(), set[int]()
    for counter in counters:
        is_old = bool(seen) and counter <= max(seen) - WINDOW_BITS
        assert window.accept(counter) == (counter not in seen and not is_old)
        if not is_old:
            seen.add(counter)
