"""What the end that sprays pings, and when: the ports at which the opener's sockets may be (guess.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .candidate import Candidate, CandidateKind, usable
from .nat import Attempt, Method
from .transport import Address

SPRAY_RATE = 400
SPRAY_PORTS = 1664
"""With 256 holes, 99.9 % to hit one; both, and predictions before, stay within 2,500 packets."""
NEAR_RATE = 200
NEAR_PORTS = 100
NEAR_BELOW = 25
KEPT_PINGS = 6
KEPT_RATE = 10
TICK = 0.01
"""Seconds of pings that leave together."""


@dataclass(slots=True)
class Spray:
    """The pings of one attempt, in the order in which they go, `rate` a second. `sent`: how many of them went."""

    method: Method
    host: str
    ports: list[int]
    rate: int
    started_at: float
    sent: int = 0

    @property
    def is_over(self) -> bool:
        """Nothing is left."""
        return self.sent == len(self.ports)

    @property
    def due_at(self) -> float:
        """When the next ping goes."""
        return self.started_at + self.sent / self.rate

    def take(self, now: float) -> list[Address]:
        """Where pings are due; clears."""
        until = min(len(self.ports), int((now + TICK - self.started_at) * self.rate) + 1)
        due = self.ports[self.sent : until]
        self.sent += len(due)
        return [Address(self.host, port) for port in due]


def spray_port(attempt: Attempt, now: float) -> Spray:
    """For an opener that told its port: that one, or those around it if its NAT counts."""
    if attempt.step == 0:
        return Spray(Method.PORT, attempt.host, [attempt.port] * KEPT_PINGS, KEPT_RATE, now)
    return Spray(Method.PORT, attempt.host, near(attempt.port, attempt.step), NEAR_RATE, now)


def spray_random(attempt: Attempt, now: float, entropy: Callable[[int], bytes]) -> Spray:
    """For an opener that made holes at ports it does not know."""
    found: dict[int, None] = {}
    while len(found) < SPRAY_PORTS:
        data = entropy(2 * SPRAY_PORTS)
        ports = (int.from_bytes(data[place : place + 2], "little") for place in range(0, len(data), 2))
        found.update(dict.fromkeys(port for port in ports if port >= 1024))
    return Spray(Method.HOLES, attempt.host, list(found)[:SPRAY_PORTS], SPRAY_RATE, now)


def near(port: int, step: int) -> list[int]:
    """The ports to try around one, nearest first, from NEAR_BELOW steps below it."""
    offsets = sorted(range(-NEAR_BELOW, NEAR_PORTS - NEAR_BELOW), key=lambda offset: (abs(offset), -offset))
    return [at for offset in offsets if 0 < (at := port + step * offset) < 65536]


def is_sound(attempt: Attempt) -> bool:
    """May a peer have us do that?"""
    is_possible = 0 < abs(attempt.step) <= 32 or (attempt.step == 0 and attempt.method != Method.VOLLEY)
    is_possible = is_possible and 0 <= attempt.rate <= 10_000 and 0 <= attempt.age <= 10_000
    return is_possible and is_target(attempt.host, attempt.port)


def is_target(host: str, port: int) -> bool:
    """Is it an address to send to at all, and written as sockets want it?"""
    kept = usable([Candidate(CandidateKind.SERVER_REFLEXIVE, host, port)], [])
    return [candidate.host for candidate in kept] == [host] and ":" not in host
