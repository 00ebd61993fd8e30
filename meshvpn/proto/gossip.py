"""Gossip: charters, records, approvals and farewells from member to member, by short links through the tunnel. Pure.

    opener    Summary ────────▶  equal: Done
                      ◀────────  Digest
    what the other lacks, Digest, Done ──▶
                      ◀──────── what the opener lacks, Done           the link is closed

What comes is checked by the roster like the server's word. Three causes for a link:

- The charters changed. Who signed the change tells all peers; of more than MAX_HEADS the others are shared out among
  the first ones, who pass it on (`share`). Of members in `covered` somebody takes care: who learns of charters tells
  those of its peers that are not.
- A peer came: at once if it may lack charters that are news here, or if it is one of the first; else before long, if
  there is no server that tells it.
- Rounds: FANOUT peers of those that may lack something, a few times after news, else one now and then. They find what
  the other two missed, or a peer kept back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from . import gossip_messages as messages
from .buckets import Bucket
from .control import MAX_MEMBERS
from .deadlines import Deadlines
from .drops import DropReason
from .errors import MalformedMessage
from .gossip_messages import MEMBER_NAME, Charters, Digest, Done, Message, News, Summary
from .roster import Roster
from .shelf import FORGED, Shelf
from .signed import Signed

LINK_TIMEOUT = 15.0
"""Seconds for all that is said on a link."""
CONNECT_TIMEOUT = 3.0
"""Seconds until a link that we want is open: a handshake of the tunnel may come before it."""
MAX_HEADS = 16
"""Peers that are told of a change at once; each passes it on to its share of the others."""
MAX_OUTGOING = 32
MAX_INCOMING = 32
MAX_INCOMING_OF_ONE = 2
FANOUT = 2
FIRST_MET = 3
"""Peers that are asked at once after a start: we may have missed something."""
SPACING = 1.0
"""Seconds between links to peers that came and that are probably told nothing new."""
ROUND = (1.0, 1.0)
"""Seconds between two rounds while there was news: at least, and drawn on top."""
HOT_FOR = 4.0
"""Seconds of such rounds after the last news."""
QUIET_ROUND = (3600.0, 3600.0)
"""Seconds between two rounds otherwise, with a server that tells the news: at least, and drawn on top. What a link
sends is payload, after which a path is watched closely for a minute: in silent networks it must be rare."""
LONELY_ROUND = (20.0, 20.0)
"""The same without one, at first. Each round that hears nothing new doubles it, up to QUIET_ROUND."""
MAX_DOUBLINGS = 8
SILENCE = (5.0, 600.0)
"""Seconds for which a peer that does not answer is left alone: at first, and at most."""
BARRED_FOR = 60.0
"""Seconds for which a peer that sent what nobody can have meant is not listened to."""
LINK_RATE, LINK_BURST = 0.5, 20.0
BYTE_RATE, BYTE_BURST = 16.0 * 1024, 6.0 * 1024 * 1024
ITEM_RATE, ITEM_BURST = 20.0, 4096.0
"""What one peer may open, send and have checked, a second and at once: all of a full network, once."""
_HOSTILE = FORGED | {DropReason.OVER_LIMIT, DropReason.UNEXPECTED, DropReason.FLOOD}


@dataclass(frozen=True, slots=True)
class LinkWanted:
    """Open a stream to this address inside the tunnel; report `handle_open` or `handle_closed`."""

    link: int
    address: str


@dataclass(frozen=True, slots=True)
class LinkUnwanted:
    """Close it after what was sent; do not report that."""

    link: int


GossipEvent = LinkWanted | LinkUnwanted


@dataclass(frozen=True, slots=True)
class _Errand:
    """What the other end said: whom to tell, and of whom it takes care."""

    share: frozenset[bytes] = frozenset()
    covered: frozenset[bytes] = frozenset()


@dataclass(slots=True)
class _Peer:
    number: int
    identity: bytes
    links: Bucket
    traffic: Bucket
    checks: Bucket
    is_connected: bool = False
    charters: bytes = b""
    """The hash of those that it is known to have."""
    state: bytes = b""
    """The hash of all that it is known to have."""
    share: tuple[bytes, ...] | None = None
    """Whom the peer is to tell; None: this is no matter of charters."""
    failures: int = 0
    silent_until: float = float("-inf")
    barred_until: float = float("-inf")


@dataclass(slots=True)
class _Link:
    number: int
    peer: _Peer
    is_ours: bool
    deadline: float
    share: tuple[bytes, ...] = ()
    """Whom we ask the peer to tell."""
    theirs: _Errand = field(default_factory=_Errand)
    changes: int = 0
    """Those of what we have, of which the peer knows."""
    is_complete: bool = False
    has_summary: bool = False
    has_digest: bool = False
    said_digest: bool = False
    said_done: bool = False


class Gossip:
    """The machine of one node. `own`: our identity, and the network's on its owner's host; `own_record` gives ours."""

    def __init__(
        self,
        roster: Roster,
        own: Sequence[bytes],
        own_record: Callable[[], Signed | None],
        *,
        entropy: Callable[[int], bytes],
    ) -> None:
        self.sent: Counter[str] = Counter()
        """Messages by kind."""
        self._roster = roster
        self._own = frozenset(own)
        self._identity = own[0]
        self._entropy = entropy
        self._shelf = Shelf(roster, own[0], own_record, entropy=entropy)
        self._peers: dict[bytes, _Peer] = {}
        self._by_number: dict[int, _Peer] = {}
        self._links: dict[int, _Link] = {}
        self._next_number = 1
        self._deadlines = Deadlines()
        self._are_charters_news = False
        self._told: set[bytes] = set()
        self._source: _Link | None = None
        self._is_attached = False
        self._changes = 0
        self._met = 0
        self._next_slot = float("-inf")
        self._round_at: float | None = None
        self._hot_until = float("-inf")
        self._quiet_rounds = 0
        self._frames: list[tuple[int, bytes]] = []
        self._events: list[GossipEvent] = []
        self._followed = self._shelf.charters, self._shelf.state

    @property
    def silent(self) -> list[bytes]:
        """Peers that are connected and whose gossip cannot be reached: a firewall, or an older version."""
        return [peer.identity for peer in self._peers.values() if peer.is_connected and peer.failures > 2]

    # What the node reports.

    def note_change(self) -> None:
        """The roster or our own record changed; `follow` looks what is new."""
        self._shelf.note_change()

    def follow(self, *, is_attached: bool, now: float) -> None:
        """After `note_change`. What comes while we are attached, and not by gossip, the server tells everybody."""
        if is_attached != self._is_attached:
            self._is_attached = is_attached
            self._quiet_rounds = 0
            self._plan_round(now)
        self._shelf.look()
        charters = self._followed[0]
        if self._followed == (self._shelf.charters, self._shelf.state):
            return
        self._followed = self._shelf.charters, self._shelf.state
        self._changes += 1
        if self._source is not None:
            self._source.changes += 1
        self._drop_strangers()
        if self._roster.is_over:
            return
        is_news = self._source is not None or not is_attached
        if self._shelf.charters != charters:
            is_own = self._roster.signed_charter.signer in self._own
            self._are_charters_news = True
            self._told.clear()
            if self._source is not None:
                self._pass_on(self._source, now)
            elif is_own:
                self._announce(self._connected(), now)
            self._heat(now, HOT_FOR if is_news or is_own else 0.0)
        elif is_news:
            self._heat(now, HOT_FOR)

    def handle_connected(self, identity: bytes, *, now: float) -> None:
        """The member can be reached through the tunnel now."""
        peer = self._obtain(identity, now)
        if peer is None:
            return
        self._shelf.look()
        peer.is_connected, peer.silent_until = True, float("-inf")
        may_lack_charters = self._are_charters_news and peer.charters != self._shelf.charters
        if may_lack_charters or self._met < FIRST_MET:
            self._met += 1
            self._set(peer, now)
        elif peer.state != self._shelf.state and not self._is_attached:
            self._next_slot = max(self._next_slot, now) + SPACING * (0.5 + self._fraction())
            self._set(peer, self._next_slot)
        if self._round_at is None:
            self._plan_round(now)

    def handle_gone(self, identity: bytes) -> None:
        """It cannot any more."""
        if (peer := self._peers.get(identity)) is not None:
            peer.is_connected = False
            self._deadlines.set(peer.number, None)

    def handle_stop(self) -> None:
        """We talk to nobody any more."""
        for link in list(self._links):
            self._close(link)
        for identity in list(self._peers):
            self._forget(identity)

    # What links report.

    def handle_incoming(self, address: str, *, now: float) -> int | None:
        """A stream came from this address inside the tunnel. Its number, or None: close it."""
        member = next((it for it in self._roster.members.values() if it.address == address), None)
        peer = None if member is None else self._obtain(member.identity, now)
        if peer is None or now < peer.barred_until or not peer.traffic.has(now=now) or not peer.links.take(now=now):
            return None
        incoming = [link for link in self._links.values() if not link.is_ours]
        if len(incoming) >= MAX_INCOMING or sum(link.peer is peer for link in incoming) >= MAX_INCOMING_OF_ONE:
            return None
        return self._add_link(peer, now + LINK_TIMEOUT, is_ours=False).number

    def handle_open(self, number: int, *, now: float) -> None:
        """The stream that was wanted is open."""
        if (link := self._links.get(number)) is None:
            return
        self._shelf.look()
        link.deadline = now + LINK_TIMEOUT
        self._say(link, Summary(self._shelf.charters, self._shelf.state, b"".join(link.share), self._covered()), now)

    def handle_closed(self, number: int, *, now: float) -> None:
        """The stream ended, or could not be opened."""
        if (link := self._links.pop(number, None)) is not None:
            self._end(link, now)

    def handle_frame(self, number: int, data: bytes, *, now: float, wall: int) -> DropReason | None:
        """One message. What is wrong with it is why the peer is left alone for a while."""
        if (link := self._links.get(number)) is None:
            return DropReason.UNEXPECTED
        reason = self._handle_frame(link, data, now, wall)
        if reason in _HOSTILE:
            link.peer.barred_until = now + BARRED_FOR
            self._close(number)
            self._end(link, now)
        return reason

    # Time and output.

    def next_timeout(self) -> float | None:
        """The next link to open or to give up, or the next round."""
        deadlines = [self._deadlines.first(), self._round_at, *(link.deadline for link in self._links.values())]
        return min((at for at in deadlines if at is not None), default=None)

    def handle_timeout(self, *, now: float) -> None:
        """Do what is due."""
        for link in [link for link in self._links.values() if link.deadline <= now]:
            self._close(link.number)
            self._end(link, now)
        if self._round_at is not None and self._round_at <= now:
            self._start_round(now)
        for number in self._deadlines.take_due(now=now):
            self._open(self._by_number[number], now)

    def take_frames(self) -> list[tuple[int, bytes]]:
        """Messages to send, by link, in order; clears."""
        frames, self._frames = self._frames, []
        return frames

    def take_doubles(self) -> list[Signed]:
        """Records of our own identity that are not the one we publish; clears."""
        doubles, self._shelf.doubles = self._shelf.doubles, []
        return doubles

    def take_events(self) -> list[GossipEvent]:
        """Links to open and, after their frames, to close; clears."""
        events, self._events = self._events, []
        return events

    # The conversation.

    def _handle_frame(self, link: _Link, data: bytes, now: float, wall: int) -> DropReason | None:
        if not link.peer.traffic.take(len(data), now=now):
            return DropReason.FLOOD
        try:
            message = messages.decode_message(data)
        except MalformedMessage as error:
            return error.reason
        self._shelf.look()
        match message:
            case Summary() if not link.is_ours and not link.has_summary:
                self._handle_summary(link, message, now)
            case Digest() if (link.is_ours or link.has_summary) and not link.has_digest:
                self._handle_digest(link, message, now)
            case Charters() | News() if link.said_digest:
                return self._handle_news(link, message, now, wall)
            case Done() if link.is_ours or link.said_done:
                self._handle_done(link, now)
            case _:
                return DropReason.UNEXPECTED
        return None

    def _handle_summary(self, link: _Link, message: Summary, now: float) -> None:
        link.has_summary = True
        link.theirs = _Errand(_members(message.share), _members(message.covered))
        link.peer.charters, link.peer.state = message.charters, message.state
        if message.charters == self._shelf.charters and (message.share or now < self._hot_until):
            self._pass_on(link, now)
        if message.state == self._shelf.state:
            link.said_done = True
            self._say(link, Done(), now)
        else:
            self._say_digest(link, now)

    def _handle_digest(self, link: _Link, message: Digest, now: float) -> None:
        link.has_digest = True
        link.theirs = _Errand(link.theirs.share, link.theirs.covered | _members(message.covered))
        for told in self._shelf.missing(message.names):
            self._say(link, told, now)
        if not link.said_digest:
            self._say_digest(link, now)
        link.said_done = True
        self._say(link, Done(), now)

    def _handle_done(self, link: _Link, now: float) -> None:
        # Both have said and heard everything; what one of them refused, it would refuse again.
        if self._changes == link.changes:
            link.peer.charters, link.peer.state = self._shelf.charters, self._shelf.state
        link.is_complete = True
        if link.is_ours:
            link.peer.failures = 0
        self._close(link.number)
        self._end(link, now)

    def _handle_news(self, link: _Link, message: Charters | News, now: float, wall: int) -> DropReason | None:
        try:
            items = self._shelf.open(message)
        except MalformedMessage as error:
            return error.reason
        if not link.peer.checks.take(len(items), now=now):
            return DropReason.FLOOD
        news, reason = self._shelf.put(items, wall=wall)
        if news:
            # What follows from this is the peer's doing: it has said who knows it already.
            self._source = link
            self.follow(is_attached=self._is_attached, now=now)
            self._source = None
        return reason

    def _say_digest(self, link: _Link, now: float) -> None:
        link.said_digest = True
        self._say(link, Digest(self._shelf.names, self._covered()), now)

    def _say(self, link: _Link, message: Message, now: float) -> None:
        frame = messages.encode(message)
        # Who asks for much pays for it like who tells much.
        link.peer.traffic.charge(len(frame), now=now)
        self.sent[type(message).__name__] += 1
        self._frames.append((link.number, frame))

    def _covered(self) -> bytes:
        """Those of whom we take care."""
        names = [self._identity[:MEMBER_NAME], *(peer.identity[:MEMBER_NAME] for peer in self._connected())]
        return b"".join(names[:MAX_MEMBERS])

    # Links.

    def _set(self, peer: _Peer, at: float) -> None:
        if self._by_number.get(peer.number) is peer:
            self._deadlines.set(peer.number, at)

    def _open(self, peer: _Peer, now: float) -> None:
        """Due, unless it has become needless."""
        if not peer.is_connected or self._roster.is_over or now < peer.barred_until:
            return
        if peer.state == self._shelf.state and peer.share is None:
            return
        ours = [link for link in self._links.values() if link.is_ours]
        if peer.share is None and any(link.peer is peer for link in self._links.values()):
            self._set(peer, now + 2 * SPACING)  # it is being talked to; look afterwards whether that was enough
        elif len(ours) >= MAX_OUTGOING:
            self._set(peer, now + SPACING / 10)
        else:
            link = self._add_link(peer, now + CONNECT_TIMEOUT, is_ours=True)
            link.share, peer.share = peer.share or (), None
            self._events.append(LinkWanted(link.number, self._roster.members[peer.identity].address))

    def _add_link(self, peer: _Peer, deadline: float, *, is_ours: bool) -> _Link:
        link = _Link(self._next_number, peer, is_ours, deadline, changes=self._changes)
        self._next_number += 1
        self._links[link.number] = link
        return link

    def _close(self, number: int) -> None:
        self._links.pop(number, None)
        self._events.append(LinkUnwanted(number))

    def _end(self, link: _Link, now: float) -> None:
        """It is over. What it was for is done otherwise, or later, if it was not completed."""
        if not link.is_ours or link.is_complete:
            return
        peer = link.peer
        peer.failures += 1
        peer.silent_until = now + min(SILENCE[0] * 2 ** min(peer.failures - 1, 10), SILENCE[1])
        self._set(peer, peer.silent_until)
        self._told.difference_update(link.share)
        self._announce([other for other in self._connected() if other.identity[:MEMBER_NAME] in link.share], now)

    # Passing on.

    def _pass_on(self, link: _Link, now: float) -> None:
        """Tell the share that was given to us, and whom nobody takes care of."""
        theirs, source = link.theirs, link.peer.identity[:MEMBER_NAME]
        names = {peer.identity[:MEMBER_NAME]: peer for peer in self._connected()}
        wanted = [peer for name, peer in names.items() if name in theirs.share or name not in {*theirs.covered, source}]
        self._announce(wanted, now)

    def _announce(self, wanted: Sequence[_Peer], now: float) -> None:
        fresh = [
            peer
            for peer in wanted
            if peer.charters != self._shelf.charters and peer.identity[:MEMBER_NAME] not in self._told
        ]
        self._told.update(peer.identity[:MEMBER_NAME] for peer in fresh)
        # Who did not answer lately is told too, but nobody depends on it.
        able = [peer for peer in fresh if now >= peer.silent_until]
        heads, others = able[:MAX_HEADS], able[MAX_HEADS:]
        shares = [peer.identity[:MEMBER_NAME] for peer in others]
        for position, peer in enumerate(heads):
            peer.share = tuple(shares[position :: len(heads)])
            self._set(peer, now)
        for peer in fresh:
            if now < peer.silent_until:
                peer.share = ()
                self._set(peer, now)

    # Rounds.

    def _heat(self, now: float, seconds: float) -> None:
        self._quiet_rounds = 0
        self._hot_until = max(self._hot_until, now + seconds)
        at = now + ROUND[0] + ROUND[1] * self._fraction()
        self._round_at = at if self._round_at is None else min(self._round_at, at)

    def _plan_round(self, now: float) -> None:
        if now < self._hot_until:
            least, more = ROUND
        elif self._is_attached:
            least, more = QUIET_ROUND
        else:
            least, more = (
                min(it * 2**self._quiet_rounds, most) for it, most in zip(LONELY_ROUND, QUIET_ROUND, strict=True)
            )
        self._round_at = now + least + more * self._fraction()

    def _start_round(self, now: float) -> None:
        self._shelf.look()
        able = [peer for peer in self._connected() if now >= peer.silent_until]
        lacking = [peer for peer in able if peer.state != self._shelf.state]
        is_quiet = now >= self._hot_until and not lacking
        for _ in range(FANOUT):
            if lacking:
                self._set(lacking.pop(int(self._fraction() * len(lacking))), now)
        if is_quiet and able:
            # Equal as far as is known; it may have learnt something since.
            peer = able[int(self._fraction() * len(able))]
            peer.state = b""
            self._set(peer, now)
            self._quiet_rounds = min(self._quiet_rounds + 1, MAX_DOUBLINGS)
        self._plan_round(now)

    # Bookkeeping.

    def _connected(self) -> list[_Peer]:
        return [peer for peer in self._peers.values() if peer.is_connected]

    def _obtain(self, identity: bytes, now: float) -> _Peer | None:
        """The peer, if it is a member that may hear of us: who is evicted or pending may not."""
        member = self._roster.members.get(identity)
        if member is None or member.is_pending or self._roster.is_over:
            return None
        if (peer := self._peers.get(identity)) is None:
            peer = _Peer(
                self._next_number,
                identity,
                Bucket(LINK_RATE, LINK_BURST, now=now),
                Bucket(BYTE_RATE, BYTE_BURST, now=now),
                Bucket(ITEM_RATE, ITEM_BURST, now=now),
            )
            self._next_number += 1
            self._peers[identity] = self._by_number[peer.number] = peer
        return peer

    def _drop_strangers(self) -> None:
        for identity in list(self._peers):
            member = self._roster.members.get(identity)
            if member is None or member.is_pending or self._roster.is_over:
                self._forget(identity)

    def _forget(self, identity: bytes) -> None:
        peer = self._peers.pop(identity)
        del self._by_number[peer.number]
        self._deadlines.set(peer.number, None)
        for link in [link for link in self._links.values() if link.peer is peer]:
            self._close(link.number)

    def _fraction(self) -> float:
        return int.from_bytes(self._entropy(4), "little") / 2**32


def _members(names: bytes) -> frozenset[bytes]:
    return frozenset(messages.split(names, MEMBER_NAME))
