"""The roster: charter, epoch keys and records of one network as one member sees them.

What comes from the server or from other members is checked here and nowhere else; the server's word counts for nothing.
What was refused leaves all as it was. Nobody is removed by silence: only by an eviction in a genuine charter, or by the
member's own signed leave. Whoever had a nick, an address or a tunnel key first keeps it until it leaves or is evicted.

Members that have seen the same charters, in whatever order and however often, agree (lines.py); the same holds for
records, approvals and leaves, each of which stands alone and may come from anybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import msgspec

from . import keys as key_rules
from .acts import Kind
from .approvals import Approvals
from .charter import Charter, Invite, Settings, admins_of, is_banned, may_sign_for_network, needs_approval
from .claims import Claims
from .control import MAX_MEMBERS, MemberEntry
from .drops import DropReason
from .epochs import EpochKey, EpochKeys
from .errors import MalformedMessage
from .invites import MAX_INVITATION
from .keys import Identity
from .lines import Lines
from .member import (
    EpochChanged,
    Member,
    MemberAdded,
    MemberChanged,
    MemberRemoved,
    NetworkDeleted,
    Noted,
    Pending,
    RosterEvent,
    SelfEvicted,
    SelfReinstated,
)
from .notes import Notes
from .record import Record, check_envelope, check_leave, check_record
from .signed import Signed

MAX_FORMER = 4096
"""Former members whose nick and last sequence are remembered."""
MAX_LEAVES = 256
"""Of those, how many farewells are passed on to members that did not hear them."""
MAX_PENDING = 64
"""Members that wait for an approval: who knows the password can make any number."""


class StoredMember(msgspec.Struct, frozen=True, array_like=True):
    """A member's own signed record, and the epoch in which it became known."""

    record: Signed
    epoch: int


