"""Which of a peer's paths is the primary: a pure function of what their pings showed.

Paths are ordered by how a call would sound on them. Of those that sound alike, one without a relay comes first, then
one through a member, then the rendezvous, which serves everybody. A path is left for one of a later kind only when
that is surely better, by what so few pings can prove: one that loses a packet in a hundred must not make calls flap,
one that loses every third must be left within seconds. A primary in doubt is kept until it is dead or another path of
its kind is there; meanwhile it is doubled by the best path of the other kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from .probe import CLEAN_WINDOW, HISTORY, WINDOWS, Probe
from .score import DIRECT_BONUS, MEMBER_BONUS, SWITCH_MARGIN, r_factor

MIN_SAMPLES = 3
"""Round trips after which the round trip time counts as known."""
EVIDENCE = 2.0
"""Outcomes of pings, for each second of its hold, that a path must show which was left before."""
RTT_MARGIN = 0.005
"""Seconds by which another path of the same kind must be faster, and at least a tenth, and more than the two paths'
jitter."""


class Kind(IntEnum):
    """Who is in between; the greater comes first among equals."""

    RENDEZVOUS = 0
    MEMBER = 1
    DIRECT = 2


_BONUS = {Kind.DIRECT: DIRECT_BONUS, Kind.MEMBER: MEMBER_BONUS, Kind.RENDEZVOUS: 0.0}


def kind(probe: Probe) -> Kind:
    """The path's."""
    if probe.path.is_direct:
        return Kind.DIRECT
    return Kind.RENDEZVOUS if probe.is_rendezvous else Kind.MEMBER


def choose(probes: Iterable[Probe], current: Probe | None, now: float, *, is_heavy: bool = False) -> Probe | None:
    """The path to send on; `current` is the present one. None: no path is known to work.

    `is_heavy`: we send more than relays carry. What a direct path loses then it mostly loses by our own load, and a
    relay would drop what is beyond its quota: a direct path that works is kept, however it sounds.
    """
    alive = [probe for probe in probes if probe.is_alive(now, is_primary=probe is current)]
    ready = [probe for probe in alive if now >= probe.held_until]
    if is_heavy and (direct := [probe for probe in alive if probe.path.is_direct]):
        if current not in direct:
            return max(direct, key=_rank)
        ready = direct
    ranked = sorted(ready or alive, key=_rank, reverse=True)
    if current is not None and current in ranked:
        if now >= current.overdue_at:
            return current  # silent for a moment: whether it is bad or dead is known when it answers, or does not
        return next((rival for rival in ranked if rival is not current and _is_preferable(rival, current)), current)
    if current is not None and current.is_proven and current not in alive:
        replacement = (rival for rival in ranked if rival.path.is_direct is current.path.is_direct)
        return next(replacement, current)
    return ranked[0] if ranked else None


def second_way(probes: Iterable[Probe], primary: Probe, now: float) -> Probe | None:
    """What doubles this primary: the best other path, however good it is; with a relay beside a direct one, and a
    direct one beside a relay, if there is one, because what ends one seldom ends the other."""
    alive = [probe for probe in probes if probe is not primary and probe.is_alive(now)]
    return max(alive, key=lambda it: (it.path.is_direct is not primary.path.is_direct, _rank(it)), default=None)


def is_surely_better(this: Probe, other: Probe) -> bool:
    """Would a call sound better here, even if this path is as bad and the other as good as their pings allow?"""
    margin = SWITCH_MARGIN + max(0.0, _BONUS[kind(other)] - _BONUS[kind(this)])
    # A scrutiny's worth of clean pings is judged as a whole, however few of the other's prove that it is bad.
    is_clean = this.tally(CLEAN_WINDOW)[0] == 0
    at_worst = [this.r_bounds(max(window, CLEAN_WINDOW) if is_clean else window)[0] for window in WINDOWS]
    at_best = [min(other.r_bounds(window)[1], other.best_r_by_data) for window in WINDOWS]
    return any(worst > best + margin for worst, best in zip(at_worst, at_best, strict=True))


def _is_preferable(rival: Probe, current: Probe) -> bool:
    if kind(rival) > kind(current):
        return _is_no_worse(rival, current)
    return is_surely_better(rival, current) or (kind(rival) == kind(current) and _is_faster(rival, current))


def _is_no_worse(rival: Probe, current: Probe) -> bool:
    # What was left once must be seen to be good, not just not proved to be bad.
    if rival.hold != 0:
        return _has_shown_it(rival, _rank(current))
    # What delay costs is known after the first round trips, what loss costs is not.
    handicap = _BONUS[kind(rival)] - _BONUS[kind(current)]
    return rival.r_of_delay + handicap >= current.r_of_delay and not is_surely_better(current, rival)


def evidence(probe: Probe) -> int:
    """Outcomes by which a path that was left shows what it is worth."""
    return int(min(EVIDENCE * probe.hold, HISTORY))


def _has_shown_it(probe: Probe, rank: float) -> bool:
    """By its newest pings alone: what was bad before is what it was left for."""
    needed = evidence(probe)
    lost, total = probe.tally(needed)
    if probe.rtt is None or total < needed:
        return False
    return r_factor(probe.rtt, probe.jitter, lost / total) + _BONUS[kind(probe)] >= rank


def _is_faster(rival: Probe, current: Probe) -> bool:
    if rival.rtt is None or current.rtt is None or rival.samples < MIN_SAMPLES or is_surely_better(current, rival):
        return False
    return current.rtt - rival.rtt > max(RTT_MARGIN, current.rtt / 10, 2 * (current.jitter + rival.jitter))


def _rank(probe: Probe) -> float:
    return (probe.r or 0.0) + _BONUS[kind(probe)]
