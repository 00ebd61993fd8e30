"""Two path agents with a call between them, on a direct path and a relay, and nothing else: cheap, for many seeds.

What world.py simulates besides (NATs, the rendezvous, offers) decides which paths there are. Here there are two, each
of which loses and delays each direction as a test wants it.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from meshvpn.proto import disco
from meshvpn.proto.candidate import Candidate, CandidateKind, Offer
from meshvpn.proto.disco import DiscoBox, Pong
from meshvpn.proto.path import PathAgent
from meshvpn.proto.path_events import OfferWanted, PrimaryChanged
from meshvpn.proto.traffic import Traffic
from meshvpn.proto.transport import Address, Path, RelayHop

INTERVAL = 0.02
SECRETS = (bytes(range(32)), bytes(range(32, 64)))
ADDRESSES = (Address("20.1.0.1", 41000), Address("20.2.0.1", 41000))
MOVED = (("20.3.0.1", 42000), ("20.4.0.1", 42000))
LEG = 0.08
"""Seconds that an offer takes."""
SERVER = Address("198.51.100.1", 7770)
READ_INTERVAL = 1.0
"""Seconds between two looks of a shell at all figures."""


@dataclass
class Way:
    """One direction of a path. Seconds and shares."""

    delay: float
    loss: float = 0.0
    jitter: float = 0.0
    burst: int = 0
    """So many of the next packets are lost."""


@dataclass
class End:
    """One of the two, and what its engine counts."""

    agent: PathAgent
    paths: list[Path]
    """The direct one and the relay, from here; more after both moved."""
    sent: int = 0
    received: int = 0
    expected: int = 0
    direct_at: float = 0.0
    """When the last packet of the call left on the direct path."""
    moves: list[tuple[float, Path | None]] = field(default_factory=list)

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.received, self.sent, lost_packets=self.expected - self.received)

    @property
    def is_direct(self) -> bool:
        return self.agent.primary == self.paths[0]

    def moves_since(self, at: float) -> int:
        return sum(moved_at >= at for moved_at, _ in self.moves)


class Duel:
    """Time and both ends. `ways[place][number]` is what end `number` sends by: place 0 direct, 1 the relay."""

    def __init__(self, seed: int, rtt: float, relay_rtt: float, *, says_loss: bool = True) -> None:
        self.now = 0.0
        self.says_loss = says_loss
        """False: both are of a version whose pongs do not tell of it."""
        self.dice = random.Random(f"{seed}/{rtt}")
        self.ways = [[Way(length / 2) for _ in range(2)] for length in (rtt, relay_rtt)]
        self.ends = [self._end(0), self._end(1)]
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order: Iterator[int] = count()
        self._wakes: list[float | None] = [None, None]
        self.probes: list[tuple[float, int]] = []
        """When which end sent one."""
        self._is_moved = False
        for number, end in enumerate(self.ends):
            end.agent.handle_relays([end.paths[1]], now=self.now)
            self._tell(number)
        self.run(3.0)
        assert all(end.is_direct for end in self.ends)

    def move(self, waits: Sequence[float]) -> None:
        """Both ends get another address and notice; the search may wait so long at each."""
        old = self.ways[0]
        self.ways.append([Way(way.delay) for way in old])
        self.lose(1.0)
        self._is_moved = True
        for end, (host, port) in zip(self.ends, MOVED[::-1], strict=True):
            end.paths.append(Path(0, Address(host, port)))
        for number, wait in enumerate(waits):
            self.ends[number].agent.handle_network_change(now=self.now, wait=wait)
            self._drain(number)

    def is_moved(self) -> bool:
        """Are both direct where they are now?"""
        return all(end.agent.primary == end.paths[-1] for end in self.ends)

    def call(self) -> None:
        """Fifty packets a second each way, from now on."""
        for number in (0, 1):
            self._at(self.now + self.dice.random() * INTERVAL, lambda number=number: self._talk(number))  # type: ignore[misc]
            self._at(self.now + self.dice.random() * READ_INTERVAL, lambda number=number: self._read(number))  # type: ignore[misc]

    def lose(self, share: float) -> None:
        """On the direct path, both ways."""
        for way in self.ways[0]:
            way.loss = share

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = until

    # Inside.

    def _tell(self, number: int) -> None:
        """The other end's offer arrives."""
        end = self.ends[number]
        candidate = Candidate(CandidateKind.HOST, *_of(end.paths[-1 if self._is_moved else 0].remote))
        end.agent.handle_offer(_offer(candidate), [candidate], now=self.now)
        self._drain(number)

    def _end(self, number: int) -> End:
        box = DiscoBox(SECRETS[number], disco.public_key(SECRETS[1 - number]))
        agent = PathAgent(disco=box, entropy=random.Random(self.dice.random()).randbytes)
        hop = RelayHop(1 + number, 2 - number)
        return End(agent, [Path(0, ADDRESSES[1 - number]), Path(0, SERVER, hop)])

    def _at(self, at: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (at, next(self._order), action))

    def _talk(self, number: int) -> None:
        end = self.ends[number]
        ways, packet = dict.fromkeys((end.agent.primary, end.agent.secondary)), end.sent
        for path in ways:
            if path is not None:
                self._carry(number, end.paths.index(path), lambda: self._hear(1 - number, packet))
        if end.paths[0] in ways:
            end.direct_at = self.now
        end.sent += 1
        self._at(self.now + INTERVAL, lambda: self._talk(number))

    def _hear(self, number: int, packet: int) -> None:
        end = self.ends[number]
        end.received += 1
        end.expected = max(end.expected, packet + 1)

    def _read(self, number: int) -> None:
        self.ends[number].agent.handle_traffic(self.ends[number].traffic, now=self.now)
        self._drain(number)
        self._at(self.now + READ_INTERVAL, lambda: self._read(number))

    def _carry(self, number: int, place: int, arrive: Callable[[], None]) -> None:
        way = self.ways[place][number]
        if way.burst or self.dice.random() < way.loss:
            way.burst = max(0, way.burst - 1)
            return
        self._at(self.now + way.delay + (self.dice.random() * way.jitter if way.jitter else 0.0), arrive)

    def _drain(self, number: int) -> None:
        end = self.ends[number]
        for transmit in end.agent.take_transmits():
            self.probes.append((self.now, number))
            if transmit.ttl is None:
                place, data = end.paths.index(transmit.path), transmit.data
                self._carry(number, place, lambda place=place, data=data: self._take(1 - number, place, data))  # type: ignore[misc]
        for event in end.agent.take_events():
            if isinstance(event, PrimaryChanged) and (not end.moves or event.primary != end.moves[-1][1]):
                end.moves.append((self.now, event.primary))
            elif isinstance(event, OfferWanted) and self._is_moved:
                self._at(self.now + LEG, lambda: self._tell(1 - number))
        at = end.agent.next_timeout()
        if at is not None and at != self._wakes[number]:
            self._wakes[number] = at
            self._at(max(at, self.now), lambda: self._wake(number, at))

    def _take(self, number: int, place: int, data: bytes) -> None:
        end = self.ends[number]
        end.agent.handle_traffic(end.traffic, now=self.now)
        message = end.agent.disco.open(data)
        if isinstance(message, Pong) and not self.says_loss:
            message = replace(message, lost=None)
        assert end.agent.handle_disco(message, end.paths[place], now=self.now) is None
        self._drain(number)

    def _wake(self, number: int, at: float) -> None:
        if self._wakes[number] == at:
            self._wakes[number] = None
            self.ends[number].agent.handle_timeout(now=max(at, self.now))
            self._drain(number)


def _of(address: Address) -> tuple[str, int]:
    return address.host, address.port


def _offer(candidate: Candidate) -> Offer:
    return Offer(
        format=1,
        uid=bytes(16),
        source=bytes(32),
        destination=bytes(32),
        sequence=1,
        disco_key=bytes(32),
        candidates=[candidate],
    )
