"""The charter: the owner-signed state of a network.

A `Charter` is the body of a `Signed` (DOMAIN_CHARTER). The signer is the owner, or an identity in the owner-signed
`AdminSet` that the charter carries. Clients keep the highest version that they have seen.
"""

from __future__ import annotations

import msgspec

from .signed import Signed


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
