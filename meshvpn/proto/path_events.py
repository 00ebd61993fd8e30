"""What a PathAgent tells: changes of the primary, what it wants done, and how good the primary is."""

from __future__ import annotations

from dataclasses import dataclass

from .copies import Copies
from .transport import Path


@dataclass(frozen=True, slots=True)
class PrimaryChanged:
    """Send there from now on, and to `secondary` too: all while it is not known whether the primary works, else what
    `copies` says."""

    primary: Path | None
    secondary: Path | None
    copies: Copies = Copies.ALL


@dataclass(frozen=True, slots=True)
class OfferWanted:
    """The peer should hear our candidates (again)."""


@dataclass(frozen=True, slots=True)
class MappingDoubted:
    """Nothing comes back on the primary: our NAT may have forgotten us, the relay must hear where we are now."""


@dataclass(frozen=True, slots=True)
class KeepaliveChanged:
    """How often the NATs on the way must be reminded of us: worth keeping for the next start."""


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """The user's ping came back."""

    token: int
    rtt: float
    path: Path


PathEvent = PrimaryChanged | OfferWanted | MappingDoubted | KeepaliveChanged | PingAnswered


@dataclass(frozen=True, slots=True)
class PathQuality:
    """What is known of the primary. Seconds, the share lost one way, E-model R and MOS; None before the first pong."""

    path: Path
    rtt: float | None
    jitter: float | None
    loss: float
    r_factor: float | None
    mos: float | None
    why: str
    """Why this path and no other, for people."""
