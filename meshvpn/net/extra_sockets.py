"""Sockets for guessing ports: many for some seconds, of which one may stay and become the engine's."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from tun.engine import MAX_SOCKETS, Engine

from ..proto.transport import FIRST_EXTRA_SOCKET
from .sockets import open_ipv4

log = logging.getLogger(__name__)

BATCH = 64
"""Datagrams read from one socket before other work of the loop gets its turn."""
MAX_DATAGRAM = 2048
"""Bytes; what belongs here is a STUN answer or a probe."""


class ExtraSockets:
    """Those of one network by number. What comes on one that is not adopted goes to `on_datagram` from the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_datagram: Callable[[int, bytes, str, int], None]) -> None:
        self._loop = loop
        self._on_datagram = on_datagram
        self._open: dict[int, socket.socket] = {}
        self._adopted: set[int] = set()
        self._last = FIRST_EXTRA_SOCKET - 1

    def get(self, number: int) -> socket.socket | None:
        """To send from."""
        return self._open.get(number)

    def open(self, count: int) -> dict[int, int]:
        """As many as there are to be had; their ports by number."""
        ports: dict[int, int] = {}
        while len(ports) < count and len(self._open) < MAX_SOCKETS - FIRST_EXTRA_SOCKET:
            try:
                sock = open_ipv4(0)
            except OSError as error:
                log.warning("fewer sockets for guessing ports wanted=%d opened=%d error=%s", count, len(ports), error)
                break
            number = self._next_number()
            self._open[number] = sock
            self._loop.add_reader(sock.fileno(), self._read, number)
            ports[number] = sock.getsockname()[1]
        return ports

    def adopt(self, number: int) -> int:
        """From now on the engine receives on it; its descriptor."""
        sock = self._open[number]
        self._loop.remove_reader(sock.fileno())
        self._adopted.add(number)
        return sock.fileno()

    def close(self, numbers: tuple[int, ...], engine: Engine) -> None:
        """Close these."""
        for number in numbers:
            sock = self._open.pop(number)
            if number in self._adopted:
                self._adopted.remove(number)
                engine.remove_socket(number)
            else:
                self._loop.remove_reader(sock.fileno())
            sock.close()

    def close_all(self) -> None:
        """Close what is left; the engine has stopped."""
        for number, sock in self._open.items():
            if number not in self._adopted:
                self._loop.remove_reader(sock.fileno())
            sock.close()
        self._open.clear()
        self._adopted.clear()

    def _next_number(self) -> int:
        # Used again as late as possible: events of the engine may speak of the old one yet.
        while True:
            self._last = self._last + 1 if self._last + 1 < MAX_SOCKETS else FIRST_EXTRA_SOCKET
            if self._last not in self._open:
                return self._last

    def _read(self, number: int) -> None:
        for _ in range(BATCH):
            sock = self._open.get(number)
            if sock is None or number in self._adopted:
                return  # what was just read had it closed or adopted
            try:
                data, (host, port) = sock.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                # An ICMP error of a guess that hit nobody: it says nothing of the socket.
                log.debug("read failed socket=%d error=%s", number, error)
                continue
            self._on_datagram(number, data, host, port)
