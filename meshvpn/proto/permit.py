"""One birthday attack at a time per host: its packets and mappings burden one router, whichever network sends them."""

from __future__ import annotations


class Permit:
    """Shared by all networks of a daemon. It lapses, so that a network that is stopped does not keep it."""

    def __init__(self) -> None:
        self._holder: object = None
        self._until = float("-inf")

    def take(self, holder: object, *, now: float, until: float) -> bool:
        """Is it ours from now on? `holder` is compared by identity."""
        if self._holder is not None and self._holder is not holder and now < self._until:
            return False
        self._holder, self._until = holder, until
        return True

    def give_back(self, holder: object) -> None:
        """For the next one."""
        if self._holder is holder:
            self._holder = None
