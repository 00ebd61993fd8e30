"""Damage: what a stranger does to a valid message."""

from __future__ import annotations

import random
from collections.abc import Sequence

_INTERESTING = [
    b"\0",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xc0",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
]
MAX_BYTES = 4096


def mutate(seeds: Sequence[bytes], source: random.Random) -> bytes:
    """One of the seeds with one to four changes, or bytes of no seed at all."""
    if source.random() < 0.1:
        return source.randbytes(source.randrange(200))
    data = bytearray(source.choice(seeds))
    for _ in range(source.randint(1, 4)):
        _change(data, seeds, source)
    return bytes(data[:MAX_BYTES])


def _change(data: bytearray, seeds: Sequence[bytes], source: random.Random) -> None:
    start = source.randrange(len(data) + 1)
    end = min(len(data), start + source.randint(1, 16))
    match source.randrange(7):
        case 0 if data:
            data[start % len(data)] ^= 1 << source.randrange(8)
        case 1:
            data[start:end] = source.choice(_INTERESTING)
        case 2:
            del data[start:end]
        case 3:
            data[start:start] = source.randbytes(end - start)
        case 4:
            data[start:start] = data[start:end] * source.randint(1, 8)
        case 5:
            other = source.choice(seeds)
            at = source.randrange(len(other) + 1)
            data[start:end] = other[at : at + source.randint(1, 40)]
        case _:
            del data[start:]
