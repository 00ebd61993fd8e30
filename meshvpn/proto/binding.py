"""Where the relay knows us: at our UDP address, or at a stream (a WebSocket) where UDP does not pass.

    by UDP ──silent for SILENT_AFTER──▶ a stream is wanted ──open──▶ by stream
      ▲                                                                 │
      └──────────── UDP answered for STEADY_FOR, each relapse twice ────┘

A STUN request with the grant's credentials binds us to where it comes from, and is repeated to keep the binding. By
stream UDP is asked without them all the while: its answer tells that UDP passes both ways, and moves nothing. Back on
UDP the stream stays open for a while, so that a relapse costs one round trip.

Credentials go to one server address at a time: of two (IPv4 and IPv6) the relay would know the one that came last,
and take our packets from there only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from . import stun
from .control import RELAY_BINDING_LIFETIME, RelayGrant
from .drops import DropReason
from .errors import MalformedMessage
from .transport import STREAM_SOCKET, Address, Path, Transmit

RETRIES = (0.1, 0.2, 0.4, 0.8)
"""Seconds to the repetitions of an unanswered request."""
SILENCE_INTERVAL = 5.0
"""Seconds between further ones."""
DOUBT_INTERVAL = 1.0
"""Seconds between two requests that doubts cause."""
REFRESH = 25.0
REFRESH_JITTER = 0.1
"""Seconds, and a share, as in gather.py."""
OTHERS_AFTER = 0.25
"""Seconds of silence after which the relay's other addresses are tried."""
SILENT_AFTER = 1.2
SILENT_JITTER = 0.3
"""Seconds of silence after which UDP is said not to pass, four requests at least, the last of them half a second ago;
and up to so much more, so that a crowd does not come in one instant."""
STREAM_PATIENCE = 4.0
"""Seconds of silence after which a stream is given up; TCP takes its time after a loss."""
BACKOFF_FIRST = 1.0
BACKOFF_LAST = 30.0
"""Seconds from a stream that failed to the next, drawn from 0 … the bound, which doubles."""
PROBE_INTERVAL = 5.0
"""Seconds between requests by UDP while we are on a stream."""
STEADY_FOR = 10.0
STEADY_LIMIT = 320.0
"""Seconds for which UDP must answer before we are back on it, at first and after relapses."""
RELAPSE_MEMORY = 600.0
"""Seconds within which UDP that falls silent again is a relapse."""
KEEP_OPEN = 30.0
"""Seconds, and up to twice as many, for which a stream stays open that is not in use."""
MAX_REQUESTS = 32
"""Requests whose answer is waited for."""
MAX_SERVERS = 4
"""Addresses of the relay that are tried."""


@dataclass(frozen=True, slots=True)
class RelayBound:
    """The relay knows us: frames go to `server` from `socket`."""

    server: Address
    socket: int


@dataclass(frozen=True, slots=True)
class RelayUnbound:
    """It does not, or has not answered for as long as a binding lives."""


@dataclass(frozen=True, slots=True)
class StreamWanted:
    """The shell should open a stream and report `handle_stream_open` or `handle_stream_closed`."""


@dataclass(frozen=True, slots=True)
class StreamUnwanted:
    """It should close the stream."""


@dataclass(frozen=True, slots=True)
class UdpPasses:
    """The server is heard by UDP again after it was not: others may be, too."""


BindingEvent = RelayBound | RelayUnbound | StreamWanted | StreamUnwanted | UdpPasses


