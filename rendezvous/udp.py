"""The UDP shell: frames go by the compiled pump; what else comes is the relay's to answer, in Python."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence

from meshvpn.proto.drops import DropReason
from meshvpn.proto.transport import Address
from tun.relay import RelayPump

from .limits import Limits
from .relay import Forward, Relay

log = logging.getLogger(__name__)

DATAGRAM_BATCH = 64
"""Datagrams of one turn of the event loop, a few milliseconds: the WebSockets have theirs in between."""
RECEIVE_BUFFER = 4 << 20
"""Bytes. 40 ms of 100,000 voice packets a second with the kernel's own overhead of about 900 bytes each."""


class DatagramShell:
    """The server's UDP sockets, bound already; their numbers are their places in the list."""

    def __init__(
        self, relay: Relay, sockets: Sequence[socket.socket], limits: Limits, *, clock: Callable[[], float]
    ) -> None:
        self._relay = relay
        self._sockets = sockets
        self._clock = clock
        self._drops: Counter[DropReason] = Counter()
        for sock in sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._pump = RelayPump(
            [sock.fileno() for sock in sockets],
            byte_rate=limits.relay_bytes_rate,
            byte_burst=limits.relay_bytes_burst,
        )

    @property
    def forwarded(self) -> tuple[int, int]:
        """Packets and bytes relayed."""
        return self._pump.forwarded()

    @property
    def drops(self) -> Counter[DropReason]:
        """What was not served, by the relay, the pump or here."""
        pumped = Counter({DropReason(name): count for name, count in self._pump.drops().items()})
        return self._relay.drops + self._drops + pumped

    def start(self) -> None:
        """Serve from now on."""
        self._pump.start()
        asyncio.get_running_loop().add_reader(self._pump.slow_fd, self.drain)

    def stop(self) -> None:
        """Serve no more, and close the sockets."""
        asyncio.get_running_loop().remove_reader(self._pump.slow_fd)
        self._pump.stop()
        for sock in self._sockets:
            sock.close()

    def drain(self) -> None:
        """Answer what the pump left to Python, at most a batch; the loop comes back for the rest."""
        now = self._clock()
        for item in self._pump.take_datagrams(DATAGRAM_BATCH):
            source = Address(item.host, item.port)
            if (forward := self._relay.handle_datagram(item.data, source, item.socket, now=now)) is not None:
                # Before the answer: who has it may send at once.
                self.follow()
                self._send(forward)

    def follow(self) -> None:
        """Tell the pump which seats moved; to be called whenever the relay was told something."""
        for move in self._relay.take_moves():
            if move.address is None:
                self._pump.unbind(move.number)
            else:
                host, port = move.address.host, move.address.port
                self._pump.bind(move.number, move.uid, move.socket, host, port, account=move.account)

    def _send(self, forward: Forward) -> None:
        try:
            self._sockets[forward.socket].sendto(forward.data, (forward.to.host, forward.to.port))
        except OSError as error:
            self._drops[DropReason.SEND_FAILED] += 1
            log.debug("udp send error=%s", error)
