"""When to ping the candidates that did not answer yet: rounds, fast at first, and pauses between rounds that fail.

    start ──▶ openers for HOLD seconds, to addresses behind NATs that were never tried before
          ──▶ steps at 0, 50, 150, 300, … ms, then each second ──▶ pause ──▶ start …

An opener is a ping with so few hops that it passes our own NATs and dies long before the peer's. A router that accepts
what nobody asked for (a Linux masquerade without an INPUT rule that drops it) takes a ping that comes before our own
first packet for a connection to itself: our packets then clash with it, leave from another port, and the hole is where
the peer does not look. With openers both ends have their holes before the first ping arrives.

Further recipes, for NATs that give each destination another port, are in guess.py.
"""

from __future__ import annotations

from .candidate import Candidate, CandidateKind

OPENER_TTL = 4
"""Hops: two NATs and two more; the peer's NAT is further away on any way through the internet."""
FAR_OPENER_TTL = 8
"""Hops of an opener where one of OPENER_TTL led to nothing: the carrier's network may be deep."""
HOLD = 0.3
"""Seconds from the first opener to the first ping: the peer hears of us later than we of it by less than that."""
STEPS: tuple[float, ...] = (0.0, 0.05, 0.15, 0.3, 0.4, 0.75, 1.75, 2.75, 3.75, 4.75)
"""Seconds from the start of a round to its pings: fast while both ends have just begun, then patient."""
SHORT_STEPS = STEPS[:6]
"""For a round that repeats one which failed: both ends know each other's candidates already."""
PAUSES = (2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 120.0, 300.0)
"""Seconds between rounds that found nothing direct (with 20 % jitter)."""
IDLE_PAUSE = 1800.0
"""Seconds instead of the last of them while there is no payload: what ends that wait are events, payload above all."""
MIN_INTERVAL = 1.0
"""Seconds between two rounds that events start: whoever floods us with offers gains nothing."""


def needs_opener(candidate: Candidate) -> bool:
    """Is it an address outside of a NAT? A mapped port admits anybody, and a local address needs no hole."""
    kinds = (CandidateKind.SERVER_REFLEXIVE, CandidateKind.CONFIGURED, CandidateKind.PEER_REFLEXIVE)
    return candidate.kind in kinds and not candidate.address.is_ipv6


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
