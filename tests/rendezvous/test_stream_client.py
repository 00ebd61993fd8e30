"""A member's end of the relay by WebSocket, with a server in this process: packets, pins, and every way to end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshvpn.net.stream import RelayStream
from meshvpn.proto import stun
from meshvpn.proto.control import RelayGrant
from meshvpn.proto.transport import Address, RelayHop
from rendezvous import tls

from .clients import PATIENCE, Datagrams, Running, binding, bound, running
from .memory_store import MemoryStore
from .signing import Network, identity

ANNA = identity("anna")


class Engine:
    """Socket 2's user, and who is told of the stream."""

    def __init__(self, url: str) -> None:
        self.told: asyncio.Queue[Address | None] = asyncio.Queue()
        self.stream = RelayStream(url, self)

    def handle_stream_open(self, address: Address) -> None:
        self.told.put_nowait(address)

    def handle_stream_closed(self) -> None:
        self.told.put_nowait(None)

    async def hear(self) -> Address | None:
        async with asyncio.timeout(PATIENCE):
            return await self.told.get()

    def send(self, data: bytes, to: Address) -> None:
        self.stream.socket.sendto(data, (to.host, to.port))

    async def receive(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().sock_recv(self.stream.socket, 4096)

    async def bind(self, grant: RelayGrant, to: Address, counter: int = 1) -> None:
        self.send(binding(grant, counter), to)
        assert stun.parse(await self.receive()).is_authentic(grant.key)


@contextmanager
def using(url: str) -> Iterator[Engine]:
    engine = Engine(url)
    try:
        yield engine
    finally:
        engine.stream.close()
        engine.stream._far.close()
        engine.stream.socket.close()


@pytest.fixture
async def node() -> AsyncIterator[Running]:
    async with running(MemoryStore()) as node:
        yield node


async def test_packets_go_both_ways_and_a_later_stream_serves_the_same_socket(node: Running) -> None:
    network = Network()
    founder, anna = await node.clients.connect(), await node.clients.connect()
    other = (await founder.create(network)).relay
    grant = (await anna.join(network, ANNA)).relay
    with using(node.clients.url) as engine, Datagrams() as udp:
        await udp.bind(other, node.udp_addresses[0])
        addresses = []
        for counter in (1, 2):
            engine.stream.open(None)
            address = await engine.hear()
            assert address is not None
            addresses.append(address)
            await engine.bind(grant, address, counter)
            there = RelayHop(grant.id, other.id).header() + bytes([counter]) * 200
            engine.send(there, address)
            assert await udp.receive() == there
            back = RelayHop(other.id, grant.id).header() + bytes([counter]) * 100
            udp.socket.sendto(back, node.udp_addresses[0])
            assert await engine.receive() == back
        assert addresses[0] == addresses[1], "paths stay what they were"
        assert engine.told.empty(), "the first one was replaced, not lost"


async def test_what_waited_for_a_stream_before_is_not_sent_by_the_next(node: Running) -> None:
    network = Network()
    grant = (await (await node.clients.connect()).create(network)).relay
    with using(node.clients.url) as engine:
        address = Address(*engine.stream._far.getsockname())
        for _ in range(300):
            engine.send(b"old", address)
        engine.stream.open(None)
        assert await engine.hear() == address
        await engine.bind(grant, address)


async def test_a_server_with_another_certificate_gets_nothing(tmp_path: Path) -> None:
    certificate, key = tls.ensure_certificate(tmp_path)
    context = tls.server_context(certificate, key)
    async with running(MemoryStore(), context=context) as node:
        with using(node.clients.url) as engine:
            engine.stream.open("sha256:" + 64 * "0")
            assert await engine.hear() is None
            engine.stream.open(tls.pin_of(certificate))
            assert await engine.hear() is not None


async def test_a_stream_that_the_server_ends_is_told_once(node: Running) -> None:
    with using(node.clients.url) as engine:
        engine.stream.open(None)
        address = await engine.hear()
        assert address is not None
        engine.send(b"\5\0\0\0 no binding", address)
        assert await engine.hear() is None
        engine.stream.open(None)
        await engine.hear()
        await node.stop()
        assert await engine.hear() is None
        engine.stream.open(None)
        assert await engine.hear() is None, "nobody listens"
        assert engine.told.empty()


async def test_one_that_is_closed_here_is_not_told(node: Running) -> None:
    with using(node.clients.url) as engine:
        engine.stream.open(None)
        await engine.hear()
        await engine.stream.stop()
        assert engine.told.empty()


async def test_strangers_on_this_host_are_not_heard(node: Running) -> None:
    grant = (await (await node.clients.connect()).create(Network())).relay
    with using(node.clients.url) as engine:
        engine.stream.open(None)
        address = await engine.hear()
        assert address is not None
        stranger = bound(socket.SOCK_DGRAM)
        stranger.sendto(b"to the stream", (address.host, address.port))
        stranger.sendto(b"to the engine", engine.stream.socket.getsockname())
        stranger.close()
        await engine.bind(grant, address)
