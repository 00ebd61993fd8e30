"""Where networks are kept: a document by uid, found by locators (of its password, of its invites), replaced by
compare-and-swap on its revision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from meshvpn.proto.errors import MeshError

from .core import NetworkDoc


class StoreError(MeshError):
    """The storage can't be used; the message says why and what to do."""


class ConflictError(MeshError):
    """Somebody else stored the network meanwhile: load it again."""


class LocatorTakenError(MeshError):
    """Another network has this locator."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A document and its revision, from 1 on."""

    document: NetworkDoc
    revision: int


class Store(Protocol):
    """What the server needs of a storage. All calls may raise StoreError."""

    async def get(self, uid: bytes) -> Stored | None:
        """The network, or None."""

    async def find(self, locator: bytes) -> bytes | None:
        """The uid of the network whose password has this locator, or None."""

    async def find_invite(self, locator: bytes) -> bytes | None:
        """The uid of the network that gave out the invite with this locator, or None.

        Apart from passwords: whoever signs invites must not find out by them which passwords are in use.
        """

    async def put(self, document: NetworkDoc, revision: int) -> Stored:
        """Store as the successor of `revision` (0: new). Raises ConflictError, LocatorTakenError.

        What was returned is durable; after StoreError the network may be either the old or the new one.
        """

    async def count(self) -> int:
        """How many networks there are."""

    async def close(self) -> None:
        """Let go of it."""
