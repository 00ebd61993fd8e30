"""A machine that was suspended is told from one that was busy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto.sleep import MIN_SLEEP, SleepDetector


def test_a_sleep_is_told_once_with_its_length() -> None:
    detector = SleepDetector()
    assert detector.note(100.0, 5100.0) is None  # it slept before we were there
    assert detector.note(101.0, 5101.0) is None
    slept = detector.note(102.0, 5402.0)
    assert slept == 300.0
    assert detector.note(103.0, 5403.0) is None


def test_who_is_busy_has_not_slept() -> None:
    detector = SleepDetector()
    for at, pause in ((1.0, 0.0), (500.0, 0.4), (501.0, 0.0), (502.0, 0.45), (503.0, 0.3)):
        assert detector.note(at, at + pause) is None


@given(st.lists(st.floats(0, MIN_SLEEP * 0.99), max_size=50), st.floats(2 * MIN_SLEEP, 1e6))
def test_pauses_between_the_clocks_neither_add_up_nor_hide_a_sleep(pauses: list[float], sleep: float) -> None:
    detector = SleepDetector()
    detector.note(0.0, 0.0)
    for at, pause in enumerate(pauses, 1):
        assert detector.note(at, at + pause) is None
    slept = detector.note(1000.0, 1000.0 + sleep)
    assert slept is not None
    assert abs(slept - sleep) <= MIN_SLEEP
