"""The server on real sockets of the loopback interface, with asyncio's event loop and with uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest

from meshvpn.proto import control, stun
from meshvpn.proto.control import (
    Ask,
    CharterChanged,
    Done,
    Goodbye,
    Here,
    MemberChanged,
    Presence,
    RefusalCode,
    Refused,
    Signal,
    Signalled,
)
from meshvpn.proto.drops import DropReason
from meshvpn.proto.transport import Address, RelayHop
from rendezvous import rivals, tls, udp
from rendezvous.limits import Limits
from rendezvous.presence import REPLACED
from rendezvous.relay import Forward, Relay
from rendezvous.udp import DatagramShell

from .clients import PATIENCE, Client, Clients, Datagrams, Running, bound, running, until
from .memory_store import MemoryStore
from .signing import Network, identity

ANNA, BERT = identity("anna"), identity("bert")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def node(store: MemoryStore) -> AsyncIterator[Running]:
    async with running(store) as node:
        yield node


# --- members


async def test_members_create_join_publish_signal_and_evict(node: Running) -> None:
    network = Network()
    founder, anna, bert = [await node.clients.connect() for _ in range(3)]
    assert (await founder.create(network)).address == "10.7.5.1"
    assert (await anna.join(network, ANNA)).address == "10.7.5.2"
    await founder.expect(Presence)
    attached = await bert.join(network, BERT)
    assert {entry.identity for entry in attached.online} == {network.founder.public, ANNA.public}
    for client in (founder, anna):
        assert (await client.expect(Presence)).entry.identity == BERT.public

    record = network.put_record(ANNA, "10.7.5.2")
    await anna.ask(record, Done)
    for client in (founder, bert):
        assert (await client.expect(MemberChanged)).entry.envelope == record.envelope

    await anna.send(Signal(to=BERT.public, payload=b"offer"))
    assert await bert.receive() == Signalled(source=ANNA.public, payload=b"offer")

    charter = network.evict(ANNA.public)
    await founder.ask(network.put_charter(charter), Done)
    assert (await anna.expect(CharterChanged)).charter == charter
    assert (await anna.expect(Goodbye)).code == "evicted"
    assert await anna.closed() == 1000
    assert (await bert.expect(CharterChanged)).charter == charter


async def test_a_member_that_goes_and_comes_back_is_announced_both_times(node: Running) -> None:
    network = Network()
    founder, anna = await node.clients.connect(), await node.clients.connect()
    await founder.create(network)
    await anna.join(network, ANNA)
    relay_id = (await founder.expect(Presence)).entry.relay_id
    await anna.websocket.close()
    assert (await founder.expect(Presence)).entry.relay_id == 0
    again = await node.clients.connect()
    await again.attach(network, ANNA)
    assert (await founder.expect(Presence)).entry.relay_id not in (0, relay_id)


async def test_an_older_connection_of_a_member_is_replaced(node: Running) -> None:
    network = Network()
    older, newer = await node.clients.connect(), await node.clients.connect()
    await older.create(network)
    await newer.attach(network, network.founder)
    assert (await older.expect(Goodbye)).code == "replaced"
    assert await older.closed() == 1000
    assert await node.clients.metric("meshvpn_members_online") == 1


async def test_a_second_host_with_one_identity_comes_in_only_when_the_first_one_does_not_answer(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "PATIENCE", 0.2)
    network = Network()
    first, second, third = [await node.clients.connect() for _ in range(3)]
    await first.create(network)
    await second.send(network.attach(network.founder, nonce=second.welcome.nonce, instance=b"other"))
    await first.send(Here(token=(await first.expect(Ask)).token))
    assert (await second.expect(Refused)).code == RefusalCode.CLONED
    assert await node.clients.metric('meshvpn_refusals_total{code="cloned"}') == 1
    await third.attach(network, network.founder, b"other")
    assert isinstance(await first.receive(), Ask)
    assert await first.expect(Goodbye) == REPLACED


async def test_the_welcome_says_who_is_seen_and_where_udp_is(node: Running) -> None:
    welcome = (await node.clients.connect()).welcome
    assert welcome.observed_host == "127.0.0.1"
    assert [welcome.udp_port, welcome.udp_port2] == [address[1] for address in node.udp_addresses]
    other = (await node.clients.connect()).welcome
    assert (len(welcome.nonce), welcome.nonce != other.nonce) == (32, True)


async def test_a_stopping_server_says_goodbye_to_everybody(store: MemoryStore) -> None:
    async with running(store) as node:
        network = Network()
        member, stranger = await node.clients.connect(), await node.clients.connect()
        await member.create(network)
        ends = [asyncio.create_task(last_words(client)) for client in (member, stranger)]
        await node.stop()
        assert await asyncio.gather(*ends) == [("restarting", 1000)] * 2


# --- TLS


async def test_a_self_signed_server_is_recognised_by_its_pin(store: MemoryStore, tmp_path: Path) -> None:
    certificate, key = tls.ensure_certificate(tmp_path)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    context = tls.server_context(certificate, key)
    async with running(store, context=context, client_context=trusting) as node:
        client = await node.clients.connect()
        shown = client.websocket.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert "sha256:" + hashlib.sha256(shown).hexdigest() == tls.pin_of(certificate)
        await client.create(Network())
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await Clients(node.clients.session, node.clients.url).connect()


# --- what clients do wrong


async def test_garbage_is_refused_and_ends_the_connection(node: Running) -> None:
    client = await node.clients.connect()
    await client.websocket.send_bytes(b"\xc1 garbage")
    assert (await client.expect(Refused)).code == "bad_request"
    assert await client.closed() == 1000
    assert await node.clients.metric('meshvpn_refusals_total{code="bad_request"}') == 1


async def test_a_text_message_ends_the_connection(node: Running) -> None:
    client = await node.clients.connect()
    await client.websocket.send_str("hello")
    assert await client.closed() == 1000


async def test_a_message_that_is_too_big_ends_the_connection(node: Running) -> None:
    client = await node.clients.connect()
    await client.websocket.send_bytes(bytes(control.MAX_MESSAGE + 1))
    assert await client.closed() == aiohttp.WSCloseCode.MESSAGE_TOO_BIG


async def test_a_client_that_opens_nothing_is_closed(store: MemoryStore) -> None:
    async with running(store, replace(Limits(), opening_timeout=0.05)) as node:
        client = await node.clients.connect()
        assert await client.closed() == 1000


@pytest.mark.parametrize("sent", [b"", b"GET /v1/control HTTP/1.1\r\nHost: x\r\n"])
async def test_a_connection_without_a_whole_http_request_is_closed(store: MemoryStore, sent: bytes) -> None:
    async with running(store, replace(Limits(), opening_timeout=0.05)) as node:
        reader, writer = await asyncio.open_connection(*node.tcp_address)
        writer.write(sent)
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_a_member_that_never_reads_is_cut_and_does_not_hold_up_the_others(store: MemoryStore) -> None:
    async with running(store, replace(Limits(), message_burst=1e6, byte_burst=1e9, closing_timeout=0.05)) as node:
        network = Network()
        sender, reader = await node.clients.connect(), await node.clients.connect()
        await sender.create(network)
        silent = await SilentMember.join(node, network)
        await sender.expect(Presence)
        await reader.join(network, BERT)
        assert (await sender.expect(Presence)).entry.identity == BERT.public
        gone = asyncio.create_task(sender.expect(Presence))
        while not gone.done():
            for _ in range(64):
                await sender.send(Signal(to=ANNA.public, payload=bytes(control.MAX_SIGNAL)))
            await sender.send(Signal(to=BERT.public, payload=b"and you?"))
            assert isinstance(await reader.receive(), Signalled | Presence)
        assert (await gone).entry.identity == ANNA.public
        await until(lambda: _has(node, "meshvpn_connections", 2))
        assert await node.clients.metric("meshvpn_connections_cut_total") == 1
        await silent.is_cut()


async def test_a_member_that_vanishes_is_announced_and_is_not_counted_as_cut(node: Running) -> None:
    network = Network()
    founder = await node.clients.connect()
    await founder.create(network)
    silent = await SilentMember.join(node, network)
    await founder.expect(Presence)
    silent.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    silent.sock.close()
    assert (await founder.expect(Presence)).entry.relay_id == 0
    assert await node.clients.metric("meshvpn_connections_cut_total") == 0


async def test_an_evicted_member_that_never_reads_is_cut_too(store: MemoryStore) -> None:
    async with running(store, replace(Limits(), message_burst=1e6, byte_burst=1e9, closing_timeout=0.05)) as node:
        network = Network()
        founder = await node.clients.connect()
        await founder.create(network)
        silent = await SilentMember.join(node, network)
        await founder.expect(Presence)
        # More than the sockets' buffers take, less than the server's queue.
        for _ in range(400):
            await founder.send(Signal(to=ANNA.public, payload=bytes(control.MAX_SIGNAL)))
        await founder.ask(network.put_charter(network.evict(ANNA.public)), Done)
        await until(lambda: _has(node, "meshvpn_connections", 1))
        await silent.is_cut()


async def test_a_member_that_says_goodbye_and_never_reads_leaves_nothing_open(store: MemoryStore) -> None:
    async with running(store, send_buffer=4096) as node:
        network = Network()
        founder = await node.clients.connect()
        await founder.create(network)
        silent = await SilentMember.join(node, network)
        await founder.expect(Presence)
        # Little enough for the server's writer not to wait, too much for the sockets.
        for _ in range(7):
            await founder.send(Signal(to=ANNA.public, payload=bytes(control.MAX_SIGNAL)))
        await founder.ask(network.put_record(network.founder, "10.7.5.1"), Done)
        silent.sock.send(b"\x88\x80" + bytes(4))
        assert (await founder.expect(Presence)).entry.relay_id == 0
        assert await silent.is_cut() < 7 * control.MAX_SIGNAL


async def test_a_client_that_asks_for_pages_and_never_reads_them_is_cut(store: MemoryStore) -> None:
    async with running(store, replace(Limits(), reading_timeout=0.2), send_buffer=4096) as node:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(node.tcp_address)
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            # Linux drops it without a word to the client.
            await until(lambda: asyncio.to_thread(is_dropped, sock))


async def test_connections_of_one_source_are_limited(store: MemoryStore) -> None:
    async with running(store, replace(Limits(), connections_per_source=2)) as node:
        first, _second = await node.clients.connect(), await node.clients.connect()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await node.clients.connect()
        assert refused.value.status == 503
        assert await node.clients.metric('meshvpn_refusals_total{code="connections"}') == 1
        await first.websocket.close()
        await until(lambda: _has(node, "meshvpn_connections", 1))
        await node.clients.connect()


async def test_connections_in_total_are_limited(store: MemoryStore) -> None:
    async with running(store, replace(Limits(), connections=1)) as node:
        only = await node.clients.connect()
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await node.clients.connect()
        assert not only.websocket.closed


async def test_messages_and_guesses_beyond_the_limits_are_refused_and_counted(store: MemoryStore) -> None:
    limits = replace(Limits(), join_rate=0.0, join_burst=1.0, message_rate=0.0, message_burst=3.0)
    async with running(store, limits) as node:
        client = await node.clients.connect()
        wrong = Network(9).join(ANNA, nonce=client.welcome.nonce)
        answers = [await client.ask(wrong, Refused) for _ in range(4)]
        assert [answer.code for answer in answers] == ["unknown_network"] + ["rate_limited"] * 3
        assert [answer.message.partition(";")[0] for answer in answers[2:]] == [
            "too many wrong names or passwords from your address",
            "too many messages",
        ]
        assert await node.clients.metric('meshvpn_refusals_total{code="rate_limited"}') == 3


# --- proxies


async def test_behind_a_trusted_proxy_the_client_is_who_the_proxy_says(store: MemoryStore) -> None:
    limits = replace(Limits(), connections_per_source=1)
    async with running(store, limits, trusted=[ip_network("127.0.0.0/8")]) as node:
        hosts = ["203.0.113.1", "203.0.113.2", "2001:db8::1"]
        clients = [await node.clients.connect(**{"X-Forwarded-For": host}) for host in hosts]
        assert [client.welcome.observed_host for client in clients] == hosts
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await node.clients.connect(**{"X-Forwarded-For": "10.9.9.9, 203.0.113.1"})


async def test_anybody_elses_header_counts_for_nothing(node: Running) -> None:
    client = await node.clients.connect(**{"X-Forwarded-For": "203.0.113.1"})
    assert client.welcome.observed_host == "127.0.0.1"


# --- health, metrics


async def test_health_tells_whether_the_storage_works(node: Running, store: MemoryStore) -> None:
    assert await node.clients.get("/healthz") == (200, "ok\n")
    store.failure = "disk on fire"
    assert await node.clients.get("/healthz") == (503, "disk on fire\n")


async def test_metrics_show_what_happens_even_without_storage(node: Running, store: MemoryStore) -> None:
    client = await node.clients.connect()
    await client.create(Network())
    names = ["meshvpn_connections", "meshvpn_members_online", "meshvpn_networks", "meshvpn_joins_total"]
    assert [await node.clients.metric(name) for name in names] == [1, 1, 1, 1]
    store.failure = "disk on fire"
    status, text = await node.clients.get("/metrics")
    assert status == 200
    assert "meshvpn_storage_failures_total 1.0" in text


# --- UDP


async def test_stun_shows_an_address_on_both_ports(node: Running) -> None:
    with Datagrams() as member:
        for server in node.udp_addresses:
            answer = stun.parse(await member.ask(stun.binding_request(b"t" * 12), server))
            assert answer.mapped_address == Address(*member.address)
    assert await node.clients.metric("meshvpn_stun_answers_total") == 2


async def test_the_relay_carries_packets_between_two_members_until_one_is_evicted(node: Running) -> None:
    network, server = Network(), node.udp_addresses[0]
    founder, anna = await node.clients.connect(), await node.clients.connect()
    ours, theirs = (await founder.create(network)).relay, (await anna.join(network, ANNA)).relay
    with Datagrams() as here, Datagrams() as there:
        await here.bind(ours, server)
        await there.bind(theirs, node.udp_addresses[1])
        frame = RelayHop(ours.id, theirs.id).header() + b"voice"
        here.socket.sendto(frame, server)
        assert await there.receive() == frame
        await founder.expect(Presence)
        await founder.ask(network.put_charter(network.evict(ANNA.public)), Done)
        here.socket.sendto(frame, server)
        # In order behind the frame: when this is answered, the frame was dropped.
        await here.bind(ours, server, counter=2)
    assert await node.clients.metric("meshvpn_relay_packets_total") == 1
    assert await node.clients.metric("meshvpn_relay_bytes_total") == len(frame)
    assert await node.clients.metric('meshvpn_udp_drops_total{reason="unknown_peer"}') == 1


async def test_a_datagram_that_is_too_long_is_dropped_whole(node: Running) -> None:
    server = node.udp_addresses[0]
    with Datagrams() as member:
        member.socket.sendto(bytes(4096), server)
        await member.ask(stun.binding_request(b"t" * 12), server)
    assert await node.clients.metric('meshvpn_udp_drops_total{reason="too_big"}') == 1


async def test_a_flood_is_served_in_batches_with_everybody_else_in_between() -> None:
    limits = replace(Limits(), stun_burst=1e6)
    relay, count = Relay(limits, entropy=bytes), 5 * udp.DATAGRAM_BATCH
    server, flooder = bound(socket.SOCK_DGRAM), bound(socket.SOCK_DGRAM)
    shell = DatagramShell(relay, [server], limits, clock=lambda: 0.0)
    for _ in range(count):
        flooder.sendto(stun.binding_request(b"t" * 12), server.getsockname())
    shell.start()
    answered = [0]
    async with asyncio.timeout(PATIENCE):
        while relay.stun_answers < count:
            await asyncio.sleep(0)
            answered.append(relay.stun_answers)
    assert max(after - before for before, after in pairwise(answered)) <= udp.DATAGRAM_BATCH
    shell.stop()
    flooder.close()


async def test_what_the_system_refuses_to_send_is_counted() -> None:
    class Broadcasting(Relay):
        def handle_datagram(
            self, data: bytes, source: Address, socket: int, *, now: float, client: str | None = None
        ) -> Forward | None:
            return Forward(socket, Address("255.255.255.255", 9), data)

    server, client = bound(socket.SOCK_DGRAM), bound(socket.SOCK_DGRAM)
    shell = DatagramShell(Broadcasting(Limits(), entropy=bytes), [server], Limits(), clock=lambda: 0.0)
    shell.start()
    client.sendto(b"x", server.getsockname())

    async def is_counted() -> bool:
        await asyncio.sleep(0)  # the loop's turn
        return shell.drops == {DropReason.SEND_FAILED: 1}

    await until(is_counted)
    shell.stop()
    client.close()


# --- helpers


async def _has(node: Running, name: str, value: float) -> bool:
    return await node.clients.metric(name) == value


def is_dropped(client: socket.socket) -> bool:
    """The server's end of this connection is gone."""
    ports = [name[1] for name in (client.getpeername(), client.getsockname())]
    localhost = int.from_bytes(socket.inet_aton("127.0.0.1"), sys.byteorder)
    ends = [f"{localhost:08X}:{port:04X}" for port in ports]
    return " ".join(ends) not in Path("/proc/net/tcp").read_text()