class StreamState(Enum):
    """Of the stream, as the shell was told or told us."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class _Request:
    """`key` is None if it binds nothing."""

    path: Path
    key: bytes | None


class RelayBinding:
    """The machine. Times are monotonic seconds."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self.stream = StreamState.CLOSED
        self._entropy = entropy
        self._servers: list[Address] = []
        self._sockets: frozenset[int] = frozenset()
        self._server: Address | None = None
        self._grant: RelayGrant | None = None
        self._counter = 0
        self._is_attached = False
        self._requests: dict[bytes, _Request] = {}
        self._bound: RelayBound | None = None
        self._bound_at = 0.0
        self._stream_address: Address | None = None
        self._is_by_stream = False
        self._is_udp_silent = False
        self._unanswered_since: float | None = None
        self._tries = 0
        self._asked_at = float("-inf")
        self._ask_at: float | None = None
        self._probe_at: float | None = None
        self._is_probe_answered = False
        self._steady_since: float | None = None
        self._steady_for = STEADY_FOR
        self._returned_at = float("-inf")
        self._want_at = float("-inf")
        self._failures = 0
        self._close_at: float | None = None
        self._transmits: list[Transmit] = []
        self._events: list[BindingEvent] = []

    # What happens.

    def handle_servers(self, addresses: Sequence[Address], *, now: float) -> None:
        """The relay's UDP addresses, the first is tried first."""
        self._servers = list(dict.fromkeys(addresses))[:MAX_SERVERS]
        self._choose_server()
        self._start(now)

    def handle_local_addresses(self, ports: Mapping[int, int], *, now: float) -> None:
        """The UDP sockets that there are."""
        sockets = frozenset(ports)
        if sockets != self._sockets:
            self._sockets = sockets
            self._choose_server()
            self._start(now)

    def handle_grant(self, grant: RelayGrant, *, now: float) -> None:
        """A new right to the relay, with a new control connection."""
        self._grant, self._counter, self._is_attached = grant, 0, True
        self._requests.clear()
        self._bound = self._unanswered_since = None
        self._is_udp_silent, self._failures, self._want_at = False, 0, float("-inf")
        self._start(now)

    def handle_detached(self, *, now: float) -> None:
        """The control connection ended. The old grant is kept alive: calls go on. No stream is opened meanwhile."""
        self._is_attached = False

    def handle_network_change(self, *, now: float) -> None:
        """Addresses or routes changed: UDP may pass here."""
        self._start(now)
        if self._is_by_stream:
            self._steady_since = float("-inf")
            self._probe(now)

    def handle_doubt(self, *, now: float) -> None:
        """A path does not answer: does the relay still know us?"""
        at = self._asked_at + DOUBT_INTERVAL
        if now >= at:
            self._start(now)
        elif self._unanswered_since is None and self._grant is not None:
            self._ask_at = at

    def handle_stream_open(self, address: Address, *, now: float) -> None:
        """The stream is open; what is sent to this loopback address goes by it."""
        if self.stream is not StreamState.OPENING:
            return
        self.stream, self._stream_address = StreamState.OPEN, address
        self._use_stream(now)

    def handle_stream_closed(self, *, now: float) -> None:
        """The stream ended, or could not be opened."""
        if self.stream is StreamState.CLOSED:
            return
        self.stream, self._close_at = StreamState.CLOSED, None
        self._want_at = now + min(BACKOFF_LAST, BACKOFF_FIRST * 2.0 ** min(self._failures, 10)) * self._fraction()
        self._failures += 1
        if self._is_by_stream:
            self._use_udp(now)
            if self._bound is not None and self._bound.socket == STREAM_SOCKET:
                self._bound = None
                self._events.append(RelayUnbound())

    def is_expected(self, data: bytes) -> bool:
        """Is this STUN message the answer to a request of ours?"""
        return data[8:20] in self._requests

    def handle_datagram(self, data: bytes, path: Path, *, now: float) -> DropReason | None:
        """A STUN message."""
        try:
            message = stun.parse(data)
        except MalformedMessage as error:
            return error.reason
        request = self._requests.get(message.transaction_id)
        if request is None or (request.path.remote, path.relay) != (path.remote, None):
            return DropReason.UNEXPECTED
        if request.key is not None and not message.is_authentic(request.key):
            return DropReason.BAD_SIGNATURE
        if message.type != stun.MessageType.SUCCESS:
            return DropReason.MALFORMED
        del self._requests[message.transaction_id]
        if request.path.socket == STREAM_SOCKET:
            if self._is_by_stream:
                self._note_bound(request.path, now)
            return None
        self._note_udp(request.path.remote, now)
        if not self._is_by_stream and request.key is not None:
            self._note_bound(request.path, now)
        return None

    # Time and output.

    def next_timeout(self) -> float | None:
        """The next request, or the end of a patience."""
        unbound_at = None if self._bound is None else self._bound_at + RELAY_BINDING_LIFETIME
        deadlines = (self._ask_at, self._probe_at, self._close_at, self._give_up_at(), unbound_at)
        return min((at for at in deadlines if at is not None), default=None)

    def handle_timeout(self, *, now: float) -> None:
        """Do what is due."""
        if self._bound is not None and now >= self._bound_at + RELAY_BINDING_LIFETIME:
            self._bound = None
            self._events.append(RelayUnbound())
        if (at := self._give_up_at()) is not None and now >= at:
            self._give_up(now)
        if self._close_at is not None and now >= self._close_at:
            self._close_stream()
        if self._probe_at is not None and now >= self._probe_at:
            self._note_probe(now)
        if self._ask_at is not None and now >= self._ask_at:
            self._ask(now)

    def take_transmits(self) -> list[Transmit]:
        """STUN requests to send; clears."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def take_events(self) -> list[BindingEvent]:
        """What changed, and what is wanted; clears."""
        events, self._events = self._events, []
        return events

    # Asking.

    def _start(self, now: float) -> None:
        self._tries = 0
        if self._grant is not None:
            self._ask(now)

    def _ask(self, now: float) -> None:
        if self._unanswered_since is None:
            self._unanswered_since = now
            patience = 0.0 if self._is_udp_silent else SILENT_AFTER + SILENT_JITTER * self._fraction()
            self._want_at = max(self._want_at, now + patience)
        self._asked_at = now
        self._ask_at = now + (RETRIES[self._tries] if self._tries < len(RETRIES) else SILENCE_INTERVAL)
        self._tries += 1
        if self._is_by_stream:
            assert self._stream_address is not None, "it was open"
            return self._send(Path(STREAM_SOCKET, self._stream_address), is_binding=True)
        if self._server is not None:
            self._send(Path(_socket(self._server), self._server), is_binding=True)
        if now >= self._unanswered_since + OTHERS_AFTER:
            for other in self._usable():
                if other != self._server:
                    self._send(Path(_socket(other), other), is_binding=False)
        return None

    def _send(self, path: Path, *, is_binding: bool) -> None:
        transaction_id = self._entropy(12)
        if is_binding and self._grant is not None:
            self._counter += 1
            key, username = self._grant.key, stun.relay_username(self._grant.id, self._counter)
            data = stun.binding_request(transaction_id, username=username, key=key)
            self._requests[transaction_id] = _Request(path, key)
        else:
            data = stun.binding_request(transaction_id)
            self._requests[transaction_id] = _Request(path, None)
        if len(self._requests) > MAX_REQUESTS:
            del self._requests[next(iter(self._requests))]
        self._transmits.append(Transmit(path, data))

    def _probe(self, now: float) -> None:
        self._is_probe_answered = False
        self._probe_at = now + PROBE_INTERVAL
        for server in self._usable():
            self._send(Path(_socket(server), server), is_binding=False)

    def _note_probe(self, now: float) -> None:
        """It is time for the next probe. Was the last one answered?"""
        if not self._is_probe_answered:
            self._steady_since, self._is_udp_silent = None, True
        self._probe(now)

    def _note_udp(self, server: Address, now: float) -> None:
        self._is_probe_answered = True
        if self._is_udp_silent:
            self._is_udp_silent = False
            self._events.append(UdpPasses())
        if not self._is_by_stream:
            if self._unanswered_since is not None and server != self._server and server in self._servers:
                self._server = server  # while the one with our credentials is silent
                self._start(now)
            return
        if self._steady_since is None:
            self._steady_since = now
        if now >= self._steady_since + self._steady_for:
            self._return(server, now)

    def _note_bound(self, path: Path, now: float) -> None:
        self._unanswered_since, self._tries = None, 0
        self._ask_at = now + REFRESH * (1 - REFRESH_JITTER * self._fraction())
        self._bound_at = now
        if self.stream is StreamState.OPENING:
            self._close_stream()  # UDP was only slow
        if self._is_by_stream:
            self._failures = 0
        self._report(RelayBound(path.remote, path.socket), now)

    def _report(self, bound: RelayBound, now: float) -> None:
        if bound != self._bound:
            self._bound, self._bound_at = bound, now
            self._events.append(bound)

    # Choosing.

    def _give_up_at(self) -> float | None:
        """When the present way has been silent for too long."""
        if self._unanswered_since is None or self._grant is None:
            return None
        if self._is_by_stream:
            return self._unanswered_since + STREAM_PATIENCE
        if self.stream is StreamState.OPEN:
            return self._unanswered_since + SILENT_AFTER
        return self._want_at if self._is_attached and self.stream is StreamState.CLOSED else None

    def _give_up(self, now: float) -> None:
        if self._is_by_stream:
            self._events.append(StreamUnwanted())
            return self.handle_stream_closed(now=now)
        self._is_udp_silent = True
        if self.stream is StreamState.OPEN:
            return self._use_stream(now)
        self.stream = StreamState.OPENING
        self._events.append(StreamWanted())
        return None

    def _use_stream(self, now: float) -> None:
        is_relapse = now < self._returned_at + RELAPSE_MEMORY
        self._steady_for = min(2 * self._steady_for, STEADY_LIMIT) if is_relapse else STEADY_FOR
        self._is_by_stream, self._steady_since, self._close_at = True, None, None
        self._unanswered_since = None
        self._start(now)
        self._probe(now)

    def _use_udp(self, now: float) -> None:
        self._is_by_stream, self._probe_at, self._unanswered_since = False, None, None
        self._start(now)

    def _return(self, server: Address, now: float) -> None:
        self._server, self._returned_at = server, now
        self._close_at = now + KEEP_OPEN * (1 + self._fraction())
        self._use_udp(now)
        if self._bound is not None:
            # The answer is not waited for: the relay takes our packets from here as soon as it has the request.
            self._report(RelayBound(server, _socket(server)), now)

    def _close_stream(self) -> None:
        self.stream, self._close_at = StreamState.CLOSED, None
        self._events.append(StreamUnwanted())

    def _usable(self) -> list[Address]:
        return [server for server in self._servers if _socket(server) in self._sockets]

    def _choose_server(self) -> None:
        usable = self._usable()
        if self._server not in usable:
            self._server = usable[0] if usable else None

    def _fraction(self) -> float:
        return int.from_bytes(self._entropy(4), "little") / 2**32


def _socket(server: Address) -> int:
    return 1 if server.is_ipv6 else 0
