"""The links by which members gossip: WebSockets inside the tunnel, on mesh addresses (what is said: proto/gossip.py).

Who a member is its address says: the tunnel lets nobody send from another's. All sockets are bound to the interface,
so that nothing comes from or goes to anywhere else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
from aiohttp import WSMsgType, web

from ..proto.gossip import CONNECT_TIMEOUT, MAX_INCOMING, MAX_INCOMING_OF_ONE
from ..proto.gossip_messages import MAX_FRAME

log = logging.getLogger(__name__)

PORT = 7772
ROUTE = "/v1/gossip"
CLOSE_TIMEOUT = 2.0
"""Seconds for what is left to be said when a link is closed; then it is cut."""
REQUEST_TIMEOUT = 5.0
"""Seconds from a connection to its request."""
ACCEPT_PAUSE = 1.0
"""Seconds without new links after one could not be taken, say for want of file descriptors."""

WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class LinkHandler(Protocol):
    """Who is told what happens; all calls come from the event loop."""

    def handle_link(self, address: str) -> int | None:
        """One came; its number, or None: it is not wanted."""

    def handle_link_open(self, link: int) -> None:
        """One that was asked for is open."""

    def handle_link_closed(self, link: int) -> None:
        """It ended, or could not be opened; not told of one that was closed."""

    def handle_link_frame(self, link: int, data: bytes) -> None:
        """One message."""


@dataclass(slots=True)
class _Link:
    outgoing: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    cut: Callable[[], object] = lambda: None


class GossipLinks:
    """Those of one network. `address` is ours in the mesh. `problem` says why others cannot link to us, if so."""

    def __init__(self, address: str, interface: str, handler: LinkHandler) -> None:
        self.problem: str | None = None
        self._address = address
        self._interface = interface
        self._handler = handler
        self._links: dict[int, _Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = web.Server(self._serve, access_log=None, keepalive_timeout=REQUEST_TIMEOUT)
        self._listener: socket.socket | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Listen, if that is possible; links to others are opened in any case."""
        connector = aiohttp.TCPConnector(force_close=True, socket_factory=self._make_socket)
        self._session = aiohttp.ClientSession(connector=connector)
        try:
            self._listener = self._bound(PORT)
            self._listener.listen(MAX_INCOMING)
        except OSError as error:
            self.problem = f"TCP port {PORT} on {self._interface} cannot be used: {error.strerror or error}"
            log.warning("members cannot reach our gossip: %s", self.problem)
            return
        self._spawn(self._accept(self._listener))

    async def stop(self) -> None:
        """Cut all links."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        await self._server.shutdown(CLOSE_TIMEOUT)
        if self._session is not None:
            await self._session.close()

    def open(self, number: int, address: str) -> None:
        """Link to a member."""
        link = self._links[number] = _Link()
        task = self._spawn(self._connect(number, address, link))
        link.cut = task.cancel

    def send(self, number: int, frame: bytes) -> None:
        """Queue a message. What a link has to say is bounded by who says it."""
        if (link := self._links.get(number)) is not None:
            link.outgoing.put_nowait(frame)

    def close(self, number: int) -> None:
        """End it after what is queued."""
        if (link := self._links.pop(number, None)) is not None:
            link.outgoing.put_nowait(None)
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, link.cut)

    # Inside.

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work, name=f"gossip {self._interface}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _make_socket(self, _info: object) -> socket.socket:
        return self._bound(0)

    def _bound(self, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface.encode())
            sock.bind((self._address, port))
        except OSError:
            sock.close()
            raise
        return sock

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, (host, _) = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("a link was not taken error=%s", error)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            hosts = Counter(_host(connection) for connection in self._server.connections)
            # Before a request, too, nobody has more than its share.
            if hosts.total() >= 2 * MAX_INCOMING or hosts[host] >= 2 * MAX_INCOMING_OF_ONE:
                sock.close()
                continue
            try:
                await loop.connect_accepted_socket(self._server, sock)
            except OSError as error:
                sock.close()
                log.debug("a link ended at once error=%s", error)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != ROUTE:
            return web.Response(status=404)
        number = self._handler.handle_link(request.remote or "")
        if number is None:
            return web.Response(status=403)
        link = self._links[number] = _Link()
        if request.transport is not None:
            link.cut = request.transport.abort
        websocket = web.WebSocketResponse(max_msg_size=MAX_FRAME, timeout=CLOSE_TIMEOUT, compress=False)
        try:
            await websocket.prepare(request)
            await self._carry(number, link, websocket)
        finally:
            self._forget(number, link)
        return websocket

    async def _connect(self, number: int, address: str, link: _Link) -> None:
        assert self._session is not None, "links are opened between start and stop"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                websocket = await self._session.ws_connect(
                    f"http://{address}:{PORT}{ROUTE}",
                    max_msg_size=MAX_FRAME,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
                )
            async with websocket:
                self._handler.handle_link_open(number)
                await self._carry(number, link, websocket)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.debug("no gossip with %s error=%s", address, error or type(error).__name__)
        finally:
            self._forget(number, link)

    async def _carry(self, number: int, link: _Link, websocket: WebSocket) -> None:
        writer = asyncio.create_task(_write(link, websocket))
        try:
            async for message in websocket:
                if message.type is not WSMsgType.BINARY or self._links.get(number) is not link:
                    break
                self._handler.handle_link_frame(number, message.data)
        finally:
            if self._links.get(number) is link:
                writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    def _forget(self, number: int, link: _Link) -> None:
        if self._links.get(number) is link:
            del self._links[number]
            self._handler.handle_link_closed(number)


async def _write(link: _Link, websocket: WebSocket) -> None:
    try:
        while (frame := await link.outgoing.get()) is not None:
            await websocket.send_bytes(frame)
        await websocket.close()
    except (aiohttp.ClientError, ConnectionError, RuntimeError) as error:
        # RuntimeError: uvloop's transport is closed already.
        log.debug("gossip ended while sending error=%s", error)


def _host(connection: Any) -> str:
    transport = connection.transport
    peer = None if transport is None else transport.get_extra_info("peername")
    return "" if peer is None else str(peer[0])
