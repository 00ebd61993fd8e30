"""The UDP shell: frames go by the compiled pump; what else comes is the relay's to answer, in Python."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence

from meshvpn.datagram_stream import loopback_socket
from meshvpn.proto.drops import DropReason
from meshvpn.proto.transport import Address
from tun.relay import RelayPump

from .limits import Limits
from .relay import Forward, Relay, SeatMoved

log = logging.getLogger(__name__)

DATAGRAM_BATCH = 64
"""Datagrams of one turn of the event loop, a few milliseconds: the WebSockets have theirs in between."""
RECEIVE_BUFFER = 4 << 20
"""Bytes. 40 ms of 100,000 voice packets a second with the kernel's own overhead of about 900 bytes each."""


class DatagramShell:
    """The server's UDP sockets, bound already; their numbers are their places in the list.

    The last, on the loopback interface, is where the relay's streams (streams.py) have their frames forwarded.
    """

    def __init__(
        self, relay: Relay, sockets: Sequence[socket.socket], limits: Limits, *, clock: Callable[[], float]
    ) -> None:
        self.on_move: Callable[[SeatMoved], None] = lambda _move: None
        self._relay = relay
        self.loopback_number = len(sockets)
        self._sockets = [*sockets, loopback_socket()]
        self._clock = clock
        self._drops: Counter[DropReason] = Counter()
        for sock in self._sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._pump = RelayPump(
            [sock.fileno() for sock in self._sockets],
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

    @property
    def loopback(self) -> tuple[str, int]:
        """Where frames that came by a stream are sent to, each stream's from an address of its own."""
        host, port = self._sockets[self.loopback_number].getsockname()
        return host, port

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
            if item.socket == self.loopback_number:
                self._drops[DropReason.DISALLOWED_SOURCE] += 1  # no stream sends there what is no frame
                continue
            source = Address(item.host, item.port)
            if (forward := self._relay.handle_datagram(item.data, source, item.socket, now=now)) is not None:
                # Before the answer: who has it may send at once.
                self.follow()
                self._send(forward)

    def answer(self, data: bytes, source: Address, client: str) -> bytes | None:
        """What a stream whose loopback address is `source` says to the relay itself, and the answer for it."""
        forward = self._relay.handle_datagram(data, source, self.loopback_number, now=self._clock(), client=client)
        self.follow()
        return None if forward is None else forward.data

    def unbind(self, seat: int, source: Address) -> None:
        """The stream with this loopback address is gone."""
        self._relay.unbind(seat, source)
        self.follow()

    def follow(self) -> None:
        """Tell the pump which seats moved; to be called whenever the relay was told something."""
        for move in self._relay.take_moves():
            if move.address is None:
                self._pump.unbind(move.number)
            else:
                host, port = move.address.host, move.address.port
                self._pump.bind(move.number, move.uid, move.socket, host, port, account=move.account)
            self.on_move(move)

    def _send(self, forward: Forward) -> None:
        try:
            self._sockets[forward.socket].sendto(forward.data, (forward.to.host, forward.to.port))
        except OSError as error:
            self._drops[DropReason.SEND_FAILED] += 1
            log.debug("udp send error=%s", error)
