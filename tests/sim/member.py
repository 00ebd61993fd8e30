"""A whole member in virtual time: the real Node on the engine's readable twin, and what net/ does around them.

What the shell keeps on the disk is in `saved`; `stop` and `start` are the daemon's end and its next start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network

import msgspec

from meshvpn.proto import admission, clones, disco, owner
from meshvpn.proto.binding import StreamUnwanted, StreamWanted
from meshvpn.proto.commands import AdoptSocket, apply
from meshvpn.proto.control_session import (
    ConnectWanted,
    ControlSession,
    DisconnectWanted,
    Opening,
    SessionAttached,
    SessionRefused,
    approved_opening,
    attach_opening,
    create_opening,
    invited_opening,
    join_opening,
)
from meshvpn.proto.dataplane import DataPlane, HandshakeWanted, KeypairConfirmed, PathSeen, RekeyWanted
from meshvpn.proto.events import ActionFinished, NodeEvent, PeerChanged, SocketsUnwanted, SocketsWanted, StateChanged
from meshvpn.proto.gossip import LinkUnwanted, LinkWanted
from meshvpn.proto.invites import InviteKeys
from meshvpn.proto.keys import Identity, NetworkKeys, network_uid
from meshvpn.proto.membership import MemberKeys, Profile
from meshvpn.proto.node import Node
from meshvpn.proto.options import Options
from meshvpn.proto.peer import LastKnown, MeshPeer, PeerState
from meshvpn.proto.roster import Roster, RosterState
from meshvpn.proto.signed import Signed
from meshvpn.proto.timers import Stamps
from meshvpn.proto.traffic import Traffic
from meshvpn.proto.transport import FIRST_EXTRA_SOCKET, RELAY_WORD, STREAM_SOCKET, Path, Transmit

from .network import Host, Network
from .rendezvous import WALL, Rendezvous, Wire
from .streams import Stream
from .tunnel import PROTOCOL, TunnelStream, TunnelStreams, ip_packet

Action = Callable[[Node, float, int], int | None]
"""What a user asks for: `action(node, now, wall_ns)` gives the request's number."""
POLL_INTERVAL = 1.0
VOICE_BYTES = 60
POOL = IPv4Network("10.77.0.0/24")


