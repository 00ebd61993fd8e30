"""A node: one network as one member runs it. Joins the machines of this package into one that a shell drives.

    datagrams ─┬─ STUN ─▶ Gatherer, RelayBinding ── our candidates, where the relay is ─┐
               └─ disco, WireGuard ─▶ Peering ◀────────────────────────────────────────┘
                                       │ ▲  commands for the data plane, datagrams, offers
    control messages ─▶ ControlSession ┘ └── members ── Roster ◀── charters, records

After every `handle_…` take transmits, control messages, commands and events, then ask for the next timeout.

A node that starts with a cached roster first gives the server a moment to say who was evicted meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from . import clones, control, disco, stun
from .binding import RelayBinding, RelayBound, RelayUnbound, StreamUnwanted, StreamWanted, UdpPasses
from .commands import Command
from .control import Ask, CharterChanged, MemberChanged, MemberLeft, Presence, RefusalCode, Signalled
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
from .errors import MembershipError
from .events import (
    Audited,
    CloneSeen,
    CloneSight,
    MembershipChanged,
    NodeEvent,
    PeerChanged,
    ServerChanged,
    StateChanged,
)
from .gather import Gatherer
from .gossip import Gossip
from .keys import mapping_nonce
from .links import Links
from .member import (
    EpochChanged,
    Member,
    MemberAdded,
    MemberRemoved,
    NetworkDeleted,
    Noted,
    SelfEvicted,
    SelfReinstated,
)
from .member import MemberChanged as RecordChanged
from .membership import MemberKeys, Membership, Profile
from .options import DEFAULT_MTU, Options
from .peer import LastKnown, MeshPeer, last_known
from .peering import Peering
from .permit import Permit
from .portmap import PortMapping
from .roster import Roster
from .signed import Signed
from .timers import Stamps
from .traffic import Traffic
from .transport import FIRST_EXTRA_SOCKET, Address, Path, Transmit
from .verbs import Verbs

START_GRACE = 2.0
"""Seconds for which a starting node waits for the server's charter before it believes the one on its disk."""


