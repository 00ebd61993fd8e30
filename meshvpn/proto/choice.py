"""Which of a peer's paths is the primary: a pure function of what their pings showed.

Direct beats relay as long as a call sounds about as good on it. It is left for the relay when it is surely worse, by
what so few pings can prove: one that loses a packet in a hundred must not make calls flap, one that loses every third
must be left within seconds. A primary in doubt is kept until it is dead or, if it is direct, another direct path is
there; meanwhile it is doubled, a direct one by the relay and the relay by a direct one.
"""

from __future__ import annotations

from collections.abc import Iterable

from .probe import HISTORY, WINDOWS, Probe
from .score import DIRECT_BONUS, SWITCH_MARGIN
from .transport import Path

MIN_SAMPLES = 3
"""Round trips after which the round trip time counts as known."""
EVIDENCE = 20
"""Outcomes of pings that a path must show which was left before."""
RTT_MARGIN = 0.005
"""Seconds by which another direct path must be faster, and at least a tenth, and more than the two paths' jitter."""


def choose(probes: Iterable[Probe], current: Probe | None, now: float) -> Probe | None:
    """The path to send on; `current` is the present one. None: no path is known to work."""
    alive = [probe for probe in probes if probe.is_alive(now, is_primary=probe is current)]
    ready = [probe for probe in alive if now >= probe.held_until]
    ranked = sorted(ready or alive, key=_rank, reverse=True)
    if current is not None and current in ranked:
        if now >= current.overdue_at:
            return current  # silent for a moment: whether it is bad or dead is known when it answers, or does not
        return next((rival for rival in ranked if rival is not current and _is_preferable(rival, current)), current)
    best = ranked[0] if ranked else None
    if current is not None and current.is_proven and current not in alive:
        is_replaced = best is not None and best.path.is_direct and current.path.is_direct
        return best if is_replaced else current
    return best


def best_direct(probes: Iterable[Probe], now: float) -> Path | None:
    """What doubles a relay in doubt, however good it is."""
    alive = [probe for probe in probes if probe.path.is_direct and probe.is_alive(now)]
    return max(alive, key=_rank).path if alive else None


def is_surely_better(this: Probe, other: Probe) -> bool:
    """Would a call sound better here, even if this path is as bad and the other as good as their pings allow?"""
    margin = SWITCH_MARGIN + (DIRECT_BONUS if other.path.is_direct and not this.path.is_direct else 0.0)
    return any(this.r_bounds(window)[0] > other.r_bounds(window)[1] + margin for window in WINDOWS)


def _is_preferable(rival: Probe, current: Probe) -> bool:
    if rival.path.is_direct and not current.path.is_direct:
        # What was left once must be seen to be good, not just not proved to be bad.
        has_shown_it = rival.hold == 0 or (rival.tally(HISTORY)[1] >= EVIDENCE and _rank(rival) >= _rank(current))
        return has_shown_it and not is_surely_better(current, rival)
    return is_surely_better(rival, current) or (
        rival.path.is_direct == current.path.is_direct and _is_faster(rival, current)
    )


def _is_faster(rival: Probe, current: Probe) -> bool:
    if rival.rtt is None or current.rtt is None or rival.samples < MIN_SAMPLES or is_surely_better(current, rival):
        return False
    return current.rtt - rival.rtt > max(RTT_MARGIN, current.rtt / 10, 2 * (current.jitter + rival.jitter))


def _rank(probe: Probe) -> float:
    return (probe.r or 0.0) + (DIRECT_BONUS if probe.path.is_direct else 0.0)
