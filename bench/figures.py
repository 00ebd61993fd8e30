"""Rounds of samples into medians with their spread, and those into Markdown."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_BEGAN = time.monotonic()


def say(text: str) -> None:
    """A line of progress."""
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {text}", file=sys.stderr, flush=True)


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


@dataclass(frozen=True, slots=True)
class Check:
    """A figure that is required."""

    what: str
    value: float
    bound: float
    is_least: bool = False
    """True if the value must reach the bound, False if it must not pass it."""

    @property
    def holds(self) -> bool:
        return self.value >= self.bound if self.is_least else self.value <= self.bound

    def row(self) -> list[str]:
        """For a table."""
        return [self.what, f"{self.value:.3g}", f"{'≥' if self.is_least else '≤'} {self.bound:g}", self.verdict]

    @property
    def verdict(self) -> str:
        return "yes" if self.holds else "**no**"


@dataclass(frozen=True, slots=True)
class Section:
    """What one question's file found out."""

    title: str
    text: str
    checks: Sequence[Check] = ()


def ratio(
    what: str, ours: Figure | None, theirs: Figure | None, bound: float, *, is_least: bool = False
) -> list[Check]:
    """Of medians of one run; no check where one of the two was not measured."""
    if ours is None or theirs is None or not theirs.median:
        return []
    return [Check(what, ours.median / theirs.median, bound, is_least)]
