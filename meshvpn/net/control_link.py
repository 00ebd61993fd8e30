"""The WebSocket to the rendezvous: opens it, checks whose certificate it is, carries messages both ways.

A server is recognised by one of three means, written down at the first contact: `sha256:<hex>` the certificate's
fingerprint (given with --server-pin, or pinned on first use), `ca` a certificate that the system's authorities vouch
for, None over http:// (a reverse proxy or a test).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Collection
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp

from ..proto.control import MAX_MESSAGE
from ..proto.errors import MeshError

log = logging.getLogger(__name__)

PIN_BY_AUTHORITY = "ca"
CONTROL = "/v1/control"
RELAY = "/v1/relay"
CONNECT_TIMEOUT = 8.0
"""Seconds for name, TCP, TLS and the WebSocket's handshake together."""
HEARTBEAT = 20.0
"""Seconds between WebSocket pings; a dead connection is noticed after 30."""
CLOSE_TIMEOUT = 1.0
MAX_QUEUE = 256
"""Messages to the server that wait for the network; beyond it the connection is cut and made anew."""


class ServerUnreachableError(MeshError):
    """The rendezvous can't be reached; the message says why and what to do."""


class PinMismatchError(MeshError):
    """Another certificate than the pinned one."""

    def __init__(self, url: str, expected: str, seen: str) -> None:
        super().__init__(url, expected, seen)
        self.url, self.expected, self.seen = url, expected, seen

    def __str__(self) -> str:
        return (
            f"{self.url} shows another certificate ({self.seen}) than the pinned {self.expected}; "
            "somebody may be in between: if the server was set up anew, join again with --server-pin"
        )


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What was learnt by connecting: the means of recognition and the server's addresses."""

    pin: str | None
    hosts: tuple[str, ...]


class LinkHandler(Protocol):
    """Who is told what happens on a link; all calls come from the event loop."""

    def handle_open(self, server: ServerIdentity) -> None:
        """The connection is open."""

    def handle_message(self, data: bytes) -> None:
        """One message from the server."""

    def handle_closed(self, reason: MeshError | None) -> None:
        """The connection ended, or could not be opened and `reason` says why."""


