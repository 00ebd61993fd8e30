"""A node: one network as one member runs it. Joins the machines of this package into one that a shell drives.

    datagrams ─┬─ STUN ──────▶ Gatherer ── our candidates, the relay binding ──┐
               ├─ disco ─────▶ PathAgent of the peer ── primary path ──────────┼─▶ commands for the data plane
               └─ WireGuard ─▶ WireGuard ── keypairs ──────────────────────────┘
    control messages ─▶ ControlSession ─▶ Roster ── members ─▶ peers; offers ─▶ PathAgent

After every `handle_…` take transmits, control messages, commands and events, then ask for the next timeout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network

from . import control, disco, stun
from .candidate import Candidate, Offer, decode_offer, usable
from .commands import AddPeer, Command, MovePeer, RemovePeer
from .control import CharterChanged, MemberChanged, MemberLeft, Presence, PresenceEntry, Signalled
from .control_session import (
    ConnectWanted,
    ControlSession,
    DisconnectWanted,
    RequestFinished,
    SessionAttached,
    SessionEvent,
    SessionLost,
    SessionRefused,
    attach_opening,
)
from .drops import DropReason
from .errors import MalformedMessage
from .events import (
    ActionFinished,
    MembershipChanged,
    NodeEvent,
    PeerChanged,
    PingFinished,
    ServerChanged,
    StateChanged,
)
from .gather import CandidatesChanged, Gatherer, RelayBound, RelayUnbound
from .keys import NetworkKeys, ula_prefix
from .membership import MemberKeys, Membership, Profile
from .owner import PasswordRule
from .path import MappingDoubted, OfferWanted, PathAgent, PingAnswered, PrimaryChanged
from .peer import MeshPeer, PeerState, Traffic, make_peer
from .roster import (
    EpochChanged,
    Member,
    MemberAdded,
    MemberRemoved,
    NetworkDeleted,
    Roster,
    SelfEvicted,
    SelfReinstated,
)
from .roster import MemberChanged as RecordChanged
from .signed import Signed
from .timers import Stamps
from .transport import Address, Path, RelayHop, Transmit
from .wireguard import HandshakeGaveUp, SessionEstablished, WireGuard

MAX_PEERS = control.MAX_MEMBERS
"""Peers of one node: everybody but us."""


class Node:
    """One network of one member. Times are monotonic seconds; `wall_ns` is Unix time in nanoseconds."""

    def __init__(
        self,
        *,
        keys: MemberKeys,
        profile: Profile,
        roster: Roster,
        session: ControlSession,
        own_record: Signed | None,
        entropy: Callable[[int], bytes],
    ) -> None:
        self.roster = roster
        self.session = session
        self.membership = Membership(keys, profile, roster, session, own_record, entropy=entropy)
        self.drops: Counter[DropReason] = Counter()
        self.peers: dict[bytes, MeshPeer] = {}
        self._keys = keys
        self._entropy = entropy
        self._wireguard = WireGuard(keys.tunnel, entropy=entropy)
        self._gatherer = Gatherer(entropy)
        self._by_number: dict[int, MeshPeer] = {}
        self._by_disco: dict[bytes, MeshPeer] = {}
        self._touched: dict[int, MeshPeer] = {}
        self._deadlines: dict[int, float] = {}
        self._candidates: tuple[Candidate, ...] = ()
        self._relay_server: tuple[Address, int] | None = None
        self._relay_id = 0
        self._relay_ids: dict[bytes, int] = {}
        self._udp_hosts: tuple[str, ...] = ()
        self._transmits: list[Transmit] = []
        self._commands: list[Command] = []
        self._events: list[NodeEvent] = []

    # --- what the shell reports -------------------------------------------------------------------------------

    def handle_start(self, last_known: Mapping[bytes, Path], *, now: float, wall_ns: int) -> None:
        """Bring up the peers of the cached roster and connect. `last_known` is what `last_good_paths` gave before."""
        for member in self.roster.members.values():
            self._add_peer(member, now=now, wall_ns=wall_ns)
        for identity, path in last_known.items():
            if (peer := self.peers.get(identity)) is not None and path.is_direct:
                self._touch(peer).handle_last_known(path, now=now)
        self.session.handle_start(now=now)
        self._settle(now, wall_ns)

    def handle_adopted(self, attached: SessionAttached, hosts: Sequence[str], *, now: float, wall_ns: int) -> None:
        """The session was attached before this node existed, by who created or joined the network."""
        self._udp_hosts = tuple(hosts)
        self._handle_session_event(attached, now, wall_ns)
        self._settle(now, wall_ns)

    def handle_connected(self, hosts: Sequence[str], *, now: float, wall_ns: int) -> None:
        """The control connection is open; `hosts` are the server's addresses."""
        self._udp_hosts = tuple(hosts)
        self.session.handle_connected(now=now)
        self._settle(now, wall_ns)

    def handle_disconnected(self, *, now: float, wall_ns: int) -> None:
        """The control connection could not be opened, or ended. Calls in progress do not notice."""
        self.session.handle_disconnected(now=now)
        self._settle(now, wall_ns)

    def handle_control_message(self, data: bytes, *, now: float, wall_ns: int) -> None:
        """One message of the rendezvous."""
        outcome = self.session.handle_message(data, now=now)
        self._settle_session(now, wall_ns)
        match outcome:
            case CharterChanged(charter=charter, members=members):
                self._count(self.roster.handle_charter(charter, members, wall=_seconds(wall_ns)))
                self.membership.publish_record_if_missing(members, now=now, wall=_seconds(wall_ns))
            case MemberChanged(entry=entry):
                self._count(self.roster.handle_entry(entry, wall=_seconds(wall_ns)))
            case MemberLeft(leave=leave):
                self._count(self.roster.handle_leave(leave, wall=_seconds(wall_ns)))
            case Presence(entry=entry):
                self._handle_presence(entry, now)
            case Signalled():
                self._count(self._handle_signalled(outcome, now))
            case DropReason():
                self._count(outcome)
        self._settle(now, wall_ns)

    def handle_datagram(self, data: bytes, path: Path, *, now: float, wall_ns: int) -> None:
        """A datagram that the engine did not keep for itself."""
        if stun.is_stun(data):
            reason = self._gatherer.handle_datagram(data, path, now=now)
        elif disco.is_disco(data):
            reason = self._handle_disco(data, path, now)
        else:
            reason = self._wireguard.handle_datagram(data, path, now=now, wall_ns=wall_ns)
        self._count(reason)
        self._settle(now, wall_ns)

    def handle_local_addresses(
        self, hosts: Sequence[str], ports: Mapping[int, int], *, now: float, wall_ns: int
    ) -> None:
        """This host's addresses (without the mesh's own) and the sockets' ports."""
        self._gatherer.handle_local_addresses(hosts, ports, now=now)
        self._settle(now, wall_ns)

    def handle_network_change(self, *, now: float, wall_ns: int) -> None:
        """Addresses or routes changed, or the machine slept."""
        self._gatherer.handle_network_change(now=now)
        for peer in self.peers.values():
            self._touch(peer).handle_network_change(now=now)
        self.session.handle_retry(now=now)
        self._settle(now, wall_ns)

    def handle_handshake_wanted(self, number: int, *, now: float, wall_ns: int) -> None:
        """The engine has packets for the peer and no usable keypair."""
        if number in self._by_number:
            self._wireguard.handle_handshake_wanted(number, now=now, wall_ns=wall_ns)
        self._settle(now, wall_ns)

    def handle_rekey_wanted(self, number: int, *, now: float, wall_ns: int) -> None:
        """The keypair in use grows old."""
        if number in self._by_number:
            self._wireguard.handle_rekey_wanted(number, now=now, wall_ns=wall_ns)
        self._settle(now, wall_ns)

    def handle_keypair_confirmed(self, number: int, local_index: int, *, now: float, wall_ns: int) -> None:
        """The peer used the keypair that our response made."""
        if number in self._by_number:
            self._wireguard.handle_keypair_confirmed(number, local_index, now=now)
        self._settle(now, wall_ns)

    def handle_path_seen(self, number: int, path: Path, *, now: float, wall_ns: int) -> None:
        """An authenticated packet of the peer came on another path than the one we send on."""
        if (peer := self._by_number.get(number)) is not None:
            self._touch(peer).handle_path_seen(path, now=now)
        self._settle(now, wall_ns)

    def handle_traffic(self, figures: Mapping[int, tuple[Traffic, Stamps]], *, now: float, wall_ns: int) -> None:
        """The engine's figures for the peers, read about once a second."""
        for number, (traffic, stamps) in figures.items():
            if (peer := self._by_number.get(number)) is None:
                continue
            self._wireguard.handle_stats(number, stamps, now=now, wall_ns=wall_ns)
            if traffic != peer.traffic:
                peer.traffic = traffic
                self._touch(peer).handle_traffic(traffic.rx_packets, traffic.tx_packets, now=now)
        self._settle(now, wall_ns)

    # --- time and output --------------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """The earliest deadline of all machines."""
        deadlines = [
            self.session.next_timeout(),
            self._gatherer.next_timeout(),
            self._wireguard.next_timeout(),
        ]
        return min((at for at in (*deadlines, *self._deadlines.values()) if at is not None), default=None)

    def handle_timeout(self, *, now: float, wall_ns: int) -> None:
        """Do everything that is due."""
        self.session.handle_timeout(now=now)
        self._gatherer.handle_timeout(now=now)
        self._wireguard.handle_timeout(now=now, wall_ns=wall_ns)
        for number in [number for number, at in self._deadlines.items() if at <= now]:
            self._touch(self._by_number[number]).handle_timeout(now=now)
        self._settle(now, wall_ns)

    def take_transmits(self) -> list[Transmit]:
        """Datagrams to send; clears."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def take_control_messages(self) -> list[bytes]:
        """Messages for the rendezvous; clears."""
        return self.session.take_messages()

    def take_commands(self) -> list[Command]:
        """What the data plane must do, in order; clears."""
        commands, self._commands = self._commands, []
        return commands

    def take_events(self) -> list[NodeEvent]:
        """What the shell must know or do; clears."""
        events, self._events = self._events, []
        return events

    def last_good_paths(self) -> dict[bytes, Path]:
        """Direct paths that work now, by member identity: worth keeping for the next start."""
        return {
            identity: peer.agent.primary
            for identity, peer in self.peers.items()
            if peer.state is PeerState.DIRECT and peer.agent.primary is not None
        }

    def peer_numbers(self) -> list[int]:
        """The numbers under which the engine knows the peers."""
        return list(self._by_number)

    # --- what the user asks for; the outcome is an ActionFinished with the number returned ------------------------

    def evict(self, peer: str, password: PasswordRule | NetworkKeys, *, now: float, wall_ns: int) -> int:
        """Put a member out. Raises MembershipError."""
        rid = self.membership.evict(peer, password, now=now, wall=_seconds(wall_ns))
        self._settle(now, wall_ns)
        return rid

    def unban(self, peer: str, *, now: float, wall_ns: int) -> int:
        """Let an evicted identity join again. Raises MembershipError."""
        rid = self.membership.unban(peer, now=now, wall=_seconds(wall_ns))
        self._settle(now, wall_ns)
        return rid

    def change_password(self, keys: NetworkKeys, *, now: float, wall_ns: int) -> int:
        """Set a new password. Raises MembershipError."""
        rid = self.membership.change_password(keys, now=now, wall=_seconds(wall_ns))
        self._settle(now, wall_ns)
        return rid

    def delete(self, *, now: float, wall_ns: int) -> int:
        """End the network. Raises MembershipError."""
        rid = self.membership.delete(now=now, wall=_seconds(wall_ns))
        self._settle(now, wall_ns)
        return rid

    def leave(self, *, now: float, wall_ns: int) -> int:
        """Leave for good."""
        rid = self.membership.leave(now=now, wall=_seconds(wall_ns))
        self._settle(now, wall_ns)
        return rid

    def rename(self, nick: str, *, now: float, wall_ns: int) -> int | None:
        """Take another nickname; None: published when there is a connection again."""
        rid = self.membership.rename(nick, now=now, wall=_seconds(wall_ns))
        self._events.append(StateChanged())
        self._settle(now, wall_ns)
        return rid

    def ping(self, peer: str, token: int, *, now: float, wall_ns: int) -> MeshPeer:
        """Send a probe on the path in use; answered by PingFinished, or not at all. Raises MembershipError."""
        found = self.peers[self.membership.find_member(peer).identity]
        self._touch(found).handle_ping_request(token, now=now)
        self._settle(now, wall_ns)
        return found

    # --- inside -----------------------------------------------------------------------------------------------

    def _touch(self, peer: MeshPeer) -> PathAgent:
        """The peer's paths, to be drained by the next settling."""
        self._touched[peer.number] = peer
        return peer.agent

    def _count(self, reason: DropReason | None) -> None:
        if reason is not None:
            self.drops[reason] += 1

    def _handle_disco(self, data: bytes, path: Path, now: float) -> DropReason | None:
        peer = self._by_disco.get(disco.sender_key(data))
        if peer is None:
            return DropReason.UNKNOWN_PEER
        try:
            message = peer.agent.disco.open(data)
        except MalformedMessage as error:
            return error.reason
        return self._touch(peer).handle_disco(message, path, now=now)

    def _handle_signalled(self, message: Signalled, now: float) -> DropReason | None:
        peer = self.peers.get(message.source)
        plaintext = self.roster.open_from_members(message.payload)
        if peer is None or plaintext is None:
            return DropReason.UNKNOWN_PEER if peer is None else DropReason.DECRYPT_FAILED
        try:
            offer = decode_offer(plaintext)
        except MalformedMessage as error:
            return error.reason
        if offer.uid != self.roster.uid or offer.destination != self._keys.identity.public:
            return DropReason.NOT_FOR_US
        if offer.source != message.source:
            return DropReason.BAD_SIGNATURE
        if not peer.is_newer_offer(offer):
            return DropReason.STALE
        peer.last_offer = (offer.disco_key, offer.sequence)
        inside: list[IPv4Network | IPv6Network] = [IPv4Network(self.roster.charter.pool), ula_prefix(self.roster.uid)]
        self._touch(peer).handle_offer(offer, usable(offer.candidates, inside), now=now)
        return None

    def _handle_presence(self, entry: PresenceEntry, now: float) -> None:
        # Remembered for members whose record is still on its way: the connection comes first, the record after it.
        self._relay_ids.pop(entry.identity, None)
        self._relay_ids[entry.identity] = entry.relay_id
        if len(self._relay_ids) > MAX_PEERS:
            del self._relay_ids[next(iter(self._relay_ids))]
        if (peer := self.peers.get(entry.identity)) is not None:
            self._follow_presence(peer, entry.relay_id, now)

    def _follow_presence(self, peer: MeshPeer, relay_id: int, now: float) -> None:
        peer.is_online = relay_id != 0
        self._touch(peer)
        if relay_id:
            # An absent member keeps its old relay id: its binding at the relay outlives the control connection.
            peer.relay_id = relay_id
            self._update_relay(peer, now)
            self._send_offer(peer, now)

    def _update_relay(self, peer: MeshPeer, now: float) -> None:
        if self._relay_server is None or not peer.relay_id:
            self._touch(peer).handle_relay(None, now=now)
            return
        server, socket = self._relay_server
        self._touch(peer).handle_relay(Path(socket, server, RelayHop(self._relay_id, peer.relay_id)), now=now)

    def _send_offer(self, peer: MeshPeer, now: float) -> None:
        peer.offers_sent += 1
        offer = Offer(
            format=1,
            uid=self.roster.uid,
            source=self._keys.identity.public,
            destination=peer.member.identity,
            sequence=peer.offers_sent,
            disco_key=disco.public_key(self._keys.disco),
            candidates=list(self._candidates),
        )
        sealed = self.roster.seal_for_members(offer.encode(), self._entropy)
        self.session.send(control.Signal(to=peer.member.identity, payload=sealed))

    # Peers follow the roster.

    def _add_peer(self, member: Member, *, now: float, wall_ns: int) -> None:
        if member.is_pending or member.identity in self.peers or len(self.peers) >= MAX_PEERS:
            return
        number = next(number for number in range(1, MAX_PEERS + 2) if number not in self._by_number)
        peer = make_peer(number, member, self._keys.disco, entropy=self._entropy)
        self.peers[member.identity] = self._by_number[number] = self._by_disco[member.disco_key] = peer
        keys = self.roster.preshared_keys(member, self._wireguard.public_key, wall=_seconds(wall_ns))
        self._wireguard.add_peer(number, member.tunnel_key, keys)
        self._commands.append(AddPeer(number, peer.routes))
        self._follow_presence(peer, self._relay_ids.get(member.identity, 0), now)

    def _change_peer(self, old: Member, new: Member, now: float, wall_ns: int) -> None:
        peer = self.peers.get(old.identity)
        if peer is None:
            return self._add_peer(new, now=now, wall_ns=wall_ns)
        if old.tunnel_key != new.tunnel_key or old.address != new.address or new.is_pending:
            self._remove_peer(old)
            return self._add_peer(new, now=now, wall_ns=wall_ns)
        peer.member = new
        if old.disco_key != new.disco_key:
            self._by_disco.pop(old.disco_key, None)
            self._by_disco[new.disco_key] = peer
            self._touch(peer).handle_remote_disco(disco.DiscoBox(self._keys.disco, new.disco_key), now=now)
            self._send_offer(peer, now)
        return None

    def _remove_peer(self, member: Member) -> None:
        peer = self.peers.pop(member.identity, None)
        if peer is None:
            return
        del self._by_number[peer.number]
        self._by_disco.pop(peer.member.disco_key, None)
        self._touched.pop(peer.number, None)
        self._deadlines.pop(peer.number, None)
        self._wireguard.remove_peer(peer.number)
        self._commands.append(RemovePeer(peer.number))

    def _update_preshared_keys(self, wall_ns: int) -> None:
        for peer in self.peers.values():
            keys = self.roster.preshared_keys(peer.member, self._wireguard.public_key, wall=_seconds(wall_ns))
            self._wireguard.set_preshared_keys(peer.number, keys)

    # Draining the machines. Each may wake another: session → roster → peers → paths → handshakes.

    def _settle(self, now: float, wall_ns: int) -> None:
        self._settle_session(now, wall_ns)
        self._settle_roster(now, wall_ns)
        self._settle_gatherer(now)
        self._settle_wireguard(now)
        while self._touched:
            touched, self._touched = self._touched, {}
            for peer in touched.values():
                self._settle_peer(peer, now, wall_ns)
            self._settle_wireguard(now)

    def _settle_session(self, now: float, wall_ns: int) -> None:
        for event in self.session.take_events():
            self._handle_session_event(event, now, wall_ns)

    def _handle_session_event(self, event: SessionEvent, now: float, wall_ns: int) -> None:
        match event:
            case ConnectWanted():
                self._events.append(event)
                self._events.append(ServerChanged("connecting"))
            case DisconnectWanted():
                self._events.append(event)
            case SessionAttached(answer=answer, welcome=welcome):
                self._handle_attached(answer, welcome, now, wall_ns)
            case SessionLost():
                self._events.append(ServerChanged("connecting"))
            case SessionRefused(code=code, message=message):
                self._events.append(ServerChanged("refused", f"{message} ({code})"))
            case RequestFinished(rid=rid, code=code, message=message):
                self._finish_request(rid, code, message, now, wall_ns)

    def _handle_attached(self, answer: control.Attached, welcome: control.Welcome, now: float, wall_ns: int) -> None:
        self.session.use_attach(attach_opening(self._keys.identity, self.roster.uid))
        self._count(self.roster.handle_charter(answer.charter, answer.members, wall=_seconds(wall_ns)))
        self._settle_roster(now, wall_ns)
        ports = dict.fromkeys((welcome.udp_port, welcome.udp_port2))
        self._gatherer.handle_servers([Address(host, port) for host in self._udp_hosts for port in ports], now=now)
        self._relay_id = answer.relay.id
        self._gatherer.handle_relay_grant(answer.relay, now=now)
        self.membership.publish_record_if_missing(answer.members, now=now, wall=_seconds(wall_ns))
        for presence in answer.online:
            self._handle_presence(presence, now)
        self._events.append(ServerChanged("connected"))

    def _finish_request(self, rid: int, code: str | None, message: str, now: float, wall_ns: int) -> None:
        self._count(self.membership.handle_finished(rid, code, wall=_seconds(wall_ns)))
        self._events.append(ActionFinished(rid, code, message))

    def _settle_roster(self, now: float, wall_ns: int) -> None:
        events = self.roster.take_events()
        for event in events:
            match event:
                case MemberAdded(member=member):
                    self._add_peer(member, now=now, wall_ns=wall_ns)
                case RecordChanged(old=old, new=new):
                    self._change_peer(old, new, now, wall_ns)
                case MemberRemoved(member=member, reason=reason):
                    self._remove_peer(member)
                    self._events.append(PeerChanged(member, None, None, reason))
                case EpochChanged():
                    self._update_preshared_keys(wall_ns)
                case SelfEvicted():
                    self._leave_data_plane()
                    self._events.append(MembershipChanged("evicted"))
                case SelfReinstated():
                    self._events.append(MembershipChanged("reinstated"))
                case NetworkDeleted():
                    self._leave_data_plane()
                    self._events.append(MembershipChanged("deleted"))
        if events:
            self._events.append(StateChanged())

    def _leave_data_plane(self) -> None:
        for peer in list(self.peers.values()):
            self._remove_peer(peer.member)

    def _settle_gatherer(self, now: float) -> None:
        for event in self._gatherer.take_events():
            match event:
                case CandidatesChanged(candidates=candidates):
                    self._candidates = tuple(candidates)
                    for peer in self.peers.values():
                        self._touch(peer).handle_local_change(now=now)
                case RelayBound(server=server, socket=socket):
                    self._relay_server = (server, socket)
                    self._update_relays(now)
                case RelayUnbound():
                    self._relay_server = None
                    self._update_relays(now)
        self._transmits.extend(self._gatherer.take_transmits())

    def _update_relays(self, now: float) -> None:
        for peer in self.peers.values():
            self._update_relay(peer, now)

    def _settle_peer(self, peer: MeshPeer, now: float, wall_ns: int) -> None:
        for event in peer.agent.take_events():
            match event:
                case PrimaryChanged(primary=primary, secondary=secondary):
                    self._move_peer(peer, primary, secondary, now, wall_ns)
                case OfferWanted():
                    self._send_offer(peer, now)
                case MappingDoubted():
                    self._gatherer.handle_doubt(now=now)
                    self._settle_gatherer(now)
                case PingAnswered(token=token, rtt=rtt, path=path):
                    self._events.append(PingFinished(token, rtt, path))
        self._transmits.extend(peer.agent.take_transmits())
        if (at := peer.agent.next_timeout()) is not None:
            self._deadlines[peer.number] = at
        else:
            self._deadlines.pop(peer.number, None)
        if peer.state is not peer.reported:
            peer.reported = peer.state
            self._events.append(PeerChanged(peer.member, peer.state, peer.agent.primary))

    def _move_peer(
        self, peer: MeshPeer, primary: Path | None, secondary: Path | None, now: float, wall_ns: int
    ) -> None:
        self._commands.append(MovePeer(peer.number, primary, secondary))
        if primary is not None:
            self._wireguard.handle_path_available(peer.number, now=now, wall_ns=wall_ns)

    def _settle_wireguard(self, now: float) -> None:
        for event in self._wireguard.take_events():
            peer = self._by_number.get(event.peer)
            match event:
                case _ if peer is None:
                    continue  # removed since
                case SessionEstablished():
                    peer.session_at = now
                    self._touch(peer).handle_session(event.path, now=now)
                case HandshakeGaveUp():
                    continue  # the path machine already knows that nothing comes back
                case _:
                    self._commands.append(event)
        for transmit in self._wireguard.take_transmits():
            path = self._way_to(transmit.peer) if transmit.path is None else transmit.path
            if path is None:
                self._count(DropReason.NO_ENDPOINT)
            else:
                self._transmits.append(Transmit(path, transmit.data))

    def _way_to(self, number: int | None) -> Path | None:
        peer = None if number is None else self._by_number.get(number)
        return None if peer is None else peer.agent.primary


def _seconds(wall_ns: int) -> int:
    return wall_ns // 1_000_000_000
