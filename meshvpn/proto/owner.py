"""What members sign: a network's founding, evictions and other changes of the charter, records, farewells. Pure.

Every change of the charter is a `CharterUpdate`: it takes effect when the server has stored it and our own roster has
accepted it, like anybody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network
from typing import Any

import msgspec

from . import drafts
from . import keys as key_rules
from .acts import Kind, make_act, merge_acts
from .charter import (
    ACCESS_MODES,
    MAX_ADMINS,
    MAX_EVICTED,
    MAX_INVITES,
    AdminSet,
    Charter,
    EpochGrant,
    Settings,
    admin_serial,
    is_banned,
)
from .drafts import CharterUpdate
from .epochs import EpochKey
from .errors import MembershipError
from .invites import MAX_TTL, MAX_USES, InviteKeys, find_invite, make_invite
from .keys import Entropy, Identity, NetworkKeys
from .record import Approval, Leave, Record
from .roster import Roster, RosterState
from .signed import (
    DOMAIN_ADMINS,
    DOMAIN_APPROVAL,
    DOMAIN_LEAVE,
    DOMAIN_RECORD,
    Signed,
)


class PasswordRule(Enum):
    """What an eviction does with the password that the evicted machine knows."""

    RETIRE = "retire"  # nobody can join until a new one is set
    KEEP = "keep"  # Hamachi's way: only the identity is banned


@dataclass(frozen=True, slots=True)
class OwnRecord:
    """Our record as we signed it, and the envelope for the server."""

    record: Signed
    envelope: Signed


def found_network(
    name: str, keys: NetworkKeys, pool: IPv4Network, owner: Identity, founder: Identity, *, entropy: Entropy, wall: int
) -> RosterState:
    """A new network: version 1, epoch 1, nobody in it but the founder."""
    uid = key_rules.network_uid(owner.public)
    epoch_key = entropy(32)
    charter = Charter(
        format=1,
        owner=owner.public,
        version=1,
        issued_at=wall,
        locator=keys.locator,
        pool=str(pool),
        access="open",
        epoch=1,
        evicted={},
        unbanned={},
        admins=None,
        sealed=drafts.seal_settings(epoch_key, Settings(name, keys.wrap_key), entropy),
        wrap=drafts.wrap(keys.wrap_key, uid, 1, epoch_key, entropy),
        grants={who.public: drafts.grant(who.public, uid, 1, epoch_key, entropy) for who in (founder, owner)},
    )
    return RosterState(drafts.sign(charter, owner), [EpochKey(1, epoch_key)], [], {})


def make_record(
    roster: Roster,
    identity: Identity,
    *,
    address: str,
    nick: str,
    tunnel_key: bytes,
    disco_key: bytes,
    joined_at: int,
    sequence: int,
    software: str,
    entropy: Entropy,
    subnets: tuple[str, ...] = (),
    facts: dict[str, Any] | None = None,
    relays: bool = True,
) -> OwnRecord:
    """Our record under the current epoch."""
    record = Record(
        format=1,
        uid=roster.uid,
        identity=identity.public,
        address=address,
        nick=nick,
        tunnel_key=tunnel_key,
        disco_key=disco_key,
        joined_at=joined_at,
        sequence=sequence,
        software=software,
        subnets=list(subnets),
        facts=facts or {},
        relays=relays,
    )
    signed = identity.sign(DOMAIN_RECORD, msgspec.msgpack.encode(record))
    return OwnRecord(signed, seal_record(roster, identity, signed, entropy=entropy))


def seal_record(roster: Roster, identity: Identity, record: Signed, *, entropy: Entropy) -> Signed:
    """An envelope around our signed record, under the newest epoch key that we have."""
    return drafts.envelope(identity, record, roster.uid, roster.key_epoch, roster.epoch_key, entropy)


def make_leave(uid: bytes, identity: Identity, *, wall: int) -> Signed:
    """Our farewell."""
    body = msgspec.msgpack.encode(Leave(uid=uid, identity=identity.public, left_at=wall))
    return identity.sign(DOMAIN_LEAVE, body)


# Changes of the charter. All raise MembershipError with a sentence for the user.


def evict(
    roster: Roster,
    signer: Identity,
    founder: Identity,
    own_record: Signed | None,
    target: bytes,
    password: PasswordRule | NetworkKeys,
    *,
    entropy: Entropy,
    wall: int,
    kind: Kind = Kind.EVICT,
) -> CharterUpdate:
    """Ban an identity, change the epoch, seal the new key to everybody who stays and all records under it.

    `founder` is our own member identity and `own_record` our record: we stay. Open invites become void. A `kind` of
    REJECT says that the target never was a member.
    """
    charter, settings = drafts.writable(roster, signer), roster.settings
    if target == founder.public:
        raise MembershipError("you cannot evict yourself; use `meshvpn leave` or `meshvpn delete`")
    if is_banned(charter, target):
        raise MembershipError("that member is evicted already")
    if len(charter.evicted) >= MAX_EVICTED and target not in charter.evicted:
        raise MembershipError(f"{MAX_EVICTED} identities were evicted already; create a new network")
    banned = msgspec.structs.replace(charter, evicted={**charter.evicted, target: drafts.next_version(charter)})
    epoch_key = entropy(32)
    act = make_act(
        signer,
        roster.uid,
        kind,
        epoch_key,
        wall=wall,
        subject=target,
        nick=roster.nick_of(target),
        detail=_word(password),
    )
    noted = msgspec.structs.replace(banned, acts=merge_acts(banned.acts, [act]))
    if target in roster.admins and signer.public == charter.owner:
        # Else an unban would make it an admin again.
        others = [identity for identity in roster.admins if identity != target]
        noted = msgspec.structs.replace(noted, admins=_sign_admins(charter, signer, others))
    secrets = _next_password(charter, settings, password)
    return drafts.rotate(roster, signer, founder, own_record, noted, secrets, epoch_key, entropy=entropy, wall=wall)


def unban(roster: Roster, signer: Identity, target: bytes, *, wall: int) -> CharterUpdate:
    """Let an evicted identity come back; it still has to know the password."""
    charter = drafts.writable(roster, signer)
    if not is_banned(charter, target):
        raise MembershipError("that identity is not evicted")
    # Above the eviction's version, so that a merge of two histories keeps what came last.
    unbanned = {**charter.unbanned, target: drafts.next_version(charter)}
    return drafts.act(roster, charter, signer, wall, Kind.UNBAN, target, unbanned=unbanned)


def change_password(
    roster: Roster, signer: Identity, keys: NetworkKeys, *, entropy: Entropy, wall: int
) -> CharterUpdate:
    """A new password for who joins from now on; members and calls do not notice."""
    charter, settings = drafts.writable(roster, signer), roster.settings
    if charter.locator == keys.locator:
        raise MembershipError("that is the password which the network has already; choose another")
    return drafts.act(
        roster,
        charter,
        signer,
        wall,
        Kind.PASSWD,
        locator=keys.locator,
        sealed=drafts.seal_settings(roster.epoch_key, Settings(settings.name, keys.wrap_key), entropy),
        wrap=drafts.wrap(keys.wrap_key, roster.uid, charter.epoch, roster.epoch_key, entropy),
    )


def set_access(roster: Roster, signer: Identity, access: str, *, wall: int) -> CharterUpdate:
    """Let in everybody who knows the password, only who is approved, or nobody (`ACCESS_MODES`).

    Who is a member stays one, whatever access becomes.
    """
    charter = drafts.writable(roster, signer)
    if access not in ACCESS_MODES:
        raise MembershipError(f"access {access} does not exist; use {', '.join(ACCESS_MODES)}")
    return drafts.act(roster, charter, signer, wall, Kind.ACCESS, detail=access, access=access)


def set_admins(
    roster: Roster,
    signer: Identity,
    identities: Sequence[bytes],
    *,
    wall: int,
    kind: Kind = Kind.ADMIN_ADD,
    subject: bytes | None = None,
) -> CharterUpdate:
    """Delegate to these and to nobody else; the owner only. Whom a former admin approved stays approved."""
    charter = drafts.writable(roster, signer)
    if signer.public != charter.owner:
        raise MembershipError("only the owner can appoint admins; ask the owner to do it")
    if len(identities) > MAX_ADMINS:
        raise MembershipError(f"a network has at most {MAX_ADMINS} admins")
    unknown = [who for who in identities if who not in roster.members and who not in roster.admins]
    if unknown:
        raise MembershipError(f"{unknown[0].hex()[:8]} is not a member; only members can be admins")
    signed = _sign_admins(charter, signer, identities)
    return drafts.act(roster, charter, signer, wall, kind, subject, admins=signed)


def invite(
    roster: Roster, signer: Identity, keys: InviteKeys, *, uses: int, ttl: int, entropy: Entropy, wall: int
) -> CharterUpdate:
    """Let in so many who have this code, for `ttl` seconds."""
    charter = drafts.writable(roster, signer)
    if charter.access == "locked":
        raise MembershipError("the network is locked, so nobody can use an invite; change its access first")
    if not 1 <= uses <= MAX_USES or not 1 <= ttl <= MAX_TTL:
        raise MembershipError(f"an invite is for 1 to {MAX_USES} uses and for at most {MAX_TTL // 86400} days")
    invites = drafts.open_invites(charter, wall)
    if len(invites) >= MAX_INVITES:
        raise MembershipError(f"{MAX_INVITES} invites are open; revoke one first")
    if find_invite(charter, keys.locator) is not None:
        raise MembershipError("that invite exists already")
    grant = msgspec.msgpack.encode(EpochGrant(roster.uid, charter.epoch, drafts.current_key(roster)))
    made = make_invite(keys, grant, entropy, uses=uses, expires_at=wall + ttl)
    detail = f"{keys.locator.hex()[:8]} for {uses}"
    return drafts.act(roster, charter, signer, wall, Kind.INVITE, detail=detail, invites=[*invites, made])


def revoke_invite(roster: Roster, signer: Identity, locator: bytes, *, wall: int) -> CharterUpdate:
    """Nobody joins by this invite any more."""
    charter = drafts.writable(roster, signer)
    if find_invite(charter, locator) is None:
        raise MembershipError("there is no such invite; see `meshvpn invite` for those that are open")
    invites = [entry for entry in charter.invites if entry.locator != locator]
    return drafts.act(roster, charter, signer, wall, Kind.REVOKE, detail=locator.hex()[:8], invites=invites)


def approve(roster: Roster, signer: Identity, target: bytes, *, wall: int, via: bytes = b"") -> Signed:
    """The signature that lets an identity into a network with access `approve`; `via` is an invite's locator."""
    charter = drafts.writable(roster, signer)
    if is_banned(charter, target):
        raise MembershipError("that member is evicted; use `meshvpn unban` first")
    return approval_by(signer, roster.uid, target, wall=wall, via=via)


