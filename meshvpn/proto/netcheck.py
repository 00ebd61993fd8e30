"""What the network around this host lets through, found out by STUN from fresh sockets, and what it means for calls.

    one burst ─┬─ MAIN, MAIN6 ▶ every server address     how we are mapped, round trips, is UDP let out at all
               ├─ SPREAD ─────▶ the first one            how ports are chosen
               ├─ FILTER, -6 ─▶ the first one, which answers from its other port: what is let in (RFC 5780 §4.4)
               └─ MAIN ───────▶ the first one, in large unfragmented datagrams: the path's MTU
    mapped ────── MAIN ⇄ SPREAD[0] by their outer addresses: hairpinning (RFC 4787 §6)

Repeated while something is unanswered, for DURATION at most: silence is an answer too. The servers have two ports and
mostly one address. What that cannot tell is said to be unknown: a mapping that depends on the address alone looks like
one that depends on nothing, and so does such a filter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from . import stun
from .drops import DropReason
from .errors import MalformedMessage
from .nat import Mapping4787, classify, step_of
from .netfindings import Filtering, Findings, PortChoice, ServerFinding
from .transport import Address, Path, Transmit

MAIN, MAIN6 = 0, 1
SPREAD = (4, 6, 8)
FILTER, FILTER6 = 10, 11
SOCKETS = (MAIN, MAIN6, *SPREAD, FILTER, FILTER6)
"""The sockets that the machine wants, each with a port of its own; odd ones are IPv6, which a host may lack."""

REPEATS = (0.1, 0.3, 0.7, 1.5)
"""Seconds after the first burst."""
DURATION = 2.5
"""Seconds: one after the last repetition, more than any network takes that can carry a call."""
MAX_SERVERS = 8
SIZES = (1500, 1492, 1480, 1460, 1440, 1420, 1400, 1360, 1280)
"""IP packet sizes that are tried: Ethernet, PPPoE, tunnels, and the least that IPv6 asks for."""
_IP_UDP = 28


@dataclass(slots=True, eq=False)
class _Question:
    """A request that is repeated under new ids until it is answered."""

    socket: int
    to: Address
    size: int = 0
    other_port: bool = False
    is_answered: bool = False
    answered_from: Address | None = None
    mapped: Address | None = None
    rtt: float | None = None


@dataclass(slots=True)
class Netcheck:
    """The machine. `servers`: UDP addresses, for each host its first port first; `hosts`: this host's own addresses."""

    servers: Sequence[Address]
    hosts: Sequence[str]
    entropy: Callable[[int], bytes]
    is_done: bool = False
    _ports: Mapping[int, int] = field(default_factory=dict)
    _started_at: float = 0.0
    _round: int = 0
    _questions: list[_Question] = field(default_factory=list)
    _hairpins: list[_Question] = field(default_factory=list)
    _asked: dict[bytes, tuple[_Question, float]] = field(default_factory=dict)
    _transmits: list[Transmit] = field(default_factory=list)

    def handle_start(self, ports: Mapping[int, int], *, now: float) -> None:
        """Ask everything at once. `ports`: our local ports by socket number, of the sockets that could be opened."""
        self._ports, self._started_at = ports, now
        self.servers = list(dict.fromkeys(self.servers))[:MAX_SERVERS]
        for first, main, filtering in ((self._first(False), MAIN, FILTER), (self._first(True), MAIN6, FILTER6)):
            if first is None:
                continue
            family = [server for server in self.servers if server.is_ipv6 == first.is_ipv6]
            self._questions += [_Question(main, server) for server in family]
            if main == MAIN:
                self._questions += [_Question(socket, first) for socket in SPREAD]
                self._questions += [_Question(MAIN, first, size=size) for size in SIZES]
            self._questions.append(_Question(filtering, first, other_port=True))
        self._questions = [question for question in self._questions if question.socket in ports]
        self.is_done = not self._questions
        self._ask(now)

    def handle_datagram(self, data: bytes, path: Path, *, now: float) -> DropReason | None:
        """What came in on one of the sockets."""
        try:
            message = stun.parse(data)
        except MalformedMessage as error:
            return error.reason
        question, sent_at = self._asked.get(message.transaction_id, (None, 0.0))
        if question is None:
            return DropReason.UNEXPECTED
        if message.type == stun.MessageType.REQUEST:
            return self._note_hairpin(question, path)
        is_from_there = path.remote == question.to
        is_from_beside = question.other_port and path.remote.host == question.to.host
        if path.socket != question.socket or not (is_from_there or is_from_beside):
            return DropReason.UNEXPECTED
        if message.type != stun.MessageType.SUCCESS or message.mapped_address is None:
            return DropReason.MALFORMED
        if not question.is_answered:
            question.is_answered, question.answered_from = True, path.remote
            question.mapped, question.rtt = message.mapped_address, now - sent_at
            self._ask_for_hairpin(now)
        self._finish_early()
        return None

    def next_timeout(self) -> float | None:
        """The next repetition, or the end."""
        if self.is_done:
            return None
        return self._started_at + (REPEATS[self._round] if self._round < len(REPEATS) else DURATION)

    def handle_timeout(self, *, now: float) -> None:
        """Repeat what is unanswered, or end."""
        at = self.next_timeout()
        if at is None or now < at:
            return
        if self._round == len(REPEATS):
            self.is_done = True
            return
        self._round += 1
        self._ask(now)

    def take_transmits(self) -> list[Transmit]:
        """Requests to send; clears."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def findings(self) -> Findings:
        """What is known when it is done."""
        first = self._first(False)
        mains = [it for it in self._questions if it.socket == MAIN and not it.size and it.mapped is not None]
        seen = [(it.to, it.mapped) for it in mains if it.mapped is not None]
        public = seen[0][1] if seen else None
        is_own = public is not None and public.host in self.hosts
        choice, step = self._port_choice()
        hairpin = None if is_own or not self._hairpins else any(it.is_answered for it in self._hairpins)
        return Findings(
            servers=[self._server(server) for server in self.servers],
            local=[host for host in self.hosts if ":" not in host],
            public=None if public is None else public.host,
            is_translated=None if public is None else not is_own,
            mapping=None if is_own else _mapping(seen),
            is_mapping_sure=len({server.host for server, _ in seen}) > 1 or classify(seen).is_dependent,
            filtering=self._filtering(FILTER, first),
            ports=choice,
            port_step=step,
            hairpin=hairpin,
            mtu=max((it.size for it in self._questions if it.size and it.is_answered), default=None),
            local6=[host for host in self.hosts if ":" in host],
            public6=next((str(it.mapped.host) for it in self._questions if it.socket == MAIN6 and it.mapped), None),
            filtering6=self._filtering(FILTER6, self._first(True)),
        )

    # Asking.

    def _first(self, is_ipv6: bool) -> Address | None:
        return next((server for server in self.servers if server.is_ipv6 == is_ipv6), None)

    def _ask(self, now: float) -> None:
        for question in (*self._questions, *self._hairpins):
            if not question.is_answered:
                self._send(question, now)

    def _send(self, question: _Question, now: float) -> None:
        transaction_id = self.entropy(12)
        self._asked[transaction_id] = (question, now)
        size = max(0, question.size - _IP_UDP)
        data = stun.binding_request(transaction_id, other_port=question.other_port, size=size)
        self._transmits.append(Transmit(Path(question.socket, question.to), data, is_whole=question.size > 0))

    def _ask_for_hairpin(self, now: float) -> None:
        mapped = {it.socket: it.mapped for it in reversed(self._questions) if it.mapped is not None}
        ours, others = mapped.get(MAIN), mapped.get(SPREAD[0])
        if self._hairpins or ours is None or others is None or ours.host in self.hosts:
            return
        # Both ways: each opens the filter that the other one has to pass.
        self._hairpins = [_Question(SPREAD[0], ours), _Question(MAIN, others)]
        for question in self._hairpins:
            self._send(question, now)

    def _note_hairpin(self, question: _Question, path: Path) -> DropReason | None:
        """A request of our own came back to us."""
        targets = {SPREAD[0]: MAIN, MAIN: SPREAD[0]}
        if question not in self._hairpins or path.socket != targets[question.socket]:
            return DropReason.UNEXPECTED
        question.is_answered = True
        self._finish_early()
        return None

    def _finish_early(self) -> None:
        is_hairpin_known = bool(self._hairpins) and any(it.is_answered for it in self._hairpins)
        is_untranslated = any(it.mapped is not None and it.mapped.host in self.hosts for it in self._questions)
        if all(it.is_answered for it in self._questions) and (is_hairpin_known or is_untranslated):
            self.is_done = True

    # Reading the answers.

    def _server(self, server: Address) -> ServerFinding:
        rtts = [it.rtt for it in self._questions if it.to == server and it.rtt is not None and not it.other_port]
        return ServerFinding(str(server), min(rtts, default=None))

    def _port_choice(self) -> tuple[PortChoice | None, int]:
        """How the NAT chose our outer ports, in the order of asking; None: it did not have to, or cannot be told."""
        pairs: dict[tuple[int, int], None] = {}
        for it in self._questions:
            if it.socket in (MAIN, *SPREAD) and it.mapped is not None and not it.size:
                if it.mapped.host in self.hosts:
                    return None, 0
                pairs[self._ports[it.socket], it.mapped.port] = None
        moved = [outer for inner, outer in pairs if outer != inner]
        if len(pairs) > 1 and not moved:
            return PortChoice.PRESERVED, 0
        if len(moved) < 2:
            return None, 0
        step = step_of(moved)
        return (PortChoice.SEQUENTIAL if step else PortChoice.RANDOM), step

    def _filtering(self, socket: int, server: Address | None) -> Filtering | None:
        """None: cannot be told; the server knows no other port, or nothing came back to any socket of the family."""
        question = next((it for it in self._questions if it.socket == socket), None)
        if question is None or server is None or not any(it.to == server and it.rtt for it in self._questions):
            return None
        if not question.is_answered:
            return Filtering.BY_PORT
        return None if question.answered_from == server else Filtering.NOT_BY_PORT


def _mapping(seen: Sequence[tuple[Address, Address]]) -> str | None:
    found = classify(seen)
    return None if found is Mapping4787.UNKNOWN else found.value
