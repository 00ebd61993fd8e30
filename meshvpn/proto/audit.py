"""The audit list of one network as one member keeps it: who joined, left, was evicted and so on, by whom, when.

Each entry has the statement that proves it, signed by who did it. The list is append-only: each link carries the hash
of the one before, so that nothing is taken out or put between unnoticed. It is this host's own word that the list is
whole; what others did is proven by their signatures.

A link is length(4, big-endian) ‖ msgpack [hash of the link before(32), Entry]; the first one's hash is zero.
"""

from __future__ import annotations

import struct
from collections import deque

import msgspec

from .acts import Kind
from .codec import decode
from .control import MAX_ENVELOPE
from .drops import DropReason
from .errors import MalformedMessage, MeshError
from .keys import verify
from .primitives import blake2b, is_equal
from .signed import DOMAIN_ACT, DOMAIN_APPROVAL, DOMAIN_LEAVE, DOMAIN_RECORD, Signed

GENESIS = bytes(32)
MAX_LINK = 2 * MAX_ENVELOPE
"""Bytes of one link; most take about 500."""
MAX_REMEMBERED = 4096
"""Entries that are not written twice when they are told twice, as after a crash between writing and saving."""

_LENGTH = struct.Struct(">I")
_DOMAINS = {Kind.JOINED: DOMAIN_RECORD, Kind.LEFT: DOMAIN_LEAVE, Kind.APPROVE: DOMAIN_APPROVAL}


class Entry(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What happened. Fields may be added at the end."""

    seen_at: int  # Unix seconds, our clock
    at: int  # Unix seconds, the clock of who did it
    kind: str  # a Kind, or one of a newer version
    subject: bytes | None  # identity of whom it happened to
    nick: str  # its nickname, as far as known
    actor: bytes  # identity, or the network's own key, of who did it
    actor_nick: str
    detail: str
    evidence: Signed  # by the actor: a record, leave, approval or act


class Link(msgspec.Struct, frozen=True, array_like=True):
    """An entry in its place."""

    previous: bytes
    entry: Entry


class AuditError(MeshError):
    """The list is not what was written; the message says from which entry on."""


_decoder = msgspec.msgpack.Decoder(Link)


class Chain:
    """Where the list ends. `head` is the hash of its last link, `known` its last entries."""

    def __init__(self, head: bytes = GENESIS, known: list[Entry] | None = None) -> None:
        self.head = head
        self._known = deque((_digest(entry) for entry in known or []), MAX_REMEMBERED)

    def link(self, entry: Entry) -> bytes:
        """The bytes to append; none if the entry is on the list."""
        digest = _digest(entry)
        if digest in self._known:
            return b""
        self._known.append(digest)
        body = msgspec.msgpack.encode(Link(self.head, entry))
        self.head = blake2b(body, 32)
        return _LENGTH.pack(len(body)) + body


def read(data: bytes, head: bytes | None = None) -> tuple[list[Entry], bytes, int]:
    """The entries, the hash of the last link, and how many bytes they take: less than all if the last link is torn.

    `head` is the hash of the link before the first; None believes what the first one says (a list whose beginning was
    put away). Raises AuditError if the chain does not hold.
    """
    entries: list[Entry] = []
    at = 0
    while at + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        body = data[at + _LENGTH.size : at + _LENGTH.size + length]
        if length <= MAX_LINK and len(body) < length:
            break  # the last write did not end
        try:
            if length > MAX_LINK:
                raise MalformedMessage(DropReason.OVER_LIMIT)
            link = decode(_decoder, body, limit=MAX_LINK)
        except MalformedMessage as error:
            raise AuditError(f"entry {len(entries) + 1} of the audit list cannot be read ({error})") from error
        if head is not None and not is_equal(link.previous, head):
            raise AuditError(f"entry {len(entries) + 1} of the audit list does not follow the one before it")
        entries.append(link.entry)
        head, at = blake2b(body, 32), at + _LENGTH.size + length
    return entries, GENESIS if head is None else head, at


def is_proven(entry: Entry) -> bool:
    """True if the evidence's signature holds, and is by the actor."""
    domain = _DOMAINS.get(entry.kind, DOMAIN_ACT)  # type: ignore[call-overload]
    return entry.evidence.signer == entry.actor and verify(entry.evidence, domain)


def _digest(entry: Entry) -> bytes:
    evidence = entry.evidence
    return blake2b(msgspec.msgpack.encode((entry.kind, entry.subject, evidence.body, evidence.signer)), 16)
