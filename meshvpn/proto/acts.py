"""What owners and admins did, signed by who did it: the part of the audit list that a charter carries.

A charter has the newest MAX_ACTS; members keep a longer list of their own (audit.py). A union that keeps the newest is
commutative, associative and idempotent, so charters that meet in any order end in one list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum

import msgspec

from . import keys as key_rules
from .codec import decode
from .drops import DropReason
from .errors import MalformedMessage
from .keys import Identity
from .signed import DOMAIN_ACT, Signed

MAX_ACTS = 128
"""Acts in a charter, about 250 bytes each: who was away for longer has missed some."""
MAX_ACT = 512
"""Bytes of an act's body."""
MAX_DETAIL = 64
"""Characters of what an act says besides."""


class Kind(StrEnum):
    """What happened. The first two members sign themselves, the third is an approval; the others are acts."""

    JOINED = "joined"
    LEFT = "left"
    APPROVE = "approve"
    EVICT = "evict"
    REJECT = "reject"
    UNBAN = "unban"
    PASSWD = "passwd"
    ACCESS = "access"
    ADMIN_ADD = "admin_add"
    ADMIN_REMOVE = "admin_remove"
    INVITE = "invite"
    REVOKE = "revoke"
    DELETE = "delete"


class Act(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Body of a Signed (DOMAIN_ACT) by the owner or an admin. Positional msgpack; fields may be added at the end."""

    uid: bytes
    at: int  # Unix seconds, by the clock of who did it
    kind: str
    subject: bytes | None  # identity of whom it was done to
    sealed: bytes  # secretbox under the epoch key of then of a msgpack Words: the server reads no nicknames


class Words(msgspec.Struct, frozen=True, array_like=True):
    """What only members of that time read."""

    nick: str
    detail: str


_act_decoder = msgspec.msgpack.Decoder(Act)
_words_decoder = msgspec.msgpack.Decoder(Words)


def make_act(
    signer: Identity,
    uid: bytes,
    kind: Kind,
    epoch_key: bytes,
    *,
    wall: int,
    subject: bytes | None = None,
    nick: str = "",
    detail: str = "",
) -> Signed:
    """Sign that we did it."""
    context = msgspec.msgpack.encode((signer.public, wall, kind, subject))
    sealed = key_rules.seal_repeatably(epoch_key, msgspec.msgpack.encode(Words(nick, detail)), context)
    act = Act(uid=uid, at=wall, kind=kind, subject=subject, sealed=sealed)
    return signer.sign(DOMAIN_ACT, msgspec.msgpack.encode(act))


def decode_act(signed: Signed) -> Act:
    """Parse and check the shape, not the signature. Raises MalformedMessage."""
    act = decode(_act_decoder, signed.body, limit=MAX_ACT)
    if len(act.kind) > 16 or not act.kind.isprintable() or act.at < 0 or len(act.subject or bytes(32)) != 32:
        raise MalformedMessage(DropReason.MALFORMED)
    if len(signed.signer) != 32 or len(signed.signature) != 64:
        raise MalformedMessage(DropReason.MALFORMED)
    return act


def words_of(act: Act, open_sealed: Callable[[bytes], bytes | None]) -> Words:
    """What it says; nothing if it is sealed under a key that we never had, or do not have any more."""
    plaintext = open_sealed(act.sealed)
    try:
        words = Words("", "") if plaintext is None else decode(_words_decoder, plaintext, limit=MAX_ACT)
    except MalformedMessage:
        return Words("", "")
    is_plain = (words.nick + words.detail).isprintable() and len(words.nick) <= MAX_DETAIL >= len(words.detail)
    return words if is_plain else Words("", "")


def merge_acts(*lists: Iterable[Signed]) -> list[Signed]:
    """The newest MAX_ACTS of all, oldest first, each once. Raises MalformedMessage for what is no act."""
    union = {act for acts in lists for act in acts}
    return sorted(union, key=_order)[-MAX_ACTS:]


def _order(signed: Signed) -> tuple[int, bytes, bytes, bytes]:
    return decode_act(signed).at, signed.body, signed.signer, signed.signature
