"""What a peer can make us do by its offers, and what we give up when it is in vain."""

from __future__ import annotations

import random

import pytest

from meshvpn.proto import disco
from meshvpn.proto.candidate import Candidate, CandidateKind
from meshvpn.proto.disco import DiscoBox, Ping
from meshvpn.proto.events import SocketsUnwanted, SocketsWanted
from meshvpn.proto.guess import Guessing
from meshvpn.proto.nat import Attempt, Method, NatMapping, PortRule
from meshvpn.proto.path import PathAgent
from meshvpn.proto.permit import Permit
from meshvpn.proto.spray import SPRAY_PORTS, near
from meshvpn.proto.traffic import Traffic
from meshvpn.proto.transport import Address, Path

from .agents import offer_of

LOCAL, REMOTE = bytes(range(32)), bytes(range(32, 64))
THEIRS = NatMapping(PortRule.RANDOM, "203.0.113.5", 40000)
HOLES = Attempt(1, Method.HOLES, "203.0.113.5", 1)


class Side:
    """A node that keeps its port, and a peer that does not."""

    def __init__(self, *, is_allowed: bool = True, permit: Permit | None = None) -> None:
        self.now = 1000.0
        entropy = random.Random(1).randbytes
        self.remote = DiscoBox(REMOTE, disco.public_key(LOCAL))
        self.agent = PathAgent(disco=DiscoBox(LOCAL, disco.public_key(REMOTE)), entropy=entropy)
        self.guessing = Guessing(entropy=entropy, permit=permit or Permit(), is_allowed=is_allowed)
        self.guessing.handle_nat(NatMapping(PortRule.KEPT, "198.51.100.7", 41000))
        self.guessing.handle_servers([Address("198.51.100.1", 7770), Address("198.51.100.1", 7771)])
        self.guessing.add(1, self.agent)
        self.sent: list[Path] = []

    def pay(self, packets: int = 1) -> None:
        self.agent.handle_traffic(Traffic(packets, packets), now=self.now)

    def offer(self, attempt: Attempt) -> None:
        self.guessing.handle_offer(1, THEIRS, attempt, now=self.now)

    def search(self, nat: NatMapping) -> None:
        """The peer's candidates are tried, and its NAT is known."""
        candidates = [Candidate(CandidateKind.SERVER_REFLEXIVE, "203.0.113.9", 4000)]
        self.agent.handle_offer(offer_of(candidates), candidates, now=self.now)
        self.guessing.handle_offer(1, nat, None, now=self.now)
        self.guessing.review(1, now=self.now)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(100_000):
            at = self.guessing.next_timeout()
            if at is None or at > until:
                self.now = until
                return
            self.now = max(self.now, at)
            self.guessing.handle_timeout(now=self.now)
            self.sent += [transmit.path for transmit in self.agent.take_transmits()]
        raise AssertionError("the machine never goes quiet")


def test_holes_are_searched_once_and_no_port_twice() -> None:
    side = Side()
    # Without payload of our own: the peer may know of it first.
    side.offer(HOLES)
    side.run(20.0)
    assert len(side.sent) == SPRAY_PORTS
    assert len({path.remote for path in side.sent}) == SPRAY_PORTS
    for number in range(2, 50):
        side.pay(number)
        side.offer(Attempt(number, Method.HOLES, "203.0.113.5", 1))
        side.run(4.0)
    assert len(side.sent) == SPRAY_PORTS


def test_holes_are_not_searched_when_refused_or_while_another_is_attacked() -> None:
    taken = Permit()
    assert taken.take("another", now=1000.0, until=1010.0)
    for side in (Side(is_allowed=False), Side(permit=taken)):
        side.pay()
        side.offer(HOLES)
        side.run(20.0)
        assert not side.sent


@pytest.mark.parametrize(
    "attempt",
    [
        Attempt(1, Method.PORT, "203.0.113.5", 0),
        Attempt(1, Method.PORT, "203.0.113.5", 70_000),
        Attempt(1, Method.PORT, "224.0.0.1", 40_000),
        Attempt(1, Method.PORT, "127.0.0.1", 40_000),
        Attempt(1, Method.PORT, "nowhere", 40_000),
        Attempt(1, Method.PORT, "2001:db8::1", 40_000),
        Attempt(1, Method.PORT, "203.0.113.5", 40_000, step=1000),
        Attempt(1, Method.VOLLEY, "203.0.113.5", 40_000, step=0),
        Attempt(1, Method.VOLLEY, "203.0.113.5", 40_000, step=1, rate=-1),
        Attempt(1, Method.VOLLEY, "203.0.113.5", 40_000, step=1, age=1 << 40),
        Attempt(1, 99, "203.0.113.5", 40_000),
    ],
)
def test_nonsense_is_not_followed(attempt: Attempt) -> None:
    side = Side()
    side.pay()
    side.offer(attempt)
    side.run(5.0)
    assert not side.sent
    assert not side.guessing.take_events()


