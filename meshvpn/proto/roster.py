"""The roster: charter, epoch keys and records of one network as one member sees them.

What comes from the server or from other members is checked here and nowhere else; the server's word counts for nothing.
What was refused leaves all as it was. Nobody is removed by silence: only by an eviction in a genuine charter, or by the
member's own signed leave. Whoever had a nick, an address or a tunnel key first keeps it until it leaves or is evicted.

Of two lines of charters (admins that were cut off from each other) the greater one counts, with the evictions of both;
so members that have seen the same charters, in whatever order and however often, agree. See charter.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import msgspec

from . import keys as key_rules
from .charter import (
    Charter,
    Settings,
    check_genuine,
    check_lineage,
    decode_charter,
    is_banned,
    merge,
    merge_versions,
    newer_admins,
    rank,
)
from .control import MAX_APPROVAL, MAX_MEMBERS, MemberEntry
from .drops import DropReason
from .epochs import EpochKey, EpochKeys
from .errors import MalformedMessage
from .keys import Identity
from .member import (
    EpochChanged,
    Member,
    MemberAdded,
    MemberChanged,
    MemberRemoved,
    NetworkDeleted,
    RosterEvent,
    SelfEvicted,
    SelfReinstated,
)
from .record import Record, check_envelope, check_leave, check_record, is_approved, may_sign_for_network
from .signed import Signed

MAX_FORMER = 4096
"""Former members whose nick and last sequence are remembered."""


class StoredMember(msgspec.Struct, frozen=True, array_like=True):
    """A member's own signed record, and its approval."""

    record: Signed
    approval: Signed | None


