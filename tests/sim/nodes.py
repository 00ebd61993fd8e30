"""What runs on the simulated hosts: the rendezvous' relay and signalling, and a node of gatherer and path agents.

The node does with those machines what meshvpn.proto.node does, without WireGuard and roster: payload is a numbered
datagram of the sender's, sent on the primary and, while there is one, the secondary path.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from msgspec import structs

from meshvpn.proto import disco, stun
from meshvpn.proto.binding import RelayBinding, RelayBound, RelayUnbound, StreamUnwanted, StreamWanted, UdpPasses
from meshvpn.proto.candidate import Candidate, Offer, decode_offer, usable
from meshvpn.proto.control import RelayGrant
from meshvpn.proto.disco import DiscoBox
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.events import SocketsWanted
from meshvpn.proto.gather import Gatherer
from meshvpn.proto.guess import Guessing
from meshvpn.proto.nat import Attempt
from meshvpn.proto.path import PathAgent
from meshvpn.proto.path_events import MappingDoubted, OfferWanted, PrimaryChanged
from meshvpn.proto.permit import Permit
from meshvpn.proto.traffic import Traffic
from meshvpn.proto.transport import (
    FIRST_EXTRA_SOCKET,
    RELAY_HEADER,
    STREAM_SOCKET,
    Address,
    Path,
    RelayHop,
    Transmit,
    is_frame,
)
from rendezvous.limits import Limits
from rendezvous.relay import Relay

from .network import Network
from .streams import Stream, Streams

PAYLOAD = struct.Struct("<I16sQ")
TRANSPORT_WORD = 4
STATISTICS_INTERVAL = 1.0
PATH_SEEN_INTERVAL = 1.0
"""The engine reports a path it sees at most that often."""
UID = bytes(16)
STREAMS = 100
"""The number of the relay's socket that stands for all streams."""


TWINS = {0: 2, 2: 0, 1: 3, 3: 1}
"""The server's sockets of one address and the other port (world.py)."""


class RelayMachine:
    """STUN and relay, on the sockets of the host it runs on, and streams."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.relay = Relay(Limits(), entropy=network.entropy("relay"), twins=TWINS)
        self.streams = Streams(network, self)
        self.drain: Callable[[], None] = lambda: None
        self._transmits: list[Transmit] = []

    def handle_datagram(self, data: bytes, path: Path, *, now: float) -> None:
        forward = self.relay.handle_datagram(data, path.remote, path.socket, now=now)
        if forward is None:
            return
        if forward.socket == STREAMS:
            self.streams.deliver(forward.to, forward.data)
        else:
            self._transmits.append(Transmit(Path(forward.socket, forward.to), forward.data))

    def handle_stream_data(self, data: bytes, source: Address) -> None:
        self.handle_datagram(data, Path(STREAMS, source), now=self.network.now)
        self.drain()

    def handle_stream_closed(self, source: Address) -> None:
        for number in list(self.relay._seats):
            self.relay.unbind(number, source)

    def handle_timeout(self, *, now: float) -> None:
        self.relay.handle_timeout(now=now)

    def next_timeout(self) -> float | None:
        return None

    def take_transmits(self) -> list[Transmit]:
        transmits, self._transmits = self._transmits, []
        return transmits


class Signalling:
    """The control connections: reliable, `latency` seconds each way, and they can be cut for everybody."""

    def __init__(self, network: Network, relay: RelayMachine, servers: list[Address], *, latency: float) -> None:
        self.network = network
        self.servers = servers
        self.latency = latency
        self.is_up = True
        self.offers = 0
        self.late: dict[str, float] = {}
        """Seconds by which a node hears of offers later than others do."""
        self.members: dict[str, MeshNode] = {}
        self.relay = relay
        self._grants: dict[str, RelayGrant] = {}

    def attach(self, node: MeshNode) -> None:
        """A node's control connection is open: a grant for it, and everybody hears of everybody."""
        if (old := self._grants.pop(node.name, None)) is not None:
            self.relay.relay.release(old.id, now=self.network.now)
        grant = self._grants[node.name] = self.relay.relay.grant(UID, node.name.encode())
        self.members[node.name] = node
        self._deliver(node.name, lambda: node.handle_attached(self.servers, grant, now=self.network.now))
        for name, other in self.members.items():
            if other is not node:
                self._introduce(node, other, grant.id)
                self._introduce(other, node, self._grants[name].id)

    def offer(self, data: bytes, source: str, destination: str) -> None:
        """One node's signal to another."""
        self.offers += 1
        if not self.is_up:
            return
        # Two legs, to the server and from it.
        self.network.call_at(
            self.network.now + self.latency + self.late.get(destination, 0.0),
            lambda: self._deliver(
                destination, lambda: self.members[destination].handle_signal(data, source, now=self.network.now)
            ),
        )

    def _introduce(self, who: MeshNode, to: MeshNode, relay_id: int) -> None:
        key = who.public_key
        self._deliver(to.name, lambda: to.handle_peer(who.name, key, relay_id, now=self.network.now))

    def _deliver(self, name: str, action: Callable[[], None]) -> None:
        def arrive() -> None:
            if not self.is_up:
                return
            action()
            self.members[name].drain()

        self.network.call_at(self.network.now + self.latency, arrive)