async def last_words(client: Client) -> tuple[str, int | None]:
    return (await client.expect(Goodbye)).code, await client.closed()


class SilentMember:
    """Anna on a bare socket: joins, and then never reads again."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @classmethod
    async def join(cls, node: Running, network: Network) -> SilentMember:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, node.tcp_address)
        upgrade = (
            "GET /v1/control HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await loop.sock_sendall(sock, upgrade.encode())
        received = b""
        while b"\r\n\r\n" not in received or not received.partition(b"\r\n\r\n")[2]:
            received += await loop.sock_recv(sock, 4096)
        frame = received.partition(b"\r\n\r\n")[2]
        welcome = control.decode_response(frame[2 if frame[1] < 126 else 4 :])
        assert isinstance(welcome, control.Welcome)
        body = control.encode(network.join(ANNA, nonce=welcome.nonce))
        header = b"\x82" + (bytes([0x80 | len(body)]) if len(body) < 126 else b"\xfe" + len(body).to_bytes(2, "big"))
        await loop.sock_sendall(sock, header + bytes(4) + body)
        return cls(sock)

    async def is_cut(self) -> int:
        """Reads again, until the connection ends: how many bytes were left in the sockets."""
        count = 0
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionResetError):
                while data := await asyncio.get_running_loop().sock_recv(self.sock, 65536):
                    count += len(data)
        self.sock.close()
        return count
