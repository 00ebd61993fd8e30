"""What members sign: a network's founding, evictions and other changes of the charter, records, farewells. Pure.

Every change of the charter is a `CharterUpdate`: it takes effect when the server has stored it and our own roster has
accepted it, like anybody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network
from typing import Any

import msgspec

from . import keys as key_rules
from .charter import (
    ACCESS_MODES,
    MAX_ADMINS,
    MAX_EVICTED,
    AdminSet,
    Charter,
    EpochGrant,
    Settings,
    admin_serial,
    check_charter,
    is_banned,
)
from .epochs import EpochKey, open_grant
from .errors import MembershipError
from .keys import Identity, NetworkKeys
from .record import Approval, Envelope, Leave, Record
from .roster import Roster, RosterState
from .signed import (
    DOMAIN_ADMINS,
    DOMAIN_APPROVAL,
    DOMAIN_CHARTER,
    DOMAIN_ENVELOPE,
    DOMAIN_LEAVE,
    DOMAIN_RECORD,
    Signed,
)

Entropy = Callable[[int], bytes]


class PasswordRule(Enum):
    """What an eviction does with the password that the evicted machine knows."""

    RETIRE = "retire"  # nobody can join until a new one is set
    KEEP = "keep"  # Hamachi's way: only the identity is banned


@dataclass(frozen=True, slots=True)
class CharterUpdate:
    """What to publish: the charter and, after a change of epoch, all known records sealed anew."""

    charter: Signed
    envelopes: list[Signed]


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
        sealed=_seal_settings(epoch_key, Settings(name, keys.wrap_key), entropy),
        wrap=_wrap(keys.wrap_key, uid, 1, epoch_key, entropy),
        grants={founder.public: _grant(founder.public, uid, 1, epoch_key, entropy)},
    )
    return RosterState(_sign(charter, owner), [EpochKey(1, epoch_key)], [], {})


def accept_invitation(signed: Signed, keys: NetworkKeys) -> RosterState:
    """What a joiner starts from: the charter behind its locator, opened by its password.

    Raises MalformedMessage for a charter that is not genuine and MembershipError for one that the password does
    not open: the server then shows another network than the one that name and password mean.
    """
    charter = check_charter(signed, None)
    uid = key_rules.network_uid(charter.owner)
    plaintext = None if charter.wrap is None else key_rules.open_secret(keys.wrap_key, charter.wrap)
    key = None if plaintext is None else open_grant(plaintext, uid, charter.epoch)
    if key is None or charter.locator != keys.locator:
        raise MembershipError("the server's answer does not fit the password; do not trust this server")
    return RosterState(signed, [EpochKey(charter.epoch, key)], [], {})


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
    return _envelope(identity, record, roster.uid, roster.key_epoch, roster.epoch_key, entropy)


def record_of(signed: Signed) -> Record:
    """Our own record, parsed."""
    return msgspec.msgpack.decode(signed.body, type=Record)


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
) -> CharterUpdate:
    """Ban an identity, change the epoch, seal the new key to everybody who stays and all records under it.

    `founder` is our own member identity and `own_record` our record: we stay.
    """
    charter, settings = _writable(roster, signer), roster.settings
    if target == founder.public:
        raise MembershipError("you cannot evict yourself; use `meshvpn leave` or `meshvpn delete`")
    if is_banned(charter, target):
        raise MembershipError("that member is evicted already")
    if len(charter.evicted) >= MAX_EVICTED and target not in charter.evicted:
        raise MembershipError(f"{MAX_EVICTED} identities were evicted already; create a new network")
    epoch, epoch_key = charter.epoch + 1, entropy(32)
    locator, wrap_key = _next_password(charter, settings, password)
    records = {identity: record for identity, record in roster.records().items() if identity != target}
    if own_record is not None:
        records[founder.public] = own_record
    staying = dict.fromkeys([founder.public, *records])
    version = _next_version(charter)
    updated = msgspec.structs.replace(
        charter,
        version=version,
        issued_at=wall,
        epoch=epoch,
        evicted={**charter.evicted, target: version},
        locator=locator,
        sealed=_seal_settings(epoch_key, Settings(settings.name, wrap_key), entropy),
        wrap=None if wrap_key is None else _wrap(wrap_key, roster.uid, epoch, epoch_key, entropy),
        grants={identity: _grant(identity, roster.uid, epoch, epoch_key, entropy) for identity in staying},
    )
    envelopes = [_envelope(signer, record, roster.uid, epoch, epoch_key, entropy) for record in records.values()]
    return CharterUpdate(_sign(updated, signer), envelopes)


def grant_to_forgotten(roster: Roster, signer: Identity, *, entropy: Entropy, wall: int) -> CharterUpdate | None:
    """Right after a change of epoch: its key for members who were not known when it was signed; None without any."""
    charter = _writable(roster, signer)
    records = {who: record for who, record in roster.records().items() if who not in charter.grants}
    if not records:
        return None
    epoch, epoch_key = charter.epoch, roster.epoch_key
    grants = {who: _grant(who, roster.uid, epoch, epoch_key, entropy) for who in records}
    update = _update(charter, signer, wall, grants={**charter.grants, **grants})
    envelopes = [_envelope(signer, record, roster.uid, epoch, epoch_key, entropy) for record in records.values()]
    return CharterUpdate(update.charter, envelopes)


def unban(roster: Roster, signer: Identity, target: bytes, *, wall: int) -> CharterUpdate:
    """Let an evicted identity come back; it still has to know the password."""
    charter = _writable(roster, signer)
    if not is_banned(charter, target):
        raise MembershipError("that identity is not evicted")
    # Above the eviction's version, so that a merge of two histories keeps what came last.
    return _update(charter, signer, wall, unbanned={**charter.unbanned, target: _next_version(charter)})


def change_password(
    roster: Roster, signer: Identity, keys: NetworkKeys, *, entropy: Entropy, wall: int
) -> CharterUpdate:
    """A new password for who joins from now on; members and calls do not notice."""
    charter, settings = _writable(roster, signer), roster.settings
    if charter.locator == keys.locator:
        raise MembershipError("that is the password which the network has already; choose another")
    return _update(
        charter,
        signer,
        wall,
        locator=keys.locator,
        sealed=_seal_settings(roster.epoch_key, Settings(settings.name, keys.wrap_key), entropy),
        wrap=_wrap(keys.wrap_key, roster.uid, charter.epoch, roster.epoch_key, entropy),
    )


def set_access(roster: Roster, signer: Identity, access: str, *, wall: int) -> CharterUpdate:
    """Let in everybody who knows the password, only who is approved, or nobody (`ACCESS_MODES`)."""
    charter = _writable(roster, signer)
    if access not in ACCESS_MODES:
        raise MembershipError(f"access {access} does not exist; use {', '.join(ACCESS_MODES)}")
    return _update(charter, signer, wall, access=access)


def set_admins(roster: Roster, signer: Identity, identities: Sequence[bytes], *, wall: int) -> CharterUpdate:
    """Delegate to these members and to nobody else; the owner only. Approvals by a former admin are void."""
    charter = _writable(roster, signer)
    if signer.public != charter.owner:
        raise MembershipError("only the owner can appoint admins; ask the owner to do it")
    if len(identities) > MAX_ADMINS:
        raise MembershipError(f"a network has at most {MAX_ADMINS} admins")
    unknown = [identity for identity in identities if identity not in roster.members]
    if unknown:
        raise MembershipError(f"{unknown[0].hex()[:8]} is not a member; only members can be admins")
    admins = AdminSet(roster.uid, admin_serial(charter) + 1, list(dict.fromkeys(identities)))
    signed = signer.sign(DOMAIN_ADMINS, msgspec.msgpack.encode(admins))
    return _update(charter, signer, wall, admins=signed)


def approve(roster: Roster, signer: Identity, target: bytes, *, wall: int) -> Signed:
    """The signature that lets an identity into a network with access `approve`."""
    charter = _writable(roster, signer)
    if is_banned(charter, target):
        raise MembershipError("that member is evicted; use `meshvpn unban` first")
    body = Approval(uid=roster.uid, identity=target, approved_at=wall)
    return signer.sign(DOMAIN_APPROVAL, msgspec.msgpack.encode(body))


def delete_network(roster: Roster, signer: Identity, *, wall: int) -> CharterUpdate:
    """End the network for everybody."""
    charter = _writable(roster, signer)
    if signer.public != charter.owner:
        raise MembershipError("only the owner can delete the network; use `meshvpn leave` to leave it")
    return _update(charter, signer, wall, is_deleted=True, locator=None, wrap=None)


def _writable(roster: Roster, signer: Identity) -> Charter:
    if roster.role(signer) == "member":
        raise MembershipError("you are not the owner of this network; ask the owner to do it")
    if roster.charter.is_deleted:
        raise MembershipError("the network was deleted; `meshvpn leave` removes it here")
    return roster.charter


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


def _next_version(charter: Charter) -> int:
    """Above everything that was merged into the charter, so that what is done now is what came last."""
    return max(charter.version, *charter.evicted.values(), *charter.unbanned.values(), 0) + 1


def _update(charter: Charter, signer: Identity, wall: int, **changes: Any) -> CharterUpdate:
    updated = msgspec.structs.replace(charter, version=_next_version(charter), issued_at=wall, **changes)
    return CharterUpdate(_sign(updated, signer), [])


def _sign(charter: Charter, signer: Identity) -> Signed:
    return signer.sign(DOMAIN_CHARTER, msgspec.msgpack.encode(charter))


def _envelope(signer: Identity, record: Signed, uid: bytes, epoch: int, epoch_key: bytes, entropy: Entropy) -> Signed:
    about = record_of(record)
    envelope = Envelope(
        uid=uid,
        identity=about.identity,
        address=about.address,
        epoch=epoch,
        sealed=key_rules.seal_secret(epoch_key, msgspec.msgpack.encode(record), entropy),
    )
    return signer.sign(DOMAIN_ENVELOPE, msgspec.msgpack.encode(envelope))


def _seal_settings(epoch_key: bytes, settings: Settings, entropy: Entropy) -> bytes:
    return key_rules.seal_secret(epoch_key, msgspec.msgpack.encode(settings), entropy)


def _wrap(wrap_key: bytes, uid: bytes, epoch: int, epoch_key: bytes, entropy: Entropy) -> bytes:
    return key_rules.seal_secret(wrap_key, msgspec.msgpack.encode(EpochGrant(uid, epoch, epoch_key)), entropy)


def _grant(identity: bytes, uid: bytes, epoch: int, epoch_key: bytes, entropy: Entropy) -> bytes:
    return key_rules.seal_to_identity(identity, msgspec.msgpack.encode(EpochGrant(uid, epoch, epoch_key)), entropy)
