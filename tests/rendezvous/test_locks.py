"""A lock for each key, for as long as somebody needs it."""

from __future__ import annotations

import asyncio

import pytest

from rendezvous.locks import Locks


async def test_nobody_holds_the_same_key_twice_and_they_come_in_order() -> None:
    locks = Locks()
    inside: list[int] = []
    order: list[int] = []

    async def visit(number: int) -> None:
        async with locks.hold(b"key"):
            inside.append(number)
            await asyncio.sleep(0)
            assert inside == [number]
            order.append(inside.pop())

    await asyncio.gather(*(visit(number) for number in range(20)))
    assert order == list(range(20))
    assert len(locks) == 0


async def test_other_keys_do_not_wait() -> None:
    locks = Locks()
    async with locks.hold(b"one"), locks.hold(b"two"):
        assert len(locks) == 2


async def test_a_key_stays_locked_between_a_release_and_the_wake_up_of_who_waits() -> None:
    locks, holders = Locks(), 0

    async def visit() -> None:
        nonlocal holders
        async with locks.hold(b"key"):
            holders += 1
            assert holders == 1
            await asyncio.sleep(0)
            holders -= 1

    async with locks.hold(b"key"):
        waiting = asyncio.create_task(visit())
        await asyncio.sleep(0)
    # Here the lock is released, and `waiting` does not know it yet.
    await asyncio.gather(waiting, visit())
    assert len(locks) == 0


async def test_who_gives_up_or_fails_leaves_nothing_behind() -> None:
    locks = Locks()

    async def visit() -> None:
        async with locks.hold(b"key"):
            raise ValueError("failed")

    async with locks.hold(b"key"):
        waiting = asyncio.create_task(visit())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(locks) == 1
    with pytest.raises(ValueError, match="failed"):
        await visit()
    assert len(locks) == 0
