"""A member's record: signed by the member, sealed under the epoch key, wrapped in a signed envelope.

`Signed(Record, DOMAIN_RECORD)` by the member is the proof that survives a change of epoch: whoever rotates the epoch
seals that same signed blob anew. `Signed(Envelope, DOMAIN_ENVELOPE)` by the member, or by the owner or an admin who
resealed it, is what the server stores and checks without reading the record.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Who I am. Positional msgpack; fields may be added at the end."""

    format: int  # 1
    uid: bytes
    identity: bytes
    address: str  # my IPv4 address in the pool
    nick: str
    tunnel_key: bytes  # X25519 public key, WireGuard static
    disco_key: bytes  # X25519 public key, new at each start of the daemon
    joined_at: int  # Unix seconds
    sequence: int  # grows with each record of this identity
    software: str
    subnets: list[str] = []
    facts: dict[str, Any] = {}  # PBX facts: extension ranges, trunk kind


class Envelope(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What the server sees of a record."""

    uid: bytes
    identity: bytes
    address: str
    epoch: int
    sealed: bytes  # secretbox under the epoch key of the msgpack Signed(Record)


class Leave(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Body of a Signed (DOMAIN_LEAVE) by the member itself."""

    uid: bytes
    identity: bytes
    left_at: int


class Approval(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Body of a Signed (DOMAIN_APPROVAL) by the owner or an admin, for networks with access `approve`."""

    uid: bytes
    identity: bytes
    approved_at: int
