"""The storage of one node: an SQLite file."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiosqlite
import msgspec

from .core import NetworkDoc, invites_of, locator_of, uid_of
from .store import ConflictError, LocatorTakenError, Stored, StoreError

SCHEMA_VERSION = 2

_SCHEMA_1 = """
CREATE TABLE networks (
    uid BLOB PRIMARY KEY,
    locator BLOB UNIQUE,
    revision INTEGER NOT NULL,
    document BLOB NOT NULL
) WITHOUT ROWID;
"""
_SCHEMA_2 = """
ALTER TABLE networks ADD COLUMN invites TEXT NOT NULL DEFAULT '[]';
CREATE TABLE invites (locator TEXT PRIMARY KEY, uid BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX invites_uid ON invites (uid);
CREATE TRIGGER networks_inserted AFTER INSERT ON networks BEGIN
    INSERT INTO invites SELECT value, new.uid FROM json_each(new.invites);
END;
CREATE TRIGGER networks_updated AFTER UPDATE OF invites ON networks WHEN new.invites <> old.invites BEGIN
    DELETE FROM invites WHERE uid = new.uid;
    INSERT INTO invites SELECT value, new.uid FROM json_each(new.invites);
END;
"""
"""Triggers, because one statement is one transaction, whatever others do on the connection meanwhile."""
_INSERT = "INSERT INTO networks VALUES (:uid, :locator, 1, :body, :invites) ON CONFLICT (uid) DO NOTHING"
_UPDATE = (
    "UPDATE networks SET locator = :locator, revision = revision + 1, document = :body, invites = :invites"
    " WHERE uid = :uid AND revision = :revision"
)

Value = bytes | int | str | None


class SqliteStore:
    """One file, one process. What `put` returned is on the disk (WAL, synchronous=FULL)."""

    def __init__(self, database: aiosqlite.Connection) -> None:
        self._database = database

    @classmethod
    async def open(cls, path: Path) -> SqliteStore:
        """Open or create the file. Raises StoreError; a damaged or newer file is left as it is."""
        try:
            _create_private(path)
            database = await aiosqlite.connect(path, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(path, error) from error
        store = cls(database)
        try:
            await store._prepare(path)
        except sqlite3.Error as error:
            await database.close()
            raise _unusable(path, error) from error
        except StoreError:
            await database.close()
            raise
        return store

    async def _prepare(self, path: Path) -> None:
        await self._database.execute_fetchall("PRAGMA journal_mode=WAL")
        await self._database.execute_fetchall("PRAGMA synchronous=FULL")
        version = await self._value("PRAGMA user_version")
        if version in (0, 1):
            steps = (_SCHEMA_1 if version == 0 else "") + _SCHEMA_2
            await self._database.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version={SCHEMA_VERSION}; COMMIT")
        elif version != SCHEMA_VERSION:
            raise StoreError(f"{path} was written by another version (schema {version}); use the program that wrote it")
        if await self._value("PRAGMA quick_check") != "ok":
            raise StoreError(f"{path} is damaged; restore it from a backup")

    async def get(self, uid: bytes) -> Stored | None:
        """See Store.get."""
        with _guarded():
            row = await self._row("SELECT document, revision FROM networks WHERE uid = ?", uid)
            if row is None:
                return None
            return Stored(msgspec.msgpack.decode(row[0], type=NetworkDoc), int(row[1]))

    async def find(self, locator: bytes) -> bytes | None:
        """See Store.find."""
        with _guarded():
            row = await self._row("SELECT uid FROM networks WHERE locator = ?", locator)
            return None if row is None else bytes(row[0])

    async def find_invite(self, locator: bytes) -> bytes | None:
        """See Store.find_invite."""
        with _guarded():
            row = await self._row("SELECT uid FROM invites WHERE locator = ?", locator.hex())
            return None if row is None else bytes(row[0])

    async def put(self, document: NetworkDoc, revision: int) -> Stored:
        """See Store.put."""
        values = {
            "uid": uid_of(document.charter),
            "locator": locator_of(document),
            "body": msgspec.msgpack.encode(document),
            "invites": json.dumps([locator.hex() for locator in invites_of(document)]),
            "revision": revision,
        }
        with _guarded():
            async with self._database.execute(_UPDATE if revision else _INSERT, values) as cursor:
                if cursor.rowcount != 1:
                    raise ConflictError("stored by somebody else")
        return Stored(document, revision + 1)

    async def count(self) -> int:
        """See Store.count."""
        with _guarded():
            return int(await self._value("SELECT count(*) FROM networks"))

    async def close(self) -> None:
        """See Store.close."""
        await self._database.close()

    async def _row(self, statement: str, *values: Value) -> sqlite3.Row | None:
        async with self._database.execute(statement, values) as cursor:
            return await cursor.fetchone()

    async def _value(self, statement: str) -> int | str:
        row = await self._row(statement)
        assert row is not None, "such statements always give a row"
        value: int | str = row[0]
        return value


def _create_private(path: Path) -> None:
    """The locators in it let whoever reads them try passwords at home; SQLite's further files take the mode over."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


def _unusable(path: Path, error: Exception) -> StoreError:
    reason = error.strerror if isinstance(error, OSError) else error
    return StoreError(f"{path} cannot be used ({reason}); move it away or restore it from a backup")


@contextmanager
def _guarded() -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise LocatorTakenError("another network has the locator") from error
    except (sqlite3.Error, ValueError, msgspec.MsgspecError) as error:
        # aiosqlite raises ValueError once it is closed.
        raise StoreError(f"the storage failed: {error}") from error
