"""What may happen to a mesh, as functions that run at once, each in a lab of its own: most of the time they wait.

A scenario raises AssertionError where something does not hold; what its calls heard is in the outcome either way.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .natlab import NatLab
from .natmesh import Heard, NatMesh
from .nats import Nat

LINE_DELAY = 20.0
"""Milliseconds one way; four lines make the round trip between two sites."""


@dataclass(slots=True)
class Outcome:
    """What calls heard, and how long things took."""

    heard: list[Heard] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, call: tuple[Heard, Heard]) -> None:
        """Both ends of a call."""
        self.heard += call

    @property
    def longest_gap(self) -> float:
        """Seconds."""
        return max((heard.longest_gap for heard in self.heard), default=0.0)

    @property
    def heard_again_at(self) -> float:
        """When the longest gap of each call was over everywhere; Unix time."""
        return max(heard.gap_at + heard.longest_gap for heard in self.heard)

    @property
    def lost(self) -> int:
        """Packets of all calls."""
        return sum(heard.lost for heard in self.heard)

    def describe(self) -> str:
        """For people."""
        sent = sum(heard.sent for heard in self.heard)
        took = "".join(f", {what} after {seconds:.2f} s" for what, seconds in self.seconds.items())
        return f"longest gap {self.longest_gap:.2f} s, {self.lost} of {sent} packets lost{took}"


Scenario = Callable[[Outcome], None]


@contextlib.contextmanager
def sites(
    *nats: Nat | None, delay: float = LINE_DELAY, configs: Mapping[int, str] | None = None
) -> Iterator[tuple[NatLab, NatMesh]]:
    """Sites from number 1 on, one for each NAT; None: a public host. The mesh is not started."""
    with NatLab(delay) as lab:
        hosts = {
            number: lab.add_public(number) if nat is None else lab.add_site(number, nat)
            for number, nat in enumerate(nats, 1)
        }
        yield lab, NatMesh(lab, hosts, configs=configs)


@contextlib.contextmanager
def calling(mesh: NatMesh, outcome: Outcome, *pairs: tuple[int, int]) -> Iterator[None]:
    """These talk meanwhile; what they heard is in the outcome afterwards."""
    for pair in pairs:
        mesh.begin(*pair)
    try:
        yield
    finally:
        for pair in pairs:
            outcome.add(mesh.end(*pair))


def settle(mesh: NatMesh, *numbers: int) -> None:
    """Start, and wait until these (or all) reach each other directly."""
    mesh.start()
    group = numbers or tuple(mesh.hosts)
    for a in group:
        for b in group:
            if a < b:
                mesh.wait_state("direct", a, b, timeout=30)


def talk_for(seconds: float) -> None:
    """Time passes, for the calls that run and whatever befalls them."""
    time.sleep(seconds)


def assert_whole(heard: Sequence[Heard]) -> None:
    """Nothing lost, nothing twice."""
    for one in heard:
        assert one.is_whole, one
