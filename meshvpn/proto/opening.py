"""One attempt of the end that opens (guess.py): its sockets, how its NAT treats them today, and what follows.

survey   all servers are asked from one socket at once; where both NATs count, from two, to see how busy the count is
verdict  the port towards the peer: the one that all saw, one between two that were seen, or none that can be known
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .nat import Attempt, Method, NatMapping, PortRule, describe
from .transport import Address

SURVEY_RETRIES = (0.1, 0.2)
SURVEY_TIME = 0.5
"""Seconds from the first request to what is made of the answers that came."""
RATE_BASE = 0.1
"""Seconds between the two bursts that tell how fast a count goes on."""
PORT_WAIT = 2.5
HOLES_WAIT = 8.0
"""Seconds for which an opener waits to be heard."""
HOLES = 256
VOLLEY = 50
VOLLEY_STEPS = (0.0, 0.3, 0.5, 0.9)
VOLLEY_WAIT = 1.3
LEG = 0.05
"""Seconds from one end to the other through the server, roughly: what neighbours take meanwhile is guessed by it."""


@dataclass(slots=True)
class Opening:
    """Our attempt. `due_at`: when the next thing is done or, at last, given up."""

    number: int
    method: Method
    tag: int
    due_at: float
    ends_at: float
    sockets: dict[int, None] = field(default_factory=dict)
    asked: dict[bytes, tuple[int, Address]] = field(default_factory=dict)
    seen: dict[tuple[int, Address], Address] = field(default_factory=dict)
    started_at: float | None = None
    asked_again: int = 0
    surveyed_at: float = 0.0
    is_surveyed: bool = False
    has_holes: bool = False
    target: Address | None = None
    steps_done: int = 0

    @property
    def bursts(self) -> int:
        """Sockets that are surveyed."""
        return min(2, len(self.sockets)) if self.method is Method.VOLLEY else 1

    def is_answered(self, servers: Sequence[Address]) -> bool:
        """Did every server answer each of them?"""
        return len(self.seen) == len(servers) * self.bursts

    def surveyed(self, servers: Sequence[Address]) -> list[list[tuple[Address, Address]]]:
        """Who saw which address, for each socket that is surveyed, in the order of asking."""
        return [
            [(server, self.seen[socket, server]) for server in servers if (socket, server) in self.seen]
            for socket in list(self.sockets)[: self.bursts]
        ]

    def nat(self, servers: Sequence[Address]) -> NatMapping:
        """How the first of them is mapped."""
        return describe(self.surveyed(servers)[0])

    def port_attempt(self, servers: Sequence[Address]) -> Attempt | None:
        """What to tell the peer if the port towards it is known or near one that was seen."""
        first = self.surveyed(servers)[0]
        nat = describe(first)
        if nat.rule == PortRule.KEPT:
            return Attempt(self.number, Method.PORT, nat.host, nat.port)
        if nat.rule == PortRule.COUNTED:
            middle = (first[0][1].port + first[1][1].port) // 2
            return Attempt(self.number, Method.PORT, nat.host, middle, step=1)
        return None

    def volley_attempt(self, servers: Sequence[Address]) -> tuple[Attempt, float] | None:
        """What to tell a peer whose NAT counts too, and when it was measured; None if ours does not (any more)."""
        bursts = self.surveyed(servers)
        first, last = describe(bursts[0]), describe(bursts[-1])
        if last.rule != PortRule.COUNTED or first.rule != PortRule.COUNTED:
            return None
        step = last.step
        taken = (last.port - first.port) / step - len(servers) if len(bursts) > 1 else 0.0
        rate = min(max(0, round(taken / RATE_BASE)), 10_000)
        assert self.started_at is not None
        measured_at = self.started_at + (RATE_BASE if len(bursts) > 1 else 0.0)
        return Attempt(self.number, Method.VOLLEY, last.host, last.port + step, step=step, rate=rate), measured_at


def volley_target(theirs: Attempt, passed: float) -> Address | None:
    """The middle of the ports that the peer opens `passed` seconds after it measured; None: there is no such port."""
    port = theirs.port + theirs.step * (round(theirs.rate * passed) + VOLLEY // 2)
    return Address(theirs.host, port) if 0 < port < 65536 else None
