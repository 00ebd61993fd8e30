"""Instants by number, of which the earliest is found without looking at all of them.

A heap with stale entries: moving a deadline leaves the old entry behind, to be thrown away when it comes to the top, or
when half of the heap is such entries.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

_SLACK = 64
"""Stale entries that are never worth a clean-up."""


class Deadlines:
    """One deadline a number, in monotonic seconds."""

    def __init__(self) -> None:
        self._at: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._at)

    def set(self, number: int, at: float | None) -> None:
        """Replace the number's deadline; None: it has none."""
        if at is None:
            self._at.pop(number, None)
        elif self._at.get(number) != at:
            self._at[number] = at
            heappush(self._heap, (at, number))
        if len(self._heap) > 2 * len(self._at) + _SLACK:
            self._heap = [(at, number) for number, at in self._at.items()]
            heapify(self._heap)

    def first(self) -> float | None:
        """The earliest deadline."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, *, now: float) -> list[int]:
        """The numbers whose deadline has come, earliest first; they have none until `set` gives them one."""
        due = []
        while (at := self.first()) is not None and at <= now:
            number = heappop(self._heap)[1]
            del self._at[number]
            due.append(number)
        return due
