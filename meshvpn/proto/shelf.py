"""What a member has to tell by gossip, and where it puts what it is told: into the roster, which checks it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from . import gossip_messages as messages
from . import keys as key_rules
from .drops import DropReason
from .errors import MalformedMessage
from .gossip_messages import NAME, Charters, Item, Kind, News, batches, hash_of, name_of
from .member import Member
from .signed import Signed

FORGED = frozenset({DropReason.MALFORMED, DropReason.BAD_SIGNATURE})
"""What no member can have taken for genuine."""
MAX_DOUBLES = 4


class Book(Protocol):
    """What the roster is asked for and told."""

    @property
    def members(self) -> Mapping[bytes, Member]:
        """The others."""

    @property
    def is_over(self) -> bool:
        """Nobody is to be talked to."""

    @property
    def signed_charter(self) -> Signed:
        """The greatest charter."""

    @property
    def epoch_key(self) -> bytes:
        """The newest that we have."""

    def charters(self) -> Sequence[Signed]:
        """All that count, greatest first."""

    def leaves(self) -> Sequence[Signed]:
        """Farewells."""

    def approvals(self) -> Sequence[Signed]:
        """Of members."""

    def records(self) -> Mapping[bytes, Signed]:
        """The others' own."""

    def seal_for_members(self, plaintext: bytes, entropy: Callable[[int], bytes]) -> bytes:
        """Under the newest epoch key."""

    def open_from_members(self, sealed: bytes) -> bytes | None:
        """With the newest epoch key or the one before."""

    def handle_charter(self, signed: Signed, members: Sequence[object], *, wall: int) -> DropReason | None:
        """A charter."""

    def handle_leave(self, signed: Signed, *, wall: int) -> DropReason | None:
        """A farewell."""

    def handle_record(self, signed: Signed, *, wall: int) -> DropReason | None:
        """A member's own record."""

    def handle_approval(self, signed: Signed, *, wall: int) -> DropReason | None:
        """An approval."""


class Shelf:
    """`identity` is ours, and `own_record` gives our record."""

    def __init__(
        self,
        book: Book,
        identity: bytes,
        own_record: Callable[[], Signed | None],
        *,
        entropy: Callable[[int], bytes],
    ) -> None:
        self.charters = self.state = b""
        """Hashes of the charters, and of all that we have."""
        self.doubles: list[Signed] = []
        """Records of our own identity that we do not publish: of an earlier run, or of who else has our keys."""
        self._book = book
        self._identity = identity
        self._own_record = own_record
        self._entropy = entropy
        self._items: dict[bytes, Item] = {}
        self._is_stale = True
        self.look()

    def note_change(self) -> None:
        """The roster or our own record changed."""
        self._is_stale = True

    def look(self) -> None:
        """Bring names and hashes up to date."""
        if not self._is_stale:
            return
        self._is_stale = False
        own = self._own_record()
        items: list[Item] = [(Kind.CHARTER, signed) for signed in self._book.charters()]
        self.charters = hash_of(name_of(*item) for item in items)
        items += [(Kind.LEAVE, signed) for signed in self._book.leaves()]
        items += [(Kind.RECORD, signed) for signed in self._book.records().values()]
        items += [] if own is None else [(Kind.RECORD, own)]
        items += [(Kind.APPROVAL, signed) for signed in self._book.approvals()]
        self._items = {name_of(*item): item for item in items[: messages.MAX_NAMES]}
        self.state = hash_of(self._items)

    @property
    def names(self) -> bytes:
        """Of all that we have."""
        return b"".join(self._items)

    def missing(self, names: bytes) -> list[Charters | News]:
        """What somebody lacks who has these, in messages."""
        theirs = set(messages.split(names, NAME))
        items = sorted((item for name, item in self._items.items() if name not in theirs), key=_order)
        charters = [item for item in items if item[0] is Kind.CHARTER]
        told: list[Charters | News] = [Charters([signed for _, signed in batch]) for batch in batches(charters)]
        for batch in batches(items[len(charters) :]):
            told.append(News(self._book.seal_for_members(messages.encode_items(batch), self._entropy)))
        return told

    def open(self, message: Charters | News) -> list[Item]:
        """What is in a message. Raises MalformedMessage."""
        if isinstance(message, Charters):
            return [(Kind.CHARTER, signed) for signed in message.charters]
        plaintext = key_rules.open_secret(self._book.epoch_key, message.sealed)
        if plaintext is not None:
            return messages.decode_items(plaintext)
        if (plaintext := self._book.open_from_members(message.sealed)) is None:
            raise MalformedMessage(DropReason.DECRYPT_FAILED)
        # The previous key is good only for who was known before the rotation.
        items = messages.decode_items(plaintext)
        return [item for item in items if item[0] is not Kind.RECORD or item[1].signer in self._book.members]

    def put(self, items: Sequence[Item], *, wall: int) -> tuple[int, DropReason | None]:
        """How many were news, and what was wrong if one was forged: what follows that is not looked at."""
        news = 0
        for kind, signed in items:
            reason = self._put(kind, signed, wall)
            if reason in FORGED:
                return news, reason
            news += reason is None
        self._is_stale |= news > 0
        return news, None

    def _put(self, kind: Kind, signed: Signed, wall: int) -> DropReason | None:
        match kind:
            case Kind.CHARTER:
                return self._book.handle_charter(signed, [], wall=wall)
            case Kind.LEAVE:
                return self._book.handle_leave(signed, wall=wall)
            case Kind.APPROVAL:
                return self._book.handle_approval(signed, wall=wall)
        if signed.signer != self._identity:
            return self._book.handle_record(signed, wall=wall)
        if name_of(kind, signed) not in self._items and len(self.doubles) < MAX_DOUBLES:
            self.doubles.append(signed)
        return DropReason.STALE


def _order(item: Item) -> int:
    return item[0]
