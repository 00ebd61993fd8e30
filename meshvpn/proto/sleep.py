"""Did the machine sleep? One clock that stands still meanwhile, one that goes on, and their distance."""

from __future__ import annotations

MIN_SLEEP = 0.5
"""Seconds; below it nothing forgot us, and the two clocks are not read in the same instant."""


class SleepDetector:
    """Compares CLOCK_MONOTONIC, which stands still while the machine is suspended, with CLOCK_BOOTTIME."""

    def __init__(self) -> None:
        self._distance: float | None = None

    def note(self, monotonic: float, boottime: float) -> float | None:
        """Both clocks, read one after the other; the seconds slept since the last call, None: the machine was awake."""
        before, distance = self._distance, boottime - monotonic
        if before is not None and distance - before < MIN_SLEEP:
            # Not moved by less: a pause of the reader between the two clocks must not add up, nor hide a sleep.
            self._distance = min(before, distance)
            return None
        self._distance = distance
        return None if before is None else distance - before
