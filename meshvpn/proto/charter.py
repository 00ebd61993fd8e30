"""The charter: the owner-signed state of a network.

A `Charter` is the body of a `Signed` (DOMAIN_CHARTER). The signer is the owner, or an identity in the owner-signed
`AdminSet` that the charter carries, and not evicted.

A server keeps one line of charters (`check_charter`). Members may meet several, when admins were cut off from each
other (`lines.py`): the greatest charter counts (`rank`), with the evictions, unbans, approvals and acts of all, and the
owner's newest list of admins (`merge`), so that the order in which charters arrive does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .acts import MAX_ACTS, merge_acts
from .codec import decode
from .control import MAX_CHARTER, MAX_MEMBERS
from .drops import DropReason
from .errors import ConfigError, MalformedMessage
from .keys import check_pool, network_uid, verify
from .signed import DOMAIN_ADMINS, DOMAIN_CHARTER, Signed

_KEY = 32


class AdminSet(msgspec.Struct, frozen=True, array_like=True):
    """Body of a Signed (DOMAIN_ADMINS) by the owner: who else may sign charters. Only a higher serial replaces it."""

    uid: bytes
    serial: int
    identities: list[bytes]


class Invite(msgspec.Struct, frozen=True, array_like=True):
    """A code that was given out (invites.py), as everybody may see it."""

    locator: bytes  # 32 bytes
    wrap: bytes  # secretbox under the code's key of a msgpack EpochGrant
    key: bytes  # 32 bytes, Ed25519 public key: who joins shows a signature by it
    uses: int
    expires_at: int  # Unix seconds


class Charter(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Public part in the clear, the rest sealed. Positional msgpack; fields may be added at the end."""

    format: int  # 1
    owner: bytes  # Ed25519 public key; network uid = BLAKE2b-16 of it
    version: int  # 1, 2, …
    issued_at: int  # Unix seconds, for people only
    locator: bytes | None  # 32 bytes; None while the password is retired
    pool: str  # IPv4 network of the members' addresses
    access: str  # open | approve | locked
    epoch: int  # 1, 2, …
    evicted: dict[bytes, int]  # identity → charter version of its eviction; never shrinks
    unbanned: dict[bytes, int]  # identity → charter version of its unban; banned if evicted[i] >= unbanned[i]
    admins: Signed | None
    sealed: bytes  # secretbox under the epoch key of a msgpack Settings
    wrap: bytes | None  # secretbox under wrap_key of a msgpack EpochGrant, for who joins by password
    grants: dict[bytes, bytes]  # identity → crypto_box_seal of a msgpack EpochGrant to its identity's X25519 form
    is_deleted: bool = False
    invites: list[Invite] = []
    approved: list[bytes] = []  # identities that need no approval of their own: who was in when access was not `open`
    acts: list[Signed] = []  # the newest Acts (acts.py), oldest first


class Settings(msgspec.Struct, frozen=True, array_like=True):
    """What only members read. `wrap_key` lets any admin wrap a new epoch key for who joins later by password."""

    name: str
    wrap_key: bytes | None

    def __repr__(self) -> str:
        """Without the key."""
        return f"Settings({self.name!r})"


class EpochGrant(msgspec.Struct, frozen=True, array_like=True):
    """An epoch key, bound to its network and number."""

    uid: bytes
    epoch: int
    key: bytes  # 32 bytes

    def __repr__(self) -> str:
        """Without the key."""
        return f"EpochGrant({self.epoch})"


MAX_EVICTED = 1024
"""Identities in the evicted and in the unbanned list, each; a network with more has other troubles."""
MAX_GRANTS = MAX_MEMBERS + 1
"""The members, and the owner's own key."""
MAX_ADMINS = 64
MAX_INVITES = 64
MAX_APPROVED = 2 * MAX_MEMBERS
"""Who left stays approved, so there may be more than members."""
MAX_WRAP = 256
"""Bytes of a sealed epoch grant; it takes about 100."""
MAX_VERSION = 1 << 53
"""Versions stay exact in JSON, and adding one to them stays inside 64 bits."""
ACCESS_MODES = ("open", "approve", "locked")

_decoder = msgspec.msgpack.Decoder(Charter)
_admins_decoder = msgspec.msgpack.Decoder(AdminSet)


