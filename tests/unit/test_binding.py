"""The binding at the relay: by UDP, by a stream where UDP is silent, back again, and answers that nobody asked for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import binding, stun
from meshvpn.proto.binding import (
    BindingEvent,
    RelayBinding,
    RelayBound,
    RelayUnbound,
    StreamState,
    StreamUnwanted,
    StreamWanted,
    UdpPasses,
)
from meshvpn.proto.control import RELAY_BINDING_LIFETIME, RelayGrant
from meshvpn.proto.drops import DropReason
from meshvpn.proto.stun import Message
from meshvpn.proto.transport import STREAM_SOCKET, Address, Path, RelayHop, Transmit

SERVER = Address("198.51.100.1", 7770)
SERVER6 = Address("2001:db8::1", 7770)
OUTSIDE = Address("203.0.113.5", 40000)
LOCAL = Address("127.0.0.1", 5000)
GRANT = RelayGrant(0xABCD, bytes(range(32)))
BY_UDP, BY_UDP6 = RelayBound(SERVER, 0), RelayBound(SERVER6, 1)
BY_STREAM = RelayBound(LOCAL, STREAM_SOCKET)


# --- by UDP


def test_the_relay_is_bound_in_one_round_trip_and_kept_bound() -> None:
    world = World()
    world.run(0.05)
    assert world.events == [BY_UDP]
    world.run(3600.0)
    assert world.events == [BY_UDP]
    assert 3600 / 25 <= len(world.sent_to(SERVER)) <= 3600 / 22.5 + 1


def test_the_counter_only_grows_over_udp_and_streams() -> None:
    world = World(opens=True)
    for at in range(1, 20):
        world.passes = [[], [SERVER]][at % 2]
        world.run(at * 60.0)
    counters = [count for message in world.requests() if (count := counter(message)) is not None]
    assert {BY_UDP, BY_STREAM} <= set(world.events)
    assert counters == sorted(set(counters))


def test_a_new_grant_is_bound_at_once_with_its_own_key() -> None:
    world = World()
    world.run(10.0)
    world.grant = RelayGrant(5, bytes(32))
    world.machine.handle_grant(world.grant, now=10.0)
    world.run(11.0)
    assert world.events == [BY_UDP, BY_UDP]
    assert world.requests()[-1].username == stun.relay_username(5, 1)
    assert world.requests()[-1].is_authentic(world.grant.key)


def test_of_two_families_one_is_bound_and_the_other_only_if_the_first_is_silent() -> None:
    world = World(servers=[SERVER, SERVER6], passes=[SERVER, SERVER6])
    world.run(100.0)
    assert world.events == [BY_UDP]
    assert not world.sent_to(SERVER6)
    world.passes = [SERVER6]
    world.machine.handle_doubt(now=100.0)
    world.run(101.0)
    assert world.events == [BY_UDP, BY_UDP6]
    assert StreamWanted() not in world.events
    world.passes = [SERVER, SERVER6]
    world.run(600.0)
    assert world.events[-1] == BY_UDP6, "nothing flaps back"


def test_an_address_without_a_socket_is_not_asked() -> None:
    world = World(servers=[SERVER6, SERVER], ports={0: 1}, passes=[SERVER, SERVER6])
    world.run(1.0)
    assert world.events == [BY_UDP]
    world.machine.handle_local_addresses({0: 1, 1: 2}, now=1.0)
    world.run(2.0)
    assert world.events == [BY_UDP]


def test_a_slow_or_lossy_way_is_not_a_silent_one() -> None:
    slow = World(delay=0.35)
    slow.run(100.0)
    assert slow.events == [BY_UDP]
    losses = iter([True, True, True] + 1000 * [False])
    lossy = World(loses=lambda: next(losses))
    lossy.run(100.0)
    assert lossy.events == [BY_UDP]


def test_many_doubts_start_no_more_than_one_request_a_second() -> None:
    world = World()
    for step in range(1000):
        world.run(10.0 + step * 0.01)
        world.machine.handle_doubt(now=world.now)
    assert len(world.sent_to(SERVER)) <= 13


def test_a_relay_that_was_silent_for_the_bindings_lifetime_is_gone() -> None:
    world = World()
    world.run(1.0)
    world.machine.handle_detached(now=1.0)
    world.passes = []
    world.run(RELAY_BINDING_LIFETIME - 0.5)
    assert world.events == [BY_UDP]
    world.run(RELAY_BINDING_LIFETIME + 0.5)
    assert world.events == [BY_UDP, RelayUnbound()]
    world.passes = [SERVER]
    world.run(RELAY_BINDING_LIFETIME + 6.0)
    assert world.events[-1] == BY_UDP


# --- by a stream


def test_where_udp_does_not_pass_a_stream_is_bound_within_two_seconds() -> None:
    world = World(passes=[], opens=True)
    world.run(2.0)
    assert world.events == [StreamWanted(), BY_STREAM]
    world.run(3600.0)
    assert world.events == [StreamWanted(), BY_STREAM]


def test_udp_that_falls_silent_in_a_call_is_left_within_two_seconds_of_the_doubt() -> None:
    world = World(opens=True)
    world.run(10.0)
    world.passes = []
    world.machine.handle_doubt(now=10.0)
    world.run(12.0)
    assert world.events == [BY_UDP, StreamWanted(), BY_STREAM]


def test_udp_that_falls_silent_unnoticed_is_left_at_the_next_refresh() -> None:
    world = World(opens=True)
    world.run(1.0)
    world.passes = []
    world.run(1.0 + binding.REFRESH + 2.0)
    assert world.events == [BY_UDP, StreamWanted(), BY_STREAM]


def test_on_a_stream_udp_is_asked_without_credentials() -> None:
    world = World(passes=[], opens=True)
    world.run(3.0)
    before = len(world.sent)
    world.run(100.0)
    later = world.sent[before:]
    plain = [stun.parse(it.data).username for _, it in later if it.path.socket == 0]
    assert len(plain) >= 90 / binding.PROBE_INTERVAL
    assert set(plain) == {None}, "the relay must not move us to where nothing may come back"


def test_udp_that_answers_for_a_while_is_used_again_and_the_stream_closed_later() -> None:
    world = World(passes=[], opens=True)
    world.run(60.0)
    world.passes = [SERVER]
    world.run(66.0)
    assert world.events[2:] == [UdpPasses()], "at once: direct paths may work again"
    world.run(60.0 + binding.PROBE_INTERVAL + binding.STEADY_FOR + 1.0)
    assert world.events[3:] == [BY_UDP]
    states = [world.machine.stream]
    world.run(200.0)
    assert world.events[4:] == [StreamUnwanted()]
    assert [*states, world.machine.stream] == [StreamState.OPEN, StreamState.CLOSED]


def test_the_return_to_udp_is_told_with_the_request_that_moves_the_seat() -> None:
    world = World(passes=[], opens=True)
    world.run(60.0)
    world.passes = [SERVER]
    while BY_UDP not in world.events:
        world.run(world.now + 0.01)
    bindings = [at for at, transmit in world.sent if transmit.path.socket == 0 and counter(stun.parse(transmit.data))]
    assert bindings[-1] == pytest.approx(world.now, abs=0.011)


def test_a_relapse_costs_one_round_trip_and_makes_the_next_return_later() -> None:
    world = World(passes=[], opens=True)
    world.run(3.0)
    returns = []
    for _ in range(4):
        world.passes = [SERVER]
        started = world.now
        while world.events[-1] != BY_UDP:
            world.run(world.now + 0.1)
        returns.append(world.now - started)
        world.run(world.now + 0.1)
        world.passes = []
        world.machine.handle_doubt(now=world.now)
        fell = world.now
        while world.events[-1] != BY_STREAM:
            world.run(world.now + 0.01)
        assert world.now - fell < binding.DOUBT_INTERVAL + binding.SILENT_AFTER + 0.1
    assert world.events.count(StreamWanted()) == 1, "it was open still"
    assert returns == sorted(returns)
    assert returns[-1] > 4 * returns[0]


def test_after_a_change_of_network_udp_is_used_as_soon_as_it_answers() -> None:
    world = World(passes=[], opens=True)
    world.run(60.0)
    world.passes = [SERVER]
    world.machine.handle_network_change(now=60.0)
    world.run(60.2)
    assert world.events[-1] == BY_UDP


def test_an_udp_answer_that_comes_before_the_stream_makes_it_unwanted() -> None:
    world = World(passes=[])
    world.run(2.0)
    assert world.events == [StreamWanted()]
    world.passes = [SERVER]
    world.run(8.0)
    assert world.events[1:] == [UdpPasses(), StreamUnwanted(), BY_UDP]
    world.machine.handle_stream_open(LOCAL, now=8.0)
    world.machine.handle_stream_closed(now=8.0)
    world.run(100.0)
    assert len(world.events) == 4


def test_a_stream_that_fails_is_tried_again_later_and_later() -> None:
    world = World(passes=[], fails=True)
    world.run(600.0)
    wanted = [at for at, event in world.told if event == StreamWanted()]
    assert 600 / binding.BACKOFF_LAST < len(wanted) < 80
    assert max(after - before for before, after in pairwise(wanted)) <= binding.BACKOFF_LAST + 0.1


def test_a_crowd_whose_streams_break_comes_back_spread() -> None:
    starts = set()
    for seed in range(50):
        world = World(passes=[], opens=True, seed=seed)
        world.run(60.0)
        world.opens = False
        world.machine.handle_stream_closed(now=60.0)
        world.run(70.0)
        starts.add(round(next(at for at, event in world.told if at >= 60.0 and event == StreamWanted()), 2))
    assert len(starts) > 25
    assert max(starts) < 62.0


def test_a_stream_that_ends_is_no_way_any_more() -> None:
    world = World(passes=[], opens=True)
    world.run(60.0)
    world.machine.handle_stream_closed(now=60.0)
    world.run(64.0)
    assert world.events[2:] == [RelayUnbound(), StreamWanted(), BY_STREAM]


def test_a_stream_that_is_silent_is_closed_and_another_one_opened() -> None:
    world = World(passes=[], opens=True)
    world.run(60.0)
    world.is_stream_silent = True
    world.machine.handle_doubt(now=60.0)
    world.run(60.0 + binding.STREAM_PATIENCE + 0.1)
    assert world.events[-2:] == [StreamUnwanted(), RelayUnbound()]
    world.is_stream_silent = False
    world.run(70.0)
    assert world.events[-1] == BY_STREAM


def test_without_a_control_connection_no_stream_is_opened_and_an_open_one_is_kept() -> None:
    world = World(passes=[], opens=True)
    world.machine.handle_detached(now=0.0)
    world.run(60.0)
    assert world.events == []
    world.machine.handle_grant(GRANT, now=60.0)
    world.run(62.0)
    assert world.events == [StreamWanted(), BY_STREAM]
    world.machine.handle_detached(now=62.0)
    world.run(600.0)
    assert world.events == [StreamWanted(), BY_STREAM]


def test_a_new_grant_is_bound_over_the_stream_that_is_open() -> None:
    world = World(passes=[], opens=True)
    world.run(60.0)
    world.grant = RelayGrant(5, bytes(32))
    world.machine.handle_grant(world.grant, now=60.0)
    world.run(60.1)
    assert world.events == [StreamWanted(), BY_STREAM, BY_STREAM]


# --- answers that nobody asked for


def test_an_answer_without_the_grants_key_binds_nothing() -> None:
    machine, request = asked()
    for key in (None, bytes(32)):
        forged = stun.binding_success(request.transaction_id, OUTSIDE, key=key)
        assert machine.handle_datagram(forged, Path(0, SERVER), now=0.1) is DropReason.BAD_SIGNATURE
    assert machine.take_events() == []
    assert machine.handle_datagram(success(request, GRANT), Path(0, SERVER), now=0.1) is None
    assert machine.take_events() == [BY_UDP]
    assert machine.handle_datagram(success(request, GRANT), Path(0, SERVER), now=0.1) is DropReason.UNEXPECTED


@pytest.mark.parametrize("path", [Path(0, Address("192.0.2.6", 7770)), Path(0, SERVER, RelayHop(1, 2)), Path(2, LOCAL)])
def test_an_answer_from_elsewhere_is_unexpected(path: Path) -> None:
    machine, request = asked()
    assert machine.is_expected(success(request, GRANT))
    assert machine.handle_datagram(success(request, GRANT), path, now=0.1) is DropReason.UNEXPECTED
    assert machine.take_events() == []


def test_an_error_is_dropped_and_asked_again() -> None:
    machine, request = asked()
    error = stun.binding_error(request.transaction_id, 401)
    assert machine.handle_datagram(error, Path(0, SERVER), now=0.05) is DropReason.BAD_SIGNATURE
    machine.handle_timeout(now=0.1)
    assert len(machine.take_transmits()) == 1


@given(st.binary(max_size=120), st.booleans())
@settings(max_examples=150, deadline=None)
def test_arbitrary_bytes_are_dropped_with_a_reason_and_change_nothing(data: bytes, has_header: bool) -> None:
    machine, _ = asked()
    head = bytes.fromhex("0101") + len(data).to_bytes(2, "big") + bytes.fromhex("2112a442")
    assert machine.handle_datagram(head + data if has_header else data, Path(0, SERVER), now=0.0) is not None
    assert (machine.take_events(), machine.take_transmits()) == ([], [])


def test_the_requests_waited_for_stay_bounded() -> None:
    machine, _ = asked()
    for step in range(1000):
        machine.handle_network_change(now=step * 0.01)
        machine.take_transmits()
    assert len(machine._requests) == binding.MAX_REQUESTS


# --- the surroundings


@dataclass
class World:
    """A machine, a server on UDP at those addresses that pass, and a shell that `opens` streams or `fails` to."""

    servers: list[Address] = field(default_factory=lambda: [SERVER])
    passes: list[Address] = field(default_factory=lambda: [SERVER])
    ports: dict[int, int] = field(default_factory=lambda: {0: 41000, 1: 41001})
    opens: bool = False
    fails: bool = False
    is_stream_silent: bool = False
    delay: float = 0.02
    loses: Callable[[], bool] = lambda: False
    seed: int = 1
    grant: RelayGrant = GRANT
    now: float = 0.0
    sent: list[tuple[float, Transmit]] = field(default_factory=list)
    told: list[tuple[float, BindingEvent]] = field(default_factory=list)
    later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.machine = RelayBinding(random.Random(self.seed).randbytes)
        self.machine.handle_local_addresses(self.ports, now=0.0)
        self.machine.handle_servers(self.servers, now=0.0)
        self.machine.handle_grant(self.grant, now=0.0)

    @property
    def events(self) -> list[BindingEvent]:
        return [event for _, event in self.told]

    def run(self, until: float) -> None:
        for _ in range(200_000):
            self.drain()
            self.later.sort(key=lambda entry: entry[0])
            timer = self.machine.next_timeout()
            due = [at for at in (timer, *(entry[0] for entry in self.later)) if at is not None]
            if not due or min(due) > until:
                self.now = until
                return
            self.now = max(self.now, min(due))
            if self.later and self.later[0][0] <= self.now:
                self.later.pop(0)[1]()
            else:
                self.machine.handle_timeout(now=self.now)
        raise AssertionError("the machine never goes quiet")

    def drain(self) -> None:
        for event in self.machine.take_events():
            self.told.append((self.now, event))
            if event == StreamWanted() and (self.opens or self.fails):
                self.later.append((self.now + 0.1, self._open if self.opens else self._fail))
        for transmit in self.machine.take_transmits():
            self.sent.append((self.now, transmit))
            by_stream = transmit.path.socket == STREAM_SOCKET
            if (not self.is_stream_silent if by_stream else transmit.path.remote in self.passes) and not self.loses():
                answer = success(stun.parse(transmit.data), self.grant)
                self.later.append((self.now + self.delay, lambda it=transmit, data=answer: self._hear(it, data)))  # type: ignore[misc]

    def sent_to(self, server: Address) -> list[float]:
        return [at for at, transmit in self.sent if transmit.path.remote == server]

    def requests(self) -> list[Message]:
        return [stun.parse(transmit.data) for _, transmit in self.sent]

    def _hear(self, transmit: Transmit, data: bytes) -> None:
        self.machine.handle_datagram(data, transmit.path, now=self.now)

    def _open(self) -> None:
        self.machine.handle_stream_open(LOCAL, now=self.now)

    def _fail(self) -> None:
        self.machine.handle_stream_closed(now=self.now)


def counter(request: Message) -> int | None:
    parsed = None if request.username is None else stun.parse_relay_username(request.username)
    return None if parsed is None else parsed[1]


def success(request: Message, grant: RelayGrant) -> bytes:
    return stun.binding_success(request.transaction_id, OUTSIDE, key=grant.key if request.username else None)


def asked() -> tuple[RelayBinding, Message]:
    machine = World().machine
    (transmit,) = machine.take_transmits()
    return machine, stun.parse(transmit.data)
