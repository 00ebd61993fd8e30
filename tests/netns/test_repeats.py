"""What is possible once is possible again: twenty pairs of sites without guessing, with a predicted port, by search."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import pytest

from tests.figures import FIGURES

from .natlab import NatLab
from .natmesh import NatMesh
from .nats import PORT_RESTRICTED, SYMMETRIC, SYMMETRIC_COUNTING
from .pairs import BOUNDS, LINE_DELAY, Pair, talk

pytestmark = [pytest.mark.netns, pytest.mark.alone]

PORT, COUNTING, RANDOM = range(1, 8), range(8, 12), range(12, 16)
"""The sites by what their NAT is."""
TURNS = 5
NAMES = {"D": "port-restricted NATs", "P": "a NAT that counts", "B": "a NAT that rolls dice"}
TRIES = {"D": 1, "P": 3, "B": 1}
"""A predicted port may be missed twice."""
MISSES = {"D": 0, "P": 1, "B": 1}
"""Of twenty."""


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, list[Pair]]]:
    kinds = {PORT: PORT_RESTRICTED, COUNTING: SYMMETRIC_COUNTING, RANDOM: SYMMETRIC}
    with NatLab(delay=LINE_DELAY) as lab:
        mesh = NatMesh(lab, {number: lab.add_site(number, nat) for group, nat in kinds.items() for number in group})
        mesh.start()
        pairs = {"D": [Pair(*ends) for ends in itertools.combinations(PORT, 2)], "P": [], "B": []}
        deadline = time.time() + 2 * BOUNDS["D"]
        for pair in pairs["D"]:
            pair.await_direct(mesh, deadline)
        for letter, others in (("P", COUNTING), ("B", RANDOM)):
            for turn in range(TURNS):
                # Nobody is in two of them: one search at a time is all that a host makes.
                at_once = [Pair(PORT[(turn + step) % TURNS], other) for step, other in enumerate(others)]
                talk(mesh, at_once, TRIES[letter] * BOUNDS[letter])
                pairs[letter] += at_once
        yield pairs


@pytest.mark.parametrize("letter", NAMES)
def test_of_twenty_pairs_nearly_all_get_through(
    found: dict[str, list[Pair]], letter: str, record_property: Callable[[str, object], None]
) -> None:
    pairs = found[letter]
    took = sorted(pair.seconds for pair in pairs if pair.seconds is not None)
    through = [seconds for seconds in took if seconds <= TRIES[letter] * BOUNDS[letter]]
    times = f"{took[len(took) // 2]:.2f} s in the middle, {took[-1]:.2f} s at most" if took else "none"
    record_property(FIGURES, f"{NAMES[letter]}: {len(through)} of {len(pairs)} pairs direct, {times}")
    assert len(pairs) >= 20
    assert len(pairs) - len(through) <= MISSES[letter], [pair.describe() for pair in pairs]
    for pair in pairs:
        assert all(heard.is_whole for heard in pair.heard), pair
