"""What a user may know of one path: its figures and what it is good for now."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .path import PathAgent
from .probe import Probe
from .transport import Path


class PathState(StrEnum):
    """Declared in the order in which they are shown."""

    IN_USE = "in use"
    DOUBLES = "doubles"
    """It gets a copy of what goes over the one in use."""
    STANDBY = "standby"
    """It answered lately."""
    HELD = "held"
    """It answers, but broke down or sounded bad: not chosen before it has conducted itself well for a while."""
    DOUBTFUL = "doubtful"
    """It answered once and was not asked since, or does not answer now."""
    DEAD = "dead"
    SILENT = "silent"
    """An address of the peer that never answered from here."""


@dataclass(frozen=True, slots=True)
class PathView:
    """One path. Seconds; `loss` is the share lost one way; `r_factor` is None before the first pong."""

    path: Path
    state: PathState
    rtt: float | None
    jitter: float
    loss: float
    r_factor: float | None


def views(agent: PathAgent, *, now: float) -> list[PathView]:
    """Of all paths to a peer, what is used first, then what works best."""
    seen = [_view(probe, agent, now) for probe in agent.table.probes.values()]
    return sorted(seen, key=lambda it: (list(PathState).index(it.state), -(it.r_factor or 0.0), it.path))


def _view(probe: Probe, agent: PathAgent, now: float) -> PathView:
    state = _state(probe, primary=agent.primary, secondary=agent.secondary, now=now)
    return PathView(probe.path, state, probe.rtt, probe.jitter, probe.loss, probe.r)


def _state(probe: Probe, *, primary: Path | None, secondary: Path | None, now: float) -> PathState:
    if probe.path == primary:
        return PathState.IN_USE
    if probe.path == secondary:
        return PathState.DOUBLES
    if not probe.is_proven:
        return PathState.SILENT if probe.worked_at is None else PathState.DEAD
    if now < probe.held_until:
        return PathState.HELD
    return PathState.STANDBY if probe.is_alive(now) else PathState.DOUBTFUL
