"""Direct paths where pings to candidates do not do: NATs whose port towards a peer nobody was told.

    opener    the end whose port is unknown: opens sockets, asks the servers from one of them how the NAT treats it
              today, makes holes towards the peer's one address (with openers, punch.py) and offers what it did
    sprayer   the other: pings where the opener's ports may be, until the opener is heard

    the opener's NAT   what it offers                       the sprayer pings
    keeps the port     that port of a fresh socket          that port
    counts             the port between two that were seen  100 ports around it, the nearest first
    rolls dice         256 holes                            random ports, 400 a second (a birthday attack)

If both count, both open 50 sockets at once, each aimed at the middle of the other's. What is tried depends on how the
fresh socket is mapped; how the NAT was classified before says only who opens, and when. Only the last two of many
would need a birthday on both sides: they stay on the relay.

An attempt is bounded in packets, in sockets and in how often there is one; the birthday attack is for peers with
payload, and one at a time per host (permit.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from . import stun
from .commands import AdoptSocket
from .deadlines import Deadlines
from .drops import DropReason
from .errors import MalformedMessage
from .events import SocketsUnwanted, SocketsWanted
from .nat import Attempt, Method, NatMapping, PortRule
from .opening import (
    HOLES,
    HOLES_WAIT,
    LEG,
    PORT_WAIT,
    RATE_BASE,
    SURVEY_RETRIES,
    SURVEY_TIME,
    VOLLEY,
    VOLLEY_STEPS,
    VOLLEY_WAIT,
    Opening,
    volley_target,
)
from .path import PathAgent
from .permit import Permit
from .punch import FAR_OPENER_TTL, OPENER_TTL
from .spray import is_sound, is_target
from .sprayer import MAX_ATTEMPTS, WINDOW, Sprayer
from .transport import FIRST_EXTRA_SOCKET, Address, Path, Transmit

DELAYS = {PortRule.COUNTED: 0.6, PortRule.RANDOM: 1.0, PortRule.KEPT: 2.0, PortRule.UNKNOWN: 2.0}
"""Seconds from the start of a round of pings, which may do without any guess, by what the opener's NAT does."""
PAUSE = 2.0
VOLLEY_PAUSE = 0.2
"""Seconds between two attempts with one peer; if both count the next try is as good as the first."""
LAZY = 60.0
"""Seconds since the last payload after which a birthday attack is not worth its packets."""

BUSY_PAUSE = 10.0
MAX_REFUSALS = 2
"""Seconds, half of them to once and a half, until an opener tries again whom the sprayer told that it was busy, and how
often in WINDOW: its holes cost packets too."""
MAX_SOCKETS = 500
"""Extra sockets in all."""


@dataclass(slots=True)
class _Side:
    agent: PathAgent
    sprayer: Sprayer
    nat: NatMapping = field(default_factory=NatMapping)
    opening: Opening | None = None
    theirs: tuple[Attempt, float] | None = None
    last_number: int = -1
    attempts: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_ATTEMPTS))
    refusals: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_REFUSALS))
    rests_until: float = float("-inf")
    adopted: set[int] = field(default_factory=set)
    opened: int = 0


