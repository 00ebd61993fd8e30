"""A call between two simulated nodes: 50 packets a second each way, and what its listeners would have heard."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from .network import Link
from .nodes import Peer
from .world import PORT_RESTRICTED, Kind, World

INTERVAL = 0.02
"""Seconds between the packets of a G.711 call."""
RTT = 0.08
"""Seconds between two sites of a World on a direct path."""


@dataclass
class Call:
    """Both ways between `a` and `b`, from when it was made. Long ones are cheaper with a longer interval."""

    world: World
    a: str = "a"
    b: str = "b"
    interval: float = INTERVAL

    def __post_init__(self) -> None:
        self.started_at = self.world.network.now
        for name, other in ((self.a, self.b), (self.b, self.a)):
            self.world.node(name).start_traffic(other, self.interval)

    def hang_up(self) -> None:
        for name, other in ((self.a, self.b), (self.b, self.a)):
            self.world.node(name).stop_traffic(other)

    @property
    def duplicates(self) -> int:
        return self._at_a.duplicates + self._at_b.duplicates

    def gap(self, since: float) -> float:
        """The longest silence that either end heard from that instant to now."""
        return max(_longest_gap(list(peer.received.values()), since, self.world.network.now) for peer in self._ends)

    def lost(self, since: float, until: float) -> int:
        """Packets sent between those instants that did not arrive, both ways. Ask when the last ones had time to."""
        return sum(
            number not in receiver.received
            for sender, receiver in ((self._at_a, self._at_b), (self._at_b, self._at_a))
            for number in range(sender.sent)
            if since <= self.started_at + number * self.interval <= until
        )

    @property
    def _at_a(self) -> Peer:
        return self.world.peer(self.a, self.b)

    @property
    def _at_b(self) -> Peer:
        return self.world.peer(self.b, self.a)

    @property
    def _ends(self) -> tuple[Peer, Peer]:
        return self._at_a, self._at_b


def two_sites(
    left: Kind = PORT_RESTRICTED, right: Kind = PORT_RESTRICTED, *, seed: int = 1, link: Link | None = None
) -> World:
    """Sites `a` and `b`, alone in the world."""
    world = World(seed)
    world.add_site("a", left, link=link)
    world.add_site("b", right, link=link)
    return world


def connected_sites(
    left: Kind = PORT_RESTRICTED, right: Kind = PORT_RESTRICTED, *, seed: int = 1, link: Link | None = None
) -> World:
    """The same, with a direct path between them that has come to rest."""
    world = two_sites(left, right, seed=seed, link=link)
    assert world.run_until_direct("a", "b", 5.0) is not None, "the sites cannot reach each other"
    world.run(2.0)
    return world


def path_changes(world: World, since: float) -> int:
    """How often either end moved its primary from then on."""
    return sum(len(world.peer(*pair).moves(since)) for pair in (("a", "b"), ("b", "a")))


def _longest_gap(arrivals: list[float], since: float, until: float) -> float:
    instants = [since, *sorted(at for at in arrivals if since <= at <= until), until]
    return max(after - before for before, after in pairwise(instants))
