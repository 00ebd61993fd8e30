"""The storage: compare-and-swap, locators, restarts, and every way in which a disk lets us down."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from meshvpn.proto.charter import Invite
from rendezvous.core import NetworkDoc, StoredEntry
from rendezvous.sqlite_store import SCHEMA_VERSION, SqliteStore
from rendezvous.store import ConflictError, LocatorTakenError, Store, Stored, StoreError

from .memory_store import MemoryStore
from .signing import Network

MANY = 300
"""Members that make a document of several hundred kilobytes."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "networks.sqlite3"


@pytest.fixture(params=["sqlite", "memory"])
async def store(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[Store]:
    store: Store = MemoryStore() if request.param == "memory" else await SqliteStore.open(path)
    yield store
    await store.close()


# --- what any storage must do


async def test_what_is_put_is_got_by_uid_and_found_by_locator(store: Store) -> None:
    network = Network()
    document = document_of(network)
    assert await store.put(document, 0) == Stored(document, 1)
    assert await store.get(network.uid) == Stored(document, 1)
    assert await store.find(document_locator(network)) == network.uid
    assert await store.count() == 1


async def test_what_is_not_there_is_none(store: Store) -> None:
    assert await store.get(b"u" * 16) is None
    assert await store.find(b"l" * 32) is None
    assert await store.count() == 0


async def test_only_the_successor_of_the_stored_revision_is_taken(store: Store) -> None:
    network = Network()
    first, second = document_of(network), document_of(network, members=1)
    await store.put(first, 0)
    for revision in (0, 2):
        with pytest.raises(ConflictError):
            await store.put(second, revision)
    assert await store.get(network.uid) == Stored(first, 1)
    assert (await store.put(second, 1)).revision == 2
    with pytest.raises(ConflictError):
        await store.put(first, 1)
    assert await store.get(network.uid) == Stored(second, 2)


async def test_a_network_that_is_not_there_has_no_successor(store: Store) -> None:
    with pytest.raises(ConflictError):
        await store.put(document_of(Network()), 1)
    assert await store.count() == 0


async def test_of_many_writers_with_the_same_revision_one_wins(store: Store) -> None:
    network = Network()
    await store.put(document_of(network), 0)
    documents = [document_of(network, members=number) for number in range(1, 11)]
    results = await asyncio.gather(*(store.put(document, 1) for document in documents), return_exceptions=True)
    winners = [result for result in results if isinstance(result, Stored)]
    assert [type(result) for result in results].count(ConflictError) == 9
    assert winners == [await store.get(network.uid)]


async def test_two_networks_cannot_have_one_locator(store: Store) -> None:
    first, second = Network(1), Network(2, locator=Network(1).charter.locator)
    await store.put(document_of(first), 0)
    with pytest.raises(LocatorTakenError):
        await store.put(document_of(second), 0)
    assert await store.count() == 1
    other = Network(3)
    await store.put(document_of(other), 0)
    other.change(locator=first.charter.locator)
    with pytest.raises(LocatorTakenError):
        await store.put(document_of(other), 1)
    assert await store.find(document_locator(first)) == first.uid


async def test_a_locator_that_was_given_up_is_free_for_others(store: Store) -> None:
    first, second = Network(1), Network(2, locator=Network(1).charter.locator)
    await store.put(document_of(first), 0)
    locator = document_locator(first)
    first.change(locator=None)
    await store.put(document_of(first), 1)
    assert await store.find(locator) is None
    await store.put(document_of(second), 0)
    assert await store.find(locator) == second.uid


async def test_any_number_of_networks_may_be_without_a_locator(store: Store) -> None:
    for seed in range(3):
        network = Network(seed)
        network.charter = msgspec.structs.replace(network.charter, locator=None)
        await store.put(document_of(network), 0)
    assert await store.count() == 3


# --- SQLite


async def test_a_restart_keeps_everything(path: Path) -> None:
    networks = [Network(seed) for seed in range(5)]
    store = await SqliteStore.open(path)
    for network in networks:
        await store.put(document_of(network, members=3), 0)
    await store.close()
    store = await SqliteStore.open(path)
    for network in networks:
        assert await store.get(network.uid) == Stored(document_of(network, members=3), 1)
    await store.close()


async def test_what_was_put_is_in_the_file_although_nobody_closed_it(path: Path, tmp_path: Path) -> None:
    store = await SqliteStore.open(path)
    await store.put(document_of(Network()), 0)
    # What a machine that lost its power would find.
    copies = {file: file.read_bytes() for file in tmp_path.iterdir()}
    await store.close()
    for file, content in copies.items():
        file.write_bytes(content)
    store = await SqliteStore.open(path)
    assert await store.get(Network().uid) == Stored(document_of(Network()), 1)
    await store.close()


async def test_only_its_owner_reads_the_database(path: Path, tmp_path: Path) -> None:
    path.touch(mode=0o644)
    store = await SqliteStore.open(path)
    await store.put(document_of(Network()), 0)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    await store.close()
    assert len(modes) == 3  # with the write-ahead log and its index
    assert set(modes.values()) == {0o600}


async def test_a_full_disk_loses_nothing_and_is_over_when_there_is_room(path: Path) -> None:
    store = await SqliteStore.open(path)
    network = Network()
    kept = document_of(network, members=MANY)
    await store.put(kept, 0)
    larger = document_of(network, members=2 * MANY)
    with no_room(path):
        with pytest.raises(StoreError, match="the storage failed"):
            await store.put(larger, 1)
        assert await store.get(network.uid) == Stored(kept, 1)
    assert await store.put(larger, 1) == Stored(larger, 2)
    await store.close()


async def test_a_damaged_page_is_an_error_when_it_is_read(path: Path) -> None:
    store = await SqliteStore.open(path)
    await store.put(document_of(Network(), members=MANY), 0)
    await store.close()
    damage(path, 8192)
    with pytest.raises(StoreError, match=str(path)):
        await SqliteStore.open(path)


async def test_a_document_that_cannot_be_read_is_an_error_of_the_storage(path: Path) -> None:
    network = Network()
    store = await SqliteStore.open(path)
    await store.put(document_of(network), 0)
    await store.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE networks SET document = ?", (b"\xc1",))
    database.close()
    store = await SqliteStore.open(path)
    with pytest.raises(StoreError):
        await store.get(network.uid)
    await store.close()


@pytest.mark.parametrize(
    "content", [b"this is no database, whatever its name says " * 100, b"SQLite format 3\0" + b"\xff" * 4096]
)
async def test_a_file_that_is_no_database_is_named_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"networks.sqlite3 cannot be used \(.*\); move it away or restore it"):
        await SqliteStore.open(path)
    assert path.read_bytes() == content


