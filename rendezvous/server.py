"""The server's shell: WebSockets and UDP on one port number, storage, metrics. What it answers is decided in core."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import ssl
import time
from dataclasses import dataclass, field

import prometheus_client
from aiohttp import WSCloseCode, WSMsgType, web
from prometheus_client import CollectorRegistry, Counter, Gauge

import meshvpn
from meshvpn.proto import control
from meshvpn.proto.charter import decode_charter
from meshvpn.proto.control import (
    Attach,
    Attached,
    Create,
    Goodbye,
    Join,
    Presence,
    PresenceEntry,
    PutCharter,
    PutLeave,
    PutRecord,
    RefusalCode,
    Refused,
    RelayGrant,
    Signal,
    Signalled,
    Welcome,
)
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.keys import network_uid
from meshvpn.proto.signed import Signed
from meshvpn.proto.transport import Address

from .core import Outcome, apply, entries, is_proof_valid, uid_of
from .limits import Buckets, Limits, source_key
from .relay import Relay
from .store import ConflictError, LocatorTakenError, Store, Stored, StoreError

log = logging.getLogger(__name__)

HEARTBEAT = 20.0
MAX_OUTGOING = 512
"""Messages that wait for a slow reader; beyond it the reader is cut."""
MAX_CONFLICTS = 8
SWEEP_INTERVAL = 10.0
DATAGRAM_BATCH = 64
MAX_DATAGRAM = 2048
CLOSE_TIMEOUT = 2.0


@dataclass(eq=False, slots=True)
class Connection:
    """One member's control connection."""

    source: str
    nonce: bytes
    outgoing: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(MAX_OUTGOING))
    uid: bytes | None = None
    identity: bytes = b""
    grant: RelayGrant | None = None
    is_closing: bool = False

    def send(self, message: control.Response) -> None:
        """Queue a message; a full queue ends the connection."""
        if self.is_closing:
            return
        try:
            self.outgoing.put_nowait(control.encode(message))
        except asyncio.QueueFull:
            self.close()

    def close(self) -> None:
        """End after what is queued, or at once if the queue is full."""
        if self.is_closing:
            return
        self.is_closing = True
        if self.outgoing.full():
            while not self.outgoing.empty():
                self.outgoing.get_nowait()
        self.outgoing.put_nowait(None)


Answered = Create | Join | Attach | PutRecord | PutCharter | PutLeave


