"""The engine's ChaCha20-Poly1305 against libsodium's AEAD as PyNaCl calls it, for messages of every length."""

from __future__ import annotations

import contextlib
import random

import pytest

from .sides import A_HOST, B_HOST, EngineSide, install, introduce, packet, seal, unseal

SIZES = (*range(24, 700), 1400, 1471, 1472, 1473, 8999, 9000, 9001)


def test_what_the_engine_seals_opens() -> None:
    with contextlib.closing(EngineSide()) as side:
        introduce(side, side.far[0], B_HOST)
        install(side.plane, 1, 2, is_initiator=True)
        for counter, size in enumerate((*SIZES, 9600, 20_000, 60_000)):
            item = noisy(A_HOST, B_HOST, size)
            side.push(item)
            assert unseal(1, 2, side.sent(1)[0]) == (counter, item + bytes(-size % 16))


@pytest.mark.parametrize("extra", [0, 16, 512])
def test_what_others_seal_the_engine_opens(extra: int) -> None:
    with contextlib.closing(EngineSide()) as side:
        introduce(side, side.far[0], B_HOST)
        install(side.plane, 1, 2, is_initiator=True)
        for counter, size in enumerate((*SIZES, 20_000, 65_000 - extra)):
            item = noisy(B_HOST, A_HOST, size)
            side.inject(seal(1, 2, counter << 33, item + bytes(extra)))
            assert side.take(1) == [item]


@pytest.mark.parametrize("size", [24, 200, 1400, 9000, 20_000])
def test_a_changed_tag_opens_nothing_and_spares_the_good_one(size: int) -> None:
    with contextlib.closing(EngineSide()) as side:
        introduce(side, side.far[0], B_HOST)
        install(side.plane, 1, 2, is_initiator=True)
        good = seal(1, 2, 0, noisy(B_HOST, A_HOST, size))
        for bit in range(128):
            number = int.from_bytes(good[-16:]) ^ 1 << bit
            side.inject(good[:-16] + number.to_bytes(16))
        side.inject(good)
        assert side.take(1) == [noisy(B_HOST, A_HOST, size)]
        assert side.drops() == {"decrypt_failed": 128}


def noisy(source: str, destination: str, size: int) -> bytes:
    return packet(source, destination, 0, size)[:24] + random.Random(size).randbytes(size - 24)
