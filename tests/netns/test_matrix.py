"""Every kind of NAT against every other at a round trip of 80 ms: directly where that is possible, relayed where not.

Two sites of each kind are in one network, so that each cell of the table but those of its diagonal has four pairs. What
is found without guessing is timed from the moment at which the second end knew the first; the members enter one after
the other. Guessing is done for those who talk, one pair after the other, as it would be for one host; it is timed from
the first packet. Pairs that can only be relayed talk all the while.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from . import nats
from .igd import Igd
from .natlab import NatLab
from .natmesh import NatMesh
from .pairs import BOUNDS, LINE_DELAY, Pair, talk

pytestmark = [pytest.mark.netns, pytest.mark.alone]

EXPECTED = """
                public  firewall  cone  restricted  port  carrier  counting  symmetric  mapped  blocked
    public      D       D         D     D           D     D        D         D          D       R
    firewall            D         D     D           D     D        P         B          D       R
    cone                          D     D           D     D        D         D          D       R
    restricted                          D           D     D        D         D          D       R
    port                                            D     D        P         B          D       R
    carrier                                               D        P         B          D       R
    counting                                                       P         R          D       R
    symmetric                                                                R          D       R
    mapped                                                                              D       R
    blocked                                                                                     R
"""
_HEAD, *_ROWS = (line.split() for line in EXPECTED.split("\n") if line.strip())
KINDS = tuple(_HEAD)
CELLS = {
    (row[0], column): letter for row in _ROWS for column, letter in zip(KINDS[-len(row) + 1 :], row[1:], strict=True)
}
RELAYED_RATE = 10.0
"""Packets a second each way between those that are relayed: 42 pairs at once, on any machine."""
RELAYED_FOR = 10.0
"""Seconds at least."""


@dataclass(slots=True)
class Matrix:
    """The sites and the pairs of each cell."""

    mesh: NatMesh
    pairs: dict[tuple[str, str], list[Pair]] = field(default_factory=dict)

    def of(self, letter: str) -> list[Pair]:
        """The pairs of all cells that are marked so."""
        return [pair for cell, pairs in self.pairs.items() if CELLS[cell] == letter for pair in pairs]

    def measure(self) -> None:
        """Let them find each other."""
        deadline = time.time() + 2 * BOUNDS["D"]
        for pair in self.of("D"):
            pair.await_direct(self.mesh, deadline)
        relayed = self.of("R")
        for pair in relayed:
            self.mesh.wait_state("relay", pair.a, pair.b)
        for pair in relayed:
            self.mesh.begin(pair.a, pair.b, rate=RELAYED_RATE)
        talked_until = time.time() + RELAYED_FOR
        for letter in "PB":
            for pair in self.of(letter):
                talk(self.mesh, [pair], 2 * BOUNDS[letter])
        if (left := talked_until - time.time()) > 0:
            time.sleep(left)
        for pair in relayed:
            pair.heard = self.mesh.end(pair.a, pair.b)
            pair.is_relayed = self.mesh.is_reached("relay", pair.a, pair.b)


def _add_site(lab: NatLab, number: int, kind: str) -> str:
    """The host of a site of that kind."""
    if kind in ("public", "firewall"):
        return lab.add_public(number, has_firewall=kind == "firewall")
    if kind == "carrier":
        return lab.add_site(number, nats.PORT_RESTRICTED, behind=lab.add_carrier(number, nats.CARRIER_GRADE))
    host = lab.add_site(
        number,
        {
            "cone": nats.FULL_CONE,
            "restricted": nats.RESTRICTED,
            "port": nats.PORT_RESTRICTED,
            "counting": nats.SYMMETRIC_COUNTING,
            "symmetric": nats.SYMMETRIC,
            "mapped": nats.SYMMETRIC,
            "blocked": nats.UDP_BLOCKED,
        }[kind],
    )
    if kind == "mapped":
        Igd(lab, number, "pcp", "nat-pmp", "upnp").start()
    return host


@pytest.fixture(scope="module")
def matrix() -> Iterator[Matrix]:
    with NatLab(delay=LINE_DELAY) as lab:
        kinds = dict(enumerate(KINDS * 2, 1))
        mesh = NatMesh(lab, {number: _add_site(lab, number, kind) for number, kind in kinds.items()})
        made = Matrix(mesh, {cell: [] for cell in CELLS})
        for a, b in itertools.combinations(kinds, 2):
            cell = (kinds[a], kinds[b])
            made.pairs[cell if cell in CELLS else cell[::-1]].append(Pair(a, b))
        mesh.start()
        made.measure()
        yield made


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_each_cell_of_the_matrix_is_as_good_as_it_can_be(matrix: Matrix, cell: tuple[str, str]) -> None:
    letter, pairs = CELLS[cell], matrix.pairs[cell]
    sys.stdout.write(f"{letter} {' - '.join(cell)}: {'; '.join(pair.describe() for pair in pairs)}\n")
    for pair in pairs:
        if letter == "R":
            assert pair.is_relayed, pair
            assert all(heard.is_whole for heard in pair.heard), pair
        elif letter == "B" and pair.seconds is None:
            # A search is a throw of dice, of which there is one in five minutes: one in twenty may miss.
            assert [missed for missed in matrix.of("B") if missed.seconds is None] == [pair], pair.describe()
            assert all(heard.is_whole for heard in pair.heard), pair
        else:
            assert pair.seconds is not None, pair.describe()
            assert pair.seconds <= BOUNDS[letter], pair.describe()