def approval_by(signer: Identity, uid: bytes, target: bytes, *, wall: int, via: bytes = b"") -> Signed:
    """The same, for a host that is no member yet and has the owner's key."""
    body = Approval(uid=uid, identity=target, approved_at=wall, via=via)
    return signer.sign(DOMAIN_APPROVAL, msgspec.msgpack.encode(body))


def delete_network(roster: Roster, signer: Identity, *, wall: int) -> CharterUpdate:
    """End the network for everybody."""
    charter = drafts.writable(roster, signer)
    if signer.public != charter.owner:
        raise MembershipError("only the owner can delete the network; use `meshvpn leave` to leave it")
    return drafts.act(roster, charter, signer, wall, Kind.DELETE, is_deleted=True, locator=None, wrap=None, invites=[])


def _sign_admins(charter: Charter, signer: Identity, identities: Sequence[bytes]) -> Signed:
    uid = key_rules.network_uid(charter.owner)
    admins = AdminSet(uid, admin_serial(charter) + 1, list(dict.fromkeys(identities)))
    return signer.sign(DOMAIN_ADMINS, msgspec.msgpack.encode(admins))


def _next_password(
    charter: Charter, settings: Settings, password: PasswordRule | NetworkKeys
) -> tuple[bytes | None, bytes | None]:
    if isinstance(password, NetworkKeys):
        if charter.locator == password.locator:
            raise MembershipError("the new password is the old one, which the evicted machine knows; choose another")
        return password.locator, password.wrap_key
    if password is PasswordRule.KEEP:
        return charter.locator, settings.wrap_key
    return None, None


def _word(password: PasswordRule | NetworkKeys) -> str:
    rule = "new" if isinstance(password, NetworkKeys) else password.value
    return f"password {rule}"
