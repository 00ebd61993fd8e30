"""What a member does in its network: publishes its record, and, as owner or admin, changes the charter. Pure.

A change is asked of the server and counts once that has it. If somebody else changed the charter meanwhile, it is made
anew on top of that. Without the server, evictions and approvals count at once and are passed on by the members; the
server is told when it is back, by whoever reaches it first (`reconcile`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from . import control, disco, names, owner, primitives, repair
from .acts import Kind
from .audit import Entry
from .charter import is_banned
from .control import MemberEntry, RefusalCode
from .control_session import ControlSession
from .drafts import CharterUpdate
from .errands import Errands
from .errors import MalformedMessage, MembershipError
from .events import ActionFinished
from .invites import check_invitation, invite_keys
from .keys import Identity, NetworkKeys, network_uid
from .member import Member
from .owner import PasswordRule
from .record import check_record, record_of
from .roster import Roster
from .signed import Signed

MAX_TRIES = 4
"""Times that a change is made anew because somebody else's came first."""
MAX_PASSED_OVER = 256
"""Invitations that do not hold and are not checked again: a server can make any number."""
DONE_HERE = "done here and told to the members that are reached; the rendezvous is told as soon as it answers"


@dataclass(frozen=True, slots=True, repr=False)
class MemberKeys:
    """The secrets of one member, 32 bytes each. `disco` is made anew at each start of the daemon."""

    identity: Identity
    tunnel: bytes
    disco: bytes
    network_owner: Identity | None = None
    """The network's own key pair, on the PBX that created it."""

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"MemberKeys({self.identity!r})"


@dataclass(frozen=True, slots=True)
class Profile:
    """What our record says besides keys."""

    address: str
    nick: str
    software: str
    joined_at: int
    relays: bool = True


@dataclass(slots=True)
class _Change:
    """A change of the charter under way. `rid` is the number that the user knows, None for one of our own."""

    make: Callable[[int], CharterUpdate]
    update: CharterUpdate
    rid: int | None
    needs_server: bool
    tries: int = 1


