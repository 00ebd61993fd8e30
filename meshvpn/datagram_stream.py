"""Datagrams over a WebSocket, one a binary message: late ones are dropped, not queued. Both ends of the relay's stream.

    datagrams ──put──▶ waiting, for MAX_AGE at most ──while TCP has sent nearly all it has──▶ WebSocket

What TCP was given it delivers, however late, and a call has no use for it then. So TCP is given a datagram only when
fewer than UNSENT bytes are unsent (TCP_NOTSENT_LOWAT): neither the kernel's buffer nor the transport's, which cannot be
seen below TLS, ever fills. A reader that does not read costs MAX_WAITING bytes here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from collections import Counter, deque
from collections.abc import Iterator
from typing import Protocol

from .proto.drops import DropReason

log = logging.getLogger(__name__)

MAX_AGE = 0.15
"""Seconds that a datagram may wait; a jitter buffer has given up on a voice packet by then."""
MAX_WAITING = 64 * 1024
"""Bytes that may wait: a burst of bulk data that TCP carries within MAX_AGE at 3.5 Mbit/s."""
UNSENT = 4096
"""Bytes unsent in the kernel at which it takes no more; it says that it takes more again below half of that: eight
voice packets, 160 ms of one call."""
MAX_DATAGRAM = 4096
"""Bytes of one message; what the tunnel's MTU admits is below 1,600."""
BATCH = 64
"""Datagrams read before other work of the loop gets its turn."""
LOOPBACK = "127.0.0.1"


class WebSocket(Protocol):
    """What both aiohttp's server and client have."""

    async def send_bytes(self, data: bytes) -> None:
        """Send one binary message."""


class FreshWriter:
    """Sends datagrams on a WebSocket over the TCP connection `sock`; counts in `drops` what it does not send."""

    def __init__(self, websocket: WebSocket, sock: socket.socket, drops: Counter[DropReason]) -> None:
        self.sent = 0
        self._websocket = websocket
        self._drops = drops
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        # Of its own: event loops refuse to watch a descriptor that a transport uses.
        self._fd = os.dup(sock.fileno())
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def put(self, data: bytes) -> None:
        """Send it soon, or not at all."""
        now = self._loop.time()
        self._drop_stale(now)
        if len(data) > MAX_DATAGRAM:
            self._drops[DropReason.TOO_BIG] += 1
            return
        if self._waiting_bytes + len(data) > MAX_WAITING:
            self._drops[DropReason.QUEUE_FULL] += 1
            return
        self._waiting.append((now, data))
        self._waiting_bytes += len(data)
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled. Raises what the WebSocket raises when it is closed."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._send_waiting()
        finally:
            os.close(self._fd)

    async def _send_waiting(self) -> None:
        written = 0
        while self._waiting:
            if written >= UNSENT:
                # A loop may write when its turn ends: only then does the kernel's word count what was sent before.
                await asyncio.sleep(0)
                written = 0
            if not self._poll.poll(0):
                await self._room()
            self._drop_stale(self._loop.time())
            if self._waiting:
                _, data = self._waiting.popleft()
                self._waiting_bytes -= len(data)
                await self._websocket.send_bytes(data)
                self.sent += 1
                written += len(data)

    async def _room(self) -> None:
        room = asyncio.Event()
        self._loop.add_writer(self._fd, room.set)
        try:
            await room.wait()
        finally:
            self._loop.remove_writer(self._fd)

    def _drop_stale(self, now: float) -> None:
        while self._waiting and now - self._waiting[0][0] > MAX_AGE:
            self._waiting_bytes -= len(self._waiting.popleft()[1])
            self._drops[DropReason.STALE] += 1


def loopback_socket(peer: tuple[str, int] | None = None) -> socket.socket:
    """A UDP socket on a random port of the loopback interface; with `peer` it hears nobody else. Raises OSError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.bind((LOOPBACK, 0))
        if peer is not None:
            sock.connect(peer)
            discard(sock)  # of whoever was faster than `connect`
    except OSError:
        sock.close()
        raise
    return sock


def take_datagrams(sock: socket.socket) -> Iterator[bytes]:
    """What has arrived, at most a batch; of one that is too long for a stream the first MAX_DATAGRAM + 1 bytes."""
    for _ in range(BATCH):
        try:
            yield sock.recv(MAX_DATAGRAM + 1)
        except BlockingIOError:
            return
        except ConnectionRefusedError as error:
            log.debug("the other end of a loopback socket is closed error=%s", error)


def discard(sock: socket.socket) -> None:
    """Forget what has arrived, at most a full buffer of it."""
    for _ in range(1024):
        if not any(True for _ in take_datagrams(sock)):
            return