def check_charter(signed: Signed, previous: Signed | None) -> Charter:
    """The charter, if it is genuine and may follow `previous`. Raises MalformedMessage.

    The check of a server, which keeps one line; it needs no epoch key. What must hold: all of `check_genuine` and
    `check_lineage`; a higher version; an epoch, evictions and unbans that never go back; nothing after deletion.
    """
    charter = check_genuine(signed)
    if previous is None:
        return charter
    before = decode_charter(previous)
    check_lineage(signed, charter, before)
    is_newer = (
        charter.version > before.version
        and charter.epoch >= before.epoch
        and admin_serial(charter) >= admin_serial(before)
        and not before.is_deleted
        and _is_superset(charter.evicted, before.evicted)
        and _is_superset(charter.unbanned, before.unbanned)
    )
    if not is_newer:
        raise MalformedMessage(DropReason.STALE)
    return charter


def check_genuine(signed: Signed) -> Charter:
    """The charter, if its owner signed it or an admin that it names and does not ban. Raises MalformedMessage.

    Only the owner can sign a deletion.
    """
    charter = decode_charter(signed)
    admins = _check_admins(charter)
    if signed.signer != charter.owner:
        is_admin = admins is not None and signed.signer in admins.identities
        if not is_admin or charter.is_deleted or is_banned(charter, signed.signer):
            raise MalformedMessage(DropReason.BAD_SIGNATURE)
    if not verify(signed, DOMAIN_CHARTER):
        raise MalformedMessage(DropReason.BAD_SIGNATURE)
    return charter


def check_lineage(signed: Signed, charter: Charter, known: Charter) -> None:
    """Raise MalformedMessage unless a genuine charter is of the network that is known, in the state that is known.

    Who signs must be the owner or an admin by the newest list of the two, and not banned by `known`: without that an
    evicted or dismissed admin would bring itself back. The pool stays, since members have their addresses in it.
    """
    if charter.owner != known.owner or charter.pool != known.pool:
        raise MalformedMessage(DropReason.NOT_FOR_US)
    if signed.signer == known.owner:
        return
    if is_banned(known, signed.signer):
        raise MalformedMessage(DropReason.BAD_SIGNATURE)
    if admin_serial(charter) < admin_serial(known) and not is_admin(known, signed.signer):
        raise MalformedMessage(DropReason.STALE)


def rank(signed: Signed, charter: Charter) -> tuple[bool, int, int, bytes, bytes]:
    """The total order of a network's charters: of two, every member keeps the greater one.

    The epoch counts before the version: the line that evicted somebody wins over one that only grew longer.
    """
    return charter.is_deleted, charter.epoch, charter.version, signed.body, signed.signer


def decode_charter(signed: Signed) -> Charter:
    """Parse and check the shape, not the signature. Raises MalformedMessage."""
    charter = decode(_decoder, signed.body, limit=MAX_CHARTER)
    if charter.format != 1 or charter.access not in ACCESS_MODES or charter.version < 1 or charter.epoch < 1:
        raise MalformedMessage(DropReason.MALFORMED)
    if max(charter.version, charter.epoch) > MAX_VERSION:
        raise MalformedMessage(DropReason.MALFORMED)
    # A ban from the future could not be lifted, an unban from the future would outlive every ban.
    if any(not 1 <= at <= charter.version for at in (*charter.evicted.values(), *charter.unbanned.values())):
        raise MalformedMessage(DropReason.MALFORMED)
    if len(charter.evicted) > MAX_EVICTED or len(charter.unbanned) > MAX_EVICTED or len(charter.grants) > MAX_GRANTS:
        raise MalformedMessage(DropReason.OVER_LIMIT)
    identities = [charter.owner, *charter.evicted, *charter.unbanned, *charter.grants, *charter.approved]
    if any(len(identity) != _KEY for identity in identities):
        raise MalformedMessage(DropReason.MALFORMED)
    if charter.locator is not None and len(charter.locator) != _KEY:
        raise MalformedMessage(DropReason.MALFORMED)
    _check_lists(charter)
    try:
        check_pool(charter.pool)
    except ConfigError as error:
        raise MalformedMessage(DropReason.MALFORMED) from error
    return charter


