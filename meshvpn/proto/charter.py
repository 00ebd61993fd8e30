"""The charter: the owner-signed state of a network.

A `Charter` is the body of a `Signed` (DOMAIN_CHARTER). The signer is the owner, or an identity in the owner-signed
`AdminSet` that the charter carries. Clients keep the highest version that they have seen.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

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


class Settings(msgspec.Struct, frozen=True, array_like=True):
    """What only members read. `wrap_key` lets any admin wrap a new epoch key for who joins later by password."""

    name: str
    wrap_key: bytes | None


class EpochGrant(msgspec.Struct, frozen=True, array_like=True):
    """An epoch key, bound to its network and number."""

    uid: bytes
    epoch: int
    key: bytes  # 32 bytes


MAX_EVICTED = 1024
"""Identities in the evicted and in the unbanned list, each; a network with more has other troubles."""
MAX_ADMINS = 64
ACCESS_MODES = ("open", "approve", "locked")

_decoder = msgspec.msgpack.Decoder(Charter)
_admins_decoder = msgspec.msgpack.Decoder(AdminSet)


def check_charter(signed: Signed, previous: Signed | None) -> Charter:
    """The charter, if it is genuine and may follow `previous`. Raises MalformedMessage.

    A server checks it as a member does: neither needs the epoch key. What must hold: the owner's signature or that of
    an admin of the owner's newest list; a higher version; an epoch, evictions and an admin list that never go back;
    deletion by the owner only, and nothing after it.
    """
    charter = decode_charter(signed)
    admins = _check_admins(charter)
    if signed.signer != charter.owner and (admins is None or signed.signer not in admins.identities):
        raise MalformedMessage(DropReason.BAD_SIGNATURE)
    if not verify(signed, DOMAIN_CHARTER):
        raise MalformedMessage(DropReason.BAD_SIGNATURE)
    if charter.is_deleted and signed.signer != charter.owner:
        raise MalformedMessage(DropReason.BAD_SIGNATURE)
    if previous is not None:
        _check_succession(charter, admins, decode_charter(previous))
    return charter


def decode_charter(signed: Signed) -> Charter:
    """Parse and check the shape, not the signature. Raises MalformedMessage."""
    charter = decode(_decoder, signed.body, limit=MAX_CHARTER)
    if charter.format != 1 or charter.access not in ACCESS_MODES or charter.version < 1 or charter.epoch < 1:
        raise MalformedMessage(DropReason.MALFORMED)
    if len(charter.evicted) > MAX_EVICTED or len(charter.unbanned) > MAX_EVICTED or len(charter.grants) > MAX_MEMBERS:
        raise MalformedMessage(DropReason.OVER_LIMIT)
    identities = [charter.owner, *charter.evicted, *charter.unbanned, *charter.grants]
    if any(len(identity) != _KEY for identity in identities):
        raise MalformedMessage(DropReason.MALFORMED)
    if charter.locator is not None and len(charter.locator) != _KEY:
        raise MalformedMessage(DropReason.MALFORMED)
    try:
        check_pool(charter.pool)
    except ConfigError as error:
        raise MalformedMessage(DropReason.MALFORMED) from error
    return charter


def is_banned(charter: Charter, identity: bytes) -> bool:
    """True if the identity was evicted and not unbanned since."""
    evicted_at = charter.evicted.get(identity)
    return evicted_at is not None and evicted_at >= charter.unbanned.get(identity, 0)


def merge_versions(left: Mapping[bytes, int], right: Mapping[bytes, int]) -> dict[bytes, int]:
    """The union with the later version of each: commutative, associative, idempotent; nothing is ever lost."""
    return {key: max(left.get(key, 0), right.get(key, 0)) for key in sorted({*left, *right})}


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


def _check_succession(charter: Charter, admins: AdminSet | None, previous: Charter) -> None:
    if charter.owner != previous.owner:
        raise MalformedMessage(DropReason.NOT_FOR_US)
    previous_admins = _check_admins(previous)
    is_newer = (
        charter.version > previous.version
        and charter.epoch >= previous.epoch
        and not previous.is_deleted
        and _serial(admins) >= _serial(previous_admins)
        and _is_superset(charter.evicted, previous.evicted)
        and _is_superset(charter.unbanned, previous.unbanned)
    )
    if not is_newer:
        raise MalformedMessage(DropReason.STALE)


def _serial(admins: AdminSet | None) -> int:
    return 0 if admins is None else admins.serial


def _is_superset(newer: Mapping[bytes, int], older: Mapping[bytes, int]) -> bool:
    return all(newer.get(identity, 0) >= version for identity, version in older.items())