async def test_a_truncated_database_is_named_and_left_alone(path: Path) -> None:
    store = await SqliteStore.open(path)
    await store.put(document_of(Network(), members=MANY), 0)
    await store.close()
    content = path.read_bytes()[: len(path.read_bytes()) // 2]
    path.write_bytes(content)
    with pytest.raises(StoreError, match=str(path)):
        await SqliteStore.open(path)
    assert path.read_bytes() == content


async def test_a_database_of_a_newer_program_is_left_alone(path: Path) -> None:
    store = await SqliteStore.open(path)
    await store.close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    database.close()
    content = path.read_bytes()
    with pytest.raises(StoreError, match=r"another version \(schema 3\); use the program that wrote it"):
        await SqliteStore.open(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("obstacle", ["no directory", "a directory"])
async def test_a_path_that_cannot_be_a_file_is_one_clear_error(path: Path, obstacle: str) -> None:
    if obstacle == "a directory":
        path.mkdir()
    else:
        path = path / "below" / "networks.sqlite3"
    with pytest.raises(StoreError, match=r"networks.sqlite3 cannot be used \([A-Z][a-z ]+\)"):
        await SqliteStore.open(path)


async def test_a_store_that_is_closed_says_so(path: Path) -> None:
    store = await SqliteStore.open(path)
    await store.close()
    with pytest.raises(StoreError):
        await store.count()


# --- helpers


def document_of(network: Network, *, members: int = 0) -> NetworkDoc:
    entries = [
        StoredEntry(number.to_bytes(32, "big"), f"10.7.5.{number % 250}", 7, network.owner.sign(b"", bytes(600)))
        for number in range(members)
    ]
    return NetworkDoc(network.sign(), network.founder.public, entries, [("10.7.5.9", 5)])


def document_locator(network: Network) -> bytes:
    assert network.charter.locator is not None
    return network.charter.locator


@contextmanager
def no_room(path: Path) -> Iterator[None]:
    """No file may grow beyond what the write-ahead log has now; Python ignores the signal that goes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = path.with_name(path.name + "-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def damage(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + 4096] = b"\xff" * 4096
    path.write_bytes(content)


async def test_an_invite_is_found_while_the_charter_has_it_and_never_as_a_password(store: Store) -> None:
    network, locators = Network(), [bytes([number]) * 32 for number in (1, 2)]
    network.charter = msgspec.structs.replace(network.charter, invites=[invite(locator) for locator in locators])
    await store.put(document_of(network), 0)
    assert [await store.find_invite(locator) for locator in locators] == [network.uid, network.uid]
    assert [await store.find(locator) for locator in locators] == [None, None]
    assert await store.find_invite(document_locator(network)) is None
    network.change(invites=[invite(locators[1])])
    await store.put(document_of(network), 1)
    assert [await store.find_invite(locator) for locator in locators] == [None, network.uid]
    thief = Network(2)
    thief.charter = msgspec.structs.replace(thief.charter, invites=[invite(locators[1])])
    with pytest.raises(LocatorTakenError):
        await store.put(document_of(thief), 0)
    assert await store.count() == 1


async def test_a_database_of_before_invites_is_carried_on(path: Path) -> None:
    network = Network()
    with sqlite3.connect(path) as database:
        database.executescript(
            "CREATE TABLE networks (uid BLOB PRIMARY KEY, locator BLOB UNIQUE, revision INTEGER NOT NULL,"
            " document BLOB NOT NULL) WITHOUT ROWID; PRAGMA user_version=1"
        )
        body = msgspec.msgpack.encode(document_of(network))
        database.execute("INSERT INTO networks VALUES (?, ?, 1, ?)", (network.uid, document_locator(network), body))
    database.close()
    store = await SqliteStore.open(path)
    assert await store.get(network.uid) == Stored(document_of(network), 1)
    network.change(invites=[invite(b"i" * 32)])
    await store.put(document_of(network), 1)
    assert await store.find_invite(b"i" * 32) == network.uid
    await store.close()


def invite(locator: bytes) -> Invite:
    return Invite(locator, b"wrap", b"k" * 32, 1, 1)
