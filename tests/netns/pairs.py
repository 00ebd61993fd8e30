"""Pairs of sites in one mesh, and how long each took to a direct path."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from .natmesh import Heard, NatMesh

LINE_DELAY = 20.0
"""Milliseconds; four lines make a round trip."""
BOUNDS = {"D": 2.0, "P": 4.0, "B": 10.0}
"""Seconds until both ends send directly: without guessing, with a predicted port, by a birthday search."""


@dataclass(slots=True)
class Pair:
    """Two sites by number, and what became of them."""

    a: int
    b: int
    seconds: float | None = None
    """Until it was direct; None: it was not."""
    is_relayed: bool = False
    heard: tuple[Heard, ...] = ()

    def describe(self) -> str:
        """For people."""
        lost = "".join(f", {heard.lost} of {heard.sent} lost" for heard in self.heard)
        how = f"{self.seconds:.2f} s" if self.seconds is not None else "relay" if self.is_relayed else "neither"
        return f"{self.a}-{self.b}: {how}{lost}"

    def await_direct(self, mesh: NatMesh, deadline: float, began: float = 0.0) -> None:
        """See when it is direct, until an instant. What is direct before it talks, at `began`, was found since both
        knew of each other."""
        ends = [(self.a, self.b), (self.b, self.a)]
        while True:
            changes = [mesh.changes(*end) for end in ends]
            if all(end and end[-1].state == "direct" for end in changes):
                direct_at, known_at = max(end[-1].at for end in changes), max(end[0].at for end in changes)
                self.seconds = direct_at - (known_at if direct_at < began else max(known_at, began))
                return
            if time.time() > deadline:
                return
            time.sleep(0.05)


def talk(mesh: NatMesh, pairs: Sequence[Pair], patience: float) -> None:
    """They talk, all at once, until they are direct or so many seconds have passed."""
    began = time.time()
    for pair in pairs:
        mesh.begin(pair.a, pair.b)
    for pair in pairs:
        pair.await_direct(mesh, began + patience, began)
    for pair in pairs:
        pair.heard = mesh.end(pair.a, pair.b)
