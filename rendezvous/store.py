"""Where networks are kept: a document by uid, found by locator too, replaced by compare-and-swap on its revision."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import aiosqlite
import msgspec

from meshvpn.proto.errors import MeshError

from .core import NetworkDoc, locator_of, uid_of

T = TypeVar("T")

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE networks (
    uid BLOB PRIMARY KEY,
    locator BLOB UNIQUE,
    revision INTEGER NOT NULL,
    document BLOB NOT NULL
) WITHOUT ROWID
"""


class StoreError(MeshError):
    """The storage can't be used; the message says why and what to do."""


class ConflictError(MeshError):
    """Somebody else stored the network meanwhile: load it again."""


class LocatorTakenError(MeshError):
    """Another network has this locator."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A document and its revision, from 1 on."""

    document: NetworkDoc
    revision: int


class Store(Protocol):
    """What the server needs of a storage. All calls may raise StoreError."""

    async def get(self, uid: bytes) -> Stored | None:
        """The network, or None."""

    async def find(self, locator: bytes) -> Stored | None:
        """The network with this locator, or None."""

    async def put(self, document: NetworkDoc, revision: int) -> Stored:
        """Store as the successor of `revision` (0: new). Raises ConflictError, LocatorTakenError."""

    async def count(self) -> int:
        """How many networks there are."""

    async def close(self) -> None:
        """Let go of it."""


class SqliteStore:
    """One file, one process. What `put` returned is on the disk (WAL, synchronous=FULL)."""

    def __init__(self, database: aiosqlite.Connection) -> None:
        self._database = database

    @classmethod
    async def open(cls, path: Path) -> SqliteStore:
        """Open or create the file. Raises StoreError; a damaged or newer file is left as it is."""
        database = await aiosqlite.connect(path, isolation_level=None)
        try:
            await database.execute("PRAGMA journal_mode=WAL")
            await database.execute("PRAGMA synchronous=FULL")
            await cls._prepare(database, path)
        except sqlite3.Error as error:
            await database.close()
            raise StoreError(f"{path} cannot be used ({error}); move it away or restore it from a backup") from error
        except StoreError:
            await database.close()
            raise
        return cls(database)

    @staticmethod
    async def _prepare(database: aiosqlite.Connection, path: Path) -> None:
        version = await _value(database, "PRAGMA user_version")
        if version == 0:
            await database.execute("BEGIN IMMEDIATE")
            await database.execute(_SCHEMA)
            await database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            await database.execute("COMMIT")
        elif version != SCHEMA_VERSION:
            raise StoreError(f"{path} was written by another version (schema {version}); use the program that wrote it")
        if await _value(database, "PRAGMA quick_check") != "ok":
            raise StoreError(f"{path} is damaged; restore it from a backup")

    async def get(self, uid: bytes) -> Stored | None:
        """See Store.get."""
        return await self._one("SELECT document, revision FROM networks WHERE uid = ?", uid)

    async def find(self, locator: bytes) -> Stored | None:
        """See Store.find."""
        return await self._one("SELECT document, revision FROM networks WHERE locator = ?", locator)

    async def put(self, document: NetworkDoc, revision: int) -> Stored:
        """See Store.put."""
        uid, locator, body = uid_of(document), locator_of(document), msgspec.msgpack.encode(document)

        async def write() -> Stored:
            if revision == 0:
                statement = "INSERT INTO networks VALUES (:uid, :locator, 1, :body) ON CONFLICT (uid) DO NOTHING"
            else:
                statement = (
                    "UPDATE networks SET locator = :locator, revision = revision + 1, document = :body"
                    " WHERE uid = :uid AND revision = :revision"
                )
            values = {"uid": uid, "locator": locator, "body": body, "revision": revision}
            cursor = await self._database.execute(statement, values)
            if cursor.rowcount != 1:
                raise ConflictError("stored by somebody else")
            return Stored(document, revision + 1)

        try:
            return await _guarded(write)
        except sqlite3.IntegrityError as error:
            raise LocatorTakenError("taken") from error

    async def count(self) -> int:
        """See Store.count."""

        async def read() -> int:
            return int(await _value(self._database, "SELECT count(*) FROM networks"))

        return await _guarded(read)

    async def close(self) -> None:
        """See Store.close."""
        await self._database.close()

    async def _one(self, statement: str, key: bytes) -> Stored | None:
        async def read() -> Stored | None:
            async with self._database.execute(statement, (key,)) as cursor:
                row = await cursor.fetchone()
            if row is None:
                return None
            return Stored(msgspec.msgpack.decode(row[0], type=NetworkDoc), int(row[1]))

        return await _guarded(read)


async def _guarded(call: Callable[[], Awaitable[T]]) -> T:
    try:
        return await call()
    except sqlite3.IntegrityError:
        raise
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise StoreError(f"storage failed: {error}") from error


async def _value(database: aiosqlite.Connection, statement: str) -> int | str:
    async with database.execute(statement) as cursor:
        row = await cursor.fetchone()
    assert row is not None, "such statements always give a row"
    value: int | str = row[0]
    return value
