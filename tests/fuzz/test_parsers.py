"""Whatever arrives is used or dropped by name; nothing else may come of it.

Every run replays `seeds/` (a file for each target, hexadecimal, a line an input: what once broke something, or nearly)
and tries some hundred damaged messages of each kind, the same ones each time. To search further:

    MESHVPN_FUZZ_SECONDS=600 pytest tests/fuzz          each target for its share of the time, from a new start

A crash prints its input as the line to add to the file.
"""

from __future__ import annotations

import os
import random
import time
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .mutate import mutate, mutate_packed
from .targets import TARGETS, Target

SEEDS = Path(__file__).parent / "seeds"
DAMAGED = 200
SECONDS = float(os.environ.get("MESHVPN_FUZZ_SECONDS", "0"))
every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@every_target
def test_valid_inputs_are_allowed_in(target: Target) -> None:
    for seed in target.seeds():
        attempt(target, seed)


@every_target
def test_what_once_broke_something_does_not_any_more(target: Target) -> None:
    for line in (SEEDS / f"{target.name}.hex").read_text().splitlines():
        attempt(target, bytes.fromhex(line.partition("#")[0]))


@every_target
def test_damaged_messages_are_used_or_dropped_by_name(target: Target) -> None:
    source, seeds = random.Random(f"{target.name} {time.time_ns() if SECONDS else 0}"), target.seeds()
    end = time.monotonic() + SECONDS / len(TARGETS)
    for number in count():
        if number >= DAMAGED and time.monotonic() >= end:
            break
        damage = mutate_packed if target.is_packed and number % 2 else mutate
        attempt(target, damage(seeds, source))


@every_target
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_used_or_dropped_by_name(target: Target, data: bytes) -> None:
    attempt(target, data)


def test_every_file_of_seeds_has_its_target() -> None:
    assert {path.stem for path in SEEDS.glob("*.hex")} == {target.name for target in TARGETS}


def attempt(target: Target, data: bytes) -> None:
    try:
        outcome = target.run(data)
    except Exception as error:
        raise AssertionError(f"seeds/{target.name}.hex: {data.hex()}") from error
    assert outcome in target.allowed, f"{outcome}: seeds/{target.name}.hex: {data.hex()}"