@dataclass(slots=True)
class Saved:
    """What is on the disk."""

    uid: bytes
    roster: bytes
    address: str
    nick: str
    joined_at: int
    own_record: Signed | None = None
    paths: dict[bytes, LastKnown] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A packet that came out of the tunnel."""

    at: float
    is_relayed: bool


class Member:
    """The machine on a member's host. A nick is the member's name until it is renamed."""

    def __init__(self, network: Network, server: Rendezvous, hosts: tuple[str, ...], name: str) -> None:
        self.network = network
        self.name = name
        self.node: Node | None = None
        self.plane = DataPlane()
        self.adopted: set[int] = set()
        self.saved: Saved | None = None
        self.owner: Identity | None = None
        self.refusals: list[SessionRefused] = []
        self.events: list[tuple[float, NodeEvent]] = []
        self.finished: dict[int, ActionFinished] = {}
        self.arrivals: dict[tuple[str, int], list[Arrival]] = {}
        self.wire: Wire | None = None
        self.stream: Stream | None = None
        self.links = TunnelStreams(network, self)
        self._link_streams: dict[int, TunnelStream] = {}
        self.host: Host
        self.drops: Counter[str] = Counter()
        self._server = server
        self._server_hosts = hosts
        self._entropy = network.entropy(f"member/{name}")
        self.identity = Identity(self._entropy(32))
        self._tunnel_key = self._entropy(32)
        self._disco = self._entropy(32)
        self._session: ControlSession | None = None
        self._accept: Callable[[Signed], RosterState] | None = None
        self._poll_at: float | None = None
        self._is_relayed = False
        self._transmits: list[Transmit] = []
        self.options = Options()

    # What the user does.

    def create(self, keys: NetworkKeys, pool: IPv4Network = POOL) -> None:
        self.owner = Identity(self._entropy(32))
        state = owner.found_network(
            "net", keys, pool, self.owner, self.identity, entropy=self._entropy, wall=self._wall()
        )
        uid = network_uid(self.owner.public)
        self.saved = Saved(uid, msgspec.msgpack.encode(state), "", self.name, self._wall())
        self._enrol(create_opening(self.identity, uid, state.charter, instance=self._instance()))

    def join(self, keys: NetworkKeys) -> None:
        self._join(
            join_opening(self.identity, keys.locator, instance=self._instance()),
            lambda charter: admission.by_password(charter, keys),
        )

    def join_invited(self, keys: InviteKeys) -> None:
        self._join(
            invited_opening(self.identity, keys, instance=self._instance()),
            lambda charter: admission.by_invite(charter, keys),
        )

    def join_owned(self, key: Identity) -> None:
        """With the owner's key, as another host exported it."""
        self.owner, uid = key, network_uid(key.public)
        approval = owner.approval_by(key, uid, self.identity.public, wall=self._wall())
        opening = approved_opening(self.identity, uid, approval, instance=self._instance())
        self._join(opening, lambda charter: admission.by_owner(charter, key))

    def _join(self, opening: Opening, accept: Callable[[Signed], RosterState]) -> None:
        self._accept, self.saved = accept, None
        self._enrol(opening)

    def act(self, action: Action) -> int | None:
        """The outcome is in `finished` under the number returned."""
        assert self.node is not None
        rid = action(self.node, self.network.now, self._wall_ns())
        self.host.drain()
        return rid

    def send(self, destination: str, number: int, size: int = VOICE_BYTES) -> None:
        """A packet of that size from the host's own programs into the tunnel."""
        if self.node is not None:
            self.plane.handle_packet(_packet(self.address, destination, number, size), now=self.network.now)
            self.host.drain()

    # What happens to the daemon.

    def stop(self) -> None:
        """It dies; the disk stays."""
        if self.wire is not None:
            self._server.hang_up(self.wire)
        self._close_stream()
        self.links.clear()
        self._link_streams.clear()
        self.node = self._session = self.wire = self._poll_at = None
        self.host.close_sockets(tuple(number for number in self.host.ports if number >= FIRST_EXTRA_SOCKET))
        self.host.drain()

    def start(self) -> None:
        """It starts from what is on the disk."""
        assert self.saved is not None
        assert self.node is None
        opening = attach_opening(self.identity, self.saved.uid, instance=self._instance())
        session = ControlSession(opening, entropy=self._entropy)
        self._bring_up(session, None)
        self.host.drain()

    def copy_disk(self, other: Member) -> None:
        """This machine is a copy of another one, image and all; it is not started yet."""
        assert other.saved is not None
        self.identity, self._tunnel_key, self.owner = other.identity, other._tunnel_key, other.owner
        self.saved = replace(other.saved, paths=dict(other.saved.paths))

    def tell_network_change(self) -> None:
        """What netlink says after addresses changed."""
        assert self.node is not None
        now, wall_ns = self.network.now, self._wall_ns()
        self.node.handle_local_addresses(self.host.addresses, self.host.ports, now=now, wall_ns=wall_ns)
        self.node.handle_network_change(now=now, wall_ns=wall_ns)
        self.host.drain()

    # What tests look at.

    @property
    def address(self) -> str:
        assert self.saved is not None
        return self.saved.address

    @property
    def roster(self) -> Roster:
        assert self.node is not None
        return self.node.roster

    def peer(self, other: Member) -> MeshPeer | None:
        return None if self.node is None else self.node.peers.get(other.identity.public)

    def is_direct(self, other: Member) -> bool:
        peer = self.peer(other)
        return peer is not None and peer.state is PeerState.DIRECT

    # The virtual control link's calls.

    def handle_open(self, wire: Wire) -> None:
        if wire is not self.wire:
            return
        if self.node is not None:
            self.node.handle_connected(self._server_hosts, now=self.network.now, wall_ns=self._wall_ns())
        elif self._session is not None:
            self._session.handle_connected(now=self.network.now)
        self.host.drain()

    def handle_message(self, wire: Wire, data: bytes) -> None:
        if wire is not self.wire:
            return
        if self.node is not None:
            self.node.handle_control_message(data, now=self.network.now, wall_ns=self._wall_ns())
        elif self._session is not None:
            self._session.handle_message(data, now=self.network.now)
        self.host.drain()

    def handle_closed(self, wire: Wire) -> None:
        if wire is not self.wire:
            return
        self.wire = None
        if self.node is not None:
            self.node.handle_disconnected(now=self.network.now, wall_ns=self._wall_ns())
        self.host.drain()

    @property
    def relayed_packets(self) -> int:
        return self.plane.relayed()[0]

    # And the stream's.

    def handle_stream_open(self, stream: Stream) -> None:
        if self.node is not None:
            self.node.handle_stream_open(stream.local, now=self.network.now, wall_ns=self._wall_ns())
        self.host.drain()

    def handle_stream_data(self, stream: Stream, data: bytes) -> None:
        self.handle_datagram(data, Path(STREAM_SOCKET, stream.local), now=self.network.now)
        self.host.drain()

    def handle_stream_closed(self, stream: Stream) -> None:
        self.stream = None
        if self.node is not None:
            self.node.handle_stream_closed(now=self.network.now, wall_ns=self._wall_ns())
        self.host.drain()

    # And the tunnel's, for links.

    def send_packet(self, packet: bytes) -> None:
        if self.node is not None:
            self.plane.handle_packet(packet, now=self.network.now)
            # Not at once: what asks for this may be in the middle of something.
            self.network.call_at(self.network.now, self.host.drain)

    def handle_link(self, stream: TunnelStream) -> bool:
        assert self.node is not None
        link = self.node.handle_link(stream.host, now=self.network.now, wall_ns=self._wall_ns())
        if link is None:
            return False
        stream.link = link
        self._link_streams[link] = stream
        return True

    def handle_link_open(self, stream: TunnelStream) -> None:
        if self.node is not None:
            self.node.handle_link_open(stream.link, now=self.network.now, wall_ns=self._wall_ns())

    def handle_link_frame(self, stream: TunnelStream, data: bytes) -> None:
        if self.node is not None:
            self.node.handle_link_frame(stream.link, data, now=self.network.now, wall_ns=self._wall_ns())

    def handle_link_closed(self, stream: TunnelStream) -> None:
        if self._link_streams.pop(stream.link, None) is not None and self.node is not None:
            self.node.handle_link_closed(stream.link, now=self.network.now, wall_ns=self._wall_ns())

    # The machine's verbs.

    def handle_datagram(self, data: bytes, path: Path, *, now: float) -> None:
        if self.node is None:
            return
        self._is_relayed = data[:4] == RELAY_WORD.to_bytes(4, "little")
        self.plane.handle_datagram(data, path, now=now)

    def handle_timeout(self, *, now: float) -> None:
        if self.node is None:
            return
        if self._poll_at is not None and self._poll_at <= now:
            self._poll_at = now + POLL_INTERVAL
            figures = {number: _figures(self.plane, number) for number in self.node.peer_numbers()}
            self.node.handle_traffic(figures, now=now, wall_ns=self._wall_ns())
        self.node.handle_timeout(now=now, wall_ns=self._wall_ns())

    def next_timeout(self) -> float | None:
        deadlines = (None if self.node is None else self.node.next_timeout(), self._poll_at)
        return min((at for at in deadlines if at is not None), default=None)

    def take_transmits(self) -> list[Transmit]:
        self._pump()
        transmits, self._transmits = self._transmits, []
        for transmit in transmits:
            if transmit.path.socket == STREAM_SOCKET and self.stream is not None:
                self.stream.send(transmit)
        return [transmit for transmit in transmits if transmit.path.socket != STREAM_SOCKET]

    # Inside.

    def _wall_ns(self) -> int:
        return int((WALL + self.network.now) * 1e9)

    def _wall(self) -> int:
        return self._wall_ns() // 1_000_000_000

    def _instance(self) -> bytes:
        """Of the run that begins now."""
        self._disco = self._entropy(32)
        return clones.instance_of(disco.public_key(self._disco))

    def _enrol(self, opening: Opening) -> None:
        self._session = ControlSession(opening, entropy=self._entropy)
        self._session.handle_start(now=self.network.now)
        self.host.drain()

    def _admit(self, session: ControlSession, attached: SessionAttached) -> None:
        if self.saved is None:
            assert self._accept is not None
            state = self._accept(attached.answer.charter)
            charter = msgspec.msgpack.encode(state)
            uid = Roster(b"", self.identity, state).charter.owner
            self.saved = Saved(network_uid(uid), charter, "", self.name, self._wall())
        self.saved.address = attached.answer.address
        self._bring_up(session, attached)

    def _bring_up(self, session: ControlSession, attached: SessionAttached | None) -> None:
        saved, now, wall_ns = self.saved, self.network.now, self._wall_ns()
        assert saved is not None
        self._session, self.plane = None, DataPlane()
        self.plane.add_socket(STREAM_SOCKET)
        self.adopted.clear()
        self.plane.handle_time(now=now)
        if self.options.relay:
            self.plane.set_relaying(self.options.relay_rate, self.options.relay_rate)
        self.node = node = Node(
            keys=MemberKeys(self.identity, self._tunnel_key, self._disco, self.owner),
            profile=Profile(saved.address, saved.nick, "simulation", saved.joined_at),
            roster=Roster(saved.uid, self.identity, msgspec.msgpack.decode(saved.roster, type=RosterState)),
            session=session,
            own_record=saved.own_record,
            entropy=self._entropy,
            options=self.options,
        )
        self._poll_at = now + POLL_INTERVAL
        node.handle_local_addresses(self.host.addresses, self.host.ports, now=now, wall_ns=wall_ns)
        if attached is not None:
            node.handle_adopted(attached, self._server_hosts, now=now, wall_ns=wall_ns)
        node.handle_start(saved.paths, now=now, wall_ns=wall_ns)

    def _pump(self) -> None:
        while self._pump_session() or self._pump_node() or self._pump_plane():
            pass

    def _pump_session(self) -> bool:
        session = self._session
        events = [] if session is None else session.take_events()
        for event in events:
            assert session is not None
            match event:
                case ConnectWanted():
                    self.wire = self._server.connect(self)
                case SessionRefused():
                    self.refusals.append(event)
                    self._session = None
                case SessionAttached():
                    self._admit(session, event)
        for data in [] if session is None else session.take_messages():
            self._submit(data)
        return bool(events)

    def _pump_node(self) -> bool:
        if (node := self.node) is None:
            return False
        commands, transmits = node.take_commands(), node.take_transmits()
        for command in commands:
            apply(command, self.plane)
            if isinstance(command, AdoptSocket):
                self.adopted.add(command.number)
        self._transmits += transmits
        for link, frame in node.take_link_frames():
            if (stream := self._link_streams.get(link)) is not None:
                self.links.send(stream, frame)
        events = node.take_events()
        for event in events:
            if isinstance(event, LinkWanted):
                self._link_streams[event.link] = self.links.open(event.link, event.address)
            elif isinstance(event, LinkUnwanted) and (stream := self._link_streams.pop(event.link, None)) is not None:
                self.links.close(stream)
            if isinstance(event, ConnectWanted):
                self.wire = self._server.connect(self)
            elif isinstance(event, DisconnectWanted) and self.wire is not None:
                self._server.hang_up(self.wire)
                self.wire = None
            elif isinstance(event, SocketsWanted):
                ports = self.host.open_sockets(event.count)
                node.handle_sockets_opened(event.tag, ports, now=self.network.now, wall_ns=self._wall_ns())
            elif isinstance(event, SocketsUnwanted):
                self.host.close_sockets(event.numbers)
                for number in self.adopted.intersection(event.numbers):
                    self.plane.remove_socket(number)
                self.adopted.difference_update(event.numbers)
            elif isinstance(event, StreamWanted):
                self.stream = self._server.streams.open(self)
            elif isinstance(event, StreamUnwanted):
                self._close_stream()
        for data in node.take_control_messages():
            self._submit(data)
        for event in events:
            self._handle_event(event, node)
        return bool(commands or events)

    def _handle_event(self, event: NodeEvent, node: Node) -> None:
        self.events.append((self.network.now, event))
        assert self.saved is not None
        match event:
            case StateChanged():
                self.saved.roster = msgspec.msgpack.encode(node.roster.export())
                self.saved.own_record = node.membership.own_record
                self.saved.nick = node.membership.profile.nick
                self.saved.paths = node.last_known()
            case PeerChanged():
                self.saved.paths = node.last_known()
            case ActionFinished(rid=rid):
                self.finished[rid] = event

    def _pump_plane(self) -> bool:
        if (node := self.node) is None:
            return False
        now, wall_ns = self.network.now, self._wall_ns()
        self.plane.handle_time(now=now)
        self._transmits += self.plane.take_transmits()
        packets = self.plane.take_packets()
        for packet in packets:
            if packet[9] == PROTOCOL:
                self.links.handle_packet(packet)
            else:
                self._note_arrival(packet)
        datagrams, events = self.plane.take_datagrams(), self.plane.take_events()
        for path, data in datagrams:
            if (number := node.prober(data)) is not None:
                node.handle_traffic({number: _figures(self.plane, number)}, now=now, wall_ns=wall_ns)
            node.handle_datagram(data, path, now=now, wall_ns=wall_ns)
        for event in events:
            match event:
                case HandshakeWanted(peer=number):
                    node.handle_handshake_wanted(number, now=now, wall_ns=wall_ns)
                case RekeyWanted(peer=number):
                    node.handle_rekey_wanted(number, now=now, wall_ns=wall_ns)
                case KeypairConfirmed(peer=number, local_index=index):
                    node.handle_keypair_confirmed(number, index, now=now, wall_ns=wall_ns)
                case PathSeen(peer=number, path=path):
                    node.handle_path_seen(number, path, now=now, wall_ns=wall_ns)
        return bool(datagrams or events or packets)

    def _close_stream(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.stream = None

    def _submit(self, data: bytes) -> None:
        if self.wire is not None:
            self._server.submit(self.wire, data)

    def _note_arrival(self, packet: bytes) -> None:
        source, number = str(IPv4Address(packet[12:16])), int.from_bytes(packet[20:24], "big")
        self.arrivals.setdefault((source, number), []).append(Arrival(self.network.now, self._is_relayed))


def _packet(source: str, destination: str, number: int, size: int) -> bytes:
    """An IPv4 packet around the number."""
    return ip_packet(source, destination, 17, number.to_bytes(4, "big") + bytes(size - 24))


def _figures(plane: DataPlane, number: int) -> tuple[Traffic, Stamps]:
    stats = plane.stats(number)
    return (
        Traffic(
            stats.rx_packets,
            stats.tx_packets,
            stats.rx_bytes,
            stats.tx_bytes,
            stats.received_packets,
            stats.lost_packets,
        ),
        Stamps(
            stats.first_sent_at,
            stats.first_received_at,
            stats.more_arrived,
            stats.last_authenticated_at,
            stats.last_sent_at,
        ),
    )
