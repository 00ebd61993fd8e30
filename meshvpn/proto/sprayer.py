"""The end that pings where the ports of the other may be (guess.py), for one peer: what it takes up, and when.

A birthday attack needs the host's permit. While another one has it, the peer's holes wait for us as long as they are
open; if that is not long enough the peer is told, so that it tries again soon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from .nat import Attempt, Method
from .opening import HOLES_WAIT
from .permit import Permit
from .spray import SPRAY_PORTS, SPRAY_RATE, Spray, spray_port, spray_random
from .transport import Address

WINDOW = 300.0
MAX_ATTEMPTS = 4
"""Attempts of one peer in WINDOW seconds, of which one, the last if another way is known, is a birthday attack."""
LENIENCE = 30.0
"""Seconds by which a sprayer's WINDOW is shorter: the opener's began earlier, and its offer must not come too soon."""
PATIENCE = HOLES_WAIT - SPRAY_PORTS / SPRAY_RATE - 0.5
PATIENCE_STEP = 0.2
"""Seconds for which the peer's holes can wait and still be open to the end, and between two looks at the permit."""


@dataclass(slots=True)
class _Queued:
    attempt: Attempt
    due_at: float
    until: float


class Sprayer:
    """The machine; it is the permit's holder. `birthday_at`: the last attack with this peer, whoever opened."""

    def __init__(self, permit: Permit, *, entropy: Callable[[int], bytes]) -> None:
        self.birthday_at = float("-inf")
        self._permit = permit
        self._entropy = entropy
        self._spray: Spray | None = None
        self._queued: _Queued | None = None
        self._taken: deque[float] = deque(maxlen=MAX_ATTEMPTS + 2)

    @property
    def is_on(self) -> bool:
        """Are pings on their way, or about to be?"""
        return self._spray is not None or self._queued is not None

    @property
    def is_at_holes(self) -> bool:
        """Is it a birthday attack?"""
        return self._spray is not None and self._spray.method is Method.HOLES

    @property
    def due_at(self) -> float | None:
        """The next ping, or look at the permit."""
        due = [it.due_at for it in (self._spray, self._queued) if it is not None]
        return min(due, default=None)

    def may_take(self, now: float) -> bool:
        """One more attempt of the peer; it counts."""
        if len(self._taken) == self._taken.maxlen and now < self._taken[0] + WINDOW:
            return False
        self._taken.append(now)
        return True

    def take_up(self, attempt: Attempt, now: float) -> None:
        """The peer opened sockets for us."""
        if self._spray is not None:
            return
        if attempt.method == Method.PORT:
            self._spray = spray_port(attempt, now)
        # Payload is the opener's to judge: we may hear of it up to a second later.
        elif attempt.method == Method.HOLES and now >= self.birthday_at + WINDOW - LENIENCE:
            self._queued = _Queued(attempt, now, now + PATIENCE - attempt.age / 1000)

    def take(self, now: float) -> tuple[list[Address], Attempt | None]:
        """Where pings are due, and what to tell the peer."""
        refusal = None
        if self._queued is not None and now >= self._queued.due_at:
            refusal = self._try(self._queued, now)
        if self._spray is None:
            return [], refusal
        due = self._spray.take(now)
        if self._spray.is_over:
            self.end()
        return due, refusal

    def end(self) -> None:
        """The peer was heard, or is gone."""
        if self.is_at_holes:
            self._permit.give_back(self)
        self._spray = self._queued = None

    def _try(self, queued: _Queued, now: float) -> Attempt | None:
        if self._permit.take(self, now=now, until=now + SPRAY_PORTS / SPRAY_RATE + 1):
            self._queued, self.birthday_at = None, now
            self._spray = spray_random(queued.attempt, now, self._entropy)
        elif now >= queued.until:
            self._queued = None
            return Attempt(queued.attempt.number, Method.BUSY, "", 0)
        else:
            queued.due_at = min(now + PATIENCE_STEP, queued.until)
        return None
