"""A member as the roster knows it, and what changed in the roster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .audit import Entry


@dataclass(frozen=True, slots=True)
class Member:
    """A member whose record was checked.

    `nick` is unique without regard to case: `pbx` stays with the member that was known first (not with who says that it
    joined first), the next one is `pbx-2`, and stays that until its next record.
    """

    identity: bytes
    address: str
    address6: str
    nick: str
    tunnel_key: bytes
    disco_key: bytes
    joined_at: int
    sequence: int
    software: str
    subnets: tuple[str, ...]
    facts: Mapping[str, Any]
    is_pending: bool
    relays: bool = True
    """It forwards packets between members."""


@dataclass(frozen=True, slots=True)
class Pending:
    """Who knows the password and waits for an approval; `since` is Unix seconds, by its own clock."""

    identity: bytes
    nick: str
    address: str
    since: int


@dataclass(frozen=True, slots=True)
class MemberAdded:
    """A new peer."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """A peer's newer record."""

    old: Member
    new: Member


@dataclass(frozen=True, slots=True)
class MemberRemoved:
    """No peer any more; `reason` is evicted or left."""

    member: Member
    reason: str


@dataclass(frozen=True, slots=True)
class EpochChanged:
    """Preshared keys are other ones from now on."""

    epoch: int


@dataclass(frozen=True, slots=True)
class SelfEvicted:
    """We are out."""


@dataclass(frozen=True, slots=True)
class SelfReinstated:
    """We were unbanned."""


@dataclass(frozen=True, slots=True)
class NetworkDeleted:
    """The owner ended the network."""


@dataclass(frozen=True, slots=True)
class Noted:
    """Something for the audit list, proven by who did it; may be told again after a crash."""

    entry: Entry


RosterEvent = (
    MemberAdded | MemberChanged | MemberRemoved | EpochChanged | SelfEvicted | SelfReinstated | NetworkDeleted | Noted
)
