"""The relay by WebSocket, for members whose UDP does not pass: `/v1/relay`, one datagram a binary message.

    member ──WebSocket──▶ Stream ──loopback UDP──▶ pump ──▶ the other member, by UDP or by a stream
           ◀─────────────        ◀────────────────      ◀──

A stream carries what a member would else send by UDP. The first message binds its seat, as later ones do again: a STUN
request with the seat's credentials, so that a stream needs no secrets and no replay protection of its own. The seat is
then bound to the stream's loopback address, and the pump treats its frames as it does everybody's: source, network,
quota. The member moves back to UDP by a STUN request there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Callable

from aiohttp import ClientError, WSCloseCode, WSMsgType, web

from meshvpn.datagram_stream import MAX_DATAGRAM, FreshWriter, loopback_socket, take_datagrams
from meshvpn.proto.buckets import Bucket
from meshvpn.proto.control import RELAY_BINDING_LIFETIME
from meshvpn.proto.drops import DropReason
from meshvpn.proto.transport import Address, is_frame

from .limits import Limits
from .relay import SeatMoved
from .udp import DatagramShell

log = logging.getLogger(__name__)

HEARTBEAT = 20.0
CLOSE_TIMEOUT = 1.0
PAUSE = 0.01
"""Seconds for which a stream is not read that is faster than its limit."""


class Stream:
    """One WebSocket. `seats` are those that are bound to its loopback address now."""

    def __init__(self, source: str, local: socket.socket, limits: Limits, *, now: float) -> None:
        self.source = source
        self.local = local
        self.address = Address(*local.getsockname())
        self.messages = Bucket(limits.stream_rate, limits.stream_burst, now=now)
        self.seats: set[int] = set()
        self.idle_at: float | None = now
        """Since when it has no seat."""
        self.was_bound = False
        self.writer: FreshWriter | None = None
        self._end: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    def end(self, code: int, reason: str) -> None:
        """Close it soon."""
        if not self._end.done():
            self._end.set_result((code, reason))

    async def ended(self) -> tuple[int, str]:
        """The code and the words to close with, once it has to end."""
        return await self._end


class Streams:
    """All of them."""

    def __init__(self, datagrams: DatagramShell, limits: Limits, *, clock: Callable[[], float]) -> None:
        self.drops: Counter[DropReason] = Counter()
        self.received = 0
        self.sent = 0
        self._datagrams = datagrams
        self._limits = limits
        self._clock = clock
        self._open: dict[Address, Stream] = {}
        self._seated: dict[int, Stream] = {}
        datagrams.on_move = self._handle_move

    def __len__(self) -> int:
        return len(self._open)

    async def serve(self, request: web.Request, source: str) -> web.WebSocketResponse:
        """Carry one stream until either end is done."""
        websocket = web.WebSocketResponse(
            heartbeat=HEARTBEAT, max_msg_size=MAX_DATAGRAM, timeout=CLOSE_TIMEOUT, compress=False
        )
        with loopback_socket(self._datagrams.loopback) as local:
            stream = Stream(source, local, self._limits, now=self._clock())
            self._open[stream.address] = stream
            try:
                await websocket.prepare(request)
                if request.transport is not None:
                    await self._carry(stream, websocket, request.transport)
            finally:
                self._datagrams.follow()  # a seat may have just been given this address
                for seat in list(stream.seats):
                    self._datagrams.unbind(seat, stream.address)
                del self._open[stream.address]
        return websocket

    def handle_timeout(self, *, now: float) -> None:
        """End those that are bound to no seat for too long; call now and then."""
        for stream in self._open.values():
            patience = RELAY_BINDING_LIFETIME if stream.was_bound else self._limits.opening_timeout
            if stream.idle_at is not None and now - stream.idle_at > patience:
                stream.end(WSCloseCode.POLICY_VIOLATION, "idle")

    def close(self) -> None:
        """The server stops."""
        for stream in self._open.values():
            stream.end(WSCloseCode.GOING_AWAY, "restarting")

    async def _carry(self, stream: Stream, websocket: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        writer = stream.writer = FreshWriter(websocket, transport.get_extra_info("socket"), self.drops)
        tasks = [
            asyncio.create_task(self._read(stream, websocket)),
            asyncio.create_task(writer.run()),
            asyncio.create_task(stream.ended()),
        ]
        loop = asyncio.get_running_loop()
        loop.add_reader(stream.local, self._take_local, stream, writer)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(stream.local)
            self.sent += writer.sent
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        log.debug("relay stream ended source=%s outcomes=%s", stream.source, outcomes)
        code, reason = outcomes[2] if isinstance(outcomes[2], tuple) else (WSCloseCode.OK, "")
        with contextlib.suppress(ClientError, ConnectionError, RuntimeError):
            # RuntimeError: uvloop's transport is closed already.
            await websocket.close(code=code, message=reason.encode())
        if transport.get_write_buffer_size():
            transport.abort()

    async def _read(self, stream: Stream, websocket: web.WebSocketResponse) -> None:
        async for message in websocket:
            if message.type is not WSMsgType.BINARY:
                return
            if not stream.messages.take(now=self._clock()):
                await asyncio.sleep(PAUSE)
            if is_frame(message.data) and stream.was_bound:
                self._forward(stream, message.data)
            elif (answer := self._datagrams.answer(message.data, stream.address, stream.source)) is not None:
                await websocket.send_bytes(answer)
            if not stream.was_bound:
                return stream.end(WSCloseCode.POLICY_VIOLATION, "unauthorized")

    def _forward(self, stream: Stream, frame: bytes) -> None:
        try:
            stream.local.send(frame)
            self.received += 1
        except OSError as error:
            self.drops[DropReason.SEND_FAILED] += 1
            log.debug("loopback send error=%s", error)

    def _take_local(self, stream: Stream, writer: FreshWriter) -> None:
        for data in take_datagrams(stream.local):
            writer.put(data)

    def _handle_move(self, move: SeatMoved) -> None:
        before = self._seated.pop(move.number, None)
        after = None
        if move.address is not None and move.socket == self._datagrams.loopback_number:
            after = self._open[move.address]
            after.seats.add(move.number)
            after.idle_at, after.was_bound = None, True
            self._seated[move.number] = after
        if before is None or before is after:
            return
        before.seats.discard(move.number)
        if before.seats:
            return
        before.idle_at = self._clock()
        if after is not None:
            before.end(WSCloseCode.POLICY_VIOLATION, "replaced")
        elif move.address is None:
            before.end(WSCloseCode.POLICY_VIOLATION, "unbound")
