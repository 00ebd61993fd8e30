"""The data plane, readable: the engine's twin (tun/engine.pyx), pure and slow, for tests and simulations.

    handle_packet    TUN → route → keypair → seal → take_transmits
    handle_datagram  UDP → receiver index → window → open → source check → take_packets

Both follow the WireGuard whitepaper §5.4.6, §6.1 and RFC 6479. Outer DSCP and ECN are the sockets' business: here is
counted only whether a mark survived the path. Everything else is meant to behave like the engine, and one set of tests
runs on both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from . import primitives
from .allowedips import AllowedIPs
from .arrivals import Arrivals
from .constants import (
    KEEPALIVE_TIMEOUT,
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_TIME,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
)
from .copies import Copies, is_copied
from .drops import DropReason
from .forwarder import Forwarder
from .replay import ReplayWindow
from .timers import NEVER
from .transport import RELAY_HEADER, RELAY_WORD, Address, Path, RelayHop, Transmit

_HEADER = 16
_TAG = 16
_WORD_TRANSPORT = 4
STAGED_LIMIT = 512
STAGED_BYTES = 8 << 20
"""Of all peers together."""
SLOW_BYTES = 2048
"""Longest datagram that is not a transport message: disco, STUN and handshakes are shorter."""
SLOW_RATE = 4096
"""Such datagrams a second."""
MAX_PEERS = 4096
MAX_SOCKETS = 640
HANDSHAKE_EVENT_INTERVAL = 1.0
PATH_EVENT_INTERVAL = 0.1


@dataclass(frozen=True, slots=True)
class HandshakeWanted:
    """A packet waits for the peer's first (or next) keypair."""

    peer: int


@dataclass(frozen=True, slots=True)
class RekeyWanted:
    """The keypair in use grows old."""

    peer: int


@dataclass(frozen=True, slots=True)
class KeypairConfirmed:
    """The peer used the keypair that our response made."""

    peer: int
    local_index: int


@dataclass(frozen=True, slots=True)
class PathSeen:
    """An authenticated packet came on another path than the peer's endpoint."""

    peer: int
    path: Path


DataPlaneEvent = HandshakeWanted | RekeyWanted | KeypairConfirmed | PathSeen


class PeerStats(NamedTuple):
    """As tun.engine.PeerStats."""

    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    received_packets: int
    lost_packets: int
    reordered_packets: int
    duplicate_packets: int
    jitter: float
    marked_packets: int
    kept_marks: int
    first_sent_at: float
    first_received_at: float
    more_arrived: bool
    last_authenticated_at: float
    last_sent_at: float
    last_received_at: float
    keypair_created_at: float


@dataclass(slots=True, repr=False)
class _Keypair:
    local_index: int
    remote_index: int
    send_key: bytes
    receive_key: bytes
    is_initiator: bool
    created_at: float
    received_at: float = NEVER
    is_rekey_reported: bool = False
    send_counter: int = 0
    window: ReplayWindow = field(default_factory=ReplayWindow)

    def is_usable(self, now: float) -> bool:
        return now - self.created_at < REJECT_AFTER_TIME and self.send_counter < REJECT_AFTER_MESSAGES


@dataclass(slots=True)
class _Peer:
    number: int
    roams: bool
    primary: Path | None = None
    secondary: Path | None = None
    copies: Copies = Copies.ALL
    current: _Keypair | None = None
    previous: _Keypair | None = None
    next: _Keypair | None = None
    staged: list[bytes] = field(default_factory=list)
    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    received_before: int = 0
    lost_before: int = 0
    arrivals: Arrivals = field(default_factory=Arrivals)
    first_sent_at: float = NEVER
    first_received_at: float = NEVER
    more_arrived: bool = False
    last_authenticated_at: float = NEVER
    last_sent_at: float = NEVER
    last_received_at: float = NEVER
    handshake_event_at: float = float("-inf")
    path_event_at: float = float("-inf")
    path_reported: Path | None = None


