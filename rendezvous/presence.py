"""Who is connected, and who is told what: a table of the connections by network and identity. Pure.

A connection is whatever the shell uses for one, as long as it can be a dictionary's key; the table answers with
deliveries, which the shell carries out in their order.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from meshvpn.proto.control import Goodbye, Presence, PresenceEntry, Response, Signalled

from .core import Notice

C = TypeVar("C", bound=Hashable)

REPLACED = Goodbye(code="replaced", message="the member connected again from elsewhere")


@dataclass(frozen=True, slots=True)
class Delivery(Generic[C]):
    """A message for some connections, which end after it if it `is_last`."""

    to: list[C]
    message: Response
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Seat(Generic[C]):
    """A member's connection."""

    uid: bytes
    identity: bytes
    connection: C
    relay_id: int
    instance: bytes = b""


class PresenceTable(Generic[C]):
    """The attached connections: at most one a member, the latest."""

    def __init__(self) -> None:
        self._networks: dict[bytes, dict[bytes, Seat[C]]] = {}
        self._seats: dict[C, Seat[C]] = {}

    def __len__(self) -> int:
        return len(self._seats)

    def seat(self, connection: C) -> Seat[C] | None:
        """Whom the connection belongs to; None before it is attached, and once it was told to end."""
        return self._seats.get(connection)

    def online(self, uid: bytes) -> list[PresenceEntry]:
        """Who is connected in a network."""
        return [PresenceEntry(seat.identity, seat.relay_id) for seat in self._members(uid)]

    def rival(self, uid: bytes, identity: bytes, instance: bytes) -> C | None:
        """The member's connection, if another instance of it made that."""
        seat = self._networks.get(uid, {}).get(identity)
        return None if seat is None or seat.instance == instance else seat.connection

    def attach(
        self, connection: C, uid: bytes, identity: bytes, relay_id: int, instance: bytes = b""
    ) -> list[Delivery[C]]:
        """A member came; it takes the place of its older connection."""
        older = self._networks.get(uid, {}).get(identity)
        deliveries = [] if older is None else [Delivery([self._remove(older)], REPLACED, is_last=True)]
        deliveries += self._announce(uid, PresenceEntry(identity, relay_id))
        seat = Seat(uid, identity, connection, relay_id, instance)
        self._networks.setdefault(uid, {})[identity] = self._seats[connection] = seat
        return deliveries

    def detach(self, connection: C) -> list[Delivery[C]]:
        """A connection ended. One that was replaced or told to end is no news."""
        seat = self._seats.get(connection)
        if seat is None:
            return []
        self._remove(seat)
        return self._announce(seat.uid, PresenceEntry(seat.identity, 0))

    def publish(self, uid: bytes, notice: Notice, *, sender: C | None) -> list[Delivery[C]]:
        """Tell a network; the sender, if it is one of ours, is not told what it did. Then who has to go, goes."""
        others = [seat.connection for seat in self._members(uid) if seat.connection is not sender]
        deliveries = [Delivery(others, message) for message in notice.messages if others]
        for identity, goodbye in notice.goodbyes.items():
            if (seat := self._networks.get(uid, {}).get(identity)) is not None:
                deliveries.append(Delivery([self._remove(seat)], goodbye, is_last=True))
        return deliveries

    def signal(self, seat: Seat[C], to: bytes, payload: bytes) -> list[Delivery[C]]:
        """Pass a signal on; nothing happens if that member is not connected, or is the sender itself."""
        receiver = self._networks.get(seat.uid, {}).get(to)
        if receiver is None or receiver.connection is seat.connection:
            return []
        return [Delivery([receiver.connection], Signalled(source=seat.identity, payload=payload))]

    def _announce(self, uid: bytes, entry: PresenceEntry) -> list[Delivery[C]]:
        others = [seat.connection for seat in self._members(uid)]
        return [Delivery(others, Presence(entry=entry))] if others else []

    def _members(self, uid: bytes) -> list[Seat[C]]:
        return list(self._networks.get(uid, {}).values())

    def _remove(self, seat: Seat[C]) -> C:
        del self._seats[seat.connection]
        members = self._networks[seat.uid]
        del members[seat.identity]
        if not members:
            del self._networks[seat.uid]
        return seat.connection
