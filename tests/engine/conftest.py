"""Every test of a `side` or of `sides` runs on the engine, with each of its features on and off, and on the twin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .sides import B_HOST, KINDS, Side, install, introduce, open_pair, open_side


@pytest.fixture(params=KINDS)
def sides(request: pytest.FixtureRequest) -> Iterator[tuple[Side, Side]]:
    with open_pair(request.param) as pair:
        yield pair


@pytest.fixture(params=KINDS)
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    """A plane with one peer at far end 0: B's address inside, no keypair yet."""
    with open_side(request.param) as one:
        introduce(one, one.far[0], B_HOST)
        yield one


@pytest.fixture
def joined(side: Side) -> Side:
    """The same with a keypair (local index 1, remote index 2) that it initiated."""
    install(side.plane, 1, 2, is_initiator=True)
    return side