class FormerMember(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered of who left or was evicted, so that an old record does not bring it back."""

    nick: str
    sequence: int
    """The highest one that is refused."""
    left_at: int = 0
    """Records of who joined no later are refused; 0 if it was evicted."""


class RosterState(msgspec.Struct, array_like=True):
    """Everything that must survive a restart."""

    charter: Signed
    epoch_keys: list[EpochKey]
    members: list[StoredMember]
    former: dict[bytes, FormerMember]
    evicted: dict[bytes, int] = {}
    unbanned: dict[bytes, int] = {}
    """The charter's, with those of other lines of charters merged in."""
    admins: Signed | None = None
    """The owner's newest list, of whichever line."""


class Roster:
    """One member's view. `wall` is Unix time in seconds."""

    def __init__(self, uid: bytes, identity: Identity, state: RosterState) -> None:
        self.uid = uid
        self.drops: Counter[DropReason] = Counter()
        self._identity = identity
        self._signed = state.charter
        charter = decode_charter(state.charter)
        self._charter = msgspec.structs.replace(
            charter,
            evicted=merge_versions(charter.evicted, state.evicted),
            unbanned=merge_versions(charter.unbanned, state.unbanned),
            admins=newer_admins(charter.admins, state.admins),
        )
        self._epochs = EpochKeys(uid, identity, state.epoch_keys)
        self._former = dict(state.former)
        self._stored: dict[bytes, StoredMember] = {}
        self._members: dict[bytes, Member] = {}
        self._nicks: dict[str, bytes] = {}
        self._claims: dict[str | bytes, bytes] = {}
        """Whose an address, a tunnel key or a disco key is."""
        self._events: list[RosterEvent] = []
        for stored in state.members:
            self._restore(stored)

    def reserve(self, address: str, tunnel_key: bytes) -> None:
        """Our own address and tunnel key, which no other member may claim."""
        for claim in (address, tunnel_key):
            self._claims[claim] = self._identity.public

    @property
    def members(self) -> Mapping[bytes, Member]:
        """The others, by identity, in the order in which they became known."""
        return self._members

    @property
    def charter(self) -> Charter:
        """The greatest charter seen, with the evictions of all that were seen."""
        return self._charter

    @property
    def signed_charter(self) -> Signed:
        """That charter as it was signed."""
        return self._signed

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

    def former_nicks(self) -> dict[bytes, str]:
        """Nicks of identities that are banned now."""
        return {
            identity: self._former[identity].nick if identity in self._former else ""
            for identity in self._charter.evicted
            if is_banned(self._charter, identity)
        }

    def preshared_keys(self, member: Member, own_tunnel_key: bytes, *, wall: int) -> list[bytes]:
        """The pair's preshared keys, newest epoch first; the previous one for 24 hours at most."""
        return self._epochs.preshared_keys(member.tunnel_key, own_tunnel_key, wall=wall)

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
        """The member-signed record inside an envelope, unchecked; None if there is none that we can open."""
        if signed is None:
            return None
        try:
            return self._epochs.open_envelope(check_envelope(signed, self._charter))
        except MalformedMessage:
            return None

    def export(self) -> RosterState:
        """For the disk."""
        return RosterState(
            self._signed,
            self._epochs.export(),
            list(self._stored.values()),
            dict(self._former),
            dict(self._charter.evicted),
            dict(self._charter.unbanned),
            self._charter.admins,
        )

    def take_events(self) -> list[RosterEvent]:
        """What changed; clears."""
        events, self._events = self._events, []
        return events

    # What comes from outside.

    def handle_charter(self, signed: Signed, members: Sequence[MemberEntry], *, wall: int) -> DropReason | None:
        """A charter, perhaps newer, and the members' entries that came with it (sealed under its epoch)."""
        if signed != self._signed:
            try:
                self._merge(signed, wall)
            except MalformedMessage as error:
                return self._drop(error.reason)
        for entry in members[:MAX_MEMBERS]:
            self.handle_entry(entry, wall=wall)
        return None

    def handle_entry(self, entry: MemberEntry, *, wall: int) -> DropReason | None:
        """One member's entry. Our own is passed over."""
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
            self._accept(record, StoredMember(signed, _bounded(entry.approval)))
        except MalformedMessage as error:
            return self._drop(error.reason)
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
        self._remove(member, "left", FormerMember(member.nick, member.sequence, leave.left_at))
        return None

    # Inside.

    def _merge(self, signed: Signed, wall: int) -> None:
        charter = check_genuine(signed)
        check_lineage(signed, charter, self._charter)
        if rank(signed, charter) > rank(self._signed, self._charter):
            self._adopt(signed, merge(charter, self._charter), wall)
            return
        merged = merge(self._charter, charter)
        if merged == self._charter:
            raise MalformedMessage(DropReason.STALE)
        self._adopt(self._signed, merged, wall)

    def _adopt(self, signed: Signed, charter: Charter, wall: int) -> None:
        was_evicted, was_deleted = self.is_evicted, self._charter.is_deleted
        if self._epochs.adopt(charter, self._charter, wall=wall):
            self._events.append(EpochChanged(charter.epoch))
        self._signed, self._charter = signed, charter
        for member in list(self._members.values()):
            if is_banned(charter, member.identity):
                self._remove(member, "evicted", FormerMember(member.nick, member.sequence - 1))
            else:
                self._refresh(member)
        if self.is_evicted != was_evicted:
            self._events.append(SelfEvicted() if self.is_evicted else SelfReinstated())
        if charter.is_deleted and not was_deleted:
            self._events.append(NetworkDeleted())

    def _accept(self, record: Record, stored: StoredMember) -> None:
        if is_banned(self._charter, record.identity):
            raise MalformedMessage(DropReason.NOT_FOR_US)
        old = self._members.get(record.identity)
        if old is None and len(self._members) >= MAX_MEMBERS:
            raise MalformedMessage(DropReason.OVER_LIMIT)
        former = self._former.get(record.identity)
        if former is not None and (record.sequence <= former.sequence or record.joined_at <= former.left_at):
            raise MalformedMessage(DropReason.STALE)
        self._check_claims(record)
        if old is not None:
            stored = self._newer(old, record, stored)
            self._forget(old)
        new = self._member(record, stored)
        self._put(new, stored)
        self._former.pop(record.identity, None)
        if old is None:
            self._events.append(MemberAdded(new))
        elif old != new:
            self._events.append(MemberChanged(old, new))

    def _check_claims(self, record: Record) -> None:
        for claim in _claims(record):
            if self._claims.get(claim, record.identity) != record.identity:
                raise MalformedMessage(DropReason.UNEXPECTED)

    def _newer(self, member: Member, record: Record, new: StoredMember) -> StoredMember:
        """`new`, with the approval that is worth more: who keeps one back must not make a member pending."""
        old = self._stored[member.identity]
        # A member that used a number twice: all others settle on the same one, and none alternates.
        if (record.sequence, new.record.body) < (member.sequence, old.record.body):
            raise MalformedMessage(DropReason.STALE)
        is_lost = not is_approved(new.approval, member.identity, self._charter)
        if is_lost and is_approved(old.approval, member.identity, self._charter):
            return StoredMember(new.record, old.approval)
        return new

    def _put(self, member: Member, stored: StoredMember) -> None:
        self._stored[member.identity] = stored
        self._members[member.identity] = member
        self._nicks[member.nick.casefold()] = member.identity
        for claim in _claims(member):
            self._claims[claim] = member.identity

    def _forget(self, member: Member) -> None:
        del self._nicks[member.nick.casefold()]
        for claim in _claims(member):
            del self._claims[claim]

    def _refresh(self, member: Member) -> None:
        """The new charter may change what an approval is worth."""
        new = replace(member, is_pending=self._is_pending(self._stored[member.identity]))
        if new != member:
            self._members[member.identity] = new
            self._events.append(MemberChanged(member, new))

    def _remove(self, member: Member, reason: str, former: FormerMember) -> None:
        del self._members[member.identity]
        del self._stored[member.identity]
        self._forget(member)
        self._former[member.identity] = former
        while len(self._former) > MAX_FORMER:
            del self._former[next(iter(self._former))]
        self._events.append(MemberRemoved(member, reason))

    def _member(self, record: Record, stored: StoredMember) -> Member:
        return Member(
            identity=record.identity,
            address=record.address,
            address6=str(key_rules.address6(self.uid, record.tunnel_key)),
            nick=self._unique_nick(record),
            tunnel_key=record.tunnel_key,
            disco_key=record.disco_key,
            joined_at=record.joined_at,
            sequence=record.sequence,
            software=record.software,
            subnets=tuple(record.subnets),
            facts=record.facts,
            is_pending=self._is_pending(stored),
            relays=record.relays,
        )

    def _is_pending(self, stored: StoredMember) -> bool:
        identity = stored.record.signer
        return self._charter.access == "approve" and not is_approved(stored.approval, identity, self._charter)

    def _unique_nick(self, record: Record) -> str:
        nick, number = record.nick, 2
        while self._nicks.get(nick.casefold(), record.identity) != record.identity:
            nick, number = f"{record.nick}-{number}", number + 1
        return nick

    def _restore(self, stored: StoredMember) -> None:
        try:
            record = check_record(stored.record, self._charter)
            self._check_claims(record)
        except MalformedMessage as error:
            self.drops[error.reason] += 1
            return
        if not is_banned(self._charter, record.identity):
            self._put(self._member(record, stored), stored)

    def _drop(self, reason: DropReason) -> DropReason:
        self.drops[reason] += 1
        return reason


def _bounded(approval: Signed | None) -> Signed | None:
    """What is kept on the disk for a member has a size, whatever the server sends."""
    if approval is None or len(approval.body) + len(approval.signer) + len(approval.signature) > MAX_APPROVAL:
        return None
    return approval


def _claims(member: Record | Member) -> tuple[str, bytes, bytes]:
    """What only one member may have. Two with one disco key could answer each other's probes."""
    return member.address, member.tunnel_key, member.disco_key
