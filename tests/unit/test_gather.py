"""Gathering: bursts and their rhythm, what the answers tell, and answers that nobody asked for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import gather, stun
from meshvpn.proto.candidate import MAX_CANDIDATES, Candidate, CandidateKind
from meshvpn.proto.drops import DropReason
from meshvpn.proto.gather import CandidatesChanged, Gatherer
from meshvpn.proto.nat import Mapping4787, PortRule
from meshvpn.proto.portmap import Method, PortMapping
from meshvpn.proto.stun import Message
from meshvpn.proto.transport import Address, Path, RelayHop, Transmit

FIRST = Address("198.51.100.1", 7770)
SECOND = Address("198.51.100.1", 7771)
FIRST6 = Address("2001:db8::1", 7770)
SECOND6 = Address("2001:db8::1", 7771)
OUTSIDE = Address("203.0.113.5", 40000)
OUTSIDE6 = Address("2001:db8:5::5", 50000)
PORTS = {0: 41000, 1: 41001}

Nat = Callable[[Address], Address | None]


def test_one_burst_asks_every_server_at_once() -> None:
    gatherer = started(FIRST, SECOND, FIRST6, SECOND6)
    assert [transmit.path for transmit in gatherer.take_transmits()] == [
        *(Path(0, FIRST), Path(0, SECOND)),
        *(Path(1, FIRST6), Path(1, SECOND6)),
    ]


def test_a_family_without_a_socket_is_not_asked() -> None:
    gatherer = Gatherer(random.Random(1).randbytes)
    gatherer.handle_servers([FIRST, FIRST6], now=0.0)
    assert gatherer.next_timeout() is None
    gatherer.handle_local_addresses([], {0: 41000}, now=0.0)
    assert [transmit.path.remote for transmit in gatherer.take_transmits()] == [FIRST]


def test_no_more_servers_are_asked_than_the_cap() -> None:
    many = [Address("198.51.100.1", port) for port in range(1, 100)]
    assert len(started(*many).take_transmits()) == gather.MAX_SERVERS


def test_silence_of_all_servers_is_asked_again_fast_and_then_each_five_seconds() -> None:
    world = World(started(FIRST, SECOND), lambda server: None)
    world.run(20.0)
    assert world.sent_at(FIRST) == pytest.approx([0.0, 0.1, 0.3, 0.7, 1.5, 6.5, 11.5, 16.5])
    assert world.sent_at(SECOND) == world.sent_at(FIRST)
    world.run(3600.0)
    assert len(world.sent_at(FIRST)) <= 3600 / 25 * 1.1 * 9


def test_a_doubt_starts_a_burst_and_many_doubts_start_no_more() -> None:
    world = World(started(FIRST, SECOND), lambda server: OUTSIDE)
    world.run(10.0)
    for at in (10.0, 10.2, 10.9, 11.0):
        world.run(at)
        world.gatherer.handle_doubt(now=at)
    world.run(12.0)
    assert world.sent_at(FIRST) == pytest.approx([0.0, 10.0, 11.0])


def test_a_new_address_found_by_a_doubt_is_reported() -> None:
    where = [OUTSIDE]
    world = World(started(FIRST, SECOND), lambda server: where[0])
    world.run(5.0)
    where[0] = Address("203.0.113.5", 40001)
    world.gatherer.handle_doubt(now=5.0)
    world.run(6.0)
    assert Candidate(CandidateKind.SERVER_REFLEXIVE, "203.0.113.5", 40001) in world.candidates()
    assert Candidate(CandidateKind.SERVER_REFLEXIVE, *parts(OUTSIDE)) not in world.candidates()


def test_what_is_answered_is_not_asked_again_before_the_refresh() -> None:
    world = World(started(FIRST, SECOND), lambda server: OUTSIDE)
    world.run(20.0)
    assert world.sent_at(FIRST) == [0.0]
    world.run(3600.0)
    assert 3600 / 25 <= len(world.sent_at(FIRST)) <= 3600 / 22.5 + 1
    assert len(world.sent_at(SECOND)) == len(world.sent_at(FIRST))


def test_one_silent_server_is_not_a_reason_to_ask_the_other_again() -> None:
    world = World(started(FIRST, SECOND, FIRST6, SECOND6), lambda server: None if server.is_ipv6 else OUTSIDE)
    world.run(20.0)
    assert len(world.sent_at(FIRST)) == 1
    assert len(world.sent_at(FIRST6)) == 1 + len(gather.RETRIES)


def test_a_lost_answer_costs_a_repetition_and_nothing_more() -> None:
    answers = iter([None, None, OUTSIDE])
    world = World(started(FIRST), lambda server: next(answers, OUTSIDE))
    world.run(20.0)
    assert world.sent_at(FIRST) == pytest.approx([0.0, 0.1, 0.3])
    assert Candidate(CandidateKind.SERVER_REFLEXIVE, *parts(OUTSIDE)) in world.candidates()


def test_an_answer_slower_than_the_repetitions_is_still_good() -> None:
    world = World(started(FIRST), lambda server: OUTSIDE, delay=0.5)
    world.run(1.0)
    assert Candidate(CandidateKind.SERVER_REFLEXIVE, *parts(OUTSIDE)) in world.candidates()


def test_the_refresh_is_spread_over_a_tenth() -> None:
    first_refresh = set()
    for seed in range(30):
        world = World(started(FIRST, seed=seed), lambda server: OUTSIDE)
        world.run(25.1)
        first_refresh.add(round(world.sent_at(FIRST)[1], 3))
    assert len(first_refresh) > 20
    assert all(22.5 <= at <= 25.0 for at in first_refresh)


def test_one_address_at_both_ports_means_an_independent_mapping() -> None:
    world = World(started(FIRST, SECOND), lambda server: OUTSIDE)
    world.run(1.0)
    assert world.gatherer.mapping is Mapping4787.INDEPENDENT
    assert world.candidates() == [
        Candidate(CandidateKind.HOST, "192.168.1.7", 41000),
        Candidate(CandidateKind.SERVER_REFLEXIVE, "203.0.113.5", 40000),
    ]


def test_two_addresses_mean_a_dependent_mapping_and_our_own_port_is_offered_too() -> None:
    world = World(started(FIRST, SECOND), symmetric)
    world.run(1.0)
    assert world.gatherer.mapping is Mapping4787.ADDRESS_AND_PORT
    assert Candidate(CandidateKind.CONFIGURED, "203.0.113.5", 41000) in world.candidates()
    reflexive = [entry.port for entry in world.candidates() if entry.kind == CandidateKind.SERVER_REFLEXIVE]
    assert sorted(reflexive) == [7770 + 1000, 7771 + 1000]


def test_one_port_alone_tells_nothing_about_the_mapping() -> None:
    world = World(started(FIRST), lambda server: OUTSIDE)
    world.run(1.0)
    assert world.gatherer.mapping is Mapping4787.UNKNOWN


def test_two_families_are_not_taken_for_two_mappings() -> None:
    world = World(started(FIRST, FIRST6), lambda server: OUTSIDE6 if server.is_ipv6 else OUTSIDE)
    world.run(1.0)
    assert world.gatherer.mapping is Mapping4787.UNKNOWN


def test_without_a_nat_the_servers_see_the_host_candidate_and_nothing_is_added() -> None:
    gatherer = started(FIRST, SECOND, hosts=["203.0.113.5"])
    world = World(gatherer, lambda server: Address("203.0.113.5", 41000))
    world.run(1.0)
    assert world.candidates() == [Candidate(CandidateKind.HOST, "203.0.113.5", 41000)]
    assert gatherer.mapping is Mapping4787.INDEPENDENT


def test_a_nat_that_forgot_us_is_not_taken_for_a_symmetric_one() -> None:
    world = World(started(FIRST, SECOND), lambda server: OUTSIDE)
    world.run(1.0)
    moved = Address("203.0.113.99", 12345)
    world.nat = lambda server: moved
    world.gatherer.handle_network_change(now=world.now)
    world.run(2.0)
    assert world.gatherer.mapping is Mapping4787.INDEPENDENT
    assert [event.mapping for event in world.events if isinstance(event, CandidatesChanged)][
        -1
    ] is Mapping4787.INDEPENDENT
    assert all(not event.mapping.is_dependent for event in world.events if isinstance(event, CandidatesChanged))
    assert [entry.host for entry in world.candidates()] == ["192.168.1.7", "203.0.113.99"]


def test_candidates_are_told_when_they_change_and_only_then() -> None:
    world = World(started(FIRST, SECOND), lambda server: OUTSIDE)
    world.run(600.0)
    changes = world.events
    assert [change.nat.rule for change in changes] == [PortRule.UNKNOWN, PortRule.UNKNOWN, PortRule.KEPT]
    world.gatherer.handle_local_addresses(["192.168.1.7"], PORTS, now=600.0)
    assert world.gatherer.take_transmits() == []
    world.gatherer.handle_local_addresses(["192.168.1.8"], PORTS, now=600.0)
    assert len(world.gatherer.take_transmits()) == 2
    assert isinstance(world.gatherer.take_events()[0], CandidatesChanged)


def test_a_host_with_many_addresses_still_offers_what_the_servers_see() -> None:
    gatherer = started(FIRST, hosts=[f"172.17.{number}.1" for number in range(100)])
    world = World(gatherer, lambda server: OUTSIDE)
    world.run(1.0)
    assert len(world.candidates()) <= MAX_CANDIDATES
    assert Candidate(CandidateKind.SERVER_REFLEXIVE, *parts(OUTSIDE)) in world.candidates()


def test_a_network_change_asks_at_once() -> None:
    world = World(started(FIRST, SECOND), lambda server: OUTSIDE)
    world.run(5.0)
    world.gatherer.handle_network_change(now=5.0)
    assert len(world.gatherer.take_transmits()) == 2


@pytest.mark.parametrize(
    "path",
    [Path(0, SECOND), Path(0, Address("192.0.2.66", 7770)), Path(0, FIRST, RelayHop(1, 2))],
    ids=["other port", "other host", "through a relay"],
)
def test_an_answer_from_elsewhere_is_unexpected(path: Path) -> None:
    gatherer = started(FIRST)
    answer = success(last_request(gatherer), OUTSIDE)
    assert gatherer.handle_datagram(answer, path, now=0.1) is DropReason.UNEXPECTED
    assert refused_nothing_changed(gatherer)


def test_an_answer_counts_once() -> None:
    gatherer = started(FIRST)
    answer = success(last_request(gatherer), OUTSIDE)
    assert gatherer.handle_datagram(answer, Path(0, FIRST), now=0.1) is None
    assert gatherer.handle_datagram(answer, Path(0, FIRST), now=0.1) is DropReason.UNEXPECTED


def test_an_error_or_an_answer_without_an_address_is_malformed_and_is_asked_again() -> None:
    gatherer = started(FIRST)
    request = last_request(gatherer)
    for data in (stun.binding_error(request.transaction_id, 401), stun.binding_request(request.transaction_id)):
        assert gatherer.handle_datagram(data, Path(0, FIRST), now=0.05) is DropReason.MALFORMED
    assert refused_nothing_changed(gatherer)
    gatherer.handle_timeout(now=0.1)
    assert len(gatherer.take_transmits()) == 1


@given(st.binary(max_size=120), st.booleans())
@settings(max_examples=150, deadline=None)
def test_arbitrary_bytes_are_dropped_with_a_reason_and_change_nothing(data: bytes, has_header: bool) -> None:
    gatherer = started(FIRST, SECOND)
    gatherer.take_transmits()
    head = bytes.fromhex("0101") + len(data).to_bytes(2, "big") + bytes.fromhex("2112a442")
    assert gatherer.handle_datagram(head + data if has_header else data, Path(0, FIRST), now=0.0) is not None
    assert refused_nothing_changed(gatherer)


def test_the_requests_waited_for_stay_bounded_however_often_the_network_changes() -> None:
    gatherer = started(*(Address("198.51.100.1", port) for port in range(1, 9)))
    for step in range(1000):
        gatherer.handle_network_change(now=step * 0.01)
        gatherer.handle_timeout(now=step * 0.01)
        gatherer.take_transmits()
    assert len(gatherer._requests) <= gather.MAX_SERVERS * (len(gather.RETRIES) + 1)


def test_a_driver_that_comes_late_gets_one_burst_not_the_missed_ones() -> None:
    gatherer = started(FIRST, SECOND)
    gatherer.take_transmits()
    gatherer.handle_timeout(now=1000.0)
    assert len(gatherer.take_transmits()) == 2
    at = gatherer.next_timeout()
    assert at is not None
    assert at > 1000.0


@dataclass
class World:
    """A gatherer, a NAT and servers that answer after `delay` seconds."""

    gatherer: Gatherer
    nat: Nat
    delay: float = 0.02
    now: float = 0.0
    sent: list[tuple[float, Transmit]] = field(default_factory=list)
    events: list[CandidatesChanged] = field(default_factory=list)
    answers: list[tuple[float, bytes, Path]] = field(default_factory=list)

    def run(self, until: float) -> None:
        for _ in range(100_000):
            self.drain()
            timer = self.gatherer.next_timeout()
            due = [at for at in (timer, *(answer[0] for answer in self.answers)) if at is not None]
            if not due or min(due) > until:
                self.now = until
                return
            self.now = max(self.now, min(due))
            if self.answers and self.answers[0][0] <= self.now:
                _, data, path = self.answers.pop(0)
                self.gatherer.handle_datagram(data, path, now=self.now)
            else:
                self.gatherer.handle_timeout(now=self.now)
        raise AssertionError("the machine never goes quiet")

    def drain(self) -> None:
        self.events += self.gatherer.take_events()
        for transmit in self.gatherer.take_transmits():
            self.sent.append((self.now, transmit))
            mapped = self.nat(transmit.path.remote)
            if mapped is not None:
                request = stun.parse(transmit.data)
                answer = success(request, mapped)
                self.answers.append((self.now + self.delay, answer, transmit.path))

    def sent_at(self, server: Address) -> list[float]:
        return [at for at, transmit in self.sent if transmit.path.remote == server]

    def candidates(self) -> list[Candidate]:
        return list([event for event in self.events if isinstance(event, CandidatesChanged)][-1].candidates)


def symmetric(server: Address) -> Address:
    return Address(OUTSIDE.host, server.port + 1000)


def parts(address: Address) -> tuple[str, int]:
    return address.host, address.port


def success(request: Message, mapped: Address) -> bytes:
    return stun.binding_success(request.transaction_id, mapped)


def started(*servers: Address, seed: int = 1, hosts: list[str] | None = None) -> Gatherer:
    gatherer = Gatherer(random.Random(seed).randbytes)
    gatherer.handle_local_addresses(["192.168.1.7"] if hosts is None else hosts, PORTS, now=0.0)
    gatherer.handle_servers(servers, now=0.0)
    return gatherer


def last_request(gatherer: Gatherer) -> Message:
    gatherer.take_events()
    return stun.parse(gatherer.take_transmits()[-1].data)


def refused_nothing_changed(gatherer: Gatherer) -> bool:
    events = [
        event
        for event in gatherer.take_events()
        if not isinstance(event, CandidatesChanged) or len(event.candidates) > 1
    ]
    return gatherer.mapping is Mapping4787.UNKNOWN and not events and not gatherer.take_transmits()


def test_a_mapped_port_is_offered_at_the_address_that_the_servers_see() -> None:
    world = World(started(FIRST, SECOND), lambda server: OUTSIDE)
    world.run(1.0)
    world.gatherer.handle_port_mapping(PortMapping(Method.PCP, 50000, "203.0.113.99"))
    world.run(2.0)
    assert Candidate(CandidateKind.MAPPED, OUTSIDE.host, 50000) in world.candidates()
    assert "203.0.113.99" not in {candidate.host for candidate in world.candidates()}
    world.gatherer.handle_port_mapping(None)
    world.run(3.0)
    assert CandidateKind.MAPPED not in {candidate.kind for candidate in world.candidates()}


def test_a_mapped_port_is_offered_at_the_address_that_the_router_says_while_no_server_answers() -> None:
    world = World(started(FIRST), lambda server: None)
    world.gatherer.handle_port_mapping(PortMapping(Method.PCP, 50000, "203.0.113.99"))
    world.run(1.0)
    assert Candidate(CandidateKind.MAPPED, "203.0.113.99", 50000) in world.candidates()
    world.gatherer.handle_port_mapping(PortMapping(Method.UPNP, 50000, None))
    world.run(2.0)
    assert CandidateKind.MAPPED not in {candidate.kind for candidate in world.candidates()}


def test_configured_endpoints_are_offered_and_no_address_twice() -> None:
    endpoints = [OUTSIDE, Address("2001:db8::9", 5)]
    gatherer = Gatherer(random.Random(1).randbytes, endpoints)
    gatherer.handle_local_addresses(["192.168.1.10"], PORTS, now=0.0)
    gatherer.handle_servers([FIRST], now=0.0)
    world = World(gatherer, lambda server: OUTSIDE)
    gatherer.handle_port_mapping(PortMapping(Method.PCP, OUTSIDE.port, None))
    world.run(1.0)
    addresses = [candidate.address for candidate in world.candidates()]
    assert len(addresses) == len(set(addresses)) == 3
    assert [candidate.address for candidate in world.candidates() if candidate.kind == CandidateKind.CONFIGURED] == [
        Address("2001:db8::9", 5),
        OUTSIDE,
    ]