class Guessing:
    """The machine for all peers of a node, by their numbers. Call `review` whenever a peer's agent did something."""

    def __init__(self, *, entropy: Callable[[int], bytes], permit: Permit, is_allowed: bool) -> None:
        self.nat = NatMapping() if is_allowed else NatMapping(PortRule.REFUSED)
        self._entropy = entropy
        self._permit = permit
        self._is_allowed = is_allowed
        self._servers: list[Address] = []
        self._sides: dict[int, _Side] = {}
        self._owners: dict[int, int] = {}
        self._tags: dict[int, tuple[int, int]] = {}
        self._last_tag = 0
        self._deadlines = Deadlines()
        self._offers: dict[int, tuple[Attempt, float]] = {}
        self._hits: list[int] = []
        self._transmits: list[Transmit] = []
        self._commands: list[AdoptSocket] = []
        self._events: list[SocketsWanted | SocketsUnwanted] = []

    # What happens.

    def add(self, number: int, agent: PathAgent) -> None:
        """A peer came."""
        self._sides[number] = _Side(agent, Sprayer(self._permit, entropy=self._entropy))

    def remove(self, number: int) -> None:
        """It is gone, and what was opened for it."""
        side = self._sides.pop(number)
        self._end_opening(side)
        side.sprayer.end()
        self._close(side.adopted)
        self._deadlines.set(number, None)
        self._offers.pop(number, None)

    def handle_nat(self, nat: NatMapping) -> None:
        """How our NAT maps, as far as the servers tell."""
        if self._is_allowed:
            self.nat = nat

    def handle_servers(self, servers: Iterable[Address]) -> None:
        """Whom to ask how a fresh socket is mapped."""
        self._servers = [server for server in servers if not server.is_ipv6]

    def handle_offer(self, number: int, nat: NatMapping, attempt: Attempt | None, *, now: float) -> None:
        """What the peer's newest offer tells of its NAT, and of sockets that it opened for us."""
        side = self._sides[number]
        side.nat = nat if is_target(nat.host, nat.port) else NatMapping()
        if attempt is not None and attempt.method == Method.BUSY:
            return self._handle_busy(number, side, attempt, now)
        if attempt is None or not self._is_allowed or attempt.number == side.last_number:
            return None
        side.last_number = attempt.number
        if not is_sound(attempt) or side.agent.table.is_direct():
            return None
        if not side.sprayer.may_take(now):
            return None
        if attempt.method == Method.VOLLEY:
            self._handle_volley(number, side, attempt, now)
        else:
            side.sprayer.take_up(attempt, now)
        return self.review(number, now=now)

    def handle_sockets_opened(self, tag: int, ports: Mapping[int, int], *, now: float) -> int | None:
        """What the shell opened, by socket number; the peer for whom."""
        number, opening_number = self._tags.pop(tag, (0, 0))
        side = self._sides.get(number)
        opening = None if side is None else side.opening
        if side is None or opening is None or opening.number != opening_number:
            self._close(ports)
            return None
        opening.sockets.update(dict.fromkeys(ports))
        self._owners.update(dict.fromkeys(ports, number))
        opening.tag = 0
        if not opening.sockets:
            self._end_opening(side)
        elif not opening.is_surveyed:
            opening.started_at, opening.surveyed_at = now, now + SURVEY_TIME
            self._survey(side, opening, next(iter(opening.sockets)), now)
            opening.due_at = now + (RATE_BASE if opening.method is Method.VOLLEY else SURVEY_RETRIES[0])
        elif opening.method is Method.VOLLEY:
            opening.started_at = now
            self._fire(number, side, opening, now)
        else:
            self._make_holes(number, side, opening, now)
        self.review(number, now=now)
        return number

    def handle_stun(self, data: bytes, path: Path, *, now: float) -> DropReason | None:
        """A STUN answer to one of the extra sockets."""
        number = self._owners.get(path.socket, 0)
        side = self._sides.get(number)
        opening = None if side is None else side.opening
        try:
            message = stun.parse(data)
        except MalformedMessage as error:
            return error.reason
        asked = None if opening is None else opening.asked.get(message.transaction_id)
        if side is None or opening is None or asked != (path.socket, path.remote) or message.mapped_address is None:
            return DropReason.UNEXPECTED
        opening.seen.setdefault(asked, message.mapped_address)
        if not opening.is_surveyed and opening.is_answered(self._servers):
            self._conclude(number, side, opening, now)
        self.review(number, now=now)
        return None

    def owns(self, number: int, socket: int) -> bool:
        """May this peer be heard on that socket? An extra one is for whom it was opened, and closes with its path."""
        side = self._sides[number]
        is_opened = side.opening is not None and socket in side.opening.sockets
        return is_opened or self.keeps(number, socket)

    def keeps(self, number: int, socket: int) -> bool:
        """May this peer's packets go out by that socket? By an extra one only after it was heard there."""
        return socket < FIRST_EXTRA_SOCKET or socket in self._sides[number].adopted

    def handle_heard(self, number: int, path: Path, *, now: float) -> None:
        """An authentic probe of the peer came on this path."""
        side = self._sides[number]
        if not path.is_direct:
            return
        opening = side.opening
        if path.socket >= FIRST_EXTRA_SOCKET:
            if opening is not None and path.socket in opening.sockets:
                del opening.sockets[path.socket]
                side.adopted.add(path.socket)
                self._commands.append(AdoptSocket(path.socket))
                self._end_opening(side)
                self._hits.append(number)
        elif side.sprayer.is_on:
            side.sprayer.end()
            self._hits.append(number)
        self.review(number, now=now)

    def review(self, number: int, *, now: float) -> None:
        """Something about the peer is other than it was: give up what is in vain, and say when to look again."""
        side = self._sides[number]
        if side.adopted:
            idle = side.adopted - side.agent.table.extra_sockets(now)
            if idle:
                side.adopted -= idle
                side.agent.forget_sockets(idle, now=now)
                self._close(idle)
        if side.agent.table.is_direct():
            self._end_opening(side)
            side.sprayer.end()
        deadlines = [self._start_at(side), side.sprayer.due_at]
        if side.opening is not None:
            deadlines.append(side.opening.due_at)
        self._deadlines.set(number, min((at for at in deadlines if at is not None), default=None))

    # Time and output.

    def next_timeout(self) -> float | None:
        """The next knock, verdict or attempt."""
        return self._deadlines.first()

    def handle_timeout(self, *, now: float) -> list[int]:
        """Do what is due; the numbers of the peers whose agents have something to send."""
        due = self._deadlines.take_due(now=now)
        for number in due:
            side = self._sides[number]
            self._spray(number, side, now)
            if side.opening is not None and side.opening.due_at <= now:
                self._go_on(number, side, side.opening, now)
            elif (at := self._start_at(side)) is not None and at <= now:
                self._open(number, side, now)
            self.review(number, now=now)
        return due

    def take_offers(self) -> list[tuple[int, Attempt, float]]:
        """What to tell which peer in an offer, and when it was measured; clears."""
        offers, self._offers = self._offers, {}
        return [(number, attempt, at) for number, (attempt, at) in offers.items()]

    def take_hits(self) -> list[int]:
        """Peers that were heard where a port was guessed; clears."""
        hits, self._hits = self._hits, []
        return hits

    def take_transmits(self) -> list[Transmit]:
        """STUN requests to send; clears."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def take_commands(self) -> list[AdoptSocket]:
        """Sockets that are the engine's from now on; clears."""
        commands, self._commands = self._commands, []
        return commands

    def take_events(self) -> list[SocketsWanted | SocketsUnwanted]:
        """Sockets to open and to close; clears."""
        events, self._events = self._events, []
        return events

    # The opener.

    def _method(self, side: _Side) -> Method | None:
        """What an attempt of ours would be, None if it is not ours to open."""
        mine, theirs = self.nat.rule, side.nat.rule
        is_known = bool(side.nat.host) and self._is_allowed and theirs != PortRule.REFUSED and bool(self._servers)
        if not is_known or theirs == PortRule.RANDOM:
            return None
        if theirs == PortRule.COUNTED:
            return Method.VOLLEY if mine == PortRule.COUNTED and side.agent.disco.leads else None
        return Method.PORT

    def _may_attack(self, side: _Side, now: float) -> bool:
        return now >= side.sprayer.birthday_at + WINDOW and now < side.agent.payload_at + LAZY

    def _start_at(self, side: _Side) -> float | None:
        started_at = side.agent.search_started_at
        if side.opening is not None or started_at is None or side.agent.table.is_direct():
            return None
        if self._method(side) is None:
            return None
        if self.nat.rule in (PortRule.KEPT, PortRule.UNKNOWN) and side.agent.table.has_worked():
            return None  # it is the way that broke, not our port that is unknown
        if self.nat.rule == PortRule.RANDOM:
            # A socket alone shows nothing new: without payload there is nothing to gain.
            payload_at = side.agent.payload_at
            if payload_at + LAZY <= started_at:
                return None
            rests_until = max(side.rests_until, side.sprayer.birthday_at + WINDOW)
            return max(started_at + DELAYS[PortRule.RANDOM], rests_until)
        at = max(started_at + DELAYS[PortRule(self.nat.rule)], side.rests_until)
        return max(at, side.attempts[0] + WINDOW) if len(side.attempts) == MAX_ATTEMPTS else at

    def _open(self, number: int, side: _Side, now: float) -> None:
        method = self._method(side)
        if method is None or (self.nat.rule == PortRule.RANDOM and not self._may_attack(side, now)):
            side.rests_until = now + PAUSE
            return
        self._begin(number, side, method, now)

    def _begin(self, number: int, side: _Side, method: Method, now: float) -> None:
        side.attempts.append(now)
        side.opened += 1
        side.opening = Opening(int(now * 1000), method, 0, now + SURVEY_TIME, now + SURVEY_TIME)
        self._want(number, side.opening, 2 if method is Method.VOLLEY else 1)

    def _want(self, number: int, opening: Opening, count: int) -> None:
        count = min(count, MAX_SOCKETS - len(self._owners))
        self._last_tag += 1
        opening.tag = self._last_tag
        self._tags[opening.tag] = number, opening.number
        self._events.append(SocketsWanted(opening.tag, max(0, count)))

    def _survey(self, side: _Side, opening: Opening, socket: int, now: float) -> None:
        """Ask all servers at once; between the first and the second knock at the peer's, so that its port is known."""
        for place, server in enumerate(self._servers):
            if (socket, server) not in opening.seen:
                transaction_id = self._entropy(12)
                opening.asked[transaction_id] = socket, server
                self._transmits.append(Transmit(Path(socket, server), stun.binding_request(transaction_id)))
            if place == 0 and opening.method is Method.PORT:
                self._knock(side, socket, now)

    def _knock(self, side: _Side, socket: int, now: float) -> None:
        # A try that failed may have ended inside a deep carrier's network: the next one goes further.
        ttl = OPENER_TTL if side.opened % 2 else FAR_OPENER_TTL
        # Sent by the same queue as the requests: their order is the order of the ports.
        side.agent.knock(Path(socket, Address(side.nat.host, side.nat.port)), now=now, ttl=ttl)
        self._transmits += side.agent.take_transmits()

    def _go_on(self, number: int, side: _Side, opening: Opening, now: float) -> None:
        """The opening's next deadline has come."""
        if now >= opening.ends_at and (opening.is_surveyed or opening.started_at is None):
            self._end_opening(side)
        elif not opening.is_surveyed and opening.started_at is not None:
            self._go_on_surveying(number, side, opening, now)
        elif opening.method is Method.VOLLEY and opening.has_holes:
            self._fire(number, side, opening, now)
        else:
            opening.due_at = opening.ends_at

    def _go_on_surveying(self, number: int, side: _Side, opening: Opening, now: float) -> None:
        assert opening.started_at is not None
        if now >= opening.surveyed_at:
            return self._conclude(number, side, opening, now)
        sockets = list(opening.sockets)
        if opening.method is Method.VOLLEY and opening.asked_again == 0 and len(sockets) > 1:
            self._survey(side, opening, sockets[1], now)
        else:
            for socket in sockets[: opening.bursts]:
                self._survey(side, opening, socket, now)
        opening.asked_again += 1
        opening.due_at = min(now + SURVEY_RETRIES[1], opening.surveyed_at)
        return None

    def _conclude(self, number: int, side: _Side, opening: Opening, now: float) -> None:
        """The survey is over: what is our port towards the peer?"""
        opening.is_surveyed = True
        opening.due_at = opening.ends_at = now + PORT_WAIT
        attempt = opening.port_attempt(self._servers)
        if opening.nat(self._servers).rule == PortRule.UNKNOWN:
            self._end_opening(side)
        elif opening.method is Method.VOLLEY:
            self._offer_volley(number, side, opening, now)
        elif attempt is not None and not self._is_due_for_holes(side, now):
            self._offers[number] = attempt, now
        elif self._may_attack(side, now) and self._permit.take(side.sprayer, now=now, until=now + HOLES_WAIT):
            opening.method = Method.HOLES
            side.sprayer.birthday_at = now
            self._want(number, opening, HOLES - len(opening.sockets))
        else:
            self._end_opening(side)

    def _is_due_for_holes(self, side: _Side, now: float) -> bool:
        """Did what costs less fail often enough? Of two ends that both seem to keep their port one lies: by turns."""
        tries = 3 if self.nat.rule == PortRule.COUNTED else 1
        recent = sum(now < at + WINDOW for at in side.attempts)
        is_turn = self.nat.rule == PortRule.COUNTED or (side.opened // 2) % 2 == side.agent.disco.leads
        return recent > tries and is_turn and self._may_attack(side, now)

    def _handle_busy(self, number: int, side: _Side, attempt: Attempt, now: float) -> None:
        """The peer's host had no time for our holes: try again when it may, instead of losing a WINDOW."""
        opening = side.opening
        is_ours = opening is not None and opening.method is Method.HOLES and opening.number == attempt.number
        if not is_ours or (len(side.refusals) == MAX_REFUSALS and now < side.refusals[0] + WINDOW):
            return
        side.refusals.append(now)
        side.sprayer.birthday_at = float("-inf")
        self._end_opening(side)
        side.rests_until = now + BUSY_PAUSE * (0.5 + int.from_bytes(self._entropy(4), "little") / 2**32)
        self.review(number, now=now)

    def _make_holes(self, number: int, side: _Side, opening: Opening, now: float) -> None:
        for socket in opening.sockets:
            self._knock(side, socket, now)
        host = next(iter(opening.seen.values())).host
        self._offers[number] = Attempt(opening.number, Method.HOLES, host, 1), now
        opening.due_at = opening.ends_at = now + HOLES_WAIT

    def _end_opening(self, side: _Side) -> None:
        if (opening := side.opening) is None:
            return
        side.opening = side.theirs = None
        side.rests_until = opening.ends_at + (VOLLEY_PAUSE if opening.method is Method.VOLLEY else PAUSE)
        self._permit.give_back(side.sprayer)
        self._close(opening.sockets)

    def _close(self, sockets: Iterable[int]) -> None:
        numbers = tuple(sockets)
        for number in numbers:
            self._owners.pop(number, None)
        if numbers:
            self._events.append(SocketsUnwanted(numbers))

    # Both count.

    def _offer_volley(self, number: int, side: _Side, opening: Opening, now: float) -> None:
        offer = opening.volley_attempt(self._servers)
        if offer is None:
            return self._end_opening(side)
        self._offers[number] = offer
        return self._fire_if_ready(number, side, now)

    def _handle_volley(self, number: int, side: _Side, attempt: Attempt, now: float) -> None:
        side.theirs = attempt, now
        if side.opening is None:
            if not side.agent.disco.leads and self.nat.rule == PortRule.COUNTED:
                self._begin(number, side, Method.VOLLEY, now)
        else:
            self._fire_if_ready(number, side, now)

    def _fire_if_ready(self, number: int, side: _Side, now: float) -> None:
        opening = side.opening
        if opening is None or not opening.is_surveyed or side.theirs is None or opening.method is not Method.VOLLEY:
            return
        theirs, heard_at = side.theirs
        # The one that follows fires as it tells; the one that leads told a leg ago, and hears of us a leg from now.
        legs = 0.0 if side.agent.disco.leads else 2 * LEG
        passed = theirs.age / 1000 + now - heard_at + legs
        target = volley_target(theirs, passed)
        if target is None:
            return self._end_opening(side)
        opening.target = target
        opening.has_holes = True
        opening.due_at = opening.ends_at = now + VOLLEY_WAIT
        return self._want(number, opening, VOLLEY)

    def _fire(self, number: int, side: _Side, opening: Opening, now: float) -> None:
        assert opening.started_at is not None
        assert opening.target is not None
        for socket in list(opening.sockets)[opening.bursts :]:
            side.agent.knock(Path(socket, opening.target), now=now, ttl=OPENER_TTL if opening.steps_done == 0 else None)
        opening.steps_done += 1
        is_last = opening.steps_done == len(VOLLEY_STEPS)
        opening.due_at = opening.ends_at if is_last else opening.started_at + VOLLEY_STEPS[opening.steps_done]
        if is_last:
            opening.has_holes = False

    # The sprayer.

    def _spray(self, number: int, side: _Side, now: float) -> None:
        due, refusal = side.sprayer.take(now)
        for address in due:
            side.agent.knock(Path(0, address), now=now)
        if refusal is not None:
            self._offers[number] = refusal, now