@dataclass(slots=True)
class Peer:
    """Another node as this one sees it."""

    name: str
    public_key: bytes
    agent: PathAgent
    number: int
    relay_id: int = 0
    last_offer: int = 0
    offers_sent: int = 0
    changes: list[tuple[float, Path | None, Path | None]] = field(default_factory=list)
    interval: float | None = None
    send_at: float | None = None
    statistics_at: float | None = None
    sent: int = 0
    tx_packets: int = 0
    rx_packets: int = 0
    expected: int = 0
    lost: int = 0
    received: dict[int, float] = field(default_factory=dict)
    duplicates: int = 0
    path_seen_at: float = float("-inf")

    @property
    def traffic(self) -> Traffic:
        """What the engine would count."""
        return Traffic(self.rx_packets, self.tx_packets, lost_packets=self.lost)

    def moves(self, since: float) -> list[Path | None]:
        """The primaries that it was moved to from then on."""
        primaries = [(at, primary) for at, primary, _ in self.changes]
        return [primary for (_, before), (at, primary) in pairwise(primaries) if at >= since and primary != before]


class MeshNode:
    """The machine on a member's host."""

    def __init__(self, network: Network, name: str, signalling: Signalling) -> None:
        self.network = network
        self.name = name
        self.peers: dict[str, Peer] = {}
        self.drops: Counter[DropReason] = Counter()
        self.gatherer = Gatherer(network.entropy(f"{name}/{network.now}/gatherer"))
        self.binding = RelayBinding(network.entropy(f"{name}/{network.now}/binding"))
        self.stream: Stream | None = None
        self.drain: Callable[[], None] = lambda: None
        self._entropy = network.entropy(f"{name}/{network.now}")
        self._secret = self._entropy(32)
        self.public_key = disco.public_key(self._secret)
        self._signalling = signalling
        self._by_key: dict[bytes, Peer] = {}
        self._candidates: tuple[Candidate, ...] = ()
        self.guessing = Guessing(entropy=self._entropy, permit=Permit(), is_allowed=True)
        self.open_sockets: Callable[[int], dict[int, int]] = lambda count: {}
        self.close_sockets: Callable[[tuple[int, ...]], None] = lambda numbers: None
        self._numbers: dict[int, Peer] = {}
        self._relay_server: tuple[Address, int] | None = None
        self._relay_id = 0
        self._transmits: list[Transmit] = []

    # What the rendezvous says.

    def handle_attached(self, servers: list[Address], grant: RelayGrant, *, now: float) -> None:
        self._relay_id = grant.id
        self.gatherer.handle_servers(servers, now=now)
        self.guessing.handle_servers(servers)
        self.binding.handle_servers(list({server.host: server for server in reversed(servers)}.values())[::-1], now=now)
        self.binding.handle_grant(grant, now=now)
        self._settle(now)

    def handle_peer(self, name: str, key: bytes, relay_id: int, *, now: float) -> None:
        peer = self.peers.get(name)
        if peer is None:
            agent = PathAgent(disco=DiscoBox(self._secret, key), entropy=self._entropy)
            peer = self.peers[name] = Peer(name, key, agent, len(self.peers) + 1)
            self._numbers[peer.number] = peer
            self.guessing.add(peer.number, agent)
        elif peer.public_key != key:
            del self._by_key[peer.public_key]
            peer.public_key, peer.last_offer = key, 0
            peer.agent.handle_remote_disco(DiscoBox(self._secret, key), now=now)
        self._by_key[key] = peer
        peer.relay_id = relay_id
        self._update_relay(peer, now)
        self._send_offer(peer)
        self._settle(now)

    def handle_signal(self, data: bytes, source: str, *, now: float) -> None:
        peer = self.peers.get(source)
        offer = decode_offer(data)
        if peer is None or offer.disco_key != peer.public_key or offer.sequence <= peer.last_offer:
            self.drops[DropReason.STALE] += 1
            return
        peer.last_offer = offer.sequence
        peer.agent.handle_offer(offer, usable(offer.candidates, []), now=now)
        self.guessing.handle_offer(peer.number, offer.nat, offer.attempt, now=now)
        self._settle(now)

    # What the shell says.

    def handle_local_addresses(self, hosts: tuple[str, ...], ports: dict[int, int], *, now: float) -> None:
        self.gatherer.handle_local_addresses(hosts, ports, now=now)
        self.binding.handle_local_addresses(ports, now=now)
        self._settle(now)

    def handle_stream_open(self, stream: Stream) -> None:
        self.binding.handle_stream_open(stream.local, now=self.network.now)
        self._settle(self.network.now)
        self.drain()

    def handle_stream_data(self, stream: Stream, data: bytes) -> None:
        data, path = strip_relay(data, stream)
        self.handle_datagram(data, path, now=self.network.now)
        self.drain()

    def handle_stream_closed(self, stream: Stream) -> None:
        self.stream = None
        self.binding.handle_stream_closed(now=self.network.now)
        self._settle(self.network.now)
        self.drain()

    def handle_network_change(self, *, now: float) -> None:
        self.gatherer.handle_network_change(now=now)
        self.binding.handle_network_change(now=now)
        for peer in self.peers.values():
            peer.agent.handle_network_change(now=now)
        self._settle(now)

    def start_traffic(self, name: str, interval: float) -> None:
        """Send a packet each `interval` seconds from now on."""
        peer = self.peers[name]
        peer.interval, peer.send_at = interval, self.network.now
        self.drain()

    def stop_traffic(self, name: str) -> None:
        self.peers[name].interval = self.peers[name].send_at = None

    def send_once(self, name: str) -> int:
        """One packet; its number."""
        number = self._send_payload(self.peers[name], self.network.now)
        self.drain()
        return number

    # The machine's verbs.

    def handle_datagram(self, data: bytes, path: Path, *, now: float) -> None:
        if stun.is_stun(data):
            receiver = self.gatherer.handle_datagram
            if self.binding.is_expected(data):
                receiver = self.binding.handle_datagram
            elif path.socket >= FIRST_EXTRA_SOCKET:
                receiver = self.guessing.handle_stun
            reason = receiver(data, path, now=now)
        elif disco.is_disco(data):
            reason = self._handle_disco(data, path, now)
        else:
            reason = self._handle_payload(data, path, now)
        if reason is not None:
            self.drops[reason] += 1
        self._settle(now)

    def handle_timeout(self, *, now: float) -> None:
        if (at := self.gatherer.next_timeout()) is not None and at <= now:
            self.gatherer.handle_timeout(now=now)
        self.guessing.handle_timeout(now=now)
        if (at := self.binding.next_timeout()) is not None and at <= now:
            self.binding.handle_timeout(now=now)
        for peer in self.peers.values():
            if (at := peer.agent.next_timeout()) is not None and at <= now:
                peer.agent.handle_timeout(now=now)
            if peer.send_at is not None and peer.send_at <= now:
                self._send_payload(peer, now)
                peer.send_at = None if peer.interval is None else now + peer.interval
            if peer.statistics_at is not None and peer.statistics_at <= now:
                peer.statistics_at = None
                peer.agent.handle_traffic(peer.traffic, now=now)
        self._settle(now)

    def next_timeout(self) -> float | None:
        deadlines = [self.gatherer.next_timeout(), self.binding.next_timeout(), self.guessing.next_timeout()]
        for peer in self.peers.values():
            deadlines += (peer.agent.next_timeout(), peer.send_at, peer.statistics_at)
        return min((at for at in deadlines if at is not None), default=None)

    def take_transmits(self) -> list[Transmit]:
        transmits, self._transmits = self._transmits, []
        for transmit in transmits:
            if transmit.path.socket == STREAM_SOCKET and self.stream is not None:
                self.stream.send(transmit)
        return [transmit for transmit in transmits if transmit.path.socket != STREAM_SOCKET]

    # Inside.

    def _handle_disco(self, data: bytes, path: Path, now: float) -> DropReason | None:
        peer = self._by_key.get(disco.sender_key(data))
        if peer is None:
            return DropReason.UNKNOWN_PEER
        try:
            message = peer.agent.disco.open(data)
        except MalformedMessage as error:
            return error.reason
        if not self.guessing.owns(peer.number, path.socket):
            return DropReason.UNEXPECTED
        peer.agent.handle_traffic(peer.traffic, now=now)
        reason = peer.agent.handle_disco(message, path, now=now)
        if reason is None:
            self.guessing.handle_heard(peer.number, path, now=now)
        return reason

    def _handle_payload(self, data: bytes, path: Path, now: float) -> DropReason | None:
        if len(data) != PAYLOAD.size:
            return DropReason.UNKNOWN_TYPE
        word, name, number = PAYLOAD.unpack(data)
        peer = self.peers.get(name.rstrip(b"\0").decode())
        if word != TRANSPORT_WORD or peer is None:
            return DropReason.UNKNOWN_TYPE
        if number in peer.received:
            peer.duplicates += 1
            return DropReason.REPLAYED
        peer.received[number] = now
        peer.rx_packets += 1
        peer.lost += number - peer.expected if number >= peer.expected and peer.expected else 0
        peer.lost -= number < peer.expected
        peer.expected = max(peer.expected, number + 1)
        self._note_traffic(peer, now)
        is_elsewhere = path not in (peer.agent.primary, peer.agent.secondary)
        if is_elsewhere and now - peer.path_seen_at >= PATH_SEEN_INTERVAL:
            peer.path_seen_at = now
            peer.agent.handle_path_seen(path, now=now)
        return None

    def _send_payload(self, peer: Peer, now: float) -> int:
        number = peer.sent
        peer.sent += 1
        peer.tx_packets += 1
        data = PAYLOAD.pack(TRANSPORT_WORD, self.name.encode(), number)
        for path in (peer.agent.primary, peer.agent.secondary):
            if path is not None:
                self._transmits.append(Transmit(path, data))
        self._note_traffic(peer, now)
        return number

    def _note_traffic(self, peer: Peer, now: float) -> None:
        if peer.statistics_at is None:
            peer.statistics_at = now + STATISTICS_INTERVAL

    def _send_offer(self, peer: Peer, attempt: Attempt | None = None) -> None:
        peer.offers_sent += 1
        offer = Offer(
            format=1,
            uid=UID,
            source=self.name.encode().ljust(32, b"\0"),
            destination=peer.name.encode().ljust(32, b"\0"),
            sequence=peer.offers_sent,
            disco_key=self.public_key,
            candidates=list(self._candidates),
            nat=self.guessing.nat,
            attempt=attempt,
        )
        self._signalling.offer(offer.encode(), self.name, peer.name)

    def _update_relay(self, peer: Peer, now: float) -> None:
        if self._relay_server is None or not peer.relay_id:
            return peer.agent.handle_relays([], now=now)
        server, socket = self._relay_server
        return peer.agent.handle_relays([Path(socket, server, RelayHop(self._relay_id, peer.relay_id))], now=now)

    def _settle(self, now: float) -> None:
        for changed in self.gatherer.take_events():
            self._candidates = changed.candidates
            self.guessing.handle_nat(changed.nat)
            for peer in self.peers.values():
                peer.agent.handle_local_change(now=now)
        for event in self.binding.take_events():
            match event:
                case RelayBound(server=server, socket=socket):
                    self._relay_server = (server, socket)
                    self._update_relays(now)
                case RelayUnbound():
                    self._relay_server = None
                    self._update_relays(now)
                case UdpPasses():
                    self.gatherer.handle_doubt(now=now)
                    for peer in self.peers.values():
                        peer.agent.handle_udp_passes(now=now)
                case StreamWanted():
                    self.stream = self._signalling.relay.streams.open(self)
                case StreamUnwanted():
                    if self.stream is not None:
                        self.stream.close()
                    self.stream = None
        self._settle_guessing(now)
        for peer in self.peers.values():
            self.guessing.review(peer.number, now=now)
            self._settle_peer(peer, now)
        self._transmits += self.binding.take_transmits() + self.gatherer.take_transmits()
        self._transmits += self.guessing.take_transmits()

    def _settle_guessing(self, now: float) -> None:
        self.guessing.take_commands()
        for event in self.guessing.take_events():
            if isinstance(event, SocketsWanted):
                self.guessing.handle_sockets_opened(event.tag, self.open_sockets(event.count), now=now)
            else:
                self.close_sockets(event.numbers)
        for number in self.guessing.take_hits():
            self._numbers[number].agent.handle_hit(now=now)
        for number, attempt, measured_at in self.guessing.take_offers():
            self._send_offer(self._numbers[number], structs.replace(attempt, age=int((now - measured_at) * 1000)))

    def _settle_peer(self, peer: Peer, now: float) -> None:
        for event in peer.agent.take_events():
            match event:
                case PrimaryChanged(primary=primary, secondary=secondary):
                    peer.changes.append((now, primary, secondary))
                case OfferWanted():
                    self._send_offer(peer)
                case MappingDoubted():
                    self.gatherer.handle_doubt(now=now)
                    self.binding.handle_doubt(now=now)
        self._transmits += peer.agent.take_transmits()

    def _update_relays(self, now: float) -> None:
        for peer in self.peers.values():
            self._update_relay(peer, now)


def strip_relay(data: bytes, stream: Stream) -> tuple[bytes, Path]:
    """What came by a stream, and its path."""
    if not is_frame(data):
        return data, Path(STREAM_SOCKET, stream.local)
    _, source, destination = RELAY_HEADER.unpack_from(data)
    return data[RELAY_HEADER.size :], Path(STREAM_SOCKET, stream.local, RelayHop(destination, source))
