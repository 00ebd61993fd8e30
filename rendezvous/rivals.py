"""Two hosts with one identity: a copied disk, or one host that is back while its old connection seems to be up. Pure.

Attach of another instance ──Ask to who is connected──▶ Here: the newcomer is refused
                                                 └──▶ nothing for PATIENCE, or closed: the newcomer comes in

Who was refused does not slip in while the other one is away for a moment, to connect anew.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .core import Opening

C = TypeVar("C", bound=Hashable)

PATIENCE = 2.0
"""Seconds for an answer: a lost packet on a slow line is repeated in that time. So long at most waits who starts anew
after a crash that its connection has not noticed."""
VACANT_FOR = 10.0
"""Seconds for which a member must have been away before another instance is let in that was refused before. Who lost
its connection is back in four."""
MAX_REFUSED = 1024
"""Refused instances that are remembered, the latest; of the others the worst that comes is a change of places."""


@dataclass(frozen=True, slots=True)
class Newcomer(Generic[C]):
    """Who waits, what it asked for in which network, and whom it would replace."""

    connection: C
    uid: bytes
    request: Opening
    asked: C
    token: int
    deadline: float


class Rivals(Generic[C]):
    """Those who wait."""

    def __init__(self) -> None:
        self._waiting: dict[C, Newcomer[C]] = {}
        self._tokens = 0
        self._refused: dict[tuple[bytes, bytes], bytes] = {}
        """The instance that was refused last, by network and identity."""
        self._left_at: dict[tuple[bytes, bytes], float] = {}
        """When the member's connection ended, for those in `_refused`."""

    def __contains__(self, connection: C) -> bool:
        return connection in self._waiting

    def wait(self, connection: C, uid: bytes, request: Opening, asked: C, *, now: float) -> int:
        """Until who is connected answers; the token to ask with."""
        self._tokens += 1
        self._waiting[connection] = Newcomer(connection, uid, request, asked, self._tokens, now + PATIENCE)
        return self._tokens

    def handle_here(self, asked: C, token: int) -> Newcomer[C] | None:
        """Who was asked is there: whom to refuse."""
        for newcomer in self._waiting.values():
            if newcomer.asked == asked and newcomer.token == token:
                self._note_refused((newcomer.uid, newcomer.request.identity), newcomer.request.instance)
                return self._waiting.pop(newcomer.connection)
        return None

    def handle_left(self, uid: bytes, identity: bytes, *, now: float) -> None:
        """A member's connection ended."""
        if (uid, identity) in self._refused:
            self._left_at[uid, identity] = now

    def is_too_early(self, uid: bytes, identity: bytes, instance: bytes, *, now: float) -> bool:
        """Was this instance refused, and has the other one been there until a moment ago?"""
        left_at = self._left_at.get((uid, identity))
        is_refused = self._refused.get((uid, identity)) == instance
        return is_refused and left_at is not None and now < left_at + VACANT_FOR

    def _note_refused(self, member: tuple[bytes, bytes], instance: bytes) -> None:
        self._refused.pop(member, None)
        self._refused[member] = instance
        if len(self._refused) > MAX_REFUSED:
            oldest = next(iter(self._refused))
            del self._refused[oldest]
            self._left_at.pop(oldest, None)

    def handle_closed(self, connection: C, *, now: float) -> None:
        """A newcomer went, or who was asked: then nobody has to wait for it."""
        self._waiting.pop(connection, None)
        for newcomer in list(self._waiting.values()):
            if newcomer.asked == connection:
                self._waiting[newcomer.connection] = Newcomer(
                    newcomer.connection, newcomer.uid, newcomer.request, newcomer.asked, newcomer.token, now
                )

    def next_timeout(self) -> float | None:
        """When somebody has waited long enough."""
        return min((newcomer.deadline for newcomer in self._waiting.values()), default=None)

    def take_due(self, *, now: float) -> list[Newcomer[C]]:
        """Who has, first come first served."""
        due = [newcomer for newcomer in self._waiting.values() if newcomer.deadline <= now]
        for newcomer in due:
            del self._waiting[newcomer.connection]
        return due
