"""One control connection: what waits to be sent on it, and the WebSocket that carries it.

    close()   nothing more is queued; what waits is sent, then the WebSocket is closed; after closing_timeout it is cut
    cut       at once: the reader is too slow, or does not read its last words

A client that does not read must be cut: a closed transport waits for its buffer to empty, which here is never.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from aiohttp import ClientError, WSCloseCode, WSMsgType, web

from meshvpn.proto.buckets import Bucket

from .limits import Limits

log = logging.getLogger(__name__)


class Connection:
    """The server's end. Messages are bytes, so that one for many is encoded once and held once."""

    def __init__(self, source: str, nonce: bytes, limits: Limits, *, now: float) -> None:
        self.source = source
        self.nonce = nonce
        self.messages = Bucket(limits.message_rate, limits.message_burst, now=now)
        self.bytes = Bucket(limits.byte_rate, limits.byte_burst, now=now)
        self.relay_id: int | None = None
        self.is_closing = False
        self.is_cut = False
        self._limits = limits
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0
        self._wake = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Messages that wait to be sent."""
        return len(self._outgoing)

    def send(self, message: bytes) -> None:
        """Queue a message; with too much queued the connection is cut."""
        if self.is_closing:
            return
        self._outgoing.append(message)
        self._outgoing_bytes += len(message)
        self._wake.set()
        if len(self._outgoing) > self._limits.outgoing_messages or self._outgoing_bytes > self._limits.outgoing_bytes:
            self._cut()

    def close(self) -> None:
        """End after what is queued."""
        if not self.is_closing:
            self.is_closing = True
            self._wake.set()
            self._deadline = asyncio.get_running_loop().call_later(self._limits.closing_timeout, self._cut)

    async def next_message(self) -> bytes | None:
        """What to send next, as soon as there is something; None at the end."""
        while not self._outgoing:
            if self.is_closing:
                return None
            self._wake.clear()
            await self._wake.wait()
        message = self._outgoing.popleft()
        self._outgoing_bytes -= len(message)
        return message

    async def serve(
        self,
        websocket: web.WebSocketResponse,
        transport: asyncio.Transport | None,
        handle: Callable[[Connection, bytes], Awaitable[None]],
    ) -> None:
        """Carry messages both ways, one request at a time, until either end is done."""
        self._transport = transport
        writer = asyncio.create_task(self._write(websocket))
        try:
            async for message in websocket:
                if message.type is not WSMsgType.BINARY:
                    break
                await handle(self, message.data)
                if self.is_closing:
                    break
        finally:
            self.close()
            try:
                await writer
            finally:
                writer.cancel()
                if self._deadline is not None:
                    self._deadline.cancel()
                if transport is not None and transport.get_write_buffer_size():
                    transport.abort()

    async def _write(self, websocket: web.WebSocketResponse) -> None:
        try:
            while (message := await self.next_message()) is not None:
                await websocket.send_bytes(message)
            await websocket.close(code=WSCloseCode.OK)
        except (ClientError, ConnectionError, RuntimeError) as error:
            # RuntimeError: uvloop's transport is closed already.
            log.debug("control connection lost while sending error=%s", error)
            self._abort()

    def _cut(self) -> None:
        self.is_cut = True
        self._abort()

    def _abort(self) -> None:
        self.is_closing = True
        self._outgoing.clear()
        self._wake.set()
        if self._transport is not None:
            self._transport.abort()
