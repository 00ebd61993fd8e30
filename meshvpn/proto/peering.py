"""The peers of a node: each member with its number in the data plane, its paths, its handshakes, its offers.

    roster ── members ──────▶ peer ─┬─ PathAgent ── primary path ─┬─▶ commands for the data plane
    disco, WireGuard datagrams ────▶├─ WireGuard ─── keypairs ────┘
    presence, offers, the relay ───▶└─ Offers ─────▶ signals

A path that pings verified carries a peer's packets. Until there is one they also go where its last handshake came from
or, after a restart, where it was reached before: disco keys are new with each start of a daemon and the server tells
them, so that without it handshakes alone find the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from . import clones, disco
from .candidate import Candidate, CandidateKind, usable
from .commands import AddPeer, Command, MovePeer, RelayPeer, RemovePeer
from .constants import REJECT_AFTER_TIME, REKEY_AFTER_TIME
from .control import MAX_MEMBERS, PresenceEntry, Signalled
from .copies import Copies
from .deadlines import Deadlines
from .drops import DropReason
from .errors import MalformedMessage
from .events import NodeEvent, PeerChanged, PeerMtuChanged, PingFinished, StateChanged
from .guess import Guessing
from .instances import Instances
from .keys import member_relay_id
from .member import Member
from .membership import MemberKeys
from .nat import NatMapping
from .offers import Offers
from .options import Duplicate, Options
from .path import PathAgent
from .path_events import KeepaliveChanged, MappingDoubted, OfferWanted, PingAnswered, PrimaryChanged
from .peer import LastKnown, MeshPeer, make_peer
from .permit import Permit
from .relaying import Relaying
from .roster import Roster
from .timers import Stamps
from .traffic import Traffic
from .transport import Address, Path, RelayHop, Transmit
from .turn import spread
from .wireguard import HandshakeGaveUp, OtherInstance, SessionEstablished, WireGuard

MAX_PEERS = MAX_MEMBERS
"""Peers of one node: everybody but us."""
MAX_LAN_PATHS = 4
"""Addresses of one peer that the LAN may tell."""

MAX_RELAY_PATHS = 4
"""Addresses of a peer that the engine knows for relaying."""

_CHALLENGE = -1
"""The token of pings that find out whether a peer is there yet."""

_COPIES = {Duplicate.OFF: None, Duplicate.SIGNALLING: Copies.SIGNALLING, Duplicate.VOICE: Copies.VOICE}


class Peering:
    """The machine. Times are monotonic seconds; `wall_ns` is Unix time in nanoseconds."""

    def __init__(
        self,
        keys: MemberKeys,
        roster: Roster,
        *,
        entropy: Callable[[int], bytes],
        options: Options,
        permit: Permit,
        mtu: int,
    ) -> None:
        self.peers: dict[bytes, MeshPeer] = {}
        self.offers = Offers(keys.identity, disco.public_key(keys.disco), roster, entropy=entropy)
        self._disco_secret = keys.disco
        self._roster = roster
        self._entropy = entropy
        self._options = options
        self._mtu = mtu
        tag = clones.tag_of(disco.public_key(keys.disco))
        self._wireguard = WireGuard(keys.tunnel, entropy=entropy, tag=tag)
        self._instances = Instances(self._wireguard, keys.tunnel, entropy=entropy)
        self._connections: list[tuple[bytes, bool]] = []
        self._is_started = False
        self._numbers = deque(range(1, MAX_PEERS + 1))
        self._by_number: dict[int, MeshPeer] = {}
        self._by_disco: dict[bytes, MeshPeer] = {}
        self._touched: dict[int, MeshPeer] = {}
        self._deadlines = Deadlines()
        self._is_mapping_doubted = False
        self._relaying = Relaying(member_relay_id(roster.uid, keys.identity.public), entropy=entropy)
        self._by_relay_id: dict[int, MeshPeer] = {}
        self._guessing = Guessing(entropy=entropy, permit=permit, is_allowed=options.port_guessing)
        self._relay: tuple[Address, int, int] | None = None
        self._relay_ids: dict[bytes, int] = {}
        self._transmits: list[Transmit] = []
        self._commands: list[Command] = []
        self._events: list[NodeEvent] = []

    # Peers follow the roster.

    def handle_start(self, last_known: Mapping[bytes, LastKnown], *, now: float, wall_ns: int) -> None:
        """Bring up everybody whom the roster knows; before this nobody is a peer."""
        self._is_started = True
        self.add_members(now=now, wall_ns=wall_ns)
        for identity, known in last_known.items():
            peer = self.peers.get(identity)
            if peer is not None and known.path.is_direct:
                self._touch(peer).handle_last_known(known.path, known.keepalive, now=now)
                # At once: the peer finds out where we are, and that our old keys are gone, by nothing else.
                self._wireguard.handle_handshake_wanted(peer.number, now=now, wall_ns=wall_ns)

    def add_members(self, *, now: float, wall_ns: int) -> None:
        """Everybody whom the roster knows and who is no peer yet."""
        for member in self._roster.members.values():
            self.add(member, now=now, wall_ns=wall_ns)

    def add(self, member: Member, *, now: float, wall_ns: int) -> None:
        """A member becomes a peer, if we may talk to it."""
        if not self._is_started or self._roster.is_over or member.is_pending or member.identity in self.peers:
            return
        if not self._numbers:
            return
        number = self._numbers.popleft()
        relay_id = member_relay_id(self._roster.uid, member.identity)
        peer = make_peer(
            number,
            member,
            self._disco_secret,
            relay_id,
            entropy=self._entropy,
            mtu=self._mtu,
            duplicate=_COPIES[self._options.duplicate],
        )
        # Of two members with one number (one in four billion, or made so) the first keeps it.
        self._by_relay_id.setdefault(relay_id, peer)
        self.peers[member.identity] = self._by_number[number] = self._by_disco[member.disco_key] = peer
        self._wireguard.add_peer(number, member.tunnel_key, self._preshared_keys(member, wall_ns))
        self._guessing.add(number, peer.agent)
        self._instances.add(peer)
        self._commands.append(AddPeer(number, peer.routes))
        self._follow_presence(peer, self._relay_ids.get(member.identity, 0), now)

    def change(self, old: Member, new: Member, *, now: float, wall_ns: int, is_hearsay: bool = False) -> None:
        """A member published another record, or is (no longer) pending; hearsay is what others than the server say."""
        peer = self.peers.get(old.identity)
        if peer is None or old.tunnel_key != new.tunnel_key or old.address != new.address or new.is_pending:
            self.remove(old.identity)
            return self.add(new, now=now, wall_ns=wall_ns)
        if old.relays != new.relays:
            self._touch_users(peer)
        known = peer.member.disco_key
        peer.member = replace(new, disco_key=known)
        is_other = new.disco_key != known
        if is_other and not (is_hearsay and self._instances.must_wait(peer.number, new, now=now)):
            self._follow(peer, new, now, wall_ns)
        return None

    def remove(self, identity: bytes) -> None:
        """A member is no peer any more."""
        if (peer := self.peers.pop(identity, None)) is None:
            return
        del self._by_number[peer.number]
        del self._by_disco[peer.member.disco_key]
        self._touched.pop(peer.number, None)
        self._deadlines.set(peer.number, None)
        if peer.mtu.limit < self._mtu:
            self._events.append(PeerMtuChanged(peer.member, None))
        self._touch_users(peer)
        self._instances.remove(peer.number)
        self._relaying.forget(peer.number)
        self._guessing.remove(peer.number)
        if self._by_relay_id.get(peer.member_relay_id) is peer:
            del self._by_relay_id[peer.member_relay_id]
        self.offers.forget(peer)
        self._wireguard.remove_peer(peer.number)
        self._commands.append(RemovePeer(peer.number))
        # Used again as late as possible: the engine may have something to say of the old one yet.
        self._numbers.append(peer.number)

    def clear(self) -> None:
        """Nobody is."""
        for identity in list(self.peers):
            self.remove(identity)

    def handle_stop(self) -> None:
        """Nobody is, nor will be before the next `handle_start`."""
        self._is_started = False
        self.clear()

    def handle_epoch_keys(self, *, wall_ns: int) -> None:
        """The epoch changed, or the previous one's time is over: sessions stay up, handshakes use the new keys."""
        for peer in self.peers.values():
            self._wireguard.set_preshared_keys(peer.number, self._preshared_keys(peer.member, wall_ns))

    # What the server tells.

    def handle_presence(self, entry: PresenceEntry, *, now: float) -> None:
        """A member's control connection came (with a relay id) or went (0)."""
        # Remembered for members whose record is still on its way: the connection comes first, the record after it.
        self._relay_ids.pop(entry.identity, None)
        self._relay_ids[entry.identity] = entry.relay_id
        if len(self._relay_ids) > MAX_PEERS:
            del self._relay_ids[next(iter(self._relay_ids))]
        if (peer := self.peers.get(entry.identity)) is not None:
            self._follow_presence(peer, entry.relay_id, now)

    def handle_signalled(self, message: Signalled, *, now: float) -> DropReason | None:
        """A peer's candidates."""
        peer = self.peers.get(message.source)
        try:
            offer, candidates = self.offers.open(message, peer)
        except MalformedMessage as error:
            return error.reason
        peer = self.peers[message.source]
        peer.candidates = {entry.address: entry.kind for entry in candidates}
        self._touch(peer).handle_offer(offer, candidates, now=now)
        self._guessing.handle_offer(peer.number, offer.nat, offer.attempt, now=now)
        return None

    def handle_servers(self, servers: Sequence[Address]) -> None:
        """The rendezvous' UDP addresses."""
        self._guessing.handle_servers(servers)

    def handle_sockets_opened(self, tag: int, ports: Mapping[int, int], *, now: float) -> None:
        """Those of a SocketsWanted, by socket number."""
        if (number := self._guessing.handle_sockets_opened(tag, ports, now=now)) is not None:
            self._touch(self._by_number[number])

    def handle_stun(self, data: bytes, path: Path, *, now: float) -> DropReason | None:
        """A STUN message that came on an extra socket."""
        return self._guessing.handle_stun(data, path, now=now)

    def handle_relay(self, relay: tuple[Address, int, int] | None, *, now: float) -> None:
        """We are bound at the relay (its address, our socket, our id there), or no longer."""
        self._relay = relay
        for peer in self.peers.values():
            self._update_relay(peer, now)

    def handle_server_lost(self, *, now: float) -> None:
        """Our control connection ended."""
        for peer in self.peers.values():
            self._touch(peer).handle_server_lost(now=now)

    def handle_candidates(self, candidates: tuple[Candidate, ...], nat: NatMapping, *, now: float) -> None:
        """Our own addresses changed, or how our NAT maps them."""
        self._guessing.handle_nat(nat)
        self.offers.candidates, self.offers.nat = candidates, self._guessing.nat
        for peer in self.peers.values():
            if not self.offers.will_tell(peer):
                self._touch(peer).handle_local_change(now=now, wait=self._wait())

    def handle_udp_passes(self, *, now: float) -> None:
        """It did not for a while: peers may be reached directly again."""
        for peer in self.peers.values():
            self._touch(peer).handle_udp_passes(now=now, wait=self._wait())

    def handle_network_change(self, *, now: float) -> None:
        """Addresses or routes changed, or the machine slept."""
        for peer in self.peers.values():
            peer.mtu.forget()
            self._touch(peer).handle_network_change(now=now, wait=self._wait())

    def handle_wake(self, slept: float, *, now: float, wall_ns: int) -> None:
        """We were suspended. Sessions that the peers have given up meanwhile, and that seem young to us, are made anew:
        else the first 15 seconds of the next call would be lost."""
        for peer in self.peers.values():
            age = None if peer.session_at is None else now - peer.session_at
            if age is not None and age < REJECT_AFTER_TIME and age + slept >= REKEY_AFTER_TIME:
                self._wireguard.handle_handshake_wanted(peer.number, now=now, wall_ns=wall_ns)

    # What the LAN tells. Anybody may have said it.

    def handle_lan(self, tag: bytes, addresses: Sequence[Address], *, now: float, wall_ns: int) -> DropReason | None:
        """Somebody in our LAN announces a member's tag. A ping finds out, or, if the peer's disco key is not known
        because no server told it, a handshake."""
        peer = next((peer for peer in self.peers.values() if tag in self._roster.lan_tags(peer.member.identity)), None)
        if peer is None:
            return DropReason.UNKNOWN_PEER
        said = [Candidate(CandidateKind.HOST, address.host, address.port) for address in addresses]
        peer.lan = tuple(
            Path(1 if entry.address.is_ipv6 else 0, entry.address)
            for entry in usable(said, self._roster.mesh_prefixes)[:MAX_LAN_PATHS]
        )
        agent = self._touch(peer)
        for path in peer.lan:
            agent.handle_path_seen(path, now=now)
        if peer.lan and not agent.is_reachable:
            self._wireguard.handle_handshake_wanted(peer.number, now=now, wall_ns=wall_ns)
        return None

    # What the data plane tells. It may speak of peers that are gone.

    def handle_datagram(self, data: bytes, path: Path, *, now: float, wall_ns: int) -> DropReason | None:
        """A probe or a handshake message."""
        if clones.is_notice(data):
            return self._instances.handle_notice(data, now=now)
        if not disco.is_disco(data):
            return self._wireguard.handle_datagram(data, path, now=now, wall_ns=wall_ns)
        peer = self._by_disco.get(disco.sender_key(data))
        if peer is None:
            return DropReason.UNKNOWN_PEER
        try:
            message = peer.agent.disco.open(data)
        except MalformedMessage as error:
            return error.reason
        if not self._guessing.owns(peer.number, path.socket):
            return DropReason.UNEXPECTED
        if isinstance(message, disco.Pong) and peer.mtu.note_pong(message.transaction_id):
            self._touch(peer)
            return None
        reason = self._touch(peer).handle_disco(message, path, now=now)
        if reason is None:
            self._guessing.handle_heard(peer.number, path, now=now)
        return reason

    def prober(self, data: bytes) -> int | None:
        """The number of the peer whose probe this seems to be."""
        peer = self._by_disco.get(disco.sender_key(data)) if disco.is_disco(data) else None
        return None if peer is None else peer.number

    def handle_handshake_wanted(self, number: int, *, now: float, wall_ns: int) -> None:
        """There are packets for the peer and no usable keypair."""
        if number in self._by_number:
            self._wireguard.handle_handshake_wanted(number, now=now, wall_ns=wall_ns)

    def handle_rekey_wanted(self, number: int, *, now: float, wall_ns: int) -> None:
        """The keypair in use grows old."""
        if number in self._by_number:
            self._wireguard.handle_rekey_wanted(number, now=now, wall_ns=wall_ns)

    def handle_keypair_confirmed(self, number: int, local_index: int, *, now: float) -> None:
        """The peer used the keypair that our response made."""
        if number in self._by_number:
            self._wireguard.handle_keypair_confirmed(number, local_index, now=now)

    def handle_path_seen(self, number: int, path: Path, *, now: float) -> None:
        """An authenticated packet of the peer came on another path than the one we send on."""
        if (peer := self._by_number.get(number)) is not None and self._guessing.keeps(number, path.socket):
            self._touch(peer).handle_path_seen(path, now=now)

    def handle_traffic(self, figures: Mapping[int, tuple[Traffic, Stamps]], *, now: float, wall_ns: int) -> None:
        """The figures of peers: of all about once a second, of one before its probe is handled."""
        for number, (traffic, stamps) in figures.items():
            if (peer := self._by_number.get(number)) is None:
                continue
            self._wireguard.handle_stats(number, stamps, now=now, wall_ns=wall_ns)
            self._instances.handle_sign(number, stamps.last_authenticated_at)
            peer.recent.note(traffic, now=now)
            if traffic != peer.traffic:
                peer.traffic = traffic
                self.offers.hurry(peer)
                self._touch(peer).handle_traffic(traffic, now=now)

    def ping(self, peer: MeshPeer, token: int, path: Path | None, *, now: float) -> None:
        """A probe that the user wants, on a path, None: the one in use."""
        self._touch(peer).handle_ping_request(token, path, now=now)

    def relay_of(self, peer: MeshPeer, path: Path) -> Member | None:
        """The member that forwards on a path to this peer; None: nobody, or the rendezvous."""
        number = self._relaying.member_of(peer, path, self._by_number.values())
        return None if number is None else self._by_number[number].member

    # Time and output.

    def numbers(self) -> list[int]:
        """The numbers under which the data plane knows the peers."""
        return list(self._by_number)

    def next_timeout(self) -> float | None:
        """The earliest deadline of paths and handshakes; offers have theirs only while we are attached."""
        machines = (self._guessing, self._wireguard, self._instances)
        deadlines = (self._deadlines.first(), *(machine.next_timeout() for machine in machines))
        return min((at for at in deadlines if at is not None), default=None)

    def handle_timeout(self, *, now: float, wall_ns: int) -> None:
        """Do everything that is due."""
        self._wireguard.handle_timeout(now=now, wall_ns=wall_ns)
        for number in self._deadlines.take_due(now=now):
            self._touch(self._by_number[number]).handle_timeout(now=now)
        for number in self._guessing.handle_timeout(now=now):
            self._touch(self._by_number[number])
        pinged, followed = self._instances.handle_timeout(now=now, wall_ns=wall_ns)
        for number in pinged:
            self._touch(self._by_number[number]).handle_ping_request(_CHALLENGE, now=now)
        for number, member in followed:
            self._follow(self._by_number[number], member, now, wall_ns)

    def settle(self, *, now: float, wall_ns: int) -> list[DropReason]:
        """Drain the machines below, until none wakes another; what could not be sent."""
        dropped = self._settle_wireguard(now)
        self._settle_guessing(now)
        while self._touched:
            touched, self._touched = self._touched, {}
            for peer in touched.values():
                self._settle_peer(peer, now, wall_ns)
            dropped += self._settle_wireguard(now)
        return dropped

    def take_transmits(self) -> list[Transmit]:
        """Datagrams to send; clears."""
        transmits, self._transmits = self._transmits + self._guessing.take_transmits(), []
        transmits += self._instances.take_transmits()
        return transmits

    def take_commands(self) -> list[Command]:
        """What the data plane must do, in order; clears."""
        # A socket must be the engine's before a peer is sent to from it.
        commands, self._commands = [*self._guessing.take_commands(), *self._commands], []
        return commands

    def take_events(self) -> list[NodeEvent]:
        """What users may want to know; clears."""
        events, self._events = [*self._events, *self._guessing.take_events(), *self._instances.take_events()], []
        return events

    def take_connections(self) -> list[tuple[bytes, bool]]:
        """Who can be reached since the last call, and who cannot any more; clears."""
        connections, self._connections = self._connections, []
        return connections

    def take_doubt(self) -> bool:
        """Does a path give reason to ask again what our address is? Clears."""
        is_doubted, self._is_mapping_doubted = self._is_mapping_doubted, False
        return is_doubted

    # Inside.

    def _touch(self, peer: MeshPeer) -> PathAgent:
        """The peer's paths, to be drained by the next settling."""
        self._touched[peer.number] = peer
        return peer.agent

    def _follow(self, peer: MeshPeer, new: Member, now: float, wall_ns: int) -> None:
        """The member's daemon was started anew."""
        del self._by_disco[peer.member.disco_key]
        self._by_disco[new.disco_key] = peer
        peer.member = new
        agent = self._touch(peer)
        way = agent.primary
        agent.handle_remote_disco(disco.DiscoBox(self._disco_secret, new.disco_key), now=now)
        self.offers.want(peer, is_urgent=agent.is_active(now))
        is_before = self._instances.handle_restart(peer.number)
        if peer.session_at is not None and is_before:
            # Its keys of our session are gone: what we send would be in vain.
            self._wireguard.handle_handshake_wanted(peer.number, now=now, wall_ns=wall_ns)
        elif peer.session_at is not None and way is not None:
            # A handshake of this run was faster than the news of it: where that came from is the way.
            agent.handle_session(way, now=now)

    def _wait(self) -> float:
        """For one peer: full jitter."""
        return spread(len(self.peers)) * int.from_bytes(self._entropy(4), "little") / 2**32

    def _preshared_keys(self, member: Member, wall_ns: int) -> list[bytes]:
        return self._roster.preshared_keys(member, self._wireguard.public_key, wall=wall_ns // 1_000_000_000)

    def _follow_presence(self, peer: MeshPeer, relay_id: int, now: float) -> None:
        was_online, peer.is_online = peer.is_online, relay_id != 0
        agent = self._touch(peer)
        if relay_id:
            # An absent member keeps its old relay id: its binding at the relay outlives the control connection.
            peer.relay_id = relay_id
            self._update_relay(peer, now)
            self.offers.want(peer, is_urgent=peer.agent.is_active(now))
        elif was_online:
            agent.handle_absence(now=now)

    def _update_relay(self, peer: MeshPeer, now: float) -> None:
        paths = []
        if self._relay is not None and peer.relay_id:
            server, socket, own_id = self._relay
            paths.append(Path(socket, server, RelayHop(own_id, peer.relay_id)))
        self._touch(peer).handle_relays(paths, now=now)

    def _touch_users(self, peer: MeshPeer) -> None:
        """Something happened to the way to a member: those whom we reach through it are looked at again."""
        for number in self._relaying.users(peer.number):
            self._touch(self._by_number[number])

    def _settle_peer(self, peer: MeshPeer, now: float, wall_ns: int) -> None:
        self._guessing.review(peer.number, now=now)
        peer.agent.handle_helpers(self._relaying.paths(peer, self._by_number, now=now), now=now)
        for event in peer.agent.take_events():
            match event:
                case PrimaryChanged(primary=primary, secondary=secondary, copies=copies):
                    self._commands.append(MovePeer(peer.number, primary, secondary, copies))
                    self._touch_users(peer)
                    through = self._relaying.member_of(peer, primary, self._by_number.values())
                    peer.via = None if through is None else self._by_number[through].member
                    if primary is not None:
                        self._wireguard.handle_path_available(peer.number, now=now, wall_ns=wall_ns)
                case MappingDoubted():
                    self._is_mapping_doubted = True
                case KeepaliveChanged():
                    self._events.append(StateChanged())
                case OfferWanted():
                    self.offers.want(peer, is_urgent=peer.agent.is_active(now))
                case PingAnswered(token=token) if token == _CHALLENGE:
                    self._instances.handle_sign(peer.number, now)
                case PingAnswered(token=token, rtt=rtt, path=path):
                    self._events.append(PingFinished(token, rtt, path))
        self._follow_mtu(peer, now)
        self._transmits.extend(peer.agent.take_transmits())
        deadlines = (peer.agent.next_timeout(), peer.mtu.next_timeout())
        self._deadlines.set(peer.number, min((at for at in deadlines if at is not None), default=None))
        self._relay_for(peer)
        if (successor := self._instances.review(peer.number)) is not None:
            self._follow(peer, successor, now, wall_ns)
        if peer.state is not peer.reported:
            peer.reported = peer.state
            if peer.agent.is_reachable:
                # A handshake that was sent in hope, before the way was there, does not wait for its repetition.
                self._wireguard.handle_path_available(peer.number, now=now, wall_ns=wall_ns)
            self._events.append(PeerChanged(peer.member, peer.state, peer.agent.primary))
            self._connections.append((peer.member.identity, peer.agent.is_reachable))

    def _follow_mtu(self, peer: MeshPeer, now: float) -> None:
        if peer.mtu.follow(peer.agent, peer.recent.counts, now=now):
            limit = None if peer.mtu.limit == self._mtu else peer.mtu.limit
            self._events.append(PeerMtuChanged(peer.member, limit, peer.mtu.fragments_pass))

    def _settle_guessing(self, now: float) -> None:
        for number in self._guessing.take_hits():
            self._touch(self._by_number[number]).handle_hit(now=now)
        for number, attempt, measured_at in self._guessing.take_offers():
            self.offers.want_attempt(self._by_number[number], attempt, measured_at)

    def _relay_for(self, peer: MeshPeer) -> None:
        """Others may send to this peer through us, from and to the addresses at which it has answered."""
        paths: tuple[Path, ...] = ()
        if self._options.relay and self._by_relay_id.get(peer.member_relay_id) is peer:
            paths = peer.agent.table.direct_ways()[:MAX_RELAY_PATHS]
        if paths != peer.relayed:
            peer.relayed = paths
            self._commands.append(RelayPeer(peer.number, peer.member_relay_id, paths))

    def _settle_wireguard(self, now: float) -> list[DropReason]:
        for event in self._wireguard.take_events():
            peer = self._by_number.get(event.peer)
            match event:
                case _ if peer is None:
                    continue  # removed since
                case SessionEstablished():
                    if self._instances.handle_session(event, now=now):
                        self._connections.append((peer.member.identity, True))
                    peer.session_at = now
                    if self._guessing.keeps(peer.number, event.path.socket):
                        self._touch(peer).handle_session(event.path, now=now)
                case OtherInstance():
                    self._instances.handle_other(event, now=now)
                case HandshakeGaveUp():
                    continue  # the path machine already knows that nothing comes back
                case _:
                    self._commands.append(event)
        dropped = []
        for transmit in self._wireguard.take_transmits():
            ways = self._ways_to(transmit.peer) if transmit.path is None else (transmit.path,)
            self._transmits += [Transmit(path, transmit.data) for path in ways]
            if not ways:
                dropped.append(DropReason.NO_ENDPOINT)
        return dropped

    def _ways_to(self, number: int | None) -> tuple[Path, ...]:
        peer = None if number is None else self._by_number.get(number)
        if peer is None:
            return ()
        guesses = () if peer.agent.is_reachable else peer.lan
        ways = dict.fromkeys((peer.agent.primary, peer.agent.secondary, *guesses))
        return tuple(way for way in ways if way is not None)
