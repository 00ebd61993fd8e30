"""What an operator may choose for a network; the same names stand in the configuration file (meshvpn/config.py)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .transport import Address

DEFAULT_MTU = 1400
"""Of the mesh interface: what is sent outside is at most 92 bytes more."""


class Duplicate(StrEnum):
    """What is sent on two paths at once, so that losing one loses no packet. The replay window drops second copies."""

    OFF = "off"
    SIGNALLING = "signalling"
    VOICE = "voice"
    """Signalling too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One network's. `relay_rate` is in bytes a second, for all that this member relays for others."""

    duplicate: Duplicate = Duplicate.OFF
    port_guessing: bool = True
    """Whether ports of symmetric NATs are predicted, or found by a bounded birthday search."""
    port_mapping: bool = True
    """Whether the router is asked for a port mapping (PCP, NAT-PMP, UPnP)."""
    lan_discovery: bool = True
    """Whether members in the same LAN find each other without the server."""
    relay: bool = True
    """Whether this member relays for members that reach it and not each other."""
    relay_rate: int = 1_000_000
    endpoints: tuple[Address, ...] = ()
    """Addresses at which this member can be reached that nothing else would find: static forwards."""
