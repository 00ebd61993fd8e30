"""The UDP shell: reads datagrams in batches, sends what the relay decides."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence

from meshvpn.proto.drops import DropReason
from meshvpn.proto.transport import Address

from .relay import Forward, Relay

log = logging.getLogger(__name__)

DATAGRAM_BATCH = 64
"""Datagrams of one socket in one turn of the event loop, a few milliseconds: the WebSockets have theirs in between."""
MAX_DATAGRAM = 2048
"""Bytes; a relay frame at the default MTU has below 1,500. Longer ones would arrive cut off."""


class DatagramShell:
    """The server's UDP sockets, bound already; their numbers are their places in the list."""

    def __init__(self, relay: Relay, sockets: Sequence[socket.socket], *, clock: Callable[[], float]) -> None:
        self._relay = relay
        self._sockets = sockets
        self._clock = clock
        self._drops: Counter[DropReason] = Counter()

    @property
    def drops(self) -> Counter[DropReason]:
        """What was not served, by the relay or here."""
        return self._relay.drops + self._drops

    def start(self) -> None:
        """Read from now on."""
        loop = asyncio.get_running_loop()
        for number, sock in enumerate(self._sockets):
            sock.setblocking(False)
            loop.add_reader(sock, self.drain, number)

    def stop(self) -> None:
        """Read no more, and close the sockets."""
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def drain(self, number: int) -> None:
        """Serve what waits at a socket, at most a batch; the loop comes back for the rest."""
        sock, now = self._sockets[number], self._clock()
        for _ in range(DATAGRAM_BATCH):
            try:
                data, source = sock.recvfrom(MAX_DATAGRAM + 1)
            except BlockingIOError:
                return
            except OSError as error:
                # An ICMP error of an earlier datagram; says nothing about the next one.
                log.debug("udp receive error=%s", error)
                continue
            if len(data) > MAX_DATAGRAM:
                self._drops[DropReason.TOO_BIG] += 1
                continue
            address = Address(source[0].partition("%")[0], source[1])
            if (forward := self._relay.handle_datagram(data, address, number, now=now)) is not None:
                self._send(forward)

    def _send(self, forward: Forward) -> None:
        try:
            self._sockets[forward.socket].sendto(forward.data, (forward.to.host, forward.to.port))
        except OSError as error:
            self._drops[DropReason.SEND_FAILED] += 1
            log.debug("udp send error=%s", error)
