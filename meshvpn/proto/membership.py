"""What a member does in its network: publishes its record, and, as owner or admin, changes the charter. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from . import control, disco, owner, primitives
from .control import MemberEntry
from .control_session import ControlSession
from .drops import DropReason
from .errors import MembershipError
from .keys import Identity, NetworkKeys
from .member import Member
from .owner import PasswordRule
from .roster import Roster
from .signed import Signed

MIN_PREFIX = 4
"""Hexadecimal digits of an identity that are enough to name it."""


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


class Membership:
    """Our part in one network. Requests are numbered; their outcome comes to `handle_finished`."""

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
        self._updates: dict[int, owner.CharterUpdate] = {}

    # The charter. Each raises MembershipError; the number is a request's.

    def evict(self, peer: str, password: PasswordRule | NetworkKeys, *, now: float, wall: int) -> int:
        """Put a member out for good."""
        update = owner.evict(
            self._roster,
            self._signer,
            self._keys.identity,
            self.own_record,
            self.find_member(peer).identity,
            password,
            entropy=self._entropy,
            wall=wall,
        )
        return self._publish(update, now)

    def unban(self, peer: str, *, now: float, wall: int) -> int:
        """Let an evicted identity join again."""
        return self._publish(owner.unban(self._roster, self._signer, self.find_banned(peer), wall=wall), now)

    def change_password(self, keys: NetworkKeys, *, now: float, wall: int) -> int:
        """Set the password for who joins from now on."""
        update = owner.change_password(self._roster, self._signer, keys, entropy=self._entropy, wall=wall)
        return self._publish(update, now)

    def delete(self, *, now: float, wall: int) -> int:
        """End the network for everybody."""
        return self._publish(owner.delete_network(self._roster, self._signer, wall=wall), now)

    def leave(self, *, now: float, wall: int) -> int:
        """Leave for good."""
        leave = owner.make_leave(self._roster.uid, self._keys.identity, wall=wall)
        return self._session.request(lambda rid: control.PutLeave(rid=rid, leave=leave), now=now)

    def handle_finished(self, rid: int, code: str | None, *, now: float, wall: int) -> DropReason | None:
        """A request ended: an accepted change of the charter becomes ours like anybody's."""
        update = self._updates.pop(rid, None)
        if update is None or code is not None:
            return None
        reason = self._roster.handle_charter(update.charter, [], wall=wall)
        if update.envelopes:
            # Who came while the new epoch was on its way to the server has no key of it.
            forgotten = owner.grant_to_forgotten(self._roster, self._signer, entropy=self._entropy, wall=wall)
            if forgotten is not None:
                self._publish(forgotten, now)
        return reason

    # Our record.

    def rename(self, nick: str, *, now: float, wall: int) -> int | None:
        """Take another nickname; None without a connection: the others learn it when there is one."""
        self.profile = replace(self.profile, nick=nick)
        return self.publish_record(now=now, wall=wall)

    def publish_record_if_missing(self, members: Sequence[MemberEntry], *, now: float, wall: int) -> None:
        """The server must hold our newest record; who resealed it for a new epoch may have had an older one."""
        own = next((entry for entry in members if entry.identity == self._keys.identity.public), None)
        held = self._roster.open_envelope(own.envelope) if own is not None else None
        if not self._roster.is_over and (held is None or not self._is_current(held)):
            self.publish_record(now=now, wall=wall)

    def publish_record(self, *, now: float, wall: int) -> int | None:
        """Sign a new record if ours is not of this run, and send it."""
        if self.own_record is None or not self._is_current(self.own_record):
            self.own_record = self._make_record(wall)
        if not self._session.is_attached:
            return None
        envelope = owner.seal_record(self._roster, self._keys.identity, self.own_record, entropy=self._entropy)
        return self._session.request(lambda rid: control.PutRecord(rid=rid, envelope=envelope), now=now)

    def _is_current(self, signed: Signed) -> bool:
        record = owner.record_of(signed)
        return (
            signed == self.own_record
            and record.disco_key == disco.public_key(self._keys.disco)
            and (record.nick, record.address) == (self.profile.nick, self.profile.address)
            and record.relays == self.profile.relays
        )

    def _make_record(self, wall: int) -> Signed:
        # Seconds since 1970 grow across restarts and lost state, so the newest record always has the highest number.
        previous = 0 if self.own_record is None else owner.record_of(self.own_record).sequence
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
        wanted = text.casefold()
        found = [
            member
            for member in self._roster.members.values()
            if wanted in (member.nick.casefold(), member.address, member.address6)
            or (len(wanted) >= MIN_PREFIX and member.identity.hex().startswith(wanted))
        ]
        if not found and wanted in (self.profile.nick.casefold(), self.profile.address):
            raise MembershipError(f"{text} is this host itself; see `meshvpn list` for the others")
        if len(found) != 1:
            problem = "is not a member" if not found else f"fits {len(found)} members"
            raise MembershipError(f"{text} {problem}; see `meshvpn list` for nicknames and addresses")
        return found[0]

    def find_banned(self, text: str) -> bytes:
        """A banned identity by its last nick or by identity prefix. Raises MembershipError."""
        wanted = text.casefold()
        found = [
            identity
            for identity, nick in self._roster.former_nicks().items()
            if wanted == nick.casefold() or (len(wanted) >= MIN_PREFIX and identity.hex().startswith(wanted))
        ]
        if len(found) != 1:
            problem = "is not evicted" if not found else f"fits {len(found)} evicted members; give its identity"
            raise MembershipError(f"{text} {problem}")
        return found[0]

    @property
    def _signer(self) -> Identity:
        return self._keys.network_owner or self._keys.identity

    def _publish(self, update: owner.CharterUpdate, now: float) -> int:
        rid = self._session.request(
            lambda rid: control.PutCharter(rid=rid, charter=update.charter, envelopes=update.envelopes), now=now
        )
        self._updates[rid] = update
        return rid
