"""Whose a nickname, an address or a key is: whoever had it first keeps it."""

from __future__ import annotations

from .drops import DropReason
from .errors import MalformedMessage
from .member import Member
from .record import Record


class Claims:
    """Those of one network's members."""

    def __init__(self) -> None:
        self._nicks: dict[str, bytes] = {}
        self._holders: dict[str | bytes, bytes] = {}
        """Whose an address, a tunnel key or a disco key is."""

    def reserve(self, identity: bytes, *claims: str | bytes) -> None:
        """For one that is not put here as a member."""
        self._holders.update(dict.fromkeys(claims, identity))

    def check(self, record: Record) -> None:
        """Raise MalformedMessage (unexpected) if it claims what is another's."""
        for claim in _claims(record):
            if self._holders.get(claim, record.identity) != record.identity:
                raise MalformedMessage(DropReason.UNEXPECTED)

    def nick_for(self, record: Record) -> str:
        """The one it wants, or that with a number."""
        nick, number = record.nick, 2
        while self._nicks.get(nick.casefold(), record.identity) != record.identity:
            nick, number = f"{record.nick}-{number}", number + 1
        return nick

    def put(self, member: Member) -> None:
        """From now on they are its."""
        self._nicks[member.nick.casefold()] = member.identity
        self.reserve(member.identity, *_claims(member))

    def forget(self, member: Member) -> None:
        """From now on they are free."""
        del self._nicks[member.nick.casefold()]
        for claim in _claims(member):
            del self._holders[claim]


def _claims(member: Record | Member) -> tuple[str, bytes, bytes]:
    """What only one member may have. Two with one disco key could answer each other's probes."""
    return member.address, member.tunnel_key, member.disco_key
