"""A storage in memory, for tests of what is above it; what it promises is tested with SQLite's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from rendezvous.core import NetworkDoc, invites_of, locator_of, uid_of
from rendezvous.store import ConflictError, LocatorTakenError, Stored, StoreError


class MemoryStore:
    def __init__(self) -> None:
        self.failure: str | None = None
        """While set, every call fails with it."""
        self.pause: Callable[[bytes], asyncio.Event | None] = lambda uid: None
        """What a `get` of this network waits for, if anything."""
        self.puts = 0
        self._bodies: dict[bytes, tuple[bytes, int]] = {}
        self._locators: dict[bytes, bytes] = {}
        self._invites: dict[bytes, bytes] = {}

    async def get(self, uid: bytes) -> Stored | None:
        await self._enter()
        if (event := self.pause(uid)) is not None:
            await event.wait()
        if uid not in self._bodies:
            return None
        body, revision = self._bodies[uid]
        return Stored(msgspec.msgpack.decode(body, type=NetworkDoc), revision)

    async def find(self, locator: bytes) -> bytes | None:
        await self._enter()
        return self._locators.get(locator)

    async def find_invite(self, locator: bytes) -> bytes | None:
        await self._enter()
        return self._invites.get(locator)

    async def put(self, document: NetworkDoc, revision: int) -> Stored:
        await self._enter()
        self.puts += 1
        uid, locator = uid_of(document.charter), locator_of(document)
        if self._bodies.get(uid, (b"", 0))[1] != revision:
            raise ConflictError
        if locator is not None and self._locators.get(locator, uid) != uid:
            raise LocatorTakenError
        if any(self._invites.get(invite, uid) != uid for invite in invites_of(document)):
            raise LocatorTakenError
        self._invites = {known: owner for known, owner in self._invites.items() if owner != uid}
        self._invites |= dict.fromkeys(invites_of(document), uid)
        self._locators = {known: owner for known, owner in self._locators.items() if owner != uid}
        if locator is not None:
            self._locators[locator] = uid
        self._bodies[uid] = msgspec.msgpack.encode(document), revision + 1
        return Stored(document, revision + 1)

    async def count(self) -> int:
        await self._enter()
        return len(self._bodies)

    async def close(self) -> None:
        self.failure = "closed"

    async def _enter(self) -> None:
        # As with a real one, others run in between.
        await asyncio.sleep(0)
        if self.failure is not None:
            raise StoreError(self.failure)
