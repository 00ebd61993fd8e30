"""What became of our data, as the peer's pongs tell: loss is seen in fifty packets a second, not in two pings.

A pong carries the peer's totals of what it got and what it misses of us, on whatever path. The difference of two of
them speaks of the primary alone if nothing else carried data of ours meanwhile. A packet is missed when a later one
arrives: a burst, or an outage of any length, is therefore in one report, which is left out when a path is judged.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .score import SURE, loss_bounds

MAX_REPORTS = 256
"""Reports that are remembered of a path."""
SPAN = 120.0
"""Seconds for which they are."""
WINDOWS = (50, 100, 400)
"""Newest packets over which loss is judged: a second of a call, two, and what slight loss takes."""
NOTABLE = 4, 0.1, 25
"""Packets lost, and their share, of so many of the newest, that are worth a closer look at the path."""
_MODULUS = 2**32


@dataclass(frozen=True, slots=True)
class Report:
    """So many of `total` packets were lost."""

    at: float
    lost: int
    total: int


class Losses:
    """The reports of one path. `lost` of `total` packets; `at_least` is the share that the path surely loses now."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """What the path was like says nothing of it any more."""
        self._reports: deque[Report] = deque()
        self.lost = self.total = 0
        self.at_least = 0.0

    def note(self, report: Report) -> None:
        """Another one came."""
        self._reports.append(report)
        self.lost += report.lost
        self.total += report.total
        self.forget(report.at - SPAN)
        self.at_least = max(loss_bounds(*self._without_worst(window), SURE)[0] for window in WINDOWS)

    def forget(self, before: float) -> None:
        """What is older says little of a call now."""
        while self._reports and (self._reports[0].at < before or len(self._reports) > MAX_REPORTS):
            old = self._reports.popleft()
            self.lost -= old.lost
            self.total -= old.total

    @property
    def is_notable(self) -> bool:
        """Is so much lost that the path is worth a closer look?"""
        least, share, window = NOTABLE
        lost, total = _sum(self._newest(window))
        return lost >= least and lost >= share * total

    def _without_worst(self, packets: int) -> tuple[int, int]:
        taken = self._newest(packets)
        if taken:
            taken.remove(max(taken, key=lambda report: report.lost))
        return _sum(taken)

    def _newest(self, packets: int) -> list[Report]:
        """With so many packets or more; none if there are not as many."""
        taken: list[Report] = []
        for report in reversed(self._reports):
            taken.append(report)
            packets -= report.total
            if packets <= 0:
                return taken
        return []


class Counts:
    """The peer's totals, and what of their growth one path is to answer for."""

    def __init__(self) -> None:
        self._from = float("inf")
        self._number = 0
        self._base: tuple[int, int] | None = None

    def start_anew(self, since: float) -> None:
        """Another path is alone with our data: what is asked from `since` on tells of it; never, if that is inf."""
        self._from, self._base = since, None

    def note(self, number: int, asked_at: float, received: int, lost: int, now: float) -> Report | None:
        """The totals in the pong to the path's ping `number`, and what they say of the time since the last ones."""
        if asked_at < self._from or (self._base is not None and number <= self._number):
            return None  # of another path too, or overtaken
        base, self._base, self._number = self._base, (received, lost), number
        if base is None:
            return None
        got, missed = _difference(received, base[0]), _difference(lost, base[1])
        # Missed ones that came late are taken back; a negative count of what was got is a peer that counts anew.
        if got < 0 or got + missed <= 0:
            return None
        return Report(now, missed, got + missed)


def _difference(after: int, before: int) -> int:
    return (after - before + _MODULUS // 2) % _MODULUS - _MODULUS // 2


def _sum(reports: list[Report]) -> tuple[int, int]:
    total = sum(report.total for report in reports)
    return min(max(0, sum(report.lost for report in reports)), total), total
