"""When to ping the candidates that did not answer yet: rounds, fast at first, and pauses between rounds that fail.

    start ──▶ steps at 0, 50, 150, 350, 750 ms, then each second ──▶ pause ──▶ start …

Each round does the same; further recipes (predicted ports, openers) are steps of a round like these.
"""

from __future__ import annotations

STEPS: tuple[float, ...] = (0.0, 0.05, 0.15, 0.35, 0.75, 1.75, 2.75, 3.75, 4.75)
"""Seconds from the start of a round to its pings: fast while both ends have just begun, then patient."""
SHORT_STEPS = STEPS[:5]
"""For a round that repeats one which failed: both ends know each other's candidates already."""
PAUSES = (2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 120.0, 300.0)
"""Seconds between rounds that found nothing direct (with 20 % jitter)."""
IDLE_PAUSE = 1800.0
"""Seconds instead of the last of them while there is no payload: what ends that wait are events, payload above all."""
MIN_INTERVAL = 1.0
"""Seconds between two rounds that events start: whoever floods us with offers gains nothing."""


class Punch:
    """The schedule for one peer."""

    def __init__(self) -> None:
        self.started_at = float("-inf")
        self.failures = 0
        self.next_at: float | None = None
        """The next step, or the next round; None: neither."""
        self._steps = STEPS
        self._step = 0

    def stop(self) -> None:
        """There is nothing to ping."""
        self.next_at = None

    def ask(self, now: float) -> None:
        """Something changed: a round is wanted now, or as soon as MIN_INTERVAL allows if the present one is no use."""
        self.failures = 0
        if now >= self.started_at + MIN_INTERVAL:
            self._step, self.next_at = 0, now
        elif self._step == 0 or self.next_at is None:
            self._step, self.next_at = 0, self.started_at + MIN_INTERVAL

    def is_due(self, now: float) -> bool:
        """A step is to be taken."""
        return self.next_at is not None and now >= self.next_at

    def step(self, now: float) -> bool:
        """Take the step that is due, and those that were missed with it. True: it was the round's last."""
        if self._step == 0:
            self.started_at = now
            self._steps = SHORT_STEPS if self.failures else STEPS
        while self._step < len(self._steps) and now >= self.started_at + self._steps[self._step]:
            self._step += 1
        is_last = self._step == len(self._steps)
        self.next_at = None if is_last else self.started_at + self._steps[self._step]
        return is_last

    def rest(self, now: float, *, is_active: bool, fraction: float) -> None:
        """The round found nothing: pause. `fraction` (0 … 1) spreads the pauses of many."""
        pause = PAUSES[min(self.failures, len(PAUSES) - 1)]
        if self.failures >= len(PAUSES) and not is_active:
            pause = IDLE_PAUSE
        self.failures += 1
        self._step, self.next_at = 0, now + pause * (0.9 + 0.2 * fraction)