def _check_lists(charter: Charter) -> None:
    sizes = ((charter.invites, MAX_INVITES), (charter.approved, MAX_APPROVED), (charter.acts, MAX_ACTS))
    if any(len(entries) > limit for entries, limit in sizes):
        raise MalformedMessage(DropReason.OVER_LIMIT)
    for invite in charter.invites:
        if len(invite.locator) != _KEY or len(invite.key) != _KEY or len(invite.wrap) > MAX_WRAP or invite.uses < 1:
            raise MalformedMessage(DropReason.MALFORMED)
    locators = [invite.locator for invite in charter.invites]
    if len(locators) != len({*locators, charter.locator or b""}) - 1:
        raise MalformedMessage(DropReason.MALFORMED)
    # In one order only, so that charters with equal lists are equal and a merge with itself changes nothing.
    if charter.approved != sorted(set(charter.approved)) or charter.acts != merge_acts(charter.acts):
        raise MalformedMessage(DropReason.MALFORMED)


def admin_serial(charter: Charter) -> int:
    """The number of the owner's list of admins, 0 without one. Raises MalformedMessage if it is forged."""
    admins = _check_admins(charter)
    return 0 if admins is None else admins.serial


def is_banned(charter: Charter, identity: bytes) -> bool:
    """True if the identity was evicted and not unbanned since."""
    evicted_at = charter.evicted.get(identity)
    return evicted_at is not None and evicted_at >= charter.unbanned.get(identity, 0)


def admins_of(charter: Charter) -> list[bytes]:
    """The owner's list, banned ones included. Raises MalformedMessage if it is forged."""
    admins = _check_admins(charter)
    return [] if admins is None else list(admins.identities)


def is_admin(charter: Charter, identity: bytes) -> bool:
    """True if the owner's list has the identity, banned or not. Raises MalformedMessage if the list is forged."""
    return identity in admins_of(charter)


def may_sign_for_network(charter: Charter, signer: bytes) -> bool:
    """True for the owner, and for the admins of a charter that was checked while they are not evicted."""
    return signer == charter.owner or (not is_banned(charter, signer) and is_admin(charter, signer))


def needs_approval(charter: Charter) -> bool:
    """True where knowing the password does not suffice: also in a locked network, or the server could unlock it."""
    return charter.access != "open"


def merge(left: Charter, right: Charter) -> Charter:
    """`left` with the evictions and unbans of both, of which the later holds, an eviction at equal versions; with the
    approvals and acts of both and the newer list of admins. Raises MalformedMessage (over_limit).
    """
    evicted, unbanned = merge_versions(left.evicted, right.evicted), merge_versions(left.unbanned, right.unbanned)
    if max(len(evicted), len(unbanned)) > MAX_EVICTED:
        raise MalformedMessage(DropReason.OVER_LIMIT)
    return msgspec.structs.replace(
        left,
        evicted=evicted,
        unbanned=unbanned,
        admins=newer_admins(left.admins, right.admins),
        approved=sorted({*left.approved, *right.approved})[:MAX_APPROVED],
        acts=merge_acts(left.acts, right.acts),
    )


def covers(left: Charter, right: Charter) -> bool:
    """True if `right` has nothing to add to `left`."""
    return merge(left, right) == left


def newer_admins(left: Signed | None, right: Signed | None) -> Signed | None:
    """Of two genuine lists the one with the higher serial."""
    return max(left, right, key=lambda admins: (-1, b"") if admins is None else (_serial(admins), admins.body))


def merge_versions(left: Mapping[bytes, int], right: Mapping[bytes, int]) -> dict[bytes, int]:
    """The union with the later version of each: commutative, associative, idempotent; nothing is ever lost."""
    return {key: max(left.get(key, 0), right.get(key, 0)) for key in sorted({*left, *right})}


def _serial(admins: Signed) -> int:
    return decode(_admins_decoder, admins.body, limit=MAX_CHARTER).serial


def _check_admins(charter: Charter) -> AdminSet | None:
    if charter.admins is None:
        return None
    admins = decode(_admins_decoder, charter.admins.body, limit=MAX_CHARTER)
    is_genuine = charter.admins.signer == charter.owner and verify(charter.admins, DOMAIN_ADMINS)
    if not is_genuine or admins.uid != network_uid(charter.owner):
        raise MalformedMessage(DropReason.BAD_SIGNATURE)
    if len(admins.identities) > MAX_ADMINS:
        raise MalformedMessage(DropReason.OVER_LIMIT)
    return admins


def _is_superset(newer: Mapping[bytes, int], older: Mapping[bytes, int]) -> bool:
    return all(newer.get(identity, 0) >= version for identity, version in older.items())
