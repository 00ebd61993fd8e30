"""The server's shell: HTTP with WebSockets, and UDP, on one port number. What it answers is decided in service."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import ssl
import time
from collections.abc import Sequence

import prometheus_client
from aiohttp import web

import meshvpn
from meshvpn.proto import control
from meshvpn.proto.control import Goodbye, Welcome

from .connection import Connection
from .limits import Limits
from .metrics import Metrics
from .relay import Relay
from .service import Service
from .sources import Network, Places, client_host, source_key
from .store import Store, StoreError
from .streams import Streams
from .udp import DatagramShell

HEARTBEAT = 20.0
SWEEP_INTERVAL = 10.0
CLOSE_TIMEOUT = 2.0
RIVAL_INTERVAL = 0.1
RESTARTING = control.encode(Goodbye(code="restarting", message="the server restarts"))


class Server:
    """One node, on sockets that are bound already: listening ones for TCP, and `udp` with the ports in `udp_ports`."""

    def __init__(
        self,
        store: Store,
        limits: Limits,
        *,
        udp: Sequence[socket.socket],
        udp_ports: tuple[int, int],
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        self._store = store
        self._limits = limits
        self._udp_ports = udp_ports
        self._trusted_proxies = trusted_proxies
        self._metrics = Metrics()
        self._relay = Relay(limits, entropy=secrets.token_bytes, twins=_twins(udp))
        self._datagrams = DatagramShell(self._relay, udp, limits, clock=time.monotonic)
        self._service = Service(store, self._relay, limits, self._metrics, clock=time.monotonic, wall=time.time)
        self._streams = Streams(self._datagrams, limits, clock=time.monotonic)
        self._connections: set[Connection] = set()
        self._control_places = Places(limits.connections, limits.connections_per_source)
        self._stream_places = Places(limits.streams, limits.streams_per_source)
        self._runner: web.AppRunner | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._judge: asyncio.Task[None] | None = None
        self._watch()

    async def start(self, tcp: Sequence[socket.socket], context: ssl.SSLContext | None) -> None:
        """Serve until `stop`."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/v1/control", self._handle_control),
                web.get("/v1/relay", self._handle_relay),
                web.get("/healthz", self._handle_health),
                web.get("/metrics", self._handle_metrics),
            ]
        )
        application.on_shutdown.append(self._say_goodbye)
        # The keep-alive timeout also ends a connection on which no request comes.
        self._runner = web.AppRunner(
            application,
            access_log=None,
            shutdown_timeout=CLOSE_TIMEOUT,
            keepalive_timeout=self._limits.opening_timeout,
        )
        await self._runner.setup()
        for sock in tcp:
            # Inherited by its connections. A plain HTTP client that never reads is ended by nothing else.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._limits.reading_timeout * 1000))
            await web.SockSite(self._runner, sock, ssl_context=context).start()
        self._datagrams.start()
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Tell the members to come back soon, then close."""
        for task in (self._sweeper, self._judge):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._runner is not None:
            await self._runner.cleanup()
        self._datagrams.stop()
        await self._store.close()

    async def _handle_health(self, _request: web.Request) -> web.Response:
        try:
            await self._store.count()
        except StoreError as error:
            return web.Response(status=503, text=f"{error}\n")
        return web.Response(text="ok\n")

    async def _handle_metrics(self, _request: web.Request) -> web.Response:
        try:
            self._metrics.networks.set(await self._store.count())
        except StoreError:
            self._metrics.storage_failures.inc()
        return web.Response(
            body=self._metrics.render(), headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST}
        )

    async def _handle_control(self, request: web.Request) -> web.StreamResponse:
        host = self._host(request)
        source = source_key(host)
        if not self._control_places.take(source):
            return self._refuse("connections")
        websocket = web.WebSocketResponse(
            heartbeat=HEARTBEAT, max_msg_size=control.MAX_MESSAGE, timeout=CLOSE_TIMEOUT, compress=False
        )
        connection = Connection(source, secrets.token_bytes(32), self._limits, now=time.monotonic())
        self._connections.add(connection)
        try:
            await websocket.prepare(request)
            connection.send(control.encode(self._welcome(connection, host)))
            deadline = asyncio.get_running_loop().call_later(
                self._limits.opening_timeout, self._service.handle_opening_timeout, connection
            )
            try:
                await connection.serve(websocket, request.transport, self._handle_message)
            finally:
                deadline.cancel()
        finally:
            self._forget(connection)
        return websocket

    async def _handle_relay(self, request: web.Request) -> web.StreamResponse:
        source = source_key(self._host(request))
        if not self._stream_places.take(source):
            return self._refuse("streams")
        try:
            return await self._streams.serve(request, source)
        finally:
            self._stream_places.leave(source)

    def _host(self, request: web.Request) -> str:
        forwarded = request.headers.getall("X-Forwarded-For", [])
        return client_host(request.remote or "0.0.0.0", forwarded, self._trusted_proxies)

    def _refuse(self, what: str) -> web.Response:
        self._metrics.refusals.labels(what).inc()
        return web.Response(status=503, text=f"too many {what}\n")

    async def _handle_message(self, connection: Connection, data: bytes) -> None:
        await self._service.handle_message(connection, data)
        self._datagrams.follow()
        if self._service.next_timeout() is not None and (self._judge is None or self._judge.done()):
            self._judge = asyncio.create_task(self._let_in_rivals())

    async def _let_in_rivals(self) -> None:
        while (at := self._service.next_timeout()) is not None:
            # Looked at a few times a second: whoever is waited for may go in the meantime.
            await asyncio.sleep(min(max(at - time.monotonic(), 0.0), RIVAL_INTERVAL))
            await self._service.handle_timeout()
            self._datagrams.follow()

    def _welcome(self, connection: Connection, host: str) -> Welcome:
        return Welcome(
            version=control.PROTOCOL_VERSION,
            nonce=connection.nonce,
            observed_host=host,
            udp_port=self._udp_ports[0],
            udp_port2=self._udp_ports[1],
            software=f"meshvpn {meshvpn.__version__}",
        )

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._control_places.leave(connection.source)
        self._service.handle_closed(connection)

    async def _say_goodbye(self, _application: web.Application) -> None:
        for connection in self._connections:
            connection.send(RESTARTING)
            connection.close()
        self._streams.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            now = time.monotonic()
            self._relay.handle_timeout(now=now)
            self._datagrams.follow()
            self._streams.handle_timeout(now=now)

    def _watch(self) -> None:
        watch, relay = self._metrics.watch_count, self._relay
        watch("meshvpn_relay_packets", "Packets relayed", lambda: self._datagrams.forwarded[0])
        watch("meshvpn_relay_bytes", "Bytes relayed", lambda: self._datagrams.forwarded[1])
        watch("meshvpn_stun_answers", "STUN answers", lambda: relay.stun_answers)
        watch("meshvpn_stream_packets_received", "Packets that came by streams", lambda: self._streams.received)
        watch("meshvpn_stream_packets_sent", "Packets that left by streams", lambda: self._streams.sent)
        drops = self._metrics.watch_drops
        drops("meshvpn_udp_drops", "Datagrams not served", lambda: self._datagrams.drops)
        drops("meshvpn_stream_drops", "Datagrams not sent by streams", lambda: self._streams.drops)
        level = self._metrics.watch_level
        level("meshvpn_connections", "Control connections", lambda: len(self._connections))
        level("meshvpn_streams", "Relay streams by WebSocket", lambda: len(self._streams))
        level("meshvpn_members_online", "Members attached", lambda: len(self._service.presence))
        level("meshvpn_relay_seats", "Relay ids given out", lambda: len(relay))


def _twins(udp: Sequence[socket.socket]) -> dict[int, int]:
    """The sockets of one address and two ports, by each other's number."""
    names = [sock.getsockname()[:2] for sock in udp]
    return {
        number: other
        for number, (host, port) in enumerate(names)
        for other, (other_host, other_port) in enumerate(names)
        if host == other_host and port != other_port
    }
