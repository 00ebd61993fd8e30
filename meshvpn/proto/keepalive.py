"""How often an idle path must be used so that the NATs on it remember it: learned from those that forgot.

    25 s ──forgotten twice in a row──▶ 15 s ──the same──▶ 10 s
      ◀───held for hours: a trial, over at the first failure───

The two ends take turns, so that both find out: a ping of the end behind the NAT always passes, and it is the other one
that learns that there was no way in. A ping after a whole interval of silence is a test of the path. It held if that
ping was answered; it was forgotten if pings were lost until the peer sent one, or until the path was doubted. A single
failure may be an outage. An answer out of turn proves little: what the peer sent in vain before has opened its own NAT.

Without the trials one bad week would cost packets for ever; a trial that fails leaves the path shut to one end for some
seconds, at most once in six hours, and ever more seldom.
"""

from __future__ import annotations

from .probe import Probe
from .transport import Path

INTERVALS = (25.0, 15.0, 10.0)
"""Seconds, the longest first: below the 30 s of the strictest common NATs (RFC 4787 §4.3 asks for 120), and 10 s, which
virtually every NAT allows."""
TURN = (0.9, 0.93)
"""Shares of the interval, from the peer's last ping, between which its turn comes who was asked last."""
FALLBACK = (0.97, 1.0)
"""The same of who asked last: the other end missed its turn. Well apart, so that a shut path shows before it opens."""
WHOLE = 0.85
"""Share of the interval for which a path must have been silent for a ping to test it."""
FAILURES = 2
FAILURE_MEMORY = 150.0
"""Seconds between two failures, at most, that make one pattern: three turns of one end."""
TRIAL_AFTER = 6 * 3600.0
TRIAL_LIMIT = 7 * 86400.0
"""Seconds without a failure until a longer interval is tried, at first and at most; each that fails doubles it."""


class Keepalive:
    """The interval for one peer."""

    def __init__(self) -> None:
        self._rung = 0
        self._failures = 0
        self._failed_at = float("-inf")
        self._tested: Path | None = None
        self._is_turn = False
        self._is_trial = False
        self._trial_after = TRIAL_AFTER
        self._since = float("-inf")
        """When the interval was chosen, or last found to be needed."""
        self._is_changed = False

    @property
    def interval(self) -> float:
        """Seconds."""
        return INTERVALS[self._rung]

    def restore(self, interval: float, now: float) -> None:
        """What was learned before the daemon was restarted."""
        self._since = now
        self._rung = next((rung for rung, it in enumerate(INTERVALS) if it <= interval), len(INTERVALS) - 1)

    def ping_at(self, probe: Probe) -> float:
        """When the idle primary is due a ping. A ping of the peer does as well: its pong went out through our NAT."""
        low, high = TURN if _is_turn(probe) else FALLBACK
        return max(probe.sent_at, probe.asked_at) + self.interval * (low + (high - low) * probe.spread)

    def note_ping(self, probe: Probe, now: float) -> None:
        """The primary is about to be pinged."""
        if probe.unanswered_since is None:
            is_silent = now - max(probe.sent_at, probe.asked_at) >= WHOLE * self.interval
            self._tested = probe.path if is_silent and probe.is_proven else None
            self._is_turn = _is_turn(probe)

    def note_pong(self, probe: Probe, now: float) -> None:
        """A pong is about to be noted."""
        if not self._take(probe) or probe.tries > 1:
            return
        self._failures = 0 if self._is_turn else self._failures
        self._is_trial = False
        if self._rung > 0 and now >= self._since + self._trial_after:
            self._is_trial = True
            self._use(self._rung - 1, now)

    def note_ask(self, probe: Probe, now: float) -> None:
        """A ping of the peer came."""
        if now >= probe.overdue_at and probe.tries > 1:
            self.note_silence(probe, now)

    def note_silence(self, probe: Probe, now: float) -> bool:
        """On this path pings were lost in a row. True: it was under test, and a shorter interval may be the cure."""
        if not self._take(probe):
            return False
        self._failures = self._failures + 1 if now <= self._failed_at + FAILURE_MEMORY else 1
        self._failed_at = now
        is_curable = self._rung + 1 < len(INTERVALS)
        if self._is_trial:
            self._trial_after = min(2 * self._trial_after, TRIAL_LIMIT)
        if self._is_trial or self._failures >= FAILURES:
            self._failures, self._is_trial = 0, False
            self._use(min(self._rung + 1, len(INTERVALS) - 1), now)
        return is_curable

    def take_change(self) -> bool:
        """Is the interval another one? Clears."""
        is_changed, self._is_changed = self._is_changed, False
        return is_changed

    def _use(self, rung: int, now: float) -> None:
        self._is_changed |= rung != self._rung
        self._rung, self._since = rung, now

    def _take(self, probe: Probe) -> bool:
        """Is it the path under test? The test is over."""
        is_tested = probe.path == self._tested
        if is_tested:
            self._tested = None
        return is_tested


def _is_turn(probe: Probe) -> bool:
    return probe.asked_at > probe.sent_at
