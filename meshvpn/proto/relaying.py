"""Which members are tried as relays to a peer that we do not reach well, and which of them a path leads through.

A member that relays, and that we reach directly, forwards a frame to any member that it reaches directly itself.
Whether it does is found out by pings through it, which cost little: a member that only says that it relays is dropped
after three, and not tried again for a while.

At most MAX_HELPERS at a time for a peer. All but one are those to which a call sounds best, the last one is any: who
has the best line would otherwise carry everybody. Each ROTATION the least useful one makes room for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from .path import PathAgent
from .path_table import MAX_HELPERS
from .score import SWITCH_MARGIN
from .transport import Path, RelayHop

BARRED_FOR = 60.0
"""Seconds for which a member that did not help is not asked again."""
ROTATION = 30.0
"""Seconds of need after which the least useful of MAX_HELPERS is replaced, to find out what others are worth."""
MAX_BARRED = 64
"""Members that are remembered as no help to a peer."""


class Reachable(Protocol):
    """What is looked at of a peer; `relay_id` means it at members that relay."""

    number: int
    agent: PathAgent
    member_relay_id: int

    @property
    def relays(self) -> bool:
        """It says that it relays."""


@dataclass(slots=True)
class _Help:
    """What a peer has: paths by the number of the member, since when, and who was no help until when."""

    paths: dict[int, Path] = field(default_factory=dict)
    rotated_at: float = float("-inf")
    barred: dict[int, float] = field(default_factory=dict)


class Relaying:
    """The choice for all peers of a node. `own_id` means us at members that relay."""

    def __init__(self, own_id: int, *, entropy: Callable[[int], bytes]) -> None:
        self._own_id = own_id
        self._entropy = entropy
        self._help: dict[int, _Help] = {}

    def forget(self, number: int) -> None:
        """It is no peer any more."""
        self._help.pop(number, None)
        for entry in self._help.values():
            entry.paths.pop(number, None)

    def users(self, number: int) -> list[int]:
        """The peers to which a path leads through this one."""
        return [user for user, entry in self._help.items() if number in entry.paths]

    def member_of(self, peer: Reachable, path: Path | None, peers: Iterable[Reachable]) -> int | None:
        """The number of the member in between, None if it is the rendezvous, or nobody that we know."""
        if path is None or path.relay is None or path.relay.local_id != self._own_id:
            return None
        entry = self._help.get(peer.number, _Help())
        chosen = (number for number, through in entry.paths.items() if through == path)
        # Where the peer chose the member, its address says who it is.
        met = (it.number for it in peers if it.agent.table.reaches(path.socket, path.remote))
        return next(chosen, next(met, None))

    def paths(self, peer: Reachable, peers: Mapping[int, Reachable], *, now: float) -> tuple[Path, ...]:
        """Through whom this peer is tried now; ask again whenever something happened to it."""
        is_wanted = peer.agent.wants_helpers(now)
        entry = self._help.get(peer.number)
        if entry is None:
            if not is_wanted:
                return ()
            entry = self._help[peer.number] = _Help(rotated_at=now)
        self._drop(entry, peer, peers, is_wanted=is_wanted, now=now)
        if is_wanted:
            self._rotate(entry, peer, now)
            self._fill(entry, peer, peers, now)
        elif not entry.paths:
            del self._help[peer.number]
        return tuple(entry.paths.values())

    def _drop(
        self, entry: _Help, peer: Reachable, peers: Mapping[int, Reachable], *, is_wanted: bool, now: float
    ) -> None:
        for number, path in list(entry.paths.items()):
            way = self._way(peers.get(number), peer)
            is_in_use = path in (peer.agent.primary, peer.agent.secondary)
            if way != path or not (is_wanted or is_in_use):
                del entry.paths[number]
            elif peer.agent.is_useless(path, now):
                self._bar(entry, number, now)

    def _rotate(self, entry: _Help, peer: Reachable, now: float) -> None:
        if len(entry.paths) < MAX_HELPERS or now < entry.rotated_at + ROTATION:
            return
        entry.rotated_at = now
        idle = {number: path for number, path in entry.paths.items() if path != peer.agent.primary}
        worst = min(idle, key=lambda number: (peer.agent.table.r_of(idle[number]), number))
        self._bar(entry, worst, now)

    def _bar(self, entry: _Help, number: int, now: float) -> None:
        del entry.paths[number]
        entry.barred.pop(number, None)
        entry.barred[number] = now + BARRED_FOR
        if len(entry.barred) > MAX_BARRED:
            del entry.barred[next(iter(entry.barred))]

    def _fill(self, entry: _Help, peer: Reachable, peers: Mapping[int, Reachable], now: float) -> None:
        if len(entry.paths) >= MAX_HELPERS:
            return
        ways = {
            number: way
            for number, member in peers.items()
            if number not in entry.paths
            and now >= entry.barred.get(number, now)
            and (way := self._way(member, peer)) is not None
        }
        ranked = sorted(ways, key=lambda number: self._order(peers[number], peer))
        while ranked and len(entry.paths) < MAX_HELPERS:
            is_last = len(entry.paths) == MAX_HELPERS - 1
            number = ranked.pop(int.from_bytes(self._entropy(4), "little") % len(ranked) if is_last else 0)
            entry.paths[number] = ways[number]

    def _order(self, member: Reachable, peer: Reachable) -> tuple[int, int]:
        """By quality, and of those that sound alike each pair prefers others, but both of its ends the same."""
        r = member.agent.table.r_of(member.agent.primary)
        mixed = (self._own_id ^ peer.member_relay_id ^ member.member_relay_id) * 2654435761  # Knuth's hash
        return -round(r / SWITCH_MARGIN), mixed & 0xFFFFFFFF

    def _way(self, member: Reachable | None, peer: Reachable) -> Path | None:
        """The path to the peer through this member, if there may be one."""
        if member is None or member is peer or not member.relays or not member.agent.is_reachable:
            return None
        primary = member.agent.primary
        if primary is None or not primary.is_direct:
            return None
        return Path(primary.socket, primary.remote, RelayHop(self._own_id, peer.member_relay_id))
