"""When the paths to a peer are searched anew after our network changed: at once if there is payload, else by turns.

Two hundred members may move at the same instant (a provider's fault, a power cut). Of what a member has to say to the
other 199 only the running calls are urgent. The rest waits, each peer for a time of its own, so that neither the
rendezvous nor the members get it all within a second. Until its turn comes a peer's path is in doubt, so that a first
packet goes by the relay too; and payload ends the wait.
"""

from __future__ import annotations

SMALL = 20
"""Peers of a mesh in which nobody waits."""
PER_PEER = 0.1
"""Seconds for each peer over which a larger mesh spreads them: 20 for two hundred."""


def spread(peers: int) -> float:
    """Seconds over which so many peers have their turns."""
    return PER_PEER * peers if peers > SMALL else 0.0


class Turn:
    """One peer's. `at` is None if nothing waits."""

    def __init__(self) -> None:
        self.at: float | None = None
        self._is_doubtful = False

    def take(self, at: float, *, is_doubtful: bool) -> None:
        """Wait until then, or for the turn that comes sooner. `is_doubtful`: the known paths are to be asked first."""
        self.at = at if self.at is None else min(at, self.at)
        self._is_doubtful |= is_doubtful

    def is_due(self, now: float) -> bool:
        """It has come."""
        return self.at is not None and now >= self.at

    def earliest(self, at: float) -> float:
        """When a ping may leave that would be due at that time."""
        return at if self.at is None else max(at, self.at)

    def end(self) -> bool:
        """It is over; were the paths in doubt?"""
        was_doubtful, self._is_doubtful, self.at = self._is_doubtful, False, None
        return was_doubtful
