"""The relay by WebSocket on real sockets: who may, both directions, moves to UDP and back, slow readers."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from meshvpn import datagram_stream
from meshvpn.proto import stun
from meshvpn.proto.control import Attached, RelayGrant
from meshvpn.proto.transport import RelayHop
from rendezvous import tls
from rendezvous.limits import Limits

from .clients import Datagrams, Running, Stream, binding, bound, running, until
from .memory_store import MemoryStore
from .signing import Network, identity

ANNA = identity("anna")
VOICE = bytes(200)
SIOCOUTQNSD = 0x894B
"""linux/sockios.h"""


class Pair:
    """The founder of a network and Anna, attached."""

    def __init__(self, node: Running, network: Network, founder: Attached, anna: Attached) -> None:
        self.node = node
        self.network = network
        self.founder, self.anna = founder.relay, anna.relay

    @property
    def udp(self) -> tuple[str, int]:
        host, port = self.node.udp_addresses[0]
        return host, port

    async def drops(self, reason: str, what: str = "udp") -> float:
        return await self.node.clients.metric(f'meshvpn_{what}_drops_total{{reason="{reason}"}}')

    async def until_dropped(self, reason: str, what: str = "udp", *, least: int = 1) -> None:
        async def is_dropped() -> bool:
            return await self.drops(reason, what) >= least

        await until(is_dropped)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def pair(store: MemoryStore) -> AsyncIterator[Pair]:
    async with running(store) as node:
        yield await attached(node)


async def attached(node: Running) -> Pair:
    network = Network()
    founder, anna = await node.clients.connect(), await node.clients.connect()
    return Pair(node, network, await founder.create(network), await anna.join(network, ANNA))


def frame(source: RelayGrant, destination: RelayGrant, payload: bytes = VOICE) -> bytes:
    return RelayHop(source.id, destination.id).header() + payload


# --- packets


async def test_a_stream_and_a_member_on_udp_talk_by_their_seats(pair: Pair) -> None:
    stream = await pair.node.clients.stream()
    await stream.bind(pair.anna)
    with Datagrams() as udp:
        await udp.bind(pair.founder, pair.udp)
        for number in range(100):
            there, back = (bytes([number]) * 200, bytes([number]) * 100)
            await stream.send(frame(pair.anna, pair.founder, there))
            assert await udp.receive() == frame(pair.anna, pair.founder, there)
            udp.socket.sendto(frame(pair.founder, pair.anna, back), pair.udp)
            assert await stream.receive() == frame(pair.founder, pair.anna, back)
    assert await pair.node.clients.metric("meshvpn_relay_packets_total") == 200
    assert await pair.node.clients.metric("meshvpn_stream_packets_received_total") == 100
    assert await pair.node.clients.metric("meshvpn_streams") == 1


async def test_two_streams_talk(pair: Pair) -> None:
    left, right = await pair.node.clients.stream(), await pair.node.clients.stream()
    await left.bind(pair.founder)
    await right.bind(pair.anna)
    sent = [frame(pair.founder, pair.anna, number.to_bytes(200, "big")) for number in range(20)]
    for data in sent:
        await left.send(data)
    assert [await right.receive() for _ in sent] == sent


async def test_a_stream_speaks_for_its_own_seat_only(pair: Pair) -> None:
    left, right = await pair.node.clients.stream(), await pair.node.clients.stream()
    await left.bind(pair.founder)
    await right.bind(pair.anna)
    await right.send(frame(pair.founder, pair.anna))
    await pair.until_dropped("disallowed_source")


async def test_a_program_on_the_servers_host_cannot_pass_for_a_stream(pair: Pair) -> None:
    stream = await pair.node.clients.stream()
    await stream.bind(pair.anna)
    stranger = bound(socket.SOCK_DGRAM)
    loopback = pair.node.server._datagrams.loopback
    stranger.sendto(frame(pair.anna, pair.founder), loopback)
    await pair.until_dropped("disallowed_source")
    stranger.sendto(binding(pair.anna, 2), loopback)
    await pair.until_dropped("disallowed_source", least=2)
    stranger.close()


async def test_the_stream_of_who_is_evicted_ends(store: MemoryStore) -> None:
    async with running(store) as node:
        network = Network()
        founder, anna = await node.clients.connect(), await node.clients.connect()
        await founder.create(network)
        grant = (await anna.join(network, ANNA)).relay
        stream = await node.clients.stream()
        await stream.bind(grant)
        await founder.send(network.put_charter(network.evict(ANNA.public)))
        assert await stream.closed() == (1008, "unbound")


# --- who may


@pytest.mark.parametrize("what", ["wrong key", "unknown seat", "replayed", "frame", "garbage", "plain"])
async def test_the_first_message_binds_or_the_stream_ends(pair: Pair, what: str) -> None:
    good = await pair.node.clients.stream()
    await good.bind(pair.anna, counter=5)
    stream = await pair.node.clients.stream()
    messages = {
        "wrong key": binding(RelayGrant(pair.anna.id, bytes(32)), 9),
        "unknown seat": binding(RelayGrant(pair.anna.id ^ 1, pair.anna.key), 9),
        "replayed": binding(pair.anna, 5),
        "frame": frame(pair.anna, pair.founder),
        "garbage": b"?" * 60,
        "plain": stun.binding_request(b"t" * 12),
    }
    await stream.send(messages[what])
    if what in ("wrong key", "unknown seat", "replayed"):
        assert stun.parse(await stream.receive()).type == stun.MessageType.ERROR
    assert await stream.closed() == (1008, "unauthorized")
    with Datagrams() as udp:
        await udp.bind(pair.founder, pair.udp)
        udp.socket.sendto(frame(pair.founder, pair.anna), pair.udp)
        assert await good.receive() == frame(pair.founder, pair.anna), "the seat has not moved"


async def test_a_message_that_is_too_big_or_no_bytes_ends_the_stream(pair: Pair) -> None:
    big, text = await pair.node.clients.stream(), await pair.node.clients.stream()
    await big.bind(pair.anna)
    await big.send(bytes(datagram_stream.MAX_DATAGRAM + 1))
    assert (await big.closed())[0] == 1009
    await text.bind(pair.anna, counter=2)
    await text.websocket.send_str("hello")
    assert (await text.closed())[0] == 1000


async def test_streams_of_one_source_and_in_total_are_limited(store: MemoryStore) -> None:
    for limits in (replace(Limits(), streams_per_source=2), replace(Limits(), streams=2)):
        async with running(store, limits) as node:
            first, _second = await node.clients.stream(), await node.clients.stream()
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await node.clients.stream()
            assert refused.value.status == 503
            assert await node.clients.metric('meshvpn_refusals_total{code="streams"}') == 1
            await first.websocket.close()

            async def has_room(node: Running = node) -> bool:
                return await node.clients.metric("meshvpn_streams") == 1

            await until(has_room)
            await node.clients.stream()


async def test_stun_by_stream_is_limited_by_where_the_stream_comes_from(store: MemoryStore) -> None:
    limits = replace(Limits(), stun_rate=0.0, stun_burst=3.0)
    async with running(store, limits) as node:
        pair = await attached(node)
        stream = await node.clients.stream()
        for counter in (1, 2, 3):
            await stream.bind(pair.anna, counter)
        await stream.send(binding(pair.anna, 4))
        await pair.until_dropped("flood")


async def test_a_stream_that_binds_nothing_is_closed(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rendezvous.server.SWEEP_INTERVAL", 0.02)
    async with running(store, replace(Limits(), opening_timeout=0.1)) as node:
        assert await (await node.clients.stream()).closed() == (1008, "idle")


async def test_a_stream_faster_than_the_limit_is_read_later_and_loses_nothing(store: MemoryStore) -> None:
    async with running(store, replace(Limits(), stream_rate=200.0, stream_burst=5.0)) as node:
        pair = await attached(node)
        left, right = await node.clients.stream(), await node.clients.stream()
        await left.bind(pair.founder)
        await right.bind(pair.anna)
        started = asyncio.get_running_loop().time()
        sent = [frame(pair.founder, pair.anna, number.to_bytes(200, "big")) for number in range(40)]
        for data in sent:
            await left.send(data)
        assert [await right.receive() for _ in sent] == sent
        assert asyncio.get_running_loop().time() - started > 0.1


# --- moves


async def test_the_newest_stream_of_a_seat_has_it_and_the_older_one_ends(pair: Pair) -> None:
    older, newer = await pair.node.clients.stream(), await pair.node.clients.stream()
    await older.bind(pair.anna, counter=1)
    await newer.bind(pair.anna, counter=2)
    assert await older.closed() == (1008, "replaced")
    await founder_reaches(pair, newer)


async def test_a_seat_moves_to_udp_and_back_to_the_same_stream(pair: Pair) -> None:
    stream = await pair.node.clients.stream()
    await stream.bind(pair.anna, counter=1)
    with Datagrams() as udp:
        await udp.bind(pair.anna, pair.udp, counter=2)
        with Datagrams() as founder:
            await founder.bind(pair.founder, pair.udp, counter=1)
            founder.socket.sendto(frame(pair.founder, pair.anna), pair.udp)
            assert await udp.receive() == frame(pair.founder, pair.anna)
        await stream.send(frame(pair.anna, pair.founder))
        await pair.until_dropped("disallowed_source")
        await stream.bind(pair.anna, counter=3)
    await founder_reaches(pair, stream, counter=2)


async def test_a_stream_that_left_its_seat_to_udp_ends_after_a_while(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rendezvous.server.SWEEP_INTERVAL", 0.02)
    monkeypatch.setattr("rendezvous.streams.RELAY_BINDING_LIFETIME", 0.1)
    async with running(store) as node:
        pair = await attached(node)
        stream = await node.clients.stream()
        await stream.bind(pair.anna, counter=1)
        with Datagrams() as udp:
            await udp.bind(pair.anna, pair.udp, counter=2)
            assert await stream.closed() == (1008, "idle")


async def test_nothing_is_relayed_to_a_stream_that_ended(pair: Pair) -> None:
    stream = await pair.node.clients.stream()
    await stream.bind(pair.anna)
    await stream.websocket.close()
    with Datagrams() as udp:
        await udp.bind(pair.founder, pair.udp)

        async def is_unknown() -> bool:
            udp.socket.sendto(frame(pair.founder, pair.anna), pair.udp)
            return await pair.drops("unknown_peer") > 0

        await until(is_unknown)


async def test_a_member_that_attaches_again_is_reached_by_its_new_id_before_it_binds_it(store: MemoryStore) -> None:
    async with running(store) as node:
        pair = await attached(node)
        stream = await node.clients.stream()
        await stream.bind(pair.anna)
        again = await node.clients.connect()
        grant = (await again.attach(pair.network, ANNA)).relay
        pair.anna = grant
        await founder_reaches(pair, stream)
        await stream.websocket.close()

        async def is_over() -> bool:
            return await node.clients.metric("meshvpn_streams") == 0

        await until(is_over)
        with Datagrams() as udp:
            await udp.bind(pair.founder, pair.udp, counter=2)
            udp.socket.sendto(frame(pair.founder, grant), pair.udp)
            await pair.until_dropped("unknown_peer")


async def test_a_stopping_server_closes_its_streams(pair: Pair) -> None:
    stream = await pair.node.clients.stream()
    await stream.bind(pair.anna)
    closing = asyncio.create_task(stream.closed())
    await pair.node.stop()
    assert await closing == (1001, "restarting")


async def founder_reaches(pair: Pair, stream: Stream, counter: int = 1) -> None:
    with Datagrams() as udp:
        await udp.bind(pair.founder, pair.udp, counter)
        udp.socket.sendto(frame(pair.founder, pair.anna), pair.udp)
        assert await stream.receive() == frame(pair.founder, pair.anna)


# --- slow readers


@pytest.mark.parametrize("is_secure", [False, True])
async def test_a_reader_that_stops_gets_little_that_is_old_and_then_what_is_new(
    store: MemoryStore, tmp_path: Path, is_secure: bool
) -> None:
    context = tls.server_context(*tls.ensure_certificate(tmp_path)) if is_secure else None
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    async with running(store, context=context, client_context=trusting if is_secure else None) as node:
        pair = await attached(node)
        stream = await node.clients.stream()
        stream.websocket.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await stream.bind(pair.anna)
        with Datagrams() as udp:
            await udp.bind(pair.founder, pair.udp)
            sent = 0
            while await pair.drops("stale", "stream") < 2000 or sent < 8000:
                for _ in range(20):
                    udp.socket.sendto(frame(pair.founder, pair.anna, sent.to_bytes(1000, "big")), pair.udp)
                    sent += 1
            (server_side,) = node.server._streams._open.values()
            assert server_side.writer is not None
            assert server_side.writer._waiting_bytes <= datagram_stream.MAX_WAITING
            assert unsent(server_side.writer._fd) < datagram_stream.UNSENT + 2000, "and the transport has none"
            old, number = 0, -1
            while number < sent:
                udp.socket.sendto(frame(pair.founder, pair.anna, sent.to_bytes(1000, "big")), pair.udp)
                number = int.from_bytes((await stream.receive())[12:], "big")
                old += 1
            assert old < sent / 2, "and that was in the client's own buffers"


def unsent(descriptor: int) -> int:
    """Bytes that the kernel has not sent."""
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, SIOCOUTQNSD, bytes(4)))
    return int(count)