class DataPlane:
    """One network's packets. Every call that the engine takes, with the time where it needs one."""

    def __init__(self, *, sockets: int = 2, slow_queue: int = 1024) -> None:
        self._drops: Counter[DropReason] = Counter()
        self._sockets = set(range(sockets))
        self._peers: dict[int, _Peer] = {}
        self._forwarder = Forwarder()
        self._routes = AllowedIPs()
        self._by_index: dict[int, tuple[_Peer, _Keypair]] = {}
        self._transmits: list[Transmit] = []
        self._packets: list[bytes] = []
        self._datagrams: list[tuple[Path, bytes]] = []
        self._slow_queue = slow_queue
        self._slow_tokens = float(slow_queue)
        self._slow_at = float("-inf")
        self._staged_bytes = 0
        self._events: list[DataPlaneEvent] = []
        self._now = 0.0

    def add_socket(self, number: int, fd: int = -1) -> None:
        """See Engine.add_socket; there is no descriptor here."""
        if number in self._sockets or not 0 <= number < MAX_SOCKETS:
            raise ValueError(f"socket number {number} is in use or not between 0 and {MAX_SOCKETS - 1}")
        self._sockets.add(number)

    def remove_socket(self, number: int) -> None:
        """See Engine.remove_socket."""
        if number not in self._sockets:
            raise ValueError(f"no socket {number}")
        self._sockets.remove(number)

    def add_peer(self, peer: int, *, roams: bool = False) -> None:
        """See Engine.add_peer."""
        if peer in self._peers or not 0 < peer <= MAX_PEERS:
            raise ValueError(f"peer number {peer} is in use or not between 1 and {MAX_PEERS}")
        self._peers[peer] = _Peer(peer, roams)

    def remove_peer(self, peer: int) -> None:
        """See Engine.remove_peer."""
        self.forget_keypairs(peer)
        self._staged_bytes -= sum(map(len, self._peers[peer].staged))
        self._routes.remove_peer(peer)
        self._forwarder.forget(peer)
        del self._peers[peer]

    def add_route(self, network: bytes, length: int, peer: int) -> None:
        """See Engine.add_route."""
        self._routes.add(network, length, self._get(peer).number)

    def remove_route(self, network: bytes, length: int) -> None:
        """See Engine.remove_route."""
        self._routes.remove(network, length)

    def set_endpoint(
        self,
        peer: int,
        socket: int,
        host: str,
        port: int,
        relay_header: bytes = b"",
        *,
        secondary: tuple[int, str, int, bytes] | None = None,
        copies: int = Copies.ALL,
    ) -> None:
        """See Engine.set_endpoint."""
        entry = self._get(peer)
        first, second = (
            self._open_path(socket, host, port, relay_header),
            None if secondary is None else self._open_path(*secondary),
        )
        entry.primary, entry.secondary = first, second
        entry.copies = Copies(copies)
        self._flush(entry, self._now)

    def set_relaying(self, byte_rate: float, byte_burst: float) -> None:
        """See Engine.set_relaying."""
        self._forwarder.set_rate(byte_rate, byte_burst, now=self._now)

    def set_relay_paths(self, peer: int, relay_id: int, paths: Sequence[tuple[int, str, int]]) -> bool:
        """See Engine.set_relay_paths."""
        return self._forwarder.set_paths(self._get(peer).number, relay_id, [self._open_path(*path) for path in paths])

    def relayed(self) -> tuple[int, int]:
        """See Engine.relayed."""
        return self._forwarder.packets, self._forwarder.bytes

    def clear_endpoint(self, peer: int) -> None:
        """See Engine.clear_endpoint."""
        entry = self._get(peer)
        entry.primary = entry.secondary = None

    def install_keypair(
        self,
        peer: int,
        *,
        local_index: int,
        remote_index: int,
        send_key: bytes,
        receive_key: bytes,
        is_initiator: bool,
        created_at: float,
    ) -> None:
        """See Engine.install_keypair."""
        entry = self._get(peer)
        if local_index in self._by_index:
            raise ValueError("the local index is in use")
        keypair = _Keypair(local_index, remote_index, send_key, receive_key, is_initiator, created_at)
        self._by_index[local_index] = (entry, keypair)
        entry.handshake_event_at = float("-inf")
        entry.first_sent_at = NEVER  # a handshake message of the peer is an answer too
        if not is_initiator:
            # `previous` stays: it may be what the peer still sends with. If there is none, that may be `next`.
            if entry.previous is None:
                entry.previous = entry.next
            else:
                self._retire(entry, entry.next)
            entry.next = keypair
            return
        # Of the old ones the one stays that the peer last sent with: if both ends asked, that need not be the one that
        # we send with. `next` stays too. The peer uses it soon, or never does, and then it must displace nothing.
        if entry.previous and entry.current and entry.previous.received_at > entry.current.received_at:
            self._retire(entry, entry.current)
        else:
            self._retire(entry, entry.previous)
            entry.previous = entry.current
        entry.current = keypair
        self._flush(entry, created_at)

    def forget_keypairs(self, peer: int) -> None:
        """See Engine.forget_keypairs."""
        entry = self._get(peer)
        for keypair in (entry.current, entry.previous, entry.next):
            self._retire(entry, keypair)
        entry.current = entry.previous = entry.next = None

    def send_keepalive(self, peer: int) -> bool:
        """See Engine.send_keepalive; sent at the time of the last `handle_…`."""
        entry, now = self._get(peer), self._now
        if entry.primary is None or entry.current is None or not entry.current.is_usable(now):
            return False
        again = entry.more_arrived
        self._seal(entry, entry.current, b"", now)
        if again:
            entry.first_received_at = now
        return True

    def stats(self, peer: int) -> PeerStats:
        """See Engine.stats."""
        entry = self._get(peer)
        keypairs = [pair for pair in (entry.current, entry.previous, entry.next) if pair is not None]
        return PeerStats(
            entry.rx_packets,
            entry.rx_bytes,
            entry.tx_packets,
            entry.tx_bytes,
            entry.received_before + sum(pair.window.received for pair in keypairs),
            entry.lost_before + sum(pair.window.lost for pair in keypairs),
            entry.arrivals.reordered_packets,
            entry.arrivals.duplicate_packets,
            entry.arrivals.jitter,
            entry.arrivals.marked_packets,
            entry.arrivals.kept_marks,
            entry.first_sent_at,
            entry.first_received_at,
            entry.more_arrived,
            entry.last_authenticated_at,
            entry.last_sent_at,
            entry.last_received_at,
            NEVER if entry.current is None else entry.current.created_at,
        )

    def drops(self) -> dict[str, int]:
        """Packets not forwarded, by reason."""
        return {reason.value: count for reason, count in self._drops.items()}

    def handle_time(self, *, now: float) -> None:
        """Tell the time to calls that do not take it."""
        self._now = now

    def handle_packet(self, packet: bytes, *, now: float) -> None:
        """A packet from the TUN device."""
        self._now = now
        destination = _address(packet, is_source=False)
        if destination is None:
            return self._drop(DropReason.NOT_IP)
        number = self._routes.lookup(destination)
        if number is None:
            return self._drop(DropReason.NO_ROUTE)
        peer = self._peers[number]
        if peer.current is None or not peer.current.is_usable(now):
            return self._stage(peer, packet, now)
        if peer.primary is None:
            return self._drop(DropReason.NO_ENDPOINT)
        return self._seal(peer, peer.current, packet, now)

    def handle_datagram(self, data: bytes, path: Path, *, now: float, tos: int = 0) -> None:
        """A datagram from a socket; `path` is the remote address as the socket tells it, relay frames unopened.

        `tos` is the traffic class of its outer header.
        """
        self._now = now
        if len(data) < 4:
            return self._drop(DropReason.TOO_SHORT)
        if int.from_bytes(data[:4], "little") == RELAY_WORD:
            if len(data) < RELAY_HEADER.size + 4:
                return self._drop(DropReason.TOO_SHORT)
            if self._forwarder.is_for_another(data):
                return self._forward(data, path.remote, now)
            _, source, destination = RELAY_HEADER.unpack_from(data)
            data, path = (
                data[RELAY_HEADER.size :],
                Path(path.socket, path.remote, RelayHop(destination, source)),
            )
        if int.from_bytes(data[:4], "little") != _WORD_TRANSPORT:
            return self._hand_over(path, data, now)
        return self._open(data, path, tos, now)

    def take_transmits(self) -> list[Transmit]:
        """Datagrams to send; clears."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def take_packets(self) -> list[bytes]:
        """Packets for the TUN device; clears."""
        packets, self._packets = self._packets, []
        return packets

    def take_datagrams(self) -> list[tuple[Path, bytes]]:
        """Datagrams that are not transport messages, with the path to answer on; clears."""
        datagrams, self._datagrams = self._datagrams, []
        return datagrams

    def take_events(self) -> list[DataPlaneEvent]:
        """What the handshakes and paths must know; clears."""
        events, self._events = self._events, []
        return events

    # Sending.

    def _stage(self, peer: _Peer, packet: bytes, now: float) -> None:
        if now - peer.handshake_event_at >= HANDSHAKE_EVENT_INTERVAL:
            peer.handshake_event_at = now
            self._events.append(HandshakeWanted(peer.number))
        if len(peer.staged) >= STAGED_LIMIT:
            self._staged_bytes -= len(peer.staged.pop(0))
            self._drop(DropReason.NO_KEYPAIR)
        if self._staged_bytes + len(packet) > STAGED_BYTES:
            return self._drop(DropReason.NO_KEYPAIR)
        peer.staged.append(packet)
        self._staged_bytes += len(packet)
        return None

    def _flush(self, peer: _Peer, now: float) -> None:
        if peer.primary is None or peer.current is None or not peer.current.is_usable(now):
            return
        staged, peer.staged = peer.staged, []
        self._staged_bytes -= sum(map(len, staged))
        for packet in staged:
            self._seal(peer, peer.current, packet, now)

    def _seal(self, peer: _Peer, keypair: _Keypair, packet: bytes, now: float) -> None:
        counter, keypair.send_counter = keypair.send_counter, keypair.send_counter + 1
        padded = packet + bytes(-len(packet) % 16)
        header = b"\4\0\0\0" + keypair.remote_index.to_bytes(4, "little") + counter.to_bytes(8, "little")
        message = header + primitives.aead_encrypt(keypair.send_key, counter, padded, b"")
        if peer.primary is not None:
            self._send(peer.primary, message)
        if peer.secondary is not None and is_copied(peer.copies, packet):
            self._send(peer.secondary, message)
        peer.tx_packets += 1
        peer.tx_bytes += len(packet)
        peer.last_sent_at = now
        peer.first_received_at, peer.more_arrived = NEVER, False
        if packet and peer.first_sent_at == NEVER:
            peer.first_sent_at = now
        is_old = keypair.is_initiator and now - keypair.created_at >= REKEY_AFTER_TIME
        if is_old or keypair.send_counter >= REKEY_AFTER_MESSAGES:
            self._report_rekey(peer, keypair)

    def _send(self, path: Path, message: bytes) -> None:
        if path.socket not in self._sockets:
            return self._drop(DropReason.SEND_FAILED)
        return self._transmits.append(Transmit(path, message))

    def _report_rekey(self, peer: _Peer, keypair: _Keypair) -> None:
        if not keypair.is_rekey_reported:
            keypair.is_rekey_reported = True
            self._events.append(RekeyWanted(peer.number))

    # Receiving.

    def _forward(self, frame: bytes, origin: Address, now: float) -> None:
        outcome = self._forwarder.handle_frame(frame, origin, now=now)
        if isinstance(outcome, DropReason):
            return self._drop(outcome)
        return self._send(outcome.path, outcome.data)

    def _hand_over(self, path: Path, data: bytes, now: float) -> None:
        if len(data) > SLOW_BYTES:
            return self._drop(DropReason.TOO_BIG)
        self._slow_tokens = min(self._slow_queue, self._slow_tokens + (now - self._slow_at) * SLOW_RATE)
        self._slow_at = now
        if self._slow_tokens < 1 or len(self._datagrams) >= self._slow_queue:
            return self._drop(DropReason.QUEUE_FULL)
        self._slow_tokens -= 1
        self._datagrams.append((path, data))
        return None

    def _open(self, data: bytes, path: Path, tos: int, now: float) -> None:
        if len(data) < _HEADER + _TAG:
            return self._drop(DropReason.TOO_SHORT)
        found = self._by_index.get(int.from_bytes(data[4:8], "little"))
        if found is None:
            return self._drop(DropReason.UNKNOWN_INDEX)
        peer, keypair = found
        counter = int.from_bytes(data[8:16], "little")
        if now - keypair.created_at >= REJECT_AFTER_TIME or counter >= REJECT_AFTER_MESSAGES:
            return self._drop(DropReason.EXPIRED_KEY)
        if not keypair.window.may_accept(counter):
            peer.arrivals.duplicate_packets += 1
            return self._drop(
                DropReason.SECOND_COPY if _is_second_copy(peer, keypair, counter, path) else DropReason.REPLAYED
            )
        packet = primitives.aead_decrypt(keypair.receive_key, counter, data[_HEADER:], b"")
        if packet is None:
            return self._drop(DropReason.DECRYPT_FAILED)
        peer.arrivals.note(keypair.local_index, counter, keypair.window.expected, now=now)
        keypair.window.accept(counter)
        self._note_received(peer, keypair, path, bool(packet), now)
        return self._deliver(peer, packet, tos) if packet else None

    def _deliver(self, peer: _Peer, padded: bytes, tos: int) -> None:
        length = _inner_length(padded)
        source = _address(padded, is_source=True)
        if source is None or not length:
            return self._drop(DropReason.NOT_IP)
        if self._routes.lookup(source) != peer.number:
            return self._drop(DropReason.DISALLOWED_SOURCE)
        peer.rx_packets += 1
        peer.rx_bytes += length
        peer.arrivals.note_marks(_traffic_class(padded), tos)
        self._packets.append(padded[:length])
        return None

    def _note_received(self, peer: _Peer, keypair: _Keypair, path: Path, has_data: bool, now: float) -> None:
        peer.last_authenticated_at = peer.last_received_at = keypair.received_at = now
        peer.first_sent_at = NEVER
        if has_data:
            peer.more_arrived = peer.first_received_at != NEVER
            peer.first_received_at = peer.first_received_at if peer.more_arrived else now
        if keypair is peer.next:
            self._retire(peer, peer.previous)
            peer.previous, peer.current, peer.next = peer.current, keypair, None
            self._events.append(KeypairConfirmed(peer.number, keypair.local_index))
            self._flush(peer, now)
        age_limit = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
        if keypair is peer.current and keypair.is_initiator and now - keypair.created_at >= age_limit:
            self._report_rekey(peer, keypair)
        if path != peer.primary:
            self._note_path(peer, path, now)

    def _note_path(self, peer: _Peer, path: Path, now: float) -> None:
        if peer.roams:
            peer.primary = path
            return
        since = now - peer.path_event_at
        if path == peer.secondary or since < PATH_EVENT_INTERVAL / 10:
            return
        if path == peer.path_reported and since < PATH_EVENT_INTERVAL:
            return
        peer.path_reported, peer.path_event_at = path, now
        self._events.append(PathSeen(peer.number, path))

    def _retire(self, peer: _Peer, keypair: _Keypair | None) -> None:
        if keypair is not None:
            peer.received_before += keypair.window.received
            peer.lost_before += keypair.window.lost
            del self._by_index[keypair.local_index]

    def _drop(self, reason: DropReason) -> None:
        self._drops[reason] += 1

    def _open_path(self, socket: int, host: str, port: int, relay_header: bytes = b"") -> Path:
        if socket not in self._sockets:
            raise ValueError(f"no such socket: {socket}")
        return _path(socket, host, port, relay_header)

    def _get(self, peer: int) -> _Peer:
        if peer not in self._peers:
            raise ValueError(f"no peer {peer}")
        return self._peers[peer]


def _is_second_copy(peer: _Peer, keypair: _Keypair, counter: int, path: Path) -> bool:
    others = {peer.secondary, peer.path_reported} - {None}
    return bool(others) and path in {peer.primary, *others} and keypair.window.has_seen(counter)


def _path(socket: int, host: str, port: int, relay_header: bytes = b"") -> Path:
    relay = None
    if relay_header:
        _, local_id, remote_id = RELAY_HEADER.unpack(relay_header)
        relay = RelayHop(local_id, remote_id)
    return Path(socket, Address(host, port), relay)


def _address(packet: bytes, *, is_source: bool) -> bytes | None:
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        return packet[12:16] if is_source else packet[16:20]
    if version == 6 and len(packet) >= 40:
        return packet[8:24] if is_source else packet[24:40]
    return None


def _traffic_class(packet: bytes) -> int:
    return packet[1] if packet[0] >> 4 == 4 else int.from_bytes(packet[:2], "big") >> 4 & 0xFF


def _inner_length(packet: bytes) -> int:
    """The IP packet's own length without the padding, or 0 if it is not whole."""
    if packet[0] >> 4 == 4:
        length = int.from_bytes(packet[2:4], "big")
        return length if 20 <= length <= len(packet) else 0
    if len(packet) < 40:
        return 0
    length = 40 + int.from_bytes(packet[4:6], "big")
    return length if length <= len(packet) else 0
