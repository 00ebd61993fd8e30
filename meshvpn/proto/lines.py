"""The lines of charters that one member has seen, and what follows from them together.

Usually there is one line. While admins are cut off from each other each signs its own; members that hear of both keep
both, so that they can show them to others: the greatest counts, with what the others add (`charter.merge`), until
somebody signs one that has all of it. A line by an admin that another one evicts, or that the owner dismissed, counts
for nothing, whichever came first; only admins that evict each other at the same time are believed in the order in
which they are heard, until the owner says who is right. So a line is forgotten only for one that cannot become void
without it: its signer's next, or the owner's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from .charter import Charter, check_genuine, check_lineage, covers, decode_charter, may_sign_for_network, merge, rank
from .drops import DropReason
from .errors import MalformedMessage
from .signed import Signed

MAX_LINES = 8
"""Beyond, those are forgotten that the greatest covers, and then the least ones."""

Line = tuple[Signed, Charter]


class Lines:
    """At least one; `merged` is what they say together."""

    def __init__(self, charters: Sequence[Signed]) -> None:
        self._lines: list[Line] = [(signed, decode_charter(signed)) for signed in charters]
        self.merged = _merged(self._lines)

    @property
    def greatest(self) -> Signed:
        """The one whose epoch, password and access count."""
        return self._lines[0][0]

    @property
    def are_joined(self) -> bool:
        """True if the greatest says all that is known."""
        return self._lines[0][1] == self.merged

    @property
    def is_one_password(self) -> bool:
        """True unless one that the greatest does not cover has another password than it, or none."""
        return len({charter.locator for _, charter in self._apart()}) == 1

    def export(self) -> list[Signed]:
        """The greatest first, for the disk."""
        return [signed for signed, _ in self._lines]

    def news(self) -> list[Signed]:
        """What other members need in order to know as much as we do, the greatest first."""
        return [signed for signed, _ in self._apart()]

    def add(self, signed: Signed) -> None:
        """A charter. Raises MalformedMessage: stale if it says nothing new."""
        if signed == self.greatest:
            raise MalformedMessage(DropReason.STALE)
        charter = check_genuine(signed)
        check_lineage(signed, charter, self.merged)
        line = (signed, charter)
        if _rank(line) < _rank(self._lines[0]) and covers(self.merged, charter):
            raise MalformedMessage(DropReason.STALE)
        together = _merged([*self._lines, line])
        if not may_sign_for_network(together, signed.signer):
            raise MalformedMessage(DropReason.BAD_SIGNATURE)
        lines = [known for known in _sorted([*self._lines, line]) if may_sign_for_network(together, known[0].signer)]
        self._lines = _bounded(_unreplaced(lines))
        self.merged = _merged(self._lines)

    def _apart(self) -> list[Line]:
        greatest, *others = self._lines
        return [greatest, *(line for line in others if not covers(greatest[1], line[1]))]


def _rank(line: Line) -> tuple[bool, int, int, bytes, bytes]:
    return rank(*line)


def _sorted(lines: Sequence[Line]) -> list[Line]:
    return sorted(lines, key=_rank, reverse=True)


def _merged(lines: Sequence[Line]) -> Charter:
    return reduce(merge, [charter for _, charter in _sorted(lines)])


def _unreplaced(lines: Sequence[Line]) -> list[Line]:
    """Without those that their signer, or the owner, replaced."""
    kept: list[Line] = []
    for line in lines:
        signed, charter = line
        replacing = [known for by, known in kept if by.signer in (signed.signer, charter.owner)]
        if not any(covers(known, charter) for known in replacing):
            kept.append(line)
    return kept


def _bounded(lines: list[Line]) -> list[Line]:
    greatest = lines[0][1]
    kept = sorted(lines, key=lambda line: covers(greatest, line[1]) and line is not lines[0])[:MAX_LINES]
    return _sorted(kept)
