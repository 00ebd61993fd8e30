"""Two hosts with one identity: a copied disk, or one host that is back while its old connection seems to be up. Pure.

Attach of another instance ──Ask to who is connected──▶ Here: the newcomer is refused
                                                 └──▶ nothing for PATIENCE, or closed: the newcomer comes in
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
                return self._waiting.pop(newcomer.connection)
        return None

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