class ControlLink:
    """One connection at a time to one server. Each `open()` ends in exactly one `handle_closed`."""

    def __init__(self, url: str, pin: str | None, handler: LinkHandler) -> None:
        self.url = url
        self.pin = pin
        self.handler = handler
        """May be replaced while the connection is up: who joined hands over to who runs the network."""
        self._task: asyncio.Task[None] | None = None
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue(MAX_QUEUE)
        self._local: str | None = None

    def open(self) -> None:
        """Start to connect."""
        if self._task is None or self._task.done():
            self._outgoing = asyncio.Queue(MAX_QUEUE)
            self._task = asyncio.create_task(self._run(), name=f"control {self.url}")

    def send(self, message: bytes) -> None:
        """Queue a message. A queue that is full means a dead connection: it is cut."""
        try:
            self._outgoing.put_nowait(message)
        except asyncio.QueueFull:
            log.warning("control connection stuck, cutting it server=%s", self.url)
            self.cut()

    def cut(self) -> None:
        """Close now; `handle_closed` follows."""
        if self._task is not None:
            self._task.cancel()

    def leave(self, hosts: Collection[str]) -> None:
        """These addresses of ours are gone. A connection from one of them is dead; TCP would notice after minutes."""
        if self._local in hosts:
            self.cut()

    async def close(self) -> None:
        """Close and wait until it is."""
        self.cut()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        reason: MeshError | None = None
        try:
            await self._session()
        except MeshError as error:
            reason = error
        except (aiohttp.ClientError, OSError, TimeoutError, ssl.SSLError) as error:
            reason = ServerUnreachableError(describe_failure(self.url, error))
        finally:
            self.handler.handle_closed(reason)

    async def _session(self) -> None:
        hosts = await resolve(self.url)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(connect=CONNECT_TIMEOUT)) as session:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                websocket, self.pin = await connect(session, self.url, self.pin)
            async with websocket:
                self._local = websocket.get_extra_info("sockname")[0]
                self.handler.handle_open(ServerIdentity(self.pin, hosts))
                writer = asyncio.create_task(self._write(websocket), name=f"control writer {self.url}")
                try:
                    await self._read(websocket)
                finally:
                    writer.cancel()
                    await asyncio.gather(writer, return_exceptions=True)

    async def _read(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in websocket:
            if message.type is aiohttp.WSMsgType.BINARY:
                self.handler.handle_message(message.data)
            elif message.type is aiohttp.WSMsgType.ERROR:
                log.debug("control connection error server=%s error=%s", self.url, message.data)

    async def _write(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            try:
                await websocket.send_bytes(await self._outgoing.get())
            except (ConnectionError, aiohttp.ClientError) as error:
                log.debug("control connection lost while sending server=%s error=%s", self.url, error)
                return


async def resolve(url: str) -> tuple[str, ...]:
    """The server's addresses. Raises ServerUnreachableError."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_DGRAM)
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no host name"
        raise ServerUnreachableError(
            f"the name {parts.hostname} of the rendezvous cannot be resolved ({why}); check --server and DNS"
        ) from error
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


async def connect(
    session: aiohttp.ClientSession, url: str, pin: str | None, route: str = CONTROL
) -> tuple[aiohttp.ClientWebSocketResponse, str | None]:
    """A WebSocket to the server, and how it is recognised from now on.

    Raises PinMismatchError, ServerUnreachableError, aiohttp.ClientError, OSError.
    """
    where = url + route
    if url.startswith("http://"):
        return await _upgrade(session, where, True), None
    if pin == PIN_BY_AUTHORITY:
        return await _upgrade(session, where, True), pin
    if pin is not None:
        websocket = await _upgrade(session, where, _unverified_context())
        return websocket, await _check_pin(url, websocket, pin)
    try:
        return await _upgrade(session, where, True), PIN_BY_AUTHORITY
    except aiohttp.ClientConnectorCertificateError:
        websocket = await _upgrade(session, where, _unverified_context())
        return websocket, _fingerprint(websocket)


async def _check_pin(url: str, websocket: aiohttp.ClientWebSocketResponse, pin: str) -> str:
    seen = _fingerprint(websocket)
    if not hmac.compare_digest(seen.lower(), pin.lower()):
        await websocket.close()
        raise PinMismatchError(url, pin, seen)
    return pin


def _upgrade(
    session: aiohttp.ClientSession, url: str, context: ssl.SSLContext | bool
) -> Awaitable[aiohttp.ClientWebSocketResponse]:
    return session.ws_connect(
        url,
        ssl=context,
        heartbeat=HEARTBEAT,
        max_msg_size=MAX_MESSAGE,
        timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
    )


def _unverified_context() -> ssl.SSLContext:
    """For self-signed certificates: the pin is what is checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _fingerprint(websocket: aiohttp.ClientWebSocketResponse) -> str:
    tls = websocket.get_extra_info("ssl_object")
    certificate = tls.getpeercert(binary_form=True) if tls is not None else None
    if not certificate:
        raise ServerUnreachableError("the rendezvous showed no certificate; use its https:// address")
    return "sha256:" + hashlib.sha256(certificate).hexdigest()


def describe_failure(url: str, error: Exception) -> str:
    """One line for people: what failed, why, what to do."""
    match error:
        case TimeoutError():
            why = "no answer"
        case aiohttp.ClientConnectorCertificateError():
            why = "its certificate is not trusted any more"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            why = "it does not speak TLS; is it http://?"
        case aiohttp.ServerDisconnectedError():
            why = "it closed the connection; is it https://?"
        case aiohttp.WSServerHandshakeError(status=status):
            why = f"it answers HTTP status {status}, so it is no meshvpn-rendezvous"
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))) | OSError(errno=int(number)):
            why = os.strerror(number).lower()
        case _:
            why = type(error).__name__
    return f"the rendezvous {url} cannot be reached ({why}); check --server, its port (TCP and UDP) and the firewall"
