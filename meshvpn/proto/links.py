"""What a node does with links: streams to members' addresses inside the tunnel, by which they gossip (gossip.py)."""

from __future__ import annotations

from .drops import DropReason
from .events import CloneSight
from .gossip import Gossip
from .member import Member
from .membership import Membership


class Links:
    """The part of a Node that these are. After each, take frames and events."""

    membership: Membership
    gossip: Gossip

    def handle_link(self, address: str, *, now: float, wall_ns: int) -> int | None:
        """One came from this address; its number, or None: close it."""
        link = self.gossip.handle_incoming(address, now=now)
        self._settle(now, wall_ns)
        return link

    def handle_link_open(self, link: int, *, now: float, wall_ns: int) -> None:
        """One that was wanted is open."""
        self.gossip.handle_open(link, now=now)
        self._settle(now, wall_ns)

    def handle_link_closed(self, link: int, *, now: float, wall_ns: int) -> None:
        """It ended, or could not be opened. Not for one that was unwanted since."""
        self.gossip.handle_closed(link, now=now)
        self._settle(now, wall_ns)

    def handle_link_frame(self, link: int, data: bytes, *, now: float, wall_ns: int) -> None:
        """One message."""
        wall = wall_ns // 1_000_000_000
        self._count(self.gossip.handle_frame(link, data, now=now, wall=wall))
        self._settle_roster(now, wall_ns, is_hearsay=True)
        if any(self.membership.is_double(record) for record in self.gossip.take_doubles()):
            self._tell_clone(CloneSight.RIVAL, None, now)
        self._settle(now, wall_ns)

    def take_link_frames(self) -> list[tuple[int, bytes]]:
        """Messages to send by links, in order; clears. Take them before events, which say what to close."""
        return self.gossip.take_frames()

    def _settle(self, now: float, wall_ns: int) -> None:
        raise NotImplementedError

    def _settle_roster(self, now: float, wall_ns: int, *, is_hearsay: bool) -> bool:
        raise NotImplementedError

    def _tell_clone(self, sight: CloneSight, member: Member | None, now: float) -> None:
        raise NotImplementedError

    def _count(self, reason: DropReason | None) -> None:
        raise NotImplementedError