class Node(Verbs, Links):
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
        options: Options | None = None,
        permit: Permit | None = None,
        mtu: int = DEFAULT_MTU,
    ) -> None:
        self.roster = roster
        self.session = session
        self.options = options or Options()
        profile = replace(profile, relays=self.options.relay)
        self.membership = Membership(keys, profile, roster, session, own_record, entropy=entropy)
        self.drops: Counter[DropReason] = Counter()
        self._keys = keys
        self._gatherer = Gatherer(entropy, self.options.endpoints)
        self._binding = RelayBinding(entropy)
        self._peering = Peering(keys, roster, entropy=entropy, options=self.options, permit=permit or Permit(), mtu=mtu)
        own = [keys.identity.public, *([] if keys.network_owner is None else [keys.network_owner.public])]
        self.gossip = Gossip(roster, own, lambda: self.membership.own_record, entropy=entropy)
        self._told_record = own_record
        self._quiet_until: float | None = None
        self._clones_told: dict[tuple[CloneSight, bytes | None], float] = {}
        self._last_known: Mapping[bytes, LastKnown] = {}
        self._starts_by: float | None = None
        self._epoch_lapses_at: float | None = None
        self._relay_id = 0
        self._udp_hosts: tuple[str, ...] = ()
        self._kept_charter = roster.charter
        self._events: list[NodeEvent] = []

    @property
    def port_mapping_nonce(self) -> bytes:
        """For the port mapper."""
        return mapping_nonce(self._keys.tunnel)

    @property
    def lan_tag(self) -> bytes:
        """What we announce in our LAN; changes with the epoch."""
        return self.roster.lan_tags(self._keys.identity.public)[0]

    @property
    def peers(self) -> Mapping[bytes, MeshPeer]:
        """The members that we talk to, by identity."""
        return self._peering.peers

    @property
    def is_copy(self) -> bool:
        """The server refuses us because another host runs with our identity: we keep quiet."""
        return self._quiet_until is not None

    # --- what the shell reports -------------------------------------------------------------------------------

    def handle_start(self, known: Mapping[bytes, LastKnown], *, now: float, wall_ns: int) -> None:
        """Connect, and bring up the peers of the cached roster. `known` is what `last_known` gave before."""
        self._last_known, self._starts_by = known, now + START_GRACE
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
        wall = _seconds(wall_ns)
        match outcome:
            case CharterChanged(charter=charter, members=members):
                self._count(self.roster.handle_charter(charter, members, wall=wall))
                self._follow_server(charter, members, now, wall_ns)
            case MemberChanged(entry=entry):
                self._count(self.roster.handle_entry(entry, wall=wall))
                self.membership.errands.handle_entry(entry)
            case MemberLeft(leave=leave):
                self._count(self.roster.handle_leave(leave, wall=wall))
            case Presence(entry=presence):
                self._peering.handle_presence(presence, now=now)
            case Ask():
                self._tell_clone(CloneSight.RIVAL, None, now)
            case Signalled():
                self._count(self._peering.handle_signalled(outcome, now=now))
            case DropReason():
                self._count(outcome)
        self._settle(now, wall_ns)

    def handle_datagram(self, data: bytes, path: Path, *, now: float, wall_ns: int) -> None:
        """A datagram that the engine did not keep for itself."""
        if stun.is_stun(data):
            receiver = self._gatherer.handle_datagram
            if self._binding.is_expected(data):
                receiver = self._binding.handle_datagram
            elif path.socket >= FIRST_EXTRA_SOCKET:
                receiver = self._peering.handle_stun
            reason = receiver(data, path, now=now)
        else:
            reason = self._peering.handle_datagram(data, path, now=now, wall_ns=wall_ns)
        self._count(reason)
        self._settle(now, wall_ns)

    def handle_local_addresses(
        self, hosts: Sequence[str], ports: Mapping[int, int], *, now: float, wall_ns: int
    ) -> None:
        """This host's addresses (without the mesh's own) and the sockets' ports."""
        self._gatherer.handle_local_addresses(hosts, ports, now=now)
        self._binding.handle_local_addresses(ports, now=now)
        self._settle(now, wall_ns)

    def handle_port_mapping(self, mapping: PortMapping | None, *, now: float, wall_ns: int) -> None:
        """The router keeps a port open for our IPv4 socket, another one, or none."""
        self._gatherer.handle_port_mapping(mapping)
        self._settle(now, wall_ns)

    def handle_lan(self, tag: bytes, addresses: Sequence[Address], *, now: float, wall_ns: int) -> None:
        """Somebody in our LAN announces this tag at these addresses."""
        self._count(self._peering.handle_lan(tag, addresses, now=now, wall_ns=wall_ns))
        self._settle(now, wall_ns)

    def handle_network_change(self, *, now: float, wall_ns: int) -> None:
        """Addresses or routes changed."""
        self._gatherer.handle_network_change(now=now)
        self._binding.handle_network_change(now=now)
        self._peering.offers.hold(now=now)
        self._peering.handle_network_change(now=now)
        self.session.handle_retry(now=now)
        self._settle(now, wall_ns)

    def handle_sockets_opened(self, tag: int, ports: Mapping[int, int], *, now: float, wall_ns: int) -> None:
        """What a SocketsWanted asked for, local ports by socket number; fewer or none if there were no more."""
        self._peering.handle_sockets_opened(tag, ports, now=now)
        self._settle(now, wall_ns)

    def handle_wake(self, slept: float, *, now: float, wall_ns: int) -> None:
        """The machine was suspended for these seconds, of which `now` knows nothing."""
        self._peering.handle_wake(slept, now=now, wall_ns=wall_ns)
        self.handle_network_change(now=now, wall_ns=wall_ns)

    def handle_stream_open(self, address: Address, *, now: float, wall_ns: int) -> None:
        """The stream that was wanted is open: what socket 2 sends to this loopback address goes by it."""
        self._binding.handle_stream_open(address, now=now)
        self._settle(now, wall_ns)

    def handle_stream_closed(self, *, now: float, wall_ns: int) -> None:
        """It ended, or could not be opened. Not for one that was unwanted since."""
        self._binding.handle_stream_closed(now=now)
        self._settle(now, wall_ns)

    def handle_handshake_wanted(self, number: int, *, now: float, wall_ns: int) -> None:
        """The engine has packets for the peer and no usable keypair."""
        self._peering.handle_handshake_wanted(number, now=now, wall_ns=wall_ns)
        self._settle(now, wall_ns)

    def handle_rekey_wanted(self, number: int, *, now: float, wall_ns: int) -> None:
        """The keypair in use grows old."""
        self._peering.handle_rekey_wanted(number, now=now, wall_ns=wall_ns)
        self._settle(now, wall_ns)

    def handle_keypair_confirmed(self, number: int, local_index: int, *, now: float, wall_ns: int) -> None:
        """The peer used the keypair that our response made."""
        self._peering.handle_keypair_confirmed(number, local_index, now=now)
        self._settle(now, wall_ns)

    def handle_path_seen(self, number: int, path: Path, *, now: float, wall_ns: int) -> None:
        """An authenticated packet of the peer came on another path than the one we send on."""
        self._peering.handle_path_seen(number, path, now=now)
        self._settle(now, wall_ns)

    def handle_traffic(self, figures: Mapping[int, tuple[Traffic, Stamps]], *, now: float, wall_ns: int) -> None:
        """The engine's figures: of all peers about once a second, of `prober(data)` before that datagram."""
        self._peering.handle_traffic(figures, now=now, wall_ns=wall_ns)
        self._settle(now, wall_ns)

    def prober(self, data: bytes) -> int | None:
        """The number of the peer whose probe this seems to be: the answer tells what the engine counted until now."""
        return self._peering.prober(data)

    # --- time and output --------------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """The earliest deadline of all machines."""
        deadlines = (
            self.session.next_timeout(),
            self._gatherer.next_timeout(),
            self._binding.next_timeout(),
            self._peering.next_timeout(),
            self.gossip.next_timeout(),
            self._quiet_until,
            self._peering.offers.next_timeout() if self.session.is_attached else None,
            self._starts_by,
            self._epoch_lapses_at,
        )
        return min((at for at in deadlines if at is not None), default=None)

    def handle_timeout(self, *, now: float, wall_ns: int) -> None:
        """Do everything that is due."""
        self.session.handle_timeout(now=now)
        self._gatherer.handle_timeout(now=now)
        self._binding.handle_timeout(now=now)
        self._peering.handle_timeout(now=now, wall_ns=wall_ns)
        self.gossip.handle_timeout(now=now)
        if self._quiet_until is not None and self._quiet_until <= now:
            self._stand_up(now)  # nobody has refused us for a while; members will, if the other host is there
        if self._epoch_lapses_at is not None and self._epoch_lapses_at <= now:
            self._update_epoch_keys(now, wall_ns)
        self._settle(now, wall_ns)

    def take_transmits(self) -> list[Transmit]:
        """Datagrams to send; clears."""
        return self._binding.take_transmits() + self._gatherer.take_transmits() + self._peering.take_transmits()

    def take_control_messages(self) -> list[bytes]:
        """Messages for the rendezvous; clears."""
        return self.session.take_messages()

    def take_commands(self) -> list[Command]:
        """What the data plane must do, in order; clears."""
        return self._peering.take_commands()

    def take_events(self) -> list[NodeEvent]:
        """What the shell must know or do; clears."""
        events, self._events = self._events, []
        return events

    def last_known(self) -> dict[bytes, LastKnown]:
        """What is worth keeping for the next start, by member identity."""
        return last_known(self.peers)

    def peer_numbers(self) -> list[int]:
        """The numbers under which the engine knows the peers."""
        return self._peering.numbers()

    # --- what the user asks for besides membership (verbs.py) ------------------------------------------------------

    def rename(self, nick: str, *, now: float, wall_ns: int) -> int | None:
        """Take another nickname; None: published when there is a connection again."""
        rid = self.membership.rename(nick, now=now, wall=_seconds(wall_ns))
        self._events.append(StateChanged())
        self._settle(now, wall_ns)
        return rid

    def find_peer(self, peer: str) -> MeshPeer:
        """By nick, address or identity prefix. Raises MembershipError."""
        found = self.peers.get(self.membership.find_member(peer).identity)
        if found is None:
            raise MembershipError(f"{peer} cannot be reached: it is not approved yet, or this host is out")
        return found

    def relay_of(self, peer: MeshPeer, path: Path) -> Member | None:
        """The member that forwards on a path to this peer; None: nobody, or the rendezvous."""
        return self._peering.relay_of(peer, path)

    def ping(self, peer: MeshPeer, token: int, path: Path | None, *, now: float, wall_ns: int) -> int:
        """Send a probe on a path, None: the one in use; answered by PingFinished, or not at all."""
        self._peering.ping(peer, token, path, now=now)
        self._settle(now, wall_ns)
        return token

    # --- draining the machines: session → roster → peers, the gatherer → peers, offers → session --------------------

    def _settle(self, now: float, wall_ns: int) -> None:
        self._settle_session(now, wall_ns)
        # The roster's news first: whom we bring up is as it is now, and older news of it would be wrong afterwards.
        while self._settle_roster(now, wall_ns):
            self._settle_session(now, wall_ns)
        if self._starts_by is not None and (now >= self._starts_by or not self.session.is_opening):
            self._bring_up(now, wall_ns)
        self._settle_gatherer(now)
        self._settle_binding(now)
        for reason in self._peering.settle(now=now, wall_ns=wall_ns):
            self._count(reason)
        if self._peering.take_doubt():
            self._gatherer.handle_doubt(now=now)
            self._binding.handle_doubt(now=now)
        for event in self._peering.take_events():
            if isinstance(event, CloneSeen):
                self._tell_clone(event.sight, event.member, now)
            else:
                self._events.append(event)
        self._settle_gossip(now)
        if self.session.is_attached:
            for signal in self._peering.offers.take_signals(now=now):
                self.session.send(signal)

    def _bring_up(self, now: float, wall_ns: int) -> None:
        self._starts_by = None
        if not self.session.is_attached:
            # Members tell each other how this run can be reached.
            self.membership.publish_record(now=now, wall=_seconds(wall_ns))
        self._peering.handle_start(self._last_known, now=now, wall_ns=wall_ns)
        self._update_epoch_keys(now, wall_ns)

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
                self.membership.errands.handle_detached()
                self._binding.handle_detached(now=now)
                self._peering.handle_server_lost(now=now)
                self._events.append(ServerChanged("connecting"))
            case SessionRefused(code=code, message=message):
                if code == RefusalCode.CLONED:
                    self._stand_down(now)
                self._events.append(ServerChanged("refused", f"{message} ({code})"))
            case RequestFinished(rid=rid, code=code, message=message):
                finished = self.membership.handle_finished(rid, code, message, now=now, wall=_seconds(wall_ns))
                if finished is not None:
                    self._events.append(finished)

    def _handle_attached(self, answer: control.Attached, welcome: control.Welcome, now: float, wall_ns: int) -> None:
        instance = clones.instance_of(disco.public_key(self._keys.disco))
        self.session.use_attach(attach_opening(self._keys.identity, self.roster.uid, instance=instance))
        self._stand_up(now)
        self._count(self.roster.handle_charter(answer.charter, answer.members, wall=_seconds(wall_ns)))
        self._settle_roster(now, wall_ns)
        ports = dict.fromkeys((welcome.udp_port, welcome.udp_port2))
        self._peering.offers.handle_attached(now=now)
        servers = [Address(host, port) for host in self._udp_hosts for port in ports]
        self._gatherer.handle_servers(servers, now=now)
        self._peering.handle_servers(servers)
        self._relay_id = answer.relay.id
        self._binding.handle_servers([Address(host, welcome.udp_port) for host in self._udp_hosts], now=now)
        self._binding.handle_grant(answer.relay, now=now)
        self._follow_server(answer.charter, answer.members, now, wall_ns)
        for presence in answer.online:
            self._peering.handle_presence(presence, now=now)
        self._events.append(ServerChanged("connected"))

    def _follow_server(self, charter: Signed, members: Sequence[control.MemberEntry], now: float, wall_ns: int) -> None:
        """It may lack something: our record, or what happened while it was away."""
        wall = _seconds(wall_ns)
        self.membership.errands.handle_charter(charter, members)
        self.membership.publish_record_if_missing(members, now=now, wall=wall)
        self.membership.reconcile(now=now, wall=wall)

    def _settle_roster(self, now: float, wall_ns: int, *, is_hearsay: bool = False) -> bool:
        """True if there was something, which may have made requests. Hearsay is what members say."""
        events = self.roster.take_events()
        for event in events:
            match event:
                case MemberAdded(member=member):
                    self._peering.add(member, now=now, wall_ns=wall_ns)
                case RecordChanged(old=old, new=new):
                    self._peering.change(old, new, now=now, wall_ns=wall_ns, is_hearsay=is_hearsay)
                case MemberRemoved(member=member, reason=reason):
                    self._peering.remove(member.identity)
                    self._events.append(PeerChanged(member, None, None, reason))
                case EpochChanged():
                    self._update_epoch_keys(now, wall_ns)
                case SelfEvicted():
                    self._peering.clear()
                    self._events.append(MembershipChanged("evicted"))
                case SelfReinstated():
                    self._events.append(MembershipChanged("reinstated"))
                case Noted(entry=entry):
                    self._events.append(Audited(self.membership.named(entry)))
                case NetworkDeleted():
                    self._peering.clear()
                    self._events.append(MembershipChanged("deleted"))
        if any(isinstance(event, SelfReinstated) for event in events):
            # Last: the roster is ahead of the news above, which would be wrong of whom it brings back.
            self._peering.clear()
            self._peering.add_members(now=now, wall_ns=wall_ns)
        # One that changes nobody's membership (a new password) must survive a restart too: older ones are refused.
        is_news = bool(events) or self.roster.charter is not self._kept_charter
        if is_news:
            self._kept_charter = self.roster.charter
            self._events.append(StateChanged())
            self.membership.reconcile(now=now, wall=_seconds(wall_ns))
            self.gossip.note_change()
        return is_news

    def _settle_gossip(self, now: float) -> None:
        if self.membership.own_record is not self._told_record:
            self._told_record = self.membership.own_record
            self.gossip.note_change()
            self._events.append(StateChanged())
        for identity, is_connected in self._peering.take_connections():
            if is_connected:
                self.gossip.handle_connected(identity, now=now)
            else:
                self.gossip.handle_gone(identity)
        self.gossip.follow(is_attached=self.session.is_attached, now=now)
        self._events += self.gossip.take_events()

    # Copies of us (clones.py).

    def _stand_down(self, now: float) -> None:
        self._tell_clone(CloneSight.REFUSED, None, now)
        self._quiet_until, self._starts_by = now + clones.STAND_DOWN, None
        self._peering.handle_stop()
        self.gossip.handle_stop()

    def _stand_up(self, now: float) -> None:
        if self._quiet_until is not None:
            self._quiet_until, self._starts_by = None, now

    def _tell_clone(self, sight: CloneSight, member: Member | None, now: float) -> None:
        about = None if member is None else member.identity
        if now >= self._clones_told.get((sight, about), now):
            self._clones_told[sight, about] = now + clones.TOLD_FOR
            self._events.append(CloneSeen(sight, member))

    def _update_epoch_keys(self, now: float, wall_ns: int) -> None:
        self._peering.handle_epoch_keys(wall_ns=wall_ns)
        left = self.roster.previous_epoch_left(wall=_seconds(wall_ns))
        self._epoch_lapses_at = None if left is None else now + left

    def _settle_gatherer(self, now: float) -> None:
        for event in self._gatherer.take_events():
            self._peering.handle_candidates(event.candidates, event.nat, now=now)
        if self._gatherer.is_complete:
            self._peering.offers.release(now=now)

    def _settle_binding(self, now: float) -> None:
        for event in self._binding.take_events():
            match event:
                case RelayBound(server=server, socket=socket):
                    # The new id counts only now: what came from it before would have been refused.
                    self._peering.handle_relay((server, socket, self._relay_id), now=now)
                case RelayUnbound():
                    self._peering.handle_relay(None, now=now)
                case UdpPasses():
                    self._gatherer.handle_doubt(now=now)
                    self._peering.handle_udp_passes(now=now)
                case StreamWanted() | StreamUnwanted():
                    self._events.append(event)

    def _count(self, reason: DropReason | None) -> None:
        if reason is not None:
            self.drops[reason] += 1


def _seconds(wall_ns: int) -> int:
    return wall_ns // 1_000_000_000
