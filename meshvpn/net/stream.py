"""The relay by WebSocket, where UDP does not pass: socket 2 of the engine, on the loopback interface, leads here.

    engine ── socket 2 ──loopback──▶ RelayStream ──WebSocket, TLS──▶ rendezvous (rendezvous/streams.py)
           ◀────────────────────────             ◀────────────────

The engine and the node see one more UDP socket. When a stream is wanted and how it is bound is proto/binding.py's.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from typing import Protocol

import aiohttp

from ..datagram_stream import FreshWriter, discard, loopback_socket, take_datagrams
from ..proto.drops import DropReason
from ..proto.errors import MeshError
from ..proto.stun import is_stun
from ..proto.transport import Address, is_frame
from .control_link import CONNECT_TIMEOUT, RELAY, connect, describe_failure

log = logging.getLogger(__name__)


class StreamHandler(Protocol):
    """Who is told what happens to the stream; all calls come from the event loop."""

    def handle_stream_open(self, address: Address) -> None:
        """What socket 2 sends to this address goes by the stream."""

    def handle_stream_closed(self) -> None:
        """It ended, or could not be opened."""


class RelayStream:
    """One stream at a time to one server. Each `open()` ends in one `handle_stream_closed`, unless `close()` did it.

    `socket` is the engine's; the loopback sockets stay while streams come and go. Raises OSError.
    """

    def __init__(self, url: str, handler: StreamHandler) -> None:
        self.drops: Counter[DropReason] = Counter()
        self.socket = loopback_socket()
        self._url = url
        self._handler = handler
        self._task: asyncio.Task[None] | None = None
        try:
            self._far = loopback_socket(self.socket.getsockname())
        except OSError:
            self.socket.close()
            raise
        self.socket.connect(self._far.getsockname())
        discard(self.socket)

    def open(self, pin: str | None) -> None:
        """Start to connect to the server with this pin."""
        self.close()
        self._task = asyncio.create_task(self._run(pin), name=f"stream {self._url}")

    def close(self) -> None:
        """End it; the handler hears no more of it."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def stop(self) -> None:
        """End it for good."""
        task = self._task
        self.close()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
        self._far.close()

    async def _run(self, pin: str | None) -> None:
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(connect=CONNECT_TIMEOUT)) as session:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    websocket, _ = await connect(session, self._url, pin, RELAY)
                async with websocket:
                    log.info("relay by TCP open server=%s", self._url)
                    await self._carry(websocket)
                    log.info("relay by TCP ended server=%s code=%s", self._url, websocket.close_code)
        except MeshError as error:
            log.info("no relay by TCP reason=%s", error)
        except (aiohttp.ClientError, OSError, TimeoutError, ssl.SSLError) as error:
            log.info("no relay by TCP reason=%s", describe_failure(self._url, error))
        finally:
            if self._task is asyncio.current_task():
                self._task = None
                self._handler.handle_stream_closed()

    async def _carry(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        writer = FreshWriter(websocket, websocket.get_extra_info("socket"), self.drops)
        discard(self._far)  # of a stream before this one
        loop = asyncio.get_running_loop()
        loop.add_reader(self._far, self._take, writer)
        tasks = [asyncio.create_task(self._read(websocket)), asyncio.create_task(writer.run())]
        try:
            self._handler.handle_stream_open(Address(*self._far.getsockname()))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(self._far)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            log.debug("relay by TCP sent=%d drops=%s", writer.sent, {why.value: n for why, n in self.drops.items()})

    async def _read(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in websocket:
            if message.type is not aiohttp.WSMsgType.BINARY or not (is_frame(message.data) or is_stun(message.data)):
                self.drops[DropReason.UNKNOWN_TYPE] += 1
                continue
            try:
                self._far.send(message.data)
            except OSError as error:
                self.drops[DropReason.SEND_FAILED] += 1
                log.debug("loopback send error=%s", error)

    def _take(self, writer: FreshWriter) -> None:
        for data in take_datagrams(self._far):
            writer.put(data)