@pytest.mark.parametrize(
    ("host", "port"),
    [("example.net", 4000), ("", 0), ("203.0.113.9", 0), ("203.0.113.9", 1 << 20), ("203.0.113.9", -1), ("::1", 9)],
)
def test_an_opener_sends_to_addresses_only(host: str, port: int) -> None:
    side = Side()
    side.search(NatMapping(PortRule.KEPT, host, port))
    side.run(10.0)
    assert not side.guessing.take_events()


def test_a_flood_of_attempts_costs_a_bounded_number_of_packets() -> None:
    side = Side()
    for number in range(1, 500):
        side.pay(number)
        side.offer(Attempt(number, Method.PORT, "203.0.113.5", 40_000, step=1))
        side.run(0.6)
    assert len(side.sent) <= 2 * 600


def test_an_attempt_is_followed_once() -> None:
    side = Side()
    for _ in range(5):
        side.offer(Attempt(7, Method.PORT, "203.0.113.5", 40_000))
        side.run(2.0)
    assert [path.remote.port for path in side.sent] == [40_000] * 6


def test_the_nearest_ports_are_tried_first_and_all_exist() -> None:
    assert near(40_000, 1)[:5] == [40_000, 40_001, 39_999, 40_002, 39_998]
    assert sorted(near(40_000, -1)) == list(range(40_000 - 74, 40_000 + 26))
    assert min(near(3, 1)) == 1
    assert max(near(65_530, 1)) == 65_535


def test_a_spray_ends_when_the_peer_is_heard() -> None:
    side = Side()
    side.pay()
    side.offer(HOLES)
    side.run(0.5)
    path = Path(0, Address("203.0.113.5", 50_000))
    assert side.agent.handle_disco(Ping(bytes(12), 1), path, now=side.now) is None
    side.guessing.handle_heard(1, path, now=side.now)
    assert side.guessing.take_hits() == [1]
    side.agent.take_transmits()
    side.sent.clear()
    side.run(10.0)
    assert not side.sent


def test_sockets_that_come_too_late_or_for_nobody_are_closed() -> None:
    side = Side()
    side.guessing.handle_sockets_opened(99, {5: 40_000}, now=side.now)
    assert side.guessing.take_events() == [SocketsUnwanted((5,))]
    assert side.guessing.handle_stun(b"x" * 20, Path(5, Address("198.51.100.1", 7770)), now=side.now) is not None
    assert not side.guessing.owns(1, 5)
    assert not side.guessing.keeps(1, 5)


def test_a_peer_that_goes_takes_its_sockets_and_the_permit_along() -> None:
    permit = Permit()
    side = Side(permit=permit)
    side.pay()
    side.offer(HOLES)
    side.run(0.5)
    assert not permit.take("another", now=side.now, until=side.now + 1)
    side.guessing.remove(1)
    assert permit.take("another", now=side.now, until=side.now + 1)
    assert side.guessing.next_timeout() is None


def test_a_permit_lapses() -> None:
    permit = Permit()
    assert permit.take("one", now=0.0, until=5.0)
    assert permit.take("one", now=1.0, until=6.0)
    assert not permit.take("two", now=5.9, until=9.0)
    assert permit.take("two", now=6.0, until=9.0)
    permit.give_back("one")
    assert not permit.take("one", now=7.0, until=9.0)


def test_a_shell_without_sockets_ends_the_attempt() -> None:
    side = Side()
    side.search(NatMapping(PortRule.KEPT, "203.0.113.9", 4000))
    side.run(2.1)
    wanted = [event for event in side.guessing.take_events() if isinstance(event, SocketsWanted)]
    assert [event.count for event in wanted] == [1]
    side.guessing.handle_sockets_opened(wanted[0].tag, {}, now=side.now)
    side.run(1.0)
    assert not side.guessing.take_events()
