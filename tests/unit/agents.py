"""One PathAgent, and the peer at the other end as a test wants it: which paths answer, how fast, and what it says."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from meshvpn.proto import disco
from meshvpn.proto.candidate import Candidate, CandidateKind, Offer
from meshvpn.proto.disco import DiscoBox, Ping, Pong
from meshvpn.proto.drops import DropReason
from meshvpn.proto.path import PathAgent
from meshvpn.proto.path_events import PathEvent, PathQuality
from meshvpn.proto.traffic import Traffic
from meshvpn.proto.transport import Address, Path, RelayHop

LOCAL_SECRET, REMOTE_SECRET = bytes(range(32)), bytes(range(32, 64))
RELAY = Path(0, Address("198.51.100.1", 7770), RelayHop(1, 2))
OTHER_RELAY = Path(0, Address("198.51.100.2", 7770), RelayHop(3, 4))
OUTSIDE = Path(0, Address("203.0.113.5", 40000))
LAN = Path(0, Address("192.168.1.7", 41000))
ELSEWHERE = Path(0, Address("203.0.113.99", 1234))


@dataclass
class Bench:
    """Time, the agent, and the peer: `rtts` are the paths that answer, in seconds."""

    rtts: dict[Path, float] = field(default_factory=dict)
    seed: int = 1
    now: float = 1000.0
    heard: int = 0
    arrived: Counter[Path] = field(default_factory=Counter)
    sent: list[tuple[float, Path, Ping | Pong]] = field(default_factory=list)
    events: list[PathEvent] = field(default_factory=list)
    answers: list[tuple[float, int, Path, Pong]] = field(default_factory=list)
    sequence: int = 0
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        self.remote = DiscoBox(REMOTE_SECRET, disco.public_key(LOCAL_SECRET))
        box = DiscoBox(LOCAL_SECRET, disco.public_key(REMOTE_SECRET))
        self.agent = PathAgent(disco=box, entropy=random.Random(self.seed).randbytes)

    def primary(self) -> Path | None:
        return self.agent.primary

    @property
    def is_reachable(self) -> bool:
        return self.agent.is_reachable

    def quality(self) -> PathQuality | None:
        return self.agent.quality(now=self.now)

    def run(self, seconds: float) -> None:
        """Everything that is due in that time, in order; fails if the agent does not go quiet."""
        until = self.now + seconds
        self.drain()
        for _ in range(200_000):
            timer = self.agent.next_timeout()
            due = [at for at in (timer, self.answers[0][0] if self.answers else None) if at is not None]
            if not due or min(due) > until:
                self.now = until
                return
            self.now = max(self.now, min(due))
            if self.answers and self.answers[0][0] <= self.now:
                _, _, path, pong = self.answers.pop(0)
                self.agent.handle_disco(pong, path, now=self.now)
            else:
                self.agent.handle_timeout(now=self.now)
                timer = self.agent.next_timeout()
                assert timer is None or timer > self.now, "the agent would be woken at once again"
            self.drain()
        raise AssertionError("the agent never goes quiet")

    def call(self, seconds: float) -> None:
        """The same with payload both ways, all of which arrives."""
        for _ in range(int(seconds)):
            self.carry(50, is_heard=True)
            self.run(1.0)

    def carry(self, packets: int, *, is_heard: bool) -> None:
        """Payload, as the figures of the data plane tell of it."""
        self.traffic = Traffic(self.traffic.rx_packets + packets, self.traffic.tx_packets + packets)
        self.heard += packets if is_heard else 0
        self.agent.handle_traffic(self.traffic, now=self.now)
        self.drain()

    def drain(self) -> None:
        self.events += self.agent.take_events()
        for transmit in self.agent.take_transmits():
            message = self.remote.open(transmit.data)
            self.sent.append((self.now, transmit.path, message))
            rtt = self.rtts.get(transmit.path)
            if isinstance(message, Ping) and rtt is not None:
                self.arrived[transmit.path] += 1
                pong = Pong(message.transaction_id, transmit.path.remote, self.heard, self.arrived[transmit.path])
                self.answers.append((self.now + rtt, len(self.sent), transmit.path, pong))
                self.answers.sort(key=lambda answer: answer[:2])

    def offer(self, *paths: Path) -> None:
        """The peer's candidates."""
        candidates = [Candidate(CandidateKind.HOST, path.remote.host, path.remote.port) for path in paths]
        self.agent.handle_offer(offer_of(candidates), candidates, now=self.now)
        self.drain()

    def ping(self, path: Path, *, sequence: int | None = None) -> DropReason | None:
        """A ping of the peer arrives on this path."""
        self.sequence += 1
        message = Ping(bytes(12), self.sequence if sequence is None else sequence)
        reason = self.agent.handle_disco(message, path, now=self.now)
        self.drain()
        return reason

    def pings(self, path: Path | None = None) -> list[float]:
        """When pings left, on this path or any."""
        return [at for at, to, message in self.sent if isinstance(message, Ping) and path in (None, to)]

    def forget(self) -> None:
        """Of what was sent and told so far."""
        self.sent.clear()
        self.events.clear()


def offer_of(candidates: list[Candidate]) -> Offer:
    """The offer that brings them."""
    return Offer(
        format=1,
        uid=bytes(16),
        source=bytes(32),
        destination=bytes(32),
        sequence=1,
        disco_key=bytes(32),
        candidates=candidates,
    )


def connected(**rtts: float) -> Bench:
    """A peer that is reached over the relay, and on a direct path at `OUTSIDE`."""
    bench = Bench({RELAY: rtts.get("relay", 0.16), OUTSIDE: rtts.get("direct", 0.08)})
    bench.agent.handle_relays([RELAY], now=bench.now)
    bench.offer(OUTSIDE)
    bench.run(6.0)
    assert bench.agent.primary == OUTSIDE
    bench.forget()
    return bench