class Metrics:
    """What /metrics shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.connections = Gauge("meshvpn_connections", "Control connections", registry=self.registry)
        self.members = Gauge("meshvpn_members_online", "Members attached", registry=self.registry)
        self.networks = Gauge("meshvpn_networks", "Networks stored", registry=self.registry)
        self.joins = Counter("meshvpn_joins", "Members admitted or back", registry=self.registry)
        self.refusals = Counter("meshvpn_refusals", "Refused requests", ["code"], registry=self.registry)
        self.signals = Counter("meshvpn_signals", "Introductions forwarded", registry=self.registry)
        self.relay_packets = Gauge("meshvpn_relay_packets", "Packets relayed since start", registry=self.registry)
        self.relay_bytes = Gauge("meshvpn_relay_bytes", "Bytes relayed since start", registry=self.registry)
        self.stun = Gauge("meshvpn_stun_answers", "STUN answers since start", registry=self.registry)
        self.drops = Gauge("meshvpn_udp_drops", "Datagrams not served", ["reason"], registry=self.registry)


class Server:
    """One node."""

    def __init__(self, store: Store, limits: Limits, *, udp_port: int, udp_port2: int) -> None:
        self.relay = Relay(limits, entropy=secrets.token_bytes)
        self._store = store
        self._limits = limits
        self._ports = (udp_port, udp_port2)
        self._metrics = Metrics()
        self._connections: set[Connection] = set()
        self._online: dict[bytes, dict[bytes, Connection]] = {}
        self._locks: dict[bytes, asyncio.Lock] = {}
        self._per_source: dict[str, int] = {}
        self._messages = Buckets(limits.message_rate, limits.message_burst)
        self._guesses = Buckets(limits.join_rate, limits.join_burst)
        self._creations = Buckets(limits.create_rate, limits.create_burst)
        self._sockets: list[socket.socket] = []
        self._runner: web.AppRunner | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, tcp: list[socket.socket], udp: list[socket.socket], context: ssl.SSLContext | None) -> None:
        """Serve on sockets that are bound already."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/v1/control", self._handle_control),
                web.get("/healthz", self._handle_health),
                web.get("/metrics", self._handle_metrics),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=CLOSE_TIMEOUT)
        await self._runner.setup()
        for sock in tcp:
            await web.SockSite(self._runner, sock, ssl_context=context).start()
        self._sockets = udp
        loop = asyncio.get_running_loop()
        for number, sock in enumerate(udp):
            loop.add_reader(sock, self._drain, sock, number)
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Tell the members to come back soon, then close."""
        for connection in list(self._connections):
            connection.send(Goodbye(code="restarting", message="the server restarts"))
            connection.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        if self._runner is not None:
            await self._runner.cleanup()
        await self._store.close()

    # --- HTTP ---------------------------------------------------------------------------------------------------

    async def _handle_health(self, _request: web.Request) -> web.Response:
        try:
            await self._store.count()
        except StoreError as error:
            return web.Response(status=503, text=f"{error}\n")
        return web.Response(text="ok\n")

    async def _handle_metrics(self, _request: web.Request) -> web.Response:
        metrics = self._metrics
        metrics.connections.set(len(self._connections))
        metrics.members.set(sum(len(members) for members in self._online.values()))
        metrics.networks.set(await self._store.count())
        metrics.relay_packets.set(self.relay.forwarded_packets)
        metrics.relay_bytes.set(self.relay.forwarded_bytes)
        metrics.stun.set(self.relay.stun_answers)
        for reason, count in self.relay.drops.items():
            metrics.drops.labels(reason.value).set(count)
        body = prometheus_client.generate_latest(metrics.registry)
        return web.Response(body=body, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    async def _handle_control(self, request: web.Request) -> web.StreamResponse:
        host = request.remote or "0.0.0.0"
        source = source_key(host)
        is_full = len(self._connections) >= self._limits.connections
        if is_full or self._per_source.get(source, 0) >= self._limits.connections_per_source:
            self._metrics.refusals.labels("connections").inc()
            return web.Response(status=503, text="too many connections\n")
        websocket = web.WebSocketResponse(
            heartbeat=HEARTBEAT, max_msg_size=control.MAX_MESSAGE, timeout=CLOSE_TIMEOUT, compress=False
        )
        connection = Connection(source, secrets.token_bytes(32))
        self._connections.add(connection)
        self._per_source[source] = self._per_source.get(source, 0) + 1
        try:
            await websocket.prepare(request)
            connection.send(self._welcome(connection, host))
            await self._serve(websocket, connection)
        finally:
            self._forget(connection)
        return websocket

    def _welcome(self, connection: Connection, host: str) -> Welcome:
        return Welcome(
            version=control.PROTOCOL_VERSION,
            nonce=connection.nonce,
            observed_host=host,
            udp_port=self._ports[0],
            udp_port2=self._ports[1],
            software=f"meshvpn {meshvpn.__version__}",
        )

    async def _serve(self, websocket: web.WebSocketResponse, connection: Connection) -> None:
        writer = asyncio.create_task(_write(websocket, connection))
        deadline = asyncio.get_running_loop().call_later(self._limits.opening_timeout, self._check_open, connection)
        try:
            async for message in websocket:
                if message.type is not WSMsgType.BINARY:
                    break
                await self._handle_message(connection, message.data)
        finally:
            deadline.cancel()
            connection.close()
            await asyncio.wait([writer], timeout=CLOSE_TIMEOUT)
            writer.cancel()

    def _check_open(self, connection: Connection) -> None:
        if connection.uid is None:
            connection.close()

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._messages.forget(connection)
        self._per_source[connection.source] -= 1
        if not self._per_source[connection.source]:
            del self._per_source[connection.source]
        self._detach(connection)

    # --- requests -----------------------------------------------------------------------------------------------

    async def _handle_message(self, connection: Connection, data: bytes) -> None:
        if not self._messages.take(connection, now=time.monotonic()):
            self._refuse(connection, 0, RefusalCode.RATE_LIMITED, "too many messages; slow down")
            return
        try:
            request = control.decode_request(data)
        except MalformedMessage:
            self._refuse(connection, 0, RefusalCode.BAD_REQUEST, "the message cannot be read")
            connection.close()
            return
        if isinstance(request, Signal):
            self._forward(connection, request)
            return
        if isinstance(request, Create | Join | Attach) != (connection.uid is None):
            self._refuse(connection, request.rid, RefusalCode.BAD_REQUEST, "not in this state of the connection")
            return
        try:
            await self._handle_request(connection, request)
        except StoreError as error:
            log.error("storage failed error=%s", error)
            self._refuse(connection, request.rid, RefusalCode.UNAVAILABLE, "the server cannot store it now; try again")

    async def _handle_request(self, connection: Connection, request: Answered) -> None:
        if isinstance(request, Create | Join | Attach):
            if (refusal := self._check_opening(connection, request)) is not None:
                self._refuse(connection, request.rid, *refusal)
                return
            identity = request.identity
        else:
            identity = connection.identity
        for _ in range(MAX_CONFLICTS):
            stored = await self._load(connection, request)
            if isinstance(request, Join) and stored is None:
                self._guesses.take(connection.source, now=time.monotonic())
            uid = uid_of(stored.document) if stored is not None else b""
            async with self._locks.setdefault(uid, asyncio.Lock()):
                # Loaded again: while the lock was waited for, the sender may have been evicted.
                stored = await self._load(connection, request)
                if stored is not None and uid_of(stored.document) != uid:
                    continue  # founded, or its locator moved, in between
                outcome = apply(stored.document if stored else None, request, identity, wall=int(time.time()))
                try:
                    if outcome.document is not None:
                        stored = await self._store.put(outcome.document, stored.revision if stored else 0)
                except ConflictError:
                    continue
                except LocatorTakenError:
                    text = "a network with that name and password exists already on this server"
                    self._refuse(connection, request.rid, RefusalCode.NETWORK_EXISTS, text)
                    return
                self._finish(connection, request, identity, outcome, stored)
                return
        raise StoreError("too many conflicting changes")

    def _check_opening(self, connection: Connection, request: Create | Join | Attach) -> tuple[RefusalCode, str] | None:
        now = time.monotonic()
        if isinstance(request, Join) and self._guesses.is_empty(connection.source, now=now):
            return RefusalCode.RATE_LIMITED, "too many wrong names or passwords from your address; wait a minute"
        if isinstance(request, Create) and not self._creations.take(connection.source, now=now):
            return RefusalCode.RATE_LIMITED, "too many networks were created from your address; try again later"
        if not is_proof_valid(request, connection.nonce):
            return RefusalCode.BAD_SIGNATURE, "the proof of identity does not hold"
        return None

    async def _load(self, connection: Connection, request: Answered) -> Stored | None:
        match request:
            case Create(charter=charter):
                return await self._store.get(_uid_of_charter(charter))
            case Join(locator=locator):
                return await self._store.find(locator)
            case Attach(uid=uid):
                return await self._store.get(uid)
            case _:
                assert connection.uid is not None, "only attached connections get here"
                return await self._store.get(connection.uid)

    def _finish(
        self,
        connection: Connection,
        request: Answered,
        identity: bytes,
        outcome: Outcome,
        stored: Stored | None,
    ) -> None:
        if isinstance(outcome.reply, Refused):
            for message in outcome.publish:
                connection.send(message)
            self._metrics.refusals.labels(outcome.reply.code).inc()
            connection.send(outcome.reply)
            return
        if isinstance(request, Create | Join | Attach):
            assert stored is not None, "who is let in has a network"
            assert outcome.address is not None, "and an address"
            self._attach(connection, request.rid, identity, outcome.address, stored)
            return
        assert connection.uid is not None, "attached"
        if outcome.reply is not None:
            connection.send(outcome.reply)
        others = self._online.get(connection.uid, {})
        for message in outcome.publish:
            for other in others.values():
                if other is not connection:
                    other.send(message)
        for identity_out, goodbye in outcome.goodbye.items():
            self.relay.evict(connection.uid, identity_out)
            if (leaver := others.get(identity_out)) is not None:
                leaver.send(goodbye)
                leaver.close()

    # --- presence -----------------------------------------------------------------------------------------------

    def _attach(self, connection: Connection, rid: int, identity: bytes, address: str, stored: Stored) -> None:
        uid = uid_of(stored.document)
        members = self._online.setdefault(uid, {})
        if (older := members.pop(identity, None)) is not None:
            older.send(Goodbye(code="replaced", message="the member connected again from elsewhere"))
            older.close()
        connection.uid, connection.identity, connection.grant = uid, identity, self.relay.grant(uid, identity)
        online = [PresenceEntry(other, _relay_id(entry)) for other, entry in members.items()]
        connection.send(
            Attached(
                rid=rid,
                address=address,
                charter=stored.document.charter,
                members=entries(stored.document),
                online=online,
                relay=connection.grant,
            )
        )
        self._publish(uid, Presence(entry=PresenceEntry(identity, connection.grant.id)))
        members[identity] = connection
        self._metrics.joins.inc()
        log.info("member attached network=%s member=%s", uid.hex()[:8], identity.hex()[:8])

    def _detach(self, connection: Connection) -> None:
        if connection.uid is None:
            return
        if connection.grant is not None:
            self.relay.release(connection.grant.id, now=time.monotonic())
        members = self._online.get(connection.uid, {})
        if members.get(connection.identity) is not connection:
            return
        del members[connection.identity]
        self._publish(connection.uid, Presence(entry=PresenceEntry(connection.identity, 0)))
        if not members:
            del self._online[connection.uid]
            if (lock := self._locks.get(connection.uid)) is not None and not lock.locked():
                del self._locks[connection.uid]

    def _publish(self, uid: bytes, message: control.Response) -> None:
        for connection in self._online.get(uid, {}).values():
            connection.send(message)

    def _forward(self, connection: Connection, request: Signal) -> None:
        if connection.uid is None or len(request.payload) > control.MAX_SIGNAL:
            self._refuse(connection, 0, RefusalCode.BAD_REQUEST, "not attached, or the payload is too large")
            return
        other = self._online.get(connection.uid, {}).get(request.to)
        if other is not None:
            self._metrics.signals.inc()
            other.send(Signalled(source=connection.identity, payload=request.payload))

    def _refuse(self, connection: Connection, rid: int, code: RefusalCode, message: str) -> None:
        self._metrics.refusals.labels(code.value).inc()
        connection.send(Refused(rid=rid, code=code, message=message))

    # --- UDP ----------------------------------------------------------------------------------------------------

    def _drain(self, sock: socket.socket, number: int) -> None:
        now = time.monotonic()
        for _ in range(DATAGRAM_BATCH):
            try:
                data, source = sock.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                # An ICMP error of an earlier datagram; says nothing about the next one.
                log.debug("udp receive error=%s", error)
                return
            address = Address(source[0].partition("%")[0], source[1])
            forward = self.relay.handle_datagram(data, address, number, now=now)
            if forward is not None:
                try:
                    self._sockets[forward.socket].sendto(forward.data, (forward.to.host, forward.to.port))
                except OSError as error:
                    log.debug("udp send error=%s", error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            self.relay.handle_timeout(now=time.monotonic())


async def _write(websocket: web.WebSocketResponse, connection: Connection) -> None:
    while (message := await connection.outgoing.get()) is not None:
        try:
            await websocket.send_bytes(message)
        except (ConnectionError, RuntimeError) as error:
            log.debug("control connection lost while sending error=%s", error)
            break
    connection.is_closing = True
    await websocket.close(code=WSCloseCode.OK)


def _relay_id(connection: Connection) -> int:
    return 0 if connection.grant is None else connection.grant.id


def _uid_of_charter(charter: Signed) -> bytes:
    try:
        return network_uid(decode_charter(charter).owner)
    except MalformedMessage:
        return b""
