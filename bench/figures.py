"""Rounds of samples into medians with their spread, and those into Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of some rounds, and the least and greatest."""

    median: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        """As `median (low–high)`."""
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def figure(samples: Iterable[float]) -> Figure:
    """Of at least one sample."""
    values = sorted(samples)
    return Figure(statistics.median(values), values[0], values[-1])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
