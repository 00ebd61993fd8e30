"""How a NAT maps (RFC 4787 §4.1) and chooses ports (§4.2), read from what several servers saw of one burst.

A classification says in which order the ways to a direct path are tried, never that one is not tried: a NAT may treat
the next destination differently, and two hosts with one port behind it look like something that it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, IntEnum
from itertools import pairwise

import msgspec

from .transport import Address

MAX_STEP = 32
"""Ports between two mappings of one burst up to which a NAT is said to count: one that rolls dice comes that close once
in a thousand times, and neighbours do not open more flows within the same millisecond."""


class Mapping4787(Enum):
    """Which of our packets share an external port."""

    UNKNOWN = "unknown"
    INDEPENDENT = "endpoint-independent"
    ADDRESS = "address-dependent"
    ADDRESS_AND_PORT = "address-and-port-dependent"

    @property
    def is_dependent(self) -> bool:
        """Does our port depend on whom we send to?"""
        return self in (Mapping4787.ADDRESS, Mapping4787.ADDRESS_AND_PORT)


class PortRule(IntEnum):
    """What a peer may expect of our port towards it."""

    UNKNOWN = 0
    KEPT = 1
    """It is the one that the servers see."""
    COUNTED = 2
    """It follows the last one, a step away."""
    RANDOM = 3
    REFUSED = 4
    """The member wants no guessing, by itself or by others."""


class NatMapping(msgspec.Struct, frozen=True, array_like=True):
    """What an offer tells of a member's NAT, for IPv4: `rule` is a PortRule; `host` and `port` were seen last."""

    rule: int = PortRule.UNKNOWN
    host: str = ""
    port: int = 0
    step: int = 0
    """Ports from one mapping to the next, if it counts; negative if it counts down."""


class Method(IntEnum):
    """What the end that opens has done, and the other is to do."""

    PORT = 1
    """One socket was opened, whose port is `port` or near it: ping it there."""
    HOLES = 2
    """Many were opened, whose ports nobody knows: ping random ones until one of them answers."""
    VOLLEY = 3
    """The next port is `port`: open many, aimed at the middle of as many of ours."""
    BUSY = 4
    """An answer: the holes of your attempt `number` were not tried, this host was at another attack all the time."""


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """What an offer tells of sockets opened for the peer (guess.py). `number` grows; `age` is in milliseconds."""

    number: int
    method: int
    host: str
    port: int
    step: int = 0
    rate: int = 0
    """Ports a second that others take of the same count."""
    age: int = 0


def classify(seen: Sequence[tuple[Address, Address]]) -> Mapping4787:
    """From (server, our address as it saw it) of one family, all of one socket."""
    if len({server for server, _ in seen}) < 2:
        return Mapping4787.UNKNOWN
    if len({mapped for _, mapped in seen}) == 1:
        return Mapping4787.INDEPENDENT
    of_host: dict[str, set[Address]] = {}
    for server, mapped in seen:
        of_host.setdefault(server.host, set()).add(mapped)
    is_same_per_host = all(len(mapped) == 1 for mapped in of_host.values())
    return Mapping4787.ADDRESS if is_same_per_host else Mapping4787.ADDRESS_AND_PORT


def step_of(ports: Sequence[int]) -> int:
    """The step of a NAT that counts, from the ports it gave in that order; 0: it does not count.

    Neighbours take ports of the same count in between, so the smallest distance is the step.
    """
    steps = [after - before for before, after in pairwise(ports) if after != before]
    is_near = bool(steps) and all(0 < abs(step) <= MAX_STEP for step in steps)
    if not is_near or len({step > 0 for step in steps}) > 1:
        return 0
    return min(steps, key=abs)


def describe(seen: Sequence[tuple[Address, Address]]) -> NatMapping:
    """What to tell a peer, from (server, our address as it saw it) in the order of asking."""
    if not seen:
        return NatMapping()
    last = seen[-1][1]
    match classify(seen):
        case Mapping4787.UNKNOWN:
            return NatMapping(PortRule.UNKNOWN, last.host, last.port)
        case Mapping4787.INDEPENDENT:
            return NatMapping(PortRule.KEPT, last.host, last.port)
        case _:
            step = step_of([mapped.port for _, mapped in seen])
            return NatMapping(PortRule.COUNTED if step else PortRule.RANDOM, last.host, last.port, step)
