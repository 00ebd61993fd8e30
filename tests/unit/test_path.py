"""The path agent: events in, pings and a primary out. The network's part is simulated in tests/sim."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import disco, path_table, probe, punch
from meshvpn.proto.candidate import MAX_CANDIDATES
from meshvpn.proto.disco import DiscoBox, Pong
from meshvpn.proto.drops import DropReason
from meshvpn.proto.path_events import MappingDoubted, OfferWanted, PingAnswered, PrimaryChanged
from meshvpn.proto.transport import Address, Path, RelayHop

from .agents import ELSEWHERE, LAN, LOCAL_SECRET, OTHER_RELAY, OUTSIDE, RELAY, Bench, connected

SPOOFED = [Path(0, Address("203.0.113.200", port)) for port in range(1, 100)]


def test_a_heavy_load_brings_a_direct_path_back_that_was_left_and_a_call_does_not() -> None:
    bench = connected()
    bench.call(20)
    left = bench.agent.table.get(OUTSIDE)
    assert left is not None
    left.hold_back(bench.now, "lost 30 %", first=60.0, limit=60.0)
    bench.call(5)
    assert bench.primary() == RELAY
    for _ in range(3):
        bench.carry(10_000, is_heard=True)
        bench.run(1.0)
    assert bench.primary() == OUTSIDE
    bench.call(10)
    assert bench.primary() == RELAY


def test_the_relay_is_primary_as_soon_as_it_is_known() -> None:
    bench = Bench()
    bench.agent.handle_relays([RELAY], now=bench.now)
    bench.drain()
    assert bench.events == [PrimaryChanged(RELAY, None)]
    assert bench.pings(RELAY) == [bench.now]
    assert not bench.is_reachable
    assert bench.quality() is not None


def test_an_offer_is_punched_by_the_schedule() -> None:
    bench = Bench()
    bench.offer(OUTSIDE, LAN)
    bench.run(6.0)
    for target in (OUTSIDE, LAN):
        assert [at - 1000.0 for at in bench.pings(target)] == pytest.approx(list(punch.STEPS))


def test_a_path_counts_once_a_round_trip_came_back_and_not_before() -> None:
    bench = Bench({OUTSIDE: 0.08})
    bench.offer(OUTSIDE)
    bench.run(0.079)
    assert bench.primary() is None
    bench.run(0.002)
    assert bench.primary() == OUTSIDE
    quality = bench.quality()
    assert quality is not None
    assert quality.rtt == pytest.approx(0.08)
    assert quality.loss == 0.0
    assert quality.mos is not None
    assert quality.mos > 4.3


def test_a_ping_from_an_unknown_address_is_answered_by_a_pong_and_a_ping() -> None:
    bench = Bench()
    assert bench.ping(ELSEWHERE) is None
    assert [type(message).__name__ for _, _, message in bench.sent] == ["Pong", "Ping"]
    assert {to for _, to, _ in bench.sent} == {ELSEWHERE}


def test_an_offer_does_not_undo_a_ping_that_is_under_way_to_where_the_peer_was_heard() -> None:
    bench = Bench(rtts={ELSEWHERE: 0.08})
    bench.ping(ELSEWHERE)
    bench.run(0.04)
    bench.offer(OUTSIDE)
    bench.run(0.1)
    assert bench.primary() == ELSEWHERE
    assert bench.is_reachable


def test_where_the_peer_was_heard_is_asked_again_if_the_first_ping_is_lost() -> None:
    bench = Bench()
    bench.ping(ELSEWHERE)
    bench.offer(OUTSIDE)
    bench.rtts[ELSEWHERE] = 0.08
    bench.run(1.0)
    assert bench.primary() == ELSEWHERE


def test_a_pong_that_answers_nothing_is_dropped() -> None:
    bench = connected()
    pong = Pong(bytes(12), OUTSIDE.remote, 0, 0)
    assert bench.agent.handle_disco(pong, OUTSIDE, now=bench.now) is DropReason.UNEXPECTED
    assert bench.agent.handle_disco(pong, ELSEWHERE, now=bench.now) is DropReason.UNEXPECTED


def test_a_ping_that_is_played_back_draws_no_answer_and_makes_no_path() -> None:
    bench = connected()
    bench.ping(OUTSIDE, sequence=100)
    bench.forget()
    for spoofed in SPOOFED:
        assert bench.ping(spoofed, sequence=100) is DropReason.REPLAYED
    assert bench.sent == []
    assert not set(SPOOFED) & set(bench.agent.table.probes)


def test_a_ping_that_a_forger_delivers_first_is_worth_two_packets_and_no_working_path() -> None:
    bench = connected()
    bench.rtts[ELSEWHERE] = 0.1
    bench.ping(ELSEWHERE)
    bench.run(1.0)
    bench.forget()
    for spoofed in SPOOFED:
        bench.ping(spoofed)
    assert len(bench.sent) <= 2 * len(SPOOFED)
    assert len(set(SPOOFED) & set(bench.agent.table.probes)) <= path_table.MAX_OTHERS
    assert ELSEWHERE in bench.agent.table.probes
    bench.forget()
    bench.run(60.0)
    assert not set(SPOOFED) & {to for _, to, _ in bench.sent}
    assert bench.primary() == OUTSIDE


def test_paths_that_left_the_offers_are_capped() -> None:
    bench = Bench()
    for number in range(100):
        candidate = Path(0, Address(f"203.0.113.{number}", 40000))
        bench.rtts[candidate] = 0.05
        bench.offer(candidate)
        bench.run(2.0)
    assert len(bench.agent.table.probes) <= path_table.MAX_OTHERS + path_table.MAX_RELAYS + path_table.MAX_HELPERS + 1


def test_a_flood_of_offers_starts_a_round_a_second() -> None:
    bench = Bench()
    for _ in range(300):
        bench.offer(OUTSIDE)
        bench.run(0.01)
    assert len(bench.pings(OUTSIDE)) <= 3 * len(punch.SHORT_STEPS) + 1


def test_an_offer_during_a_round_is_served_by_its_next_step() -> None:
    bench = Bench()
    bench.offer(OUTSIDE)
    bench.run(0.04)
    bench.offer(OUTSIDE, LAN)
    bench.run(0.02)
    assert bench.pings(LAN) == pytest.approx([1000.05])


def test_an_offer_makes_the_old_primary_prove_itself() -> None:
    bench = connected()
    bench.run(3.0)
    bench.rtts.pop(OUTSIDE)
    bench.rtts[ELSEWHERE] = 0.08
    bench.forget()
    bench.offer(OUTSIDE, ELSEWHERE)
    assert bench.pings(OUTSIDE) == [bench.now]
    bench.run(2.0)
    assert bench.primary() == ELSEWHERE


def test_a_primary_that_is_offered_no_more_is_doubled_at_once_and_replaced() -> None:
    bench = connected()
    bench.rtts.pop(OUTSIDE)
    bench.rtts[ELSEWHERE] = 0.08
    bench.offer(ELSEWHERE)
    assert (bench.primary(), bench.agent.secondary) == (OUTSIDE, RELAY)
    bench.run(0.1)
    assert (bench.primary(), bench.agent.secondary) == (ELSEWHERE, None)


def test_a_silent_primary_is_doubled_then_given_up_and_both_ends_start_anew() -> None:
    bench = connected()
    bench.call(3.0)
    bench.forget()
    bench.rtts.pop(OUTSIDE)
    for _ in range(6):
        bench.carry(50, is_heard=True)
        bench.run(1.0)
    changes = [event for event in bench.events if isinstance(event, PrimaryChanged)]
    assert changes == [PrimaryChanged(OUTSIDE, RELAY), PrimaryChanged(RELAY, None)]
    assert bench.events.index(MappingDoubted()) < bench.events.index(OfferWanted())
    assert bench.events.count(MappingDoubted()) == bench.events.count(OfferWanted()) == 1


def test_a_path_that_died_is_asked_again_for_as_long_as_there_is_payload() -> None:
    bench = connected()
    bench.call(3.0)
    bench.rtts.pop(OUTSIDE)
    bench.call(600.0)
    assert bench.primary() == RELAY
    bench.rtts[OUTSIDE] = 0.08
    bench.call(6.0)
    assert bench.primary() == OUTSIDE


def test_a_path_that_died_twice_must_show_that_it_stays() -> None:
    bench = connected()
    for _ in range(2):
        bench.rtts[OUTSIDE] = 0.08
        bench.call(12.0)
        assert bench.primary() == OUTSIDE
        bench.rtts.pop(OUTSIDE)
        bench.call(12.0)
        assert bench.primary() == RELAY
    bench.rtts[OUTSIDE] = 0.08
    bench.call(8.0)
    assert bench.primary() == RELAY
    bench.call(20.0)
    assert bench.primary() == OUTSIDE


def test_a_deaf_path_is_left_for_one_that_is_not() -> None:
    bench = connected()
    bench.call(5.0)
    for _ in range(5):
        bench.carry(50, is_heard=bench.primary() == RELAY)
        bench.run(1.0)
    assert bench.primary() == RELAY
    bench.call(300.0)
    assert bench.primary() == RELAY


def test_a_deaf_path_without_another_is_kept() -> None:
    bench = connected()
    bench.rtts.pop(RELAY)
    bench.agent.handle_relays([], now=bench.now)
    bench.call(5.0)
    for _ in range(30):
        bench.carry(50, is_heard=False)
        bench.run(1.0)
    assert bench.primary() == OUTSIDE


def test_a_change_at_our_end_gives_a_deaf_path_another_chance() -> None:
    bench = connected()
    bench.call(5.0)
    for _ in range(5):
        bench.carry(50, is_heard=bench.primary() == RELAY)
        bench.run(1.0)
    bench.agent.handle_network_change(now=bench.now)
    bench.call(3.0)
    assert bench.primary() == OUTSIDE


def test_a_few_lost_packets_are_no_sign_of_a_deaf_path() -> None:
    bench = connected()
    bench.call(5.0)
    for _ in range(30):
        bench.carry(1, is_heard=False)
        bench.run(10.0)
        bench.carry(1, is_heard=True)
    assert bench.primary() == OUTSIDE


def test_a_faster_direct_path_is_moved_to() -> None:
    bench = connected()
    bench.rtts[LAN] = 0.002
    bench.offer(OUTSIDE, LAN)
    bench.call(20.0)
    assert bench.primary() == LAN


def test_a_new_disco_key_voids_every_path_but_the_relay() -> None:
    bench = connected()
    bench.ping(ELSEWHERE, sequence=10**9)
    other = bytes(range(64, 96))
    bench.agent.handle_remote_disco(DiscoBox(LOCAL_SECRET, disco.public_key(other)), now=bench.now)
    assert bench.primary() == RELAY
    assert not bench.is_reachable
    assert set(bench.agent.table.probes) == {RELAY}
    bench.remote = DiscoBox(other, disco.public_key(LOCAL_SECRET))
    bench.agent.take_transmits()
    bench.sequence = 0
    assert bench.ping(OUTSIDE) is None  # numbered from the start


def test_the_sequence_goes_on_when_the_peer_is_added_anew() -> None:
    first, again = connected(), Bench(now=2000.0)
    again.agent.handle_relays([RELAY], now=again.now)
    first.agent.handle_network_change(now=first.now)
    first.drain()
    again.drain()
    assert max(sequences(first)) < min(sequences(again))
    assert sequences(first) == sorted(set(sequences(first)))


def test_another_relay_takes_the_old_ones_place() -> None:
    bench = Bench({RELAY: 0.1, OTHER_RELAY: 0.1})
    bench.agent.handle_relays([RELAY], now=bench.now)
    bench.run(1.0)
    bench.agent.handle_relays([OTHER_RELAY], now=bench.now)
    assert bench.primary() == OTHER_RELAY
    bench.agent.handle_relays([], now=bench.now)
    assert bench.primary() is None
    assert bench.quality() is None
    assert not bench.agent.handle_ping_request(1, now=bench.now)


def test_the_users_ping_is_answered_by_its_own_pong() -> None:
    bench = connected()
    assert bench.agent.handle_ping_request(77, now=bench.now)
    bench.run(1.0)
    answer = next(event for event in bench.events if isinstance(event, PingAnswered))
    assert (answer.token, answer.path) == (77, OUTSIDE)
    assert answer.rtt == pytest.approx(0.08)


def test_the_last_known_path_is_used_until_something_better_is_known() -> None:
    bench = Bench()
    bench.agent.handle_last_known(OUTSIDE, 25.0, now=bench.now)
    assert bench.primary() == OUTSIDE
    bench.run(5.0)
    assert bench.pings(OUTSIDE)
    bench.agent.handle_relays([RELAY], now=bench.now)
    assert bench.primary() == RELAY


def test_the_path_of_a_session_is_used_when_no_ping_is_answered() -> None:
    # Both daemons were restarted and the server is gone: nobody knows the other's new disco key.
    bench = connected()
    bench.rtts.clear()
    bench.call(3.0)
    bench.agent.handle_session(OUTSIDE, now=bench.now)
    bench.forget()
    bench.call(60.0)
    # Never by the relay alone; nor by it too, once it is known to be no help.
    assert {event.primary for event in bench.events if isinstance(event, PrimaryChanged)} <= {OUTSIDE}
    assert (bench.primary(), bench.agent.secondary) == (OUTSIDE, None)
    assert not bench.is_reachable
    bench.rtts[RELAY] = 0.16
    bench.run(30.0)
    assert bench.primary() == RELAY


def test_a_relay_that_answered_a_moment_ago_is_asked_before_a_call_is_left_to_it_alone() -> None:
    bench = connected()
    bench.call(30.0)
    bench.rtts.pop(OUTSIDE)
    bench.run(0.5)
    bench.rtts[OUTSIDE] = 0.08
    bench.call(4.0)  # a ping was lost, and the two were compared: not again so soon
    assert bench.primary() == OUTSIDE
    asked = len(bench.pings(RELAY))
    while len(bench.pings(RELAY)) == asked:
        bench.carry(5, is_heard=True)
        bench.run(0.1)
    bench.run(0.2)
    bench.agent.handle_session(OUTSIDE, now=bench.now)
    bench.rtts.clear()
    bench.forget()
    bench.call(10.0)
    assert not bench.is_reachable
    assert {event.primary for event in bench.events if isinstance(event, PrimaryChanged)} == {OUTSIDE}


def test_a_session_on_a_path_that_no_ping_came_back_on_is_doubled_by_the_relay() -> None:
    bench = Bench()
    bench.agent.handle_relays([RELAY], now=bench.now)
    bench.agent.handle_session(OUTSIDE, now=bench.now)
    assert (bench.primary(), bench.agent.secondary) == (OUTSIDE, RELAY)


def test_an_idle_path_that_dies_gives_way_to_the_relay_and_not_to_its_own_last_session() -> None:
    bench = connected()
    bench.agent.handle_session(OUTSIDE, now=bench.now)
    bench.run(600.0)
    bench.rtts.pop(OUTSIDE)
    bench.run(35.0)
    assert bench.primary() == RELAY
    assert bench.is_reachable


def test_a_relay_is_doubled_by_a_direct_path_while_its_server_may_be_gone() -> None:
    bench = on_the_relay()
    bench.agent.handle_server_lost(now=bench.now)
    bench.drain()
    assert bench.events == [PrimaryChanged(RELAY, OUTSIDE), MappingDoubted()]
    bench.run(0.2)
    assert (bench.primary(), bench.agent.secondary) == (RELAY, None)
    bench.rtts.pop(RELAY)
    bench.forget()
    bench.agent.handle_server_lost(now=bench.now)
    bench.run(4.0)
    changes = [event for event in bench.events if isinstance(event, PrimaryChanged)]
    assert changes == [PrimaryChanged(RELAY, OUTSIDE), PrimaryChanged(OUTSIDE, None)]


def test_the_loss_of_the_server_is_no_reason_to_doubt_a_direct_path() -> None:
    bench = connected()
    bench.agent.handle_server_lost(now=bench.now)
    bench.drain()
    assert (bench.events, bench.sent) == ([], [])


def test_a_peer_that_may_be_gone_is_asked_on_both_ways_and_nothing_is_hoped_for_of_its_last_session() -> None:
    bench = connected()
    bench.run(100.0)
    bench.agent.handle_session(OUTSIDE, now=bench.now)
    bench.run(1.0)
    bench.forget()
    bench.rtts.clear()
    bench.agent.handle_absence(now=bench.now)
    bench.drain()
    assert bench.pings(OUTSIDE) == bench.pings(RELAY) == [bench.now]
    bench.run(5.0)
    assert not bench.is_reachable
    assert bench.primary() == RELAY


def test_a_peer_that_answers_is_not_gone() -> None:
    bench = connected()
    bench.run(100.0)
    bench.forget()
    bench.agent.handle_absence(now=bench.now)
    bench.run(20.0)
    assert bench.events == []
    assert bench.is_reachable


def test_a_path_that_becomes_the_primary_is_asked_at_once_whether_it_still_works() -> None:
    bench = connected()
    bench.run(13.0)
    bench.rtts[LAN] = 0.08
    bench.ping(LAN)
    bench.run(3.0)
    assert len(bench.pings(LAN)) == 1
    bench.rtts.clear()
    while bench.primary() == OUTSIDE:
        bench.run(0.1)
    assert bench.primary() == LAN
    assert bench.now - bench.pings(LAN)[-1] <= 0.1


def test_pings_of_the_peer_spare_our_own_on_an_idle_path() -> None:
    bench = connected()
    bench.ping(OUTSIDE)
    bench.run(1.0)
    bench.forget()
    for _ in range(30):
        bench.run(20.0)
        bench.ping(OUTSIDE)
    assert bench.pings(OUTSIDE) == []


def test_payload_after_silence_looks_for_a_direct_path_again() -> None:
    bench = Bench({RELAY: 0.16})
    bench.agent.handle_relays([RELAY], now=bench.now)
    bench.offer(OUTSIDE)
    bench.run(7200.0)
    bench.forget()
    bench.carry(50, is_heard=True)
    assert bench.pings(OUTSIDE) == [bench.now]


def sequences(bench: Bench) -> list[int]:
    return [message.sequence for _, _, message in bench.sent if isinstance(message, disco.Ping)]


# Whatever happens, in whatever order.


def on_the_relay() -> Bench:
    """A direct path works, but was left for its loss."""
    bench = connected()
    bench.call(3.0)
    bench.rtts.pop(OUTSIDE)
    bench.run(0.6)
    while bench.primary() == OUTSIDE:
        bench.rtts = {RELAY: 0.16} if len(bench.sent) % 2 else {RELAY: 0.16, OUTSIDE: 0.08}
        bench.carry(5, is_heard=True)
        bench.run(0.1)
    bench.rtts[OUTSIDE] = 0.08
    bench.call(2.0)
    assert bench.primary() == RELAY
    bench.forget()
    return bench


PATHS = [
    *(Path(0, Address("203.0.113.1", port)) for port in range(1, 60)),
    *(Path(1, Address("2001:db8::1", port)) for port in range(1, 5)),
]
RELAYS = [Path(0, Address("198.51.100.1", 7770), RelayHop(1, number)) for number in range(3)]
MOST_PATHS = MAX_CANDIDATES + path_table.MAX_OTHERS + path_table.MAX_RELAYS + path_table.MAX_HELPERS + 1
HELPERS = [Path(0, Address(f"203.0.113.{number}", 41000), RelayHop(7, 8)) for number in range(4)]
any_path = st.sampled_from(PATHS + RELAYS + HELPERS)
Event = Callable[[Bench], object]


def _answers(bench: Bench, where: Path, rtt: float | None) -> None:
    if rtt is None:
        bench.rtts.pop(where, None)
    else:
        bench.rtts[where] = rtt


def _new_key(bench: Bench, number: int) -> None:
    secret = bytes([number]) * 32
    bench.remote = DiscoBox(secret, disco.public_key(LOCAL_SECRET))
    bench.agent.take_transmits()
    bench.agent.handle_remote_disco(DiscoBox(LOCAL_SECRET, disco.public_key(secret)), now=bench.now)


def _late(bench: Bench, seconds: float) -> None:
    bench.now += seconds
    bench.agent.handle_timeout(now=bench.now)
    at = bench.agent.next_timeout()
    assert at is None or at > bench.now


def _pong(bench: Bench, where: Path, heard: int) -> None:
    pending = [txid for entry in bench.agent.table.probes.values() for txid in entry.pending] or [bytes(12)]
    bench.agent.handle_disco(Pong(pending[-1], where.remote, heard, heard), where, now=bench.now)


events: st.SearchStrategy[Event] = st.one_of(
    st.builds(lambda paths: lambda bench: bench.offer(*paths), st.lists(st.sampled_from(PATHS), max_size=60)),
    st.builds(
        lambda relays: lambda bench: bench.agent.handle_relays(relays, now=bench.now),
        st.lists(st.sampled_from(RELAYS), max_size=3, unique=True),
    ),
    st.builds(
        lambda helpers: lambda bench: bench.agent.handle_helpers(helpers, now=bench.now),
        st.lists(st.sampled_from(HELPERS), max_size=4, unique=True),
    ),
    st.builds(
        lambda where, rtt: lambda bench: _answers(bench, where, rtt), any_path, st.sampled_from([None, 0.01, 0.5, 4])
    ),
    st.builds(
        lambda where, number: lambda bench: bench.ping(where, sequence=number), any_path, st.integers(0, 2**64 - 1)
    ),
    st.builds(lambda where: lambda bench: bench.ping(where), any_path),
    st.builds(lambda where, heard: lambda bench: _pong(bench, where, heard), any_path, st.integers(0, 2**32 - 1)),
    st.builds(lambda where: lambda bench: bench.agent.handle_path_seen(where, now=bench.now), any_path),
    st.builds(lambda where: lambda bench: bench.agent.handle_session(where, now=bench.now), any_path),
    st.builds(lambda where: lambda bench: bench.agent.handle_last_known(where, 25.0, now=bench.now), any_path),
    st.builds(
        lambda count, heard: lambda bench: bench.carry(count, is_heard=heard), st.integers(0, 500), st.booleans()
    ),
    st.builds(lambda number: lambda bench: _new_key(bench, number), st.integers(100, 110)),
    st.just(lambda bench: bench.agent.handle_local_change(now=bench.now)),
    st.just(lambda bench: bench.agent.handle_network_change(now=bench.now)),
    st.just(lambda bench: bench.agent.handle_server_lost(now=bench.now)),
    st.just(lambda bench: bench.agent.handle_absence(now=bench.now)),
    st.just(lambda bench: bench.agent.handle_ping_request(1, now=bench.now)),
    st.builds(lambda seconds: lambda bench: bench.run(seconds), st.floats(0, 40)),
    st.builds(lambda seconds: lambda bench: bench.call(seconds), st.floats(1, 20)),
    st.builds(lambda seconds: lambda bench: _late(bench, seconds), st.floats(0, 4000)),
)


@given(st.lists(events, max_size=40), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_the_agent_survives_everything_within_its_caps_and_goes_quiet(sequence: list[Event], seed: int) -> None:
    bench = Bench(seed=seed)
    for event in sequence:
        event(bench)
        bench.drain()
        agent = bench.agent
        assert len(agent.table.probes) <= MOST_PATHS
        assert all(len(entry.pending) <= probe.MAX_PENDING for entry in agent.table.probes.values())
        assert all(len(entry.outcomes) <= probe.HISTORY for entry in agent.table.probes.values())
        changes = [event for event in bench.events if isinstance(event, PrimaryChanged)]
        assert (agent.primary, agent.secondary) == (
            (changes[-1].primary, changes[-1].secondary) if changes else (None, None)
        )
    bench.rtts.clear()
    bench.run(4000.0)
    bench.forget()
    bench.run(3600.0)
    # Nobody is there: a relay or last path is asked each 25 s, and up to 32 candidates in two short rounds.
    assert len(bench.pings()) <= 2 * 3600 / 25 + 3 * 40 * len(punch.SHORT_STEPS)
