"""What a member has to tell by gossip, and where it puts what it is told: into the roster, which checks it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import gossip_messages as messages
from . import keys as key_rules
from .drops import DropReason
from .errors import MalformedMessage
from .gossip_messages import NAME, Charters, Item, Kind, News, batches, hash_of, name_of
from .roster import Roster
from .signed import Signed

FORGED = frozenset({DropReason.MALFORMED, DropReason.BAD_SIGNATURE})
"""What no member can have taken for genuine."""
MAX_DOUBLES = 4


class Shelf:
    """`identity` is ours, and `own_record` gives our record."""

    def __init__(
        self,
        roster: Roster,
        identity: bytes,
        own_record: Callable[[], Signed | None],
        *,
        entropy: Callable[[int], bytes],
    ) -> None:
        self.charters = self.state = b""
        """Hashes of the charters, and of all that we have."""
        self.doubles: list[Signed] = []
        """Records of our own identity that we do not publish: of an earlier run, or of who else has our keys."""
        self._roster = roster
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
        items: list[Item] = [(Kind.CHARTER, signed) for signed in self._roster.charters()]
        self.charters = hash_of(name_of(*item) for item in items)
        items += [(Kind.RECORD, signed) for signed in self._roster.records().values()]
        items += [] if own is None else [(Kind.RECORD, own)]
        items += [(Kind.APPROVAL, signed) for signed in self._roster.approvals()]
        self._items = {name_of(*item): item for item in items}
        self.state = hash_of(self._items)
        # Only who has the record of a member needs its farewell, and that makes a difference already.
        self._items |= {name_of(Kind.LEAVE, signed): (Kind.LEAVE, signed) for signed in self._roster.leaves()}

    @property
    def names(self) -> bytes:
        """Of all that we have."""
        return b"".join(list(self._items)[: messages.MAX_NAMES])

    def missing(self, names: bytes) -> list[Charters | News]:
        """What somebody lacks who has these, in messages."""
        theirs = set(messages.split(names, NAME))
        items = sorted((item for name, item in self._items.items() if name not in theirs), key=_order)
        charters = [item for item in items if item[0] is Kind.CHARTER]
        told: list[Charters | News] = [Charters([signed for _, signed in batch]) for batch in batches(charters)]
        for batch in batches(items[len(charters) :]):
            told.append(News(self._roster.seal_for_members(messages.encode_items(batch), self._entropy)))
        return told

    def open(self, message: Charters | News) -> list[Item]:
        """What is in a message. Raises MalformedMessage."""
        if isinstance(message, Charters):
            return [(Kind.CHARTER, signed) for signed in message.charters]
        plaintext = key_rules.open_secret(self._roster.epoch_key, message.sealed)
        if plaintext is not None:
            return messages.decode_items(plaintext)
        if (plaintext := self._roster.open_from_members(message.sealed)) is None:
            raise MalformedMessage(DropReason.DECRYPT_FAILED)
        # The previous key is good only for who was known before the rotation.
        items = messages.decode_items(plaintext)
        return [item for item in items if item[0] is not Kind.RECORD or item[1].signer in self._roster.members]

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
                return self._roster.handle_charter(signed, [], wall=wall)
            case Kind.LEAVE:
                return self._roster.handle_leave(signed, wall=wall)
            case Kind.APPROVAL:
                return self._roster.handle_approval(signed, wall=wall)
        if signed.signer != self._identity:
            return self._roster.handle_record(signed, wall=wall)
        if name_of(kind, signed) not in self._items and len(self.doubles) < MAX_DOUBLES:
            self.doubles.append(signed)
        return DropReason.STALE


def _order(item: Item) -> int:
    return item[0]
