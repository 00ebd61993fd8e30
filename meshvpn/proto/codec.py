"""The one place where msgpack from outside is parsed."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from .drops import DropReason
from .errors import MalformedMessage

T = TypeVar("T")


def decode(decoder: msgspec.msgpack.Decoder[T], data: bytes, *, limit: int) -> T:
    """Parse at most `limit` bytes. Raises MalformedMessage (over_limit, malformed), nothing else."""
    if len(data) > limit:
        raise MalformedMessage(DropReason.OVER_LIMIT)
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise MalformedMessage(DropReason.MALFORMED) from error
