"""The deadlines against a plain dictionary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto.deadlines import Deadlines

numbers = st.integers(1, 8)
instants = st.integers(0, 50).map(float)
steps = st.lists(st.tuples(numbers, st.none() | instants) | instants, max_size=80)


@given(steps)
def test_they_agree_with_a_dictionary_that_is_searched(actions: list[tuple[int, float | None] | float]) -> None:
    deadlines, model = Deadlines(), dict[int, float]()
    for action in actions:
        if isinstance(action, tuple):
            number, at = action
            deadlines.set(number, at)
            model.pop(number, None)
            model |= {} if at is None else {number: at}
        else:
            due = sorted((at, number) for number, at in model.items() if at <= action)
            assert deadlines.take_due(now=action) == [number for _, number in due]
            model = {number: at for number, at in model.items() if at > action}
        assert deadlines.first() == min(model.values(), default=None)
        assert len(deadlines) == len(model)


def test_a_deadline_that_is_moved_for_ever_takes_no_memory() -> None:
    deadlines = Deadlines()
    for number in range(10_000):
        deadlines.set(number % 3, 1000.0 + number)
        assert len(deadlines._heap) < 100
    assert deadlines.take_due(now=1e9) == [1, 2, 0]
    assert deadlines.first() is None
