"""What members say to each other over the tunnel (gossip.py): msgpack arrays, the first element says which.

    Summary   1 ‖ charters(16) ‖ state(16) ‖ share ‖ covered       who opens a link begins with it
    Digest    2 ‖ names ‖ covered                                   what I have; tell me what is missing in it
    Charters  3 ‖ [signed charter, …]
    News      4 ‖ sealed                                            under the epoch key: [[kind, signed], …]
    Done      5                                                     I have said everything

`names`, `share` and `covered` are strings of names without anything between them: 16 bytes for a thing, 8 for a member.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum

import msgspec

from . import primitives
from .codec import decode
from .control import MAX_CHARTER, MAX_MEMBERS
from .drops import DropReason
from .errors import MalformedMessage
from .signed import Signed

NAME = 16
"""Bytes of a thing's name: BLAKE2b over kind and all that was signed."""
MEMBER_NAME = 8
"""Bytes of a member's name: the first of its identity."""
MAX_NAMES = 8192
"""Things in one digest: records, approvals and farewells of a full network."""
MAX_ITEMS = 64
"""Signed things in one message: checking them takes about 10 ms, during which nothing else is served."""
MAX_ITEM_BYTES = 64 * 1024
"""Bytes of signed things after which a message is full."""
MAX_FRAME = MAX_CHARTER + 16 * 1024
"""Bytes of one message: the largest charter, or the longest digest."""


class Kind(IntEnum):
    """What a signed thing is; in the order in which they are told."""

    CHARTER = 1
    LEAVE = 2
    RECORD = 3
    APPROVAL = 4


class Summary(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Hashes of what I have. If the charters are news: pass them on to `share`; of `covered` others take care."""

    charters: bytes
    state: bytes
    share: bytes = b""
    covered: bytes = b""


class Digest(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The names of all that I have."""

    names: bytes
    covered: bytes = b""


class Charters(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """In the clear: they are public."""

    charters: list[Signed]


class News(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Sealed, so that nobody who lacks the epoch key can vouch for a member."""

    sealed: bytes


class Done(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Nothing more follows."""


Message = Summary | Digest | Charters | News | Done
Item = tuple[Kind, Signed]

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_items_decoder: msgspec.msgpack.Decoder[list[Item]] = msgspec.msgpack.Decoder(list[Item])


def encode(message: Message) -> bytes:
    """Serialise a message."""
    return _encoder.encode(message)


def decode_message(data: bytes) -> Message:
    """Parse and check sizes. Raises MalformedMessage, nothing else."""
    message = decode(_decoder, data, limit=MAX_FRAME)
    match message:
        case Summary():
            _check_names(message.share, MEMBER_NAME, MAX_MEMBERS)
            _check_names(message.covered, MEMBER_NAME, MAX_MEMBERS)
            is_sound = len(message.charters) == len(message.state) == NAME
        case Digest():
            _check_names(message.names, NAME, MAX_NAMES)
            _check_names(message.covered, MEMBER_NAME, MAX_MEMBERS)
            is_sound = True
        case Charters():
            is_sound = 0 < len(message.charters) <= MAX_ITEMS
        case _:
            is_sound = True
    if not is_sound:
        raise MalformedMessage(DropReason.MALFORMED)
    return message


def encode_items(items: list[Item]) -> bytes:
    """What a News seals."""
    return _encoder.encode(items)


def decode_items(data: bytes) -> list[Item]:
    """What a News sealed. Raises MalformedMessage, nothing else."""
    items = decode(_items_decoder, data, limit=MAX_FRAME)
    if len(items) > MAX_ITEMS or any(kind is Kind.CHARTER for kind, _ in items):
        raise MalformedMessage(DropReason.OVER_LIMIT)
    return items


def name_of(kind: Kind, signed: Signed) -> bytes:
    """What it is called in digests."""
    head = bytes([kind]) + len(signed.body).to_bytes(4, "big")
    return primitives.blake2b(head + signed.body + signed.signer + signed.signature, NAME)


def hash_of(names: Iterable[bytes]) -> bytes:
    """Over all of them, in whatever order they come."""
    return primitives.blake2b(b"".join(sorted(names)), NAME)


def split(names: bytes, size: int) -> list[bytes]:
    """The single names."""
    return [names[start : start + size] for start in range(0, len(names), size)]


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """In messages that are not too big."""
    batch: list[Item] = []
    size = 0
    for item in items:
        weight = len(item[1].body) + 128
        if batch and (len(batch) >= MAX_ITEMS or size + weight > MAX_ITEM_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += weight
    if batch:
        yield batch


def _check_names(names: bytes, size: int, limit: int) -> None:
    if len(names) > size * limit:
        raise MalformedMessage(DropReason.OVER_LIMIT)
    if len(names) % size:
        raise MalformedMessage(DropReason.MALFORMED)
