"""Damage: what a stranger does to a valid message."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import msgspec

_ODD_BYTES = [b"\0", b"\x7f", b"\x80", b"\xff", bytes(4), b"\xff" * 4, b"\xc0", b"\xc1", b"\xdd" + b"\xff" * 4]
_ODD_NUMBERS = [0, -1, 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63, 2**64 - 1, -(2**63), 0.5, float("nan"), float("inf")]
_ODD_TEXTS = ["", "a" * 300, "\0", "\x1b[2J", "\u202e", "\ufeff", "10.1.2.300", "::1%eth0", "10.1.2.0/24", "٣"]
_ODD_VALUES: list[Any] = [None, True, b"", bytes(31), bytes(32), bytes(64), [], {}, [[[[[[]]]]]], {"a": {"b": {}}}]
MAX_BYTES = 4096


def mutate(seeds: Sequence[bytes], source: random.Random) -> bytes:
    """A seed with a few changes; sometimes bytes of no seed at all."""
    if source.random() < 0.05:
        return source.randbytes(source.randrange(200))
    data = bytearray(source.choice(seeds))
    # Most parsers look at the length first, so half of the inputs keep it.
    change = _overwrite if source.random() < 0.5 else _reshape
    for _ in range(source.randint(1, 3)):
        change(data, seeds, source)
    return bytes(data[:MAX_BYTES])


def mutate_packed(seeds: Sequence[bytes], source: random.Random) -> bytes:
    """A seed of msgpack with one to three of its values replaced: the form stays right, the meaning does not."""
    value: Any = [msgspec.msgpack.decode(source.choice(seeds))]
    for _ in range(source.randint(1, 3)):
        _replace(value, source)
    return msgspec.msgpack.encode(value[0] if value else None)


def _overwrite(data: bytearray, _seeds: Sequence[bytes], source: random.Random) -> None:
    if not data:
        return
    start = source.randrange(len(data))
    if source.random() < 0.5:
        data[start] ^= 1 << source.randrange(8)
    else:
        odd = source.choice(_ODD_BYTES)[: len(data) - start]
        data[start : start + len(odd)] = odd


def _reshape(data: bytearray, seeds: Sequence[bytes], source: random.Random) -> None:
    start = source.randrange(len(data) + 1)
    end = min(len(data), start + source.randint(1, 16))
    match source.randrange(5):
        case 0:
            del data[start:end]
        case 1:
            data[start:start] = source.randbytes(end - start)
        case 2:
            data[start:start] = data[start:end] * source.randint(1, 8)
        case 3:
            other = source.choice(seeds)
            at = source.randrange(len(other) + 1)
            data[start:end] = other[at : at + source.randint(1, 40)]
        case _:
            del data[start:]


def _replace(tree: Any, source: random.Random) -> None:
    """One value, as deep in the tree as chance has it; or one that is left out or said twice."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    if not keys:
        return
    key = source.choice(keys)
    child = tree[key]
    if isinstance(child, list | dict) and child and source.random() < 0.8:
        return _replace(child, source)
    match source.randrange(8):
        case 0:
            del tree[key]
        case 1 if isinstance(tree, list):
            tree.insert(key, deepcopy(child))
        case 2 if isinstance(child, bytes) and child:
            tree[key] = bytes([child[0] ^ 1]) + child[1:]
        case 3 | 4:
            tree[key] = source.choice(_ODD_NUMBERS)
        case 5 | 6:
            tree[key] = source.choice(_ODD_TEXTS)
        case _:
            tree[key] = deepcopy(source.choice(_ODD_VALUES))