class FormerMember(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered of who left or was evicted, so that an old record does not bring it back."""

    nick: str
    sequence: int
    """The highest one that is refused."""
    left_at: int = 0
    """Records of who joined no later are refused; 0 if it was evicted."""
    leave: Signed | None = None
    """Its farewell, if it left."""


class RosterState(msgspec.Struct, array_like=True):
    """Everything that must survive a restart."""

    charter: Signed
    epoch_keys: list[EpochKey]
    members: list[StoredMember]
    former: dict[bytes, FormerMember]
    lines: list[Signed] = []
    """Charters of other lines than `charter`'s."""
    approvals: list[Signed] = []
    acts: list[Signed] = []
    """Those of the charters that were noted."""


class Roster:
    """One member's view. `wall` is Unix time in seconds."""

    def __init__(self, uid: bytes, identity: Identity, state: RosterState) -> None:
        self.uid = uid
        self.drops: Counter[DropReason] = Counter()
        self._identity = identity
        self._lines = Lines([state.charter, *state.lines])
        self._epochs = EpochKeys(uid, identity, state.epoch_keys)
        self._approvals = Approvals(self._lines.merged, state.approvals)
        self._former = dict(state.former)
        self._stored: dict[bytes, StoredMember] = {}
        self._members: dict[bytes, Member] = {}
        self._invitations: dict[bytes, Signed] = {}
        self._claims = Claims()
        self._notes = Notes(uid, state.acts, self.nick_of, self._epochs.open)
        self._events: list[RosterEvent] = []
        for stored in state.members:
            self._restore(stored)

    def reserve(self, address: str, tunnel_key: bytes) -> None:
        """Our own address and tunnel key, which no other member may claim."""
        self._claims.reserve(self._identity.public, address, tunnel_key)

    @property
    def members(self) -> Mapping[bytes, Member]:
        """The others, by identity, in the order in which they became known."""
        return self._members

    @property
    def pending(self) -> list[Pending]:
        """Those of them that wait for an approval."""
        return [
            Pending(member.identity, member.nick, member.address, member.joined_at)
            for member in self._members.values()
            if member.is_pending
        ]

    @property
    def invitations(self) -> Mapping[bytes, Signed]:
        """By which those who are pending came, as far as they came by an invite; unchecked."""
        return self._invitations

    @property
    def charter(self) -> Charter:
        """The greatest charter seen, with the evictions of all that were seen."""
        return self._lines.merged

    @property
    def _charter(self) -> Charter:
        return self._lines.merged

    @property
    def lines(self) -> Lines:
        """The charters from which it follows."""
        return self._lines

    @property
    def signed_charter(self) -> Signed:
        """The greatest charter as it was signed."""
        return self._lines.greatest

    @property
    def admins(self) -> list[bytes]:
        """Whom the owner delegated to."""
        return admins_of(self._charter)

    @property
    def invites(self) -> list[Invite]:
        """Those that were given out, used up ones and expired ones included."""
        return list(self._charter.invites)

    @property
    def epoch_key(self) -> bytes:
        """The newest epoch key that we have."""
        return self._epochs.newest.key

    @property
    def mesh_prefixes(self) -> list[IPv4Network | IPv6Network]:
        """The tunnel's inside: no address in there leads to a peer."""
        return [IPv4Network(self._charter.pool), key_rules.ula_prefix(self.uid)]

    @property
    def key_epoch(self) -> int:
        """The number of that key's epoch; lower than the charter's while nobody has given us the newest key."""
        return self._epochs.newest.epoch

    @property
    def settings(self) -> Settings:
        """What only members can read. Raises MembershipError if we don't have the charter's epoch key."""
        return self._epochs.settings(self._charter)

    @property
    def is_evicted(self) -> bool:
        """True if the newest charter bans us."""
        return is_banned(self._charter, self._identity.public)

    @property
    def is_over(self) -> bool:
        """True if the network is no more, at least for us: nobody is to be talked to."""
        return self._charter.is_deleted or self.is_evicted

    def role(self, owner: Identity | None) -> str:
        """What this host may do: owner, admin or member."""
        if owner is not None and owner.public == self._charter.owner:
            return "owner"
        return "admin" if may_sign_for_network(self._charter, self._identity.public) else "member"

    def records(self) -> dict[bytes, Signed]:
        """Every other member's own signed record."""
        return {identity: stored.record for identity, stored in self._stored.items()}

    def charters(self) -> list[Signed]:
        """What another member needs in order to see the charter as we do, the greatest first."""
        return self._lines.news()

    def approvals(self) -> list[Signed]:
        """Every approval that is worth something."""
        return self._approvals.export()

    def approval_of(self, identity: bytes) -> Signed | None:
        """An identity's approval, if it is worth something."""
        return self._approvals.get(identity)

    def is_approved(self, identity: bytes) -> bool:
        """True for who may take part in a network with access `approve`."""
        return self._approvals.has(identity)

    def approved_members(self) -> list[bytes]:
        """Everybody who takes part, ourselves included."""
        everybody = [self._identity.public, *self._members]
        return [identity for identity in everybody if not self._is_pending(identity)]

    def forgotten(self) -> dict[bytes, Signed]:
        """Records of members that were there before the epoch began and were not given its key."""
        charter = self._charter
        return {
            identity: stored.record
            for identity, stored in self._stored.items()
            if stored.epoch < charter.epoch and identity not in charter.grants and not self._is_pending(identity)
        }

    def approved_by(self, locator: bytes) -> int:
        """How many were approved because they had this invite."""
        return self._approvals.used(locator)

    def leaves(self) -> list[Signed]:
        """The last farewells."""
        return [former.leave for former in self._former.values() if former.leave is not None][-MAX_LEAVES:]

    def nick_of(self, identity: bytes) -> str:
        """The last one known, "owner" for the network's own key; empty if unknown."""
        if identity == self._charter.owner:
            return "owner"
        known = self._members.get(identity) or self._former.get(identity)
        return "" if known is None else known.nick

    def former_nicks(self) -> dict[bytes, str]:
        """Nicks of identities that are banned now."""
        return {
            identity: self._former[identity].nick if identity in self._former else ""
            for identity in self._charter.evicted
            if is_banned(self._charter, identity)
        }

    def preshared_keys(self, member: Member, own_tunnel_key: bytes, *, wall: int) -> list[bytes]:
        """The pair's preshared keys, newest epoch first; the previous one for 24 hours at most."""
        # Not those of before we knew it: whoever was evicted in between could have brought it in.
        since = self._stored[member.identity].epoch if member.identity in self._stored else 0
        return self._epochs.preshared_keys(member.tunnel_key, own_tunnel_key, since=since, wall=wall)

    def lan_tags(self, identity: bytes) -> list[bytes]:
        """By which members recognise this one in a LAN, newest epoch first."""
        return self._epochs.lan_tags(identity)

    def previous_epoch_left(self, *, wall: int) -> int | None:
        """Seconds until `preshared_keys` are fewer; None if they stay."""
        return self._epochs.previous_left(wall=wall)

    def seal_for_members(self, plaintext: bytes, entropy: Callable[[int], bytes]) -> bytes:
        """Seal so that members can read it and the server cannot."""
        return self._epochs.seal(plaintext, entropy)

    def open_from_members(self, sealed: bytes) -> bytes | None:
        """Open what a member sealed in this epoch or the one before."""
        return self._epochs.open(sealed)

    def open_envelope(self, signed: Signed | None) -> Signed | None:
        """The member-signed record inside an envelope, unchecked; None if there is none that we can open, or if it is
        sealed under an older key than we have."""
        if signed is None:
            return None
        try:
            envelope = check_envelope(signed, self._charter)
            return self._epochs.open_envelope(envelope) if envelope.epoch == self.key_epoch else None
        except MalformedMessage:
            return None

    def export(self) -> RosterState:
        """For the disk."""
        return RosterState(
            self._lines.greatest,
            self._epochs.export(),
            list(self._stored.values()),
            dict(self._former),
            self._lines.export()[1:],
            self._approvals.export(),
            [act for act in self._charter.acts if act in self._notes.acts],
        )

    def take_events(self) -> list[RosterEvent]:
        """What changed; clears."""
        events, self._events = self._events, []
        return events

    # What comes from outside.

    def handle_charter(self, signed: Signed, members: Sequence[MemberEntry], *, wall: int) -> DropReason | None:
        """A charter, perhaps newer, and the members' entries that came with it (sealed under its epoch)."""
        if signed != self._lines.greatest:
            try:
                self._merge(signed, wall)
            except MalformedMessage as error:
                return self._drop(error.reason)
        self._note_acts(wall)
        for entry in members[:MAX_MEMBERS]:
            self.handle_entry(entry, wall=wall)
        return None

    def handle_entry(self, entry: MemberEntry, *, wall: int) -> DropReason | None:
        """One member's entry. Of our own only the approval counts."""
        if entry.approval is not None and entry.approval != self._approvals.get(entry.identity):
            self.handle_approval(entry.approval, wall=wall)
        if entry.envelope is None or entry.identity == self._identity.public:
            return None
        try:
            envelope = check_envelope(entry.envelope, self._charter)
            if envelope.identity != entry.identity or envelope.address != entry.address:
                raise MalformedMessage(DropReason.NOT_FOR_US)
            if envelope.epoch != self._charter.epoch and entry.identity not in self._members:
                # The previous epoch is good only for who was known before the rotation.
                raise MalformedMessage(DropReason.STALE)
            signed = self._epochs.open_envelope(envelope)
            if signed is None:
                raise MalformedMessage(DropReason.DECRYPT_FAILED)
            record = check_record(signed, self._charter)
            if record.identity != envelope.identity or record.address != envelope.address:
                raise MalformedMessage(DropReason.NOT_FOR_US)
            self._accept(record, signed, wall)
        except MalformedMessage as error:
            return self._drop(error.reason)
        invitation = entry.invitation
        if invitation is not None and len(invitation.body) <= MAX_INVITATION and self._is_pending(entry.identity):
            self._invitations[entry.identity] = invitation
        return None

    def handle_record(self, signed: Signed, *, wall: int) -> DropReason | None:
        """A member's own record that another member passed on, through the tunnel. Our own is passed over."""
        if signed.signer == self._identity.public:
            return None
        stored = self._stored.get(signed.signer)
        if stored is not None and stored.record == signed:
            return DropReason.STALE
        try:
            self._accept(check_record(signed, self._charter), signed, wall)
        except MalformedMessage as error:
            return self._drop(error.reason)
        return None

    def handle_approval(self, signed: Signed, *, wall: int) -> DropReason | None:
        """Somebody is approved, perhaps somebody whom we don't know yet."""
        try:
            approval = self._approvals.add(signed, self._charter)
        except MalformedMessage as error:
            return self._drop(error.reason)
        self._note(Kind.APPROVE, signed, approval.approved_at, approval.identity, wall)
        if (member := self._members.get(approval.identity)) is not None:
            self._refresh(member)
        return None

    def handle_leave(self, signed: Signed, *, wall: int) -> DropReason | None:
        """A member's own farewell."""
        try:
            leave = check_leave(signed, self.uid)
        except MalformedMessage as error:
            return self._drop(error.reason)
        member = self._members.get(leave.identity)
        if member is None or leave.left_at < member.joined_at:
            return self._drop(DropReason.STALE)
        # Who left is back only with a new join; who was evicted and unbanned is back with the record that it had.
        self._remove(member, "left", FormerMember(member.nick, member.sequence, leave.left_at, signed))
        self._note(Kind.LEFT, signed, leave.left_at, leave.identity, wall)
        return None

    # Inside.

    def _merge(self, signed: Signed, wall: int) -> None:
        before, was_evicted = self._charter, self.is_evicted
        self._lines.add(signed)
        charter = self._charter
        self._approvals.follow(charter)
        if self._epochs.adopt(charter, before, wall=wall):
            self._events.append(EpochChanged(charter.epoch))
        for member in list(self._members.values()):
            if is_banned(charter, member.identity):
                self._remove(member, "evicted", FormerMember(member.nick, member.sequence - 1))
            else:
                self._refresh(member)
        if self.is_evicted != was_evicted:
            self._events.append(SelfEvicted() if self.is_evicted else SelfReinstated())
        if charter.is_deleted and not before.is_deleted:
            self._events.append(NetworkDeleted())

    def _note_acts(self, wall: int) -> None:
        entries, forged = self._notes.of_acts(self._charter.acts, wall=wall)
        self._events += map(Noted, entries)
        self.drops[DropReason.BAD_SIGNATURE] += forged

    def _note(self, kind: Kind, evidence: Signed, at: int, subject: bytes, wall: int) -> None:
        self._events.append(Noted(self._notes.of(kind, evidence, at, subject, wall=wall)))

    def _accept(self, record: Record, signed: Signed, wall: int) -> None:
        if is_banned(self._charter, record.identity):
            raise MalformedMessage(DropReason.NOT_FOR_US)
        old = self._members.get(record.identity)
        if old is None:
            self._check_room(record.identity)
        former = self._former.get(record.identity)
        if former is not None and (record.sequence <= former.sequence or record.joined_at <= former.left_at):
            raise MalformedMessage(DropReason.STALE)
        self._claims.check(record)
        stored = StoredMember(signed, self._charter.epoch)
        if old is not None:
            before = self._stored[old.identity]
            # A member that used a number twice: all others settle on the same one, and none alternates.
            if (record.sequence, signed.body) < (old.sequence, before.record.body):
                raise MalformedMessage(DropReason.STALE)
            stored = StoredMember(signed, before.epoch)
            self._claims.forget(old)
        new = self._member(record)
        self._put(new, stored)
        self._former.pop(record.identity, None)
        if old is None:
            self._events.append(MemberAdded(new))
            self._note(Kind.JOINED, signed, record.joined_at, record.identity, wall)
        elif old != new:
            self._events.append(MemberChanged(old, new))

    def _check_room(self, identity: bytes) -> None:
        is_full = len(self._members) >= MAX_MEMBERS
        if is_full or (self._is_pending(identity) and len(self.pending) >= MAX_PENDING):
            raise MalformedMessage(DropReason.OVER_LIMIT)

    def _put(self, member: Member, stored: StoredMember) -> None:
        self._stored[member.identity] = stored
        self._members[member.identity] = member
        self._claims.put(member)

    def _refresh(self, member: Member) -> None:
        """An approval came, or a charter that changes what approvals are worth."""
        new = replace(member, is_pending=self._is_pending(member.identity))
        if not new.is_pending:
            self._invitations.pop(member.identity, None)
        if new != member:
            self._members[member.identity] = new
            self._events.append(MemberChanged(member, new))

    def _remove(self, member: Member, reason: str, former: FormerMember) -> None:
        del self._members[member.identity]
        del self._stored[member.identity]
        self._invitations.pop(member.identity, None)
        self._claims.forget(member)
        self._former[member.identity] = former
        while len(self._former) > MAX_FORMER:
            del self._former[next(iter(self._former))]
        self._events.append(MemberRemoved(member, reason))

    def _member(self, record: Record) -> Member:
        return Member(
            identity=record.identity,
            address=record.address,
            address6=str(key_rules.address6(self.uid, record.tunnel_key)),
            nick=self._claims.nick_for(record),
            tunnel_key=record.tunnel_key,
            disco_key=record.disco_key,
            joined_at=record.joined_at,
            sequence=record.sequence,
            software=record.software,
            subnets=tuple(record.subnets),
            facts=record.facts,
            is_pending=self._is_pending(record.identity),
            relays=record.relays,
        )

    def _is_pending(self, identity: bytes) -> bool:
        return needs_approval(self._charter) and not self._approvals.has(identity)

    def _restore(self, stored: StoredMember) -> None:
        try:
            record = check_record(stored.record, self._charter)
            self._claims.check(record)
        except MalformedMessage as error:
            self.drops[error.reason] += 1
            return
        if not is_banned(self._charter, record.identity):
            self._put(self._member(record), stored)

    def _drop(self, reason: DropReason) -> DropReason:
        self.drops[reason] += 1
        return reason
