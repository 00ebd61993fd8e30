"""Why a peer is reached the way it is, in a few words for whoever looks after a PBX. A pure function of its paths."""

from __future__ import annotations

from collections.abc import Iterable

from .choice import Kind, kind
from .probe import WINDOWS, Probe

_NAMES = {Kind.DIRECT: "direct", Kind.MEMBER: "relay", Kind.RENDEZVOUS: "relay"}
_NOTICED_LOSS = 0.02
"""Share from which on loss is worth a word."""


def why(probes: Iterable[Probe], primary: Probe | None, now: float) -> str:
    """Such as "direct, R 92; relay, R 78" or "relay: direct loses 31 %"."""
    if primary is None:
        return "no way is known"
    others = [probe for probe in probes if probe is not primary]
    name = _NAMES[kind(primary)]
    if not primary.is_proven:
        return f"{name}: nothing answers"
    if not primary.is_alive(now, is_primary=True):
        return f"{name}: does not answer at the moment"
    if not primary.path.is_direct:
        return f"relay: {_why_not_direct(others, now)}"
    second = max((it for it in others if it.is_alive(now)), key=lambda it: it.r or 0.0, default=None)
    return _sound(primary) if second is None else f"{_sound(primary)}; {_sound(second)}"


def _why_not_direct(others: list[Probe], now: float) -> str:
    direct = [probe for probe in others if probe.path.is_direct and probe.worked_at is not None]
    if not direct:
        return "no direct path answers"
    best = max(direct, key=lambda it: (it.is_alive(now), it.r or 0.0))
    if not best.is_proven:
        return "the direct path is dead"
    if best.is_alive(now) and best.hold and best.loss < _NOTICED_LOSS:
        return f"direct {best.left_because}, and must show that it is over"
    if best.loss >= _NOTICED_LOSS:
        return f"direct loses {best.loss:.0%}".replace("%", " %")
    return f"{_sound(best)}"


def trouble(probe: Probe) -> str:
    """What is wrong with a path that is left for its quality."""
    recent = probe.tally(WINDOWS[0])
    loss = max(probe.loss, recent[0] / max(1, recent[1]))
    if loss >= _NOTICED_LOSS:
        return f"lost {loss:.0%}".replace("%", " %")
    return f"took {1000 * (probe.rtt or 0.0):.0f} ms there and back"


def _sound(probe: Probe) -> str:
    return f"{_NAMES[kind(probe)]}, R {probe.r or 0.0:.0f}"
