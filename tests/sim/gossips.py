"""Many gossip machines with rosters around them, on links that only take time: how far news goes, and at what cost."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from itertools import count

from meshvpn.proto.gossip import Gossip, LinkUnwanted, LinkWanted
from meshvpn.proto.roster import Roster
from tests.unit.founded import WALL, Founded

LATENCY = 0.03
"""Seconds one way between any two."""


class Gossips:
    """Members by number; those whom `is_cut` separates do not reach each other."""

    def __init__(self, made: Founded, rosters: list[Roster], seed: int = 1) -> None:
        self.now = 0.0
        self.made = made
        self.rosters = rosters
        self.is_cut: Callable[[int, int], bool] = lambda _left, _right: False
        self.withheld: set[int] = set()
        """Whose links nobody can open."""
        self.links = 0
        self.received: Counter[int] = Counter()
        self.machines = [
            Gossip(
                roster,
                [made.identities[number].public, *([made.owner.public] if number == 0 else [])],
                lambda number=number: made.records[number],  # type: ignore[misc]
                entropy=random.Random(f"{seed}/{number}").randbytes,
            )
            for number, roster in enumerate(rosters)
        ]
        self._numbers = {address: number for number, address in enumerate(made.addresses)}
        self._ends: dict[tuple[int, int], tuple[int, int]] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._wakes_at: dict[int, float] = {}

    def connect(self) -> None:
        """Everybody meets everybody whom it reaches."""
        for number, machine in enumerate(self.machines):
            for other, identity in enumerate(self.made.identities):
                if other != number and not self.is_cut(number, other):
                    machine.handle_connected(identity.public, now=self.now)
        self.settle()

    def connect_settled(self) -> None:
        """The same, and they have told each other everything."""
        self.connect()
        for machine in self.machines:
            for peer in machine._peers.values():
                peer.charters, peer.state = machine._shelf.charters, machine._shelf.state

    def meet(self, left: int, right: int) -> None:
        """These two reach each other from now on."""
        for one, other in ((left, right), (right, left)):
            self.machines[one].handle_connected(self.made.identities[other].public, now=self.now)
        self.settle()

    def change(self, number: int, action: Callable[[Roster], object], *, is_attached: bool = False) -> None:
        """Something happens in a member's roster, with the server or without."""
        action(self.rosters[number])
        self.machines[number].note_change()
        self.machines[number].follow(is_attached=is_attached, now=self.now)
        self._settle(number)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Seconds until it held, or all of them."""
        started_at, end = self.now, self.now + seconds
        while not until():
            if not self._heap or self._heap[0][0] >= end:
                self.now = end
                break
            self.now, _, action = heapq.heappop(self._heap)
            action()
        return self.now - started_at

    @property
    def messages(self) -> Counter[str]:
        """By kind, of everybody."""
        return sum((machine.sent for machine in self.machines), Counter())

    def settle(self) -> None:
        for number in range(len(self.machines)):
            self._settle(number)

    def _settle(self, number: int) -> None:
        """Carry away what a machine says, and wake it when it wants."""
        machine = self.machines[number]
        for link, frame in machine.take_frames():
            self._send(number, link, frame)
        for event in machine.take_events():
            match event:
                case LinkWanted(link=link, address=address):
                    self._open(number, link, self._numbers[address])
                case LinkUnwanted(link=link):
                    self._close(number, link)
        at = machine.next_timeout()
        if at is not None and at != self._wakes_at.get(number):
            self._wakes_at[number] = at
            self._later(max(at - self.now, 0.0), lambda: self._wake(number, at))

    def _wake(self, number: int, at: float) -> None:
        if self._wakes_at.get(number) == at:
            del self._wakes_at[number]
            self.machines[number].handle_timeout(now=max(self.now, at))
            self._settle(number)

    def _later(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay, next(self._order), action))

    def _arrive(self, number: int, action: Callable[[], None]) -> None:
        """It happens to a machine after the time of a way."""

        def arrive() -> None:
            action()
            self._settle(number)

        self._later(LATENCY, arrive)

    def _open(self, number: int, link: int, other: int) -> None:
        def arrive() -> None:
            theirs = self.machines[other].handle_incoming(self.made.addresses[number], now=self.now)
            self._settle(other)
            if theirs is None:
                self._arrive(number, lambda: self.machines[number].handle_closed(link, now=self.now))
                return
            self._ends[number, link], self._ends[other, theirs] = (other, theirs), (number, link)
            self._arrive(number, lambda: self.machines[number].handle_open(link, now=self.now))

        self.links += 1
        if not self.is_cut(number, other) and other not in self.withheld:
            self._later(LATENCY, arrive)

    def _send(self, number: int, link: int, frame: bytes) -> None:
        if (end := self._ends.get((number, link))) is None:
            return
        other, theirs = end
        self.received[other] += len(frame)

        def arrive() -> None:
            self.machines[other].handle_frame(theirs, frame, now=self.now, wall=WALL)
            self.machines[other].follow(is_attached=False, now=self.now)
            self.rosters[other].take_events()

        self._arrive(other, arrive)

    def _close(self, number: int, link: int) -> None:
        if (end := self._ends.pop((number, link), None)) is not None:
            other, theirs = end
            self._arrive(other, lambda: self.machines[other].handle_closed(theirs, now=self.now))