class Membership:
    """Our part in one network. Requests are numbered; `handle_finished` says what became of them."""

    def __init__(
        self,
        keys: MemberKeys,
        profile: Profile,
        roster: Roster,
        session: ControlSession,
        own_record: Signed | None,
        *,
        entropy: Callable[[int], bytes],
    ) -> None:
        self.profile = profile
        self.own_record = own_record
        self._keys = keys
        self._roster = roster
        self._session = session
        self._entropy = entropy
        self.tunnel_public = primitives.x25519_public(keys.tunnel)
        roster.reserve(profile.address, self.tunnel_public)
        self._changes: dict[int, _Change] = {}
        self._approving: set[int] = set()
        self._repair: int | None = None
        """The change under way that nobody asked for."""
        self._passed_over: set[Signed] = set()
        """Invitations that do not hold."""
        self.errands = Errands(roster, session)

    # The charter. Each raises MembershipError; the number is a request's.

    def evict(self, peer: str, password: PasswordRule | NetworkKeys, *, now: float, wall: int) -> int:
        """Put a member out for good."""
        target = self.find_member(peer).identity
        is_new = isinstance(password, NetworkKeys)
        return self._change(lambda wall: self._evict(target, password, wall), now, wall, needs_server=is_new)

    def reject(self, peer: str, *, now: float, wall: int) -> int:
        """Send away who waits for an approval. It knows the epoch key, so that changes; the password stays."""
        target = self._find_pending(peer).identity
        keep = PasswordRule.KEEP
        return self._change(lambda wall: self._evict(target, keep, wall, Kind.REJECT), now, wall)

    def unban(self, peer: str, *, now: float, wall: int) -> int:
        """Let an evicted identity join again."""
        target = self.find_banned(peer)
        return self._change(lambda wall: owner.unban(self._roster, self._signer, target, wall=wall), now, wall)

    def change_password(self, keys: NetworkKeys, *, now: float, wall: int) -> int:
        """Set the password for who joins from now on."""
        return self._change(
            lambda wall: owner.change_password(self._roster, self._signer, keys, entropy=self._entropy, wall=wall),
            now,
            wall,
            needs_server=True,
        )

    def set_access(self, mode: str, *, now: float, wall: int) -> int:
        """Say who may join: the server must know, since it lets them in."""
        return self._change(
            lambda wall: owner.set_access(self._roster, self._signer, mode, wall=wall), now, wall, needs_server=True
        )

    def add_admin(self, peer: str, *, now: float, wall: int) -> int:
        """Delegate to a member; the owner only."""
        target = self.find_member(peer).identity
        return self._change(lambda wall: self._set_admins(Kind.ADMIN_ADD, target, wall), now, wall)

    def remove_admin(self, peer: str, *, now: float, wall: int) -> int:
        """Take it back; the owner only."""
        target = names.find_admin(self._roster, peer)
        return self._change(lambda wall: self._set_admins(Kind.ADMIN_REMOVE, target, wall), now, wall)

    def invite(self, secret: bytes, uses: int, ttl: int, *, now: float, wall: int) -> int:
        """Let in who has the code of this secret (16 bytes), so many times and for so many seconds."""
        keys = invite_keys(secret)
        return self._change(
            lambda wall: owner.invite(
                self._roster, self._signer, keys, uses=uses, ttl=ttl, entropy=self._entropy, wall=wall
            ),
            now,
            wall,
            needs_server=True,
        )

    def revoke_invite(self, text: str, *, now: float, wall: int) -> int:
        """Let nobody in by it any more; `text` is the start of its locator."""
        locator = names.find_invite(self._roster, text).locator
        return self._change(
            lambda wall: owner.revoke_invite(self._roster, self._signer, locator, wall=wall),
            now,
            wall,
            needs_server=True,
        )

    def approve(self, peer: str, *, now: float, wall: int) -> int:
        """Let in who waits for it."""
        approval = owner.approve(self._roster, self._signer, self._find_pending(peer).identity, wall=wall)
        self._roster.handle_approval(approval, wall=wall)
        rid = self._session.request(lambda rid: control.PutApproval(rid=rid, approval=approval), now=now)
        self._approving.add(rid)
        return rid

    def delete(self, *, now: float, wall: int) -> int:
        """End the network for everybody."""
        return self._change(
            lambda wall: owner.delete_network(self._roster, self._signer, wall=wall), now, wall, needs_server=True
        )

    def leave(self, *, now: float, wall: int) -> int:
        """Leave for good."""
        leave = owner.make_leave(self._roster.uid, self._keys.identity, wall=wall)
        return self._session.request(lambda rid: control.PutLeave(rid=rid, leave=leave), now=now)

    def import_owner(self, key: Identity) -> None:
        """From now on we may do what the owner may. Raises MembershipError for another network's key."""
        if network_uid(key.public) != self._roster.uid:
            raise MembershipError("that is the owner's key of another network")
        self._keys = replace(self._keys, network_owner=key)

    def handle_finished(
        self, rid: int, code: str | None, message: str, *, now: float, wall: int
    ) -> ActionFinished | None:
        """A request ended. What the user is told; None: nothing, or not yet."""
        change = self._changes.pop(rid, None)
        if rid == self._repair:
            self._repair = None
        if change is not None:
            return self._finish(change, code, message, now, wall)
        if self.errands.handle_finished(rid, code):
            self.reconcile(now=now, wall=wall)
            return None
        if rid in self._approving and code == RefusalCode.UNAVAILABLE:
            code, message = None, DONE_HERE
        self._approving.discard(rid)
        return ActionFinished(rid, code, message)

    def reconcile(self, *, now: float, wall: int) -> None:
        """Something changed: do what an admin's host does unasked, and tell the server what it lacks."""
        if self._roster.is_over:
            return
        has_key = self._roster.key_epoch == self._roster.charter.epoch
        if has_key and self._roster.role(self._signer) != "member":
            self._approve_invited(wall)
            for make in (self._overrule, self._join_lines, self._grant):
                if self._repair is None and (update := make(wall)) is not None:
                    self._publish(_Change(_again(make), update, None, needs_server=False), now)
        if self._repair is None:
            self.errands.run(lambda: self._sealed_records() if has_key else [], now=now)

    # Inside: changes.

    def _change(
        self, make: Callable[[int], CharterUpdate], now: float, wall: int, *, needs_server: bool = False
    ) -> int:
        change = _Change(make, make(wall), None, needs_server)
        change.rid = self._publish(change, now)
        return change.rid

    def _publish(self, change: _Change, now: float) -> int:
        update = change.update
        rid = self._session.request(
            lambda rid: control.PutCharter(rid=rid, charter=update.charter, envelopes=update.envelopes), now=now
        )
        self._changes[rid] = change
        if change.rid is None:
            self._repair = rid
        return rid

    def _finish(self, change: _Change, code: str | None, text: str, now: float, wall: int) -> ActionFinished | None:
        if code == RefusalCode.STALE_CHARTER and change.tries < MAX_TRIES:
            # What came first is known by now: the server tells everybody, and only then answers the next one.
            try:
                update = change.make(wall)
            except MembershipError as error:
                return _outcome(change, code, str(error))
            self._publish(replace(change, update=update, tries=change.tries + 1), now)
            return None
        if code is None:
            self.errands.handle_stored(change.update.charter)
        elif code != RefusalCode.UNAVAILABLE or change.needs_server:
            return _outcome(change, code, text)
        self._roster.handle_charter(change.update.charter, [], wall=wall)
        self.reconcile(now=now, wall=wall)
        return _outcome(change, None, "" if code is None else DONE_HERE)

    def _evict(
        self, target: bytes, password: PasswordRule | NetworkKeys, wall: int, kind: Kind = Kind.EVICT
    ) -> CharterUpdate:
        return owner.evict(
            self._roster,
            self._signer,
            self._keys.identity,
            self.own_record,
            target,
            password,
            entropy=self._entropy,
            wall=wall,
            kind=kind,
        )

    def _set_admins(self, kind: Kind, target: bytes, wall: int) -> CharterUpdate:
        others = [identity for identity in self._roster.admins if identity != target]
        admins = [*others, target] if kind is Kind.ADMIN_ADD else others
        if admins == self._roster.admins:
            raise MembershipError("that member is an admin already" if kind is Kind.ADMIN_ADD else "that is no admin")
        return owner.set_admins(self._roster, self._signer, admins, wall=wall, kind=kind, subject=target)

    def _overrule(self, wall: int) -> CharterUpdate | None:
        theirs = self.errands.usurped
        if theirs is None or is_banned(theirs, self._signer.public):
            return None
        return repair.overrule(
            self._roster,
            self._signer,
            self._keys.identity,
            self.own_record,
            theirs,
            entropy=self._entropy,
            wall=wall,
        )

    def _join_lines(self, wall: int) -> CharterUpdate | None:
        return repair.join_lines(
            self._roster, self._signer, self._keys.identity, self.own_record, entropy=self._entropy, wall=wall
        )

    def _grant(self, wall: int) -> CharterUpdate | None:
        return repair.grant_to_forgotten(self._roster, self._signer, entropy=self._entropy, wall=wall)

    def _sealed_records(self) -> list[Signed]:
        return repair.seal_records(self._roster, self._signer, self.own_record, entropy=self._entropy)

    # Inside: approvals.

    def _find_pending(self, text: str) -> Member:
        member = self.find_member(text)
        if not member.is_pending:
            raise MembershipError(f"{member.nick} is a member already; use `meshvpn evict` to put it out")
        return member

    def _approve_invited(self, wall: int) -> None:
        """Whoever has the code of an invite need not wait for a person. The server is told by an errand."""
        for identity, signed in list(self._roster.invitations.items()):
            if signed in self._passed_over:
                continue
            try:
                invite = check_invitation(signed, identity, self._roster.charter)
            except MalformedMessage:
                if len(self._passed_over) >= MAX_PASSED_OVER:
                    self._passed_over.clear()
                self._passed_over.add(signed)
                continue
            if self._roster.approved_by(invite.locator) < invite.uses:
                approval = owner.approve(self._roster, self._signer, identity, wall=wall, via=invite.locator)
                self._roster.handle_approval(approval, wall=wall)

    # Our record.

    def rename(self, nick: str, *, now: float, wall: int) -> int | None:
        """Take another nickname; None without a connection: the others learn it when there is one."""
        self.profile = replace(self.profile, nick=nick)
        return self.publish_record(now=now, wall=wall)

    def publish_record_if_missing(self, members: Sequence[MemberEntry], *, now: float, wall: int) -> None:
        """The server must hold our newest record; who resealed it for a new epoch may have had an older one."""
        own = next((entry for entry in members if entry.identity == self._keys.identity.public), None)
        held = self._roster.open_envelope(own.envelope) if own is not None else None
        if self._roster.is_over or not self.errands.is_epoch_known:
            return  # with a newer charter the server gets our record too
        if held is None or not self._is_current(held):
            self.publish_record(now=now, wall=wall)

    def publish_record(self, *, now: float, wall: int) -> int | None:
        """Sign a new record if ours is not of this run, and send it."""
        if self.own_record is None or not self._is_current(self.own_record):
            self.own_record = self._make_record(wall)
        if not self._session.is_attached:
            return None
        envelope = owner.seal_record(self._roster, self._keys.identity, self.own_record, entropy=self._entropy)
        return self._session.request(lambda rid: control.PutRecord(rid=rid, envelope=envelope), now=now)

    def is_double(self, signed: Signed) -> bool:
        """Is it a newer record of our own identity than ours? Then another host has our keys."""
        try:
            record = check_record(signed, self._roster.charter)
        except MalformedMessage:
            return False
        own = 0 if self.own_record is None else record_of(self.own_record).sequence
        is_ours = record.disco_key == disco.public_key(self._keys.disco)
        return record.identity == self._keys.identity.public and record.sequence > own and not is_ours

    def _is_current(self, signed: Signed) -> bool:
        record = record_of(signed)
        return (
            signed == self.own_record
            and record.disco_key == disco.public_key(self._keys.disco)
            and (record.nick, record.address) == (self.profile.nick, self.profile.address)
            and record.relays == self.profile.relays
        )

    def _make_record(self, wall: int) -> Signed:
        # Seconds since 1970 grow across restarts and lost state, so the newest record always has the highest number.
        previous = 0 if self.own_record is None else record_of(self.own_record).sequence
        made = owner.make_record(
            self._roster,
            self._keys.identity,
            address=self.profile.address,
            nick=self.profile.nick,
            tunnel_key=self.tunnel_public,
            disco_key=disco.public_key(self._keys.disco),
            joined_at=self.profile.joined_at,
            sequence=max(previous + 1, wall),
            software=self.profile.software,
            relays=self.profile.relays,
            entropy=self._entropy,
        )
        return made.record

    # Names.

    def find_member(self, text: str) -> Member:
        """A member by nick, address or identity prefix. Raises MembershipError."""
        return names.find_member(self._roster, text, (self.profile.nick, self.profile.address))

    def find_banned(self, text: str) -> bytes:
        """A banned identity by its last nick or by identity prefix. Raises MembershipError."""
        return names.find_banned(self._roster, text)

    def named(self, entry: Entry) -> Entry:
        """An entry of the audit list, with our own nickname where we are meant, whom the roster does not name."""
        own = self._keys.identity.public
        return structs.replace(
            entry,
            nick=entry.nick or (self.profile.nick if entry.subject == own else ""),
            actor_nick=entry.actor_nick or (self.profile.nick if entry.actor == own else ""),
        )

    @property
    def _signer(self) -> Identity:
        return self._keys.network_owner or self._keys.identity


def _outcome(change: _Change, code: str | None, text: str) -> ActionFinished | None:
    return None if change.rid is None else ActionFinished(change.rid, code, text)


def _again(make: Callable[[int], CharterUpdate | None]) -> Callable[[int], CharterUpdate]:
    """For a change of our own that may not be needed any more when it is made anew."""

    def remake(wall: int) -> CharterUpdate:
        update = make(wall)
        if update is None:
            raise MembershipError("somebody else did it")
        return update

    return remake
