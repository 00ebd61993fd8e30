"""One path's figures, the choice between paths, how often they are pinged, and whether data is heard."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshvpn.proto import pace, probe, punch
from meshvpn.proto.choice import choose, is_surely_better, second_way
from meshvpn.proto.hearing import DEAF_AFTER, MIN_UNHEARD, Hearing
from meshvpn.proto.pace import Pace, Role
from meshvpn.proto.probe import Outcome, Probe
from meshvpn.proto.punch import Punch
from meshvpn.proto.transport import Address, Path

from .agents import ELSEWHERE, OUTSIDE, RELAY

OTHER = Path(1, Address("2001:db8::1", 40000))


def test_an_overdue_ping_is_lost_and_its_late_pong_still_proves_the_path() -> None:
    tried = measured(OUTSIDE, rtt=0.1)
    tried.note_ping(b"late", 100.0)
    tried.count_lost(tried.overdue_at - 0.001)
    assert tried.tally(1) == (0, 1)
    assert tried.count_lost(100.5) == 1
    assert tried.tally(1) == (1, 1)
    assert tried.count_lost(100.6) == 0
    assert tried.note_pong(b"late", 0, 100.7) is not None
    assert tried.tally(1) == (1, 1)
    assert tried.is_alive(100.7)


def test_a_pong_counts_once_and_only_for_its_ping() -> None:
    tried = Probe(OUTSIDE)
    tried.note_ping(b"one", 1.0)
    assert tried.note_pong(b"other", 0, 1.1) is None
    assert not tried.is_proven
    assert tried.note_pong(b"one", 0, 1.1) is not None
    assert tried.note_pong(b"one", 0, 1.2) is None


def test_what_was_lost_before_the_first_pong_says_nothing_of_the_path() -> None:
    tried = Probe(OUTSIDE)
    for number in range(8):
        tried.note_ping(bytes([number]), number / 10)
    tried.note_pong(bytes([7]), 0, 0.8)
    tried.count_lost(2.0)
    assert tried.tally(100) == (0, 1)


def test_a_pong_that_was_on_its_way_before_a_doubt_does_not_end_it() -> None:
    tried = measured(OUTSIDE, rtt=0.1)
    tried.note_ping(b"0", 100.0)
    tried.doubt(100.05)
    tried.note_ping(b"1", 100.05)
    assert tried.note_pong(b"0", 0, 100.1) is not None
    assert not tried.is_alive(100.1, is_primary=True)
    assert tried.note_pong(b"1", 0, 100.15) is not None
    assert tried.is_alive(100.15, is_primary=True)


def test_a_path_is_doubted_then_dead_and_never_for_a_single_ping() -> None:
    tried = measured(OUTSIDE, rtt=0.1)
    tried.note_ping(b"0", 100.0)
    assert tried.is_alive(tried.doubt_at - 0.001, is_primary=True)
    assert not tried.is_alive(tried.doubt_at, is_primary=True)
    assert not tried.is_dead(1000.0)
    for number in range(1, probe.OUTAGE):
        tried.note_ping(bytes([number]), 100.0 + number)
    assert not tried.is_dead(tried.death_at - 0.001)
    assert tried.is_dead(tried.death_at)
    tried.give_up(105.0)
    assert not tried.is_proven
    assert tried.worked_at is not None


def test_a_short_outage_is_no_measure_of_loss() -> None:
    tried = measured(OUTSIDE, rtt=0.1)
    for number in range(8):
        tried.note_ping(bytes([number]), 100.0 + number / 4)
        tried.count_lost(100.0 + number / 4)
    tried.note_pong(bytes([7]), 0, 101.85)
    assert tried.loss == 0.0


def test_outcomes_are_forgotten_when_they_are_old() -> None:
    tried = measured(OUTSIDE, outcomes="x.x.")
    tried.count_lost(10.0 + probe.QUALITY_SPAN)
    assert tried.tally(100) == (0, 0)


def test_holding_back_grows_up_to_its_limit_and_is_forgiven_in_time() -> None:
    tried, now = measured(OUTSIDE), 100.0
    holds = []
    for _ in range(6):
        tried.hold_back(now, "", first=30.0, limit=200.0)
        holds.append(tried.hold)
        now = tried.held_until + 10.0
    assert holds == [30.0, 120.0, 200.0, 200.0, 200.0, 200.0]
    tried.hold_back(now + probe.HOLD_MEMORY, "", first=30.0, limit=200.0)
    assert tried.hold == 30.0


@given(st.text(alphabet=".x", max_size=200))
@example("x" * 9)
def test_the_bounds_enclose_what_was_seen(outcomes: str) -> None:
    tried = measured(OUTSIDE, outcomes=outcomes)
    for window in probe.WINDOWS:
        worst, best = tried.r_bounds(window)
        assert 0.0 <= worst <= best <= 93.2
    assert tried.r is not None
    assert tried.r_bounds(probe.HISTORY)[0] <= tried.r <= tried.r_bounds(probe.HISTORY)[1] + 1e-9


# The choice.


@pytest.mark.parametrize(
    ("direct", "relay", "expected"),
    [
        ("." * 20, "." * 20, OUTSIDE),
        (".", "." * 100, OUTSIDE),
        ("." * 18 + "x" + "." * 9, "." * 20, OUTSIDE),
        ("." * 20 + ".x.x.xx.x.", "." * 20, RELAY),
        ("." * 20 + ".x.x.xx.x.", "." * 20 + "x.x.x.x.x.", OUTSIDE),
        ("....................x" * 6, "." * 128, OUTSIDE),
        (".........x" * 12, "." * 128, RELAY),
    ],
)
def test_direct_is_left_only_for_a_relay_that_is_surely_better(direct: str, relay: str, expected: Path) -> None:
    paths = [measured(OUTSIDE, outcomes=direct), measured(RELAY, rtt=0.16, outcomes=relay)]
    for current in (*paths, None):
        chosen = choose(paths, current, 10.0)
        assert chosen is not None
        if current is not None:
            assert chosen.path == expected


def test_a_path_that_was_left_comes_back_after_its_hold_and_with_clean_evidence() -> None:
    left, relay = measured(OUTSIDE, outcomes="." * 30), measured(RELAY, rtt=0.16, outcomes="." * 30)
    left.hold, left.held_until = 15.0, 50.0
    assert choose([left, relay], relay, 10.0) is relay
    left.held_until = 9.0
    assert choose([left, relay], relay, 10.0) is left
    left.outcomes.clear()
    assert choose([left, relay], relay, 10.0) is relay


def test_more_than_relays_carry_stays_on_a_direct_path_that_works() -> None:
    lossy, relay = measured(OUTSIDE, outcomes="." * 20 + ".x.x.xx.x."), measured(RELAY, rtt=0.16, outcomes="." * 20)
    assert choose([lossy, relay], lossy, 10.0) is relay
    assert choose([lossy, relay], lossy, 10.0, is_heavy=True) is lossy
    lossy.hold, lossy.held_until = 15.0, 50.0
    assert choose([lossy, relay], relay, 10.0, is_heavy=True) is lossy
    better = measured(ELSEWHERE, outcomes="." * 20)
    assert choose([lossy, relay, better], lossy, 10.0, is_heavy=True) is better
    for direct in (lossy, better):
        direct.give_up(11.0)
    assert choose([lossy, relay, better], lossy, 11.0, is_heavy=True) is relay


def test_held_paths_are_better_than_none() -> None:
    left, other = measured(OUTSIDE), measured(ELSEWHERE, rtt=0.081)
    left.held_until = other.held_until = 50.0
    assert choose([left, other], other, 10.0) is other
    assert choose([left, other], None, 10.0) is left


def test_a_doubtful_direct_path_yields_to_another_direct_one_and_not_to_the_relay() -> None:
    doubtful, relay, other = measured(OUTSIDE), measured(RELAY, rtt=0.16), measured(ELSEWHERE)
    doubtful.doubt(10.0)
    assert choose([doubtful, relay], doubtful, 10.0) is doubtful
    assert choose([doubtful, relay, other], doubtful, 10.0) is other
    doubtful.give_up(11.0)
    assert choose([doubtful, relay], doubtful, 11.0) is relay


def test_a_relay_in_doubt_is_kept_until_it_is_dead_and_doubled_by_the_second_way_path() -> None:
    doubtful, slow, fast = measured(RELAY, rtt=0.16), measured(OUTSIDE, rtt=0.3), measured(ELSEWHERE)
    slow.held_until = fast.held_until = 50.0
    doubtful.doubt(10.0)
    assert choose([doubtful, slow, fast], doubtful, 10.0) is doubtful
    assert second_way([doubtful, slow, fast], doubtful, 10.0) is fast
    fast.doubt(10.0)
    assert second_way([doubtful, slow, fast], doubtful, 10.0) is slow
    assert second_way([doubtful, fast], doubtful, 10.0) is None
    doubtful.give_up(11.0)
    assert choose([doubtful, slow], doubtful, 11.0) is slow


@pytest.mark.parametrize(
    ("current", "rival", "expected"),
    [(0.08, 0.01, OTHER), (0.08, 0.078, OUTSIDE), (0.004, 0.001, OUTSIDE), (0.2, 0.185, OUTSIDE), (0.2, 0.15, OTHER)],
)
def test_another_direct_path_must_be_clearly_faster(current: float, rival: float, expected: Path) -> None:
    paths = [measured(OUTSIDE, rtt=current), measured(OTHER, rtt=rival)]
    chosen = choose(paths, paths[0], 10.0)
    assert chosen is not None
    assert chosen.path == expected


@settings(deadline=None)
@given(*[st.tuples(st.floats(0.001, 1), st.floats(0, 0.1), st.text(alphabet="....x", max_size=60))] * 2)
def test_of_two_paths_not_each_is_surely_better(
    left: tuple[float, float, str], right: tuple[float, float, str]
) -> None:
    for paths in itertools.product((OUTSIDE, RELAY), (OUTSIDE, RELAY)):
        first, second = (
            measured(path, rtt=rtt, jitter=jitter, outcomes=outcomes)
            for path, (rtt, jitter, outcomes) in zip(paths, (left, right), strict=True)
        )
        for window in probe.WINDOWS:
            assert not (
                first.r_bounds(window)[0] > second.r_bounds(window)[1]
                and second.r_bounds(window)[0] > first.r_bounds(window)[1]
            )
        assert not is_surely_better(first, first)


def test_the_choice_comes_to_rest() -> None:
    paths = [
        measured(OUTSIDE, outcomes="..x" * 10),
        measured(OTHER, rtt=0.02, outcomes="." * 10),
        measured(ELSEWHERE, rtt=0.3),
        measured(RELAY, rtt=0.16, outcomes="." * 60),
    ]
    for start in (*paths, None):
        current: Probe | None = start
        for _ in range(len(paths)):
            current = choose(paths, current, 10.0)
        assert choose(paths, current, 10.0) is current


# Pace and rounds.


def test_each_kind_of_path_is_pinged_at_its_pace() -> None:
    rhythm, tried = Pace(), measured(OUTSIDE)
    tried.sent_at, tried.unanswered_since, tried.spread = 10.0, None, 0.5
    assert rhythm.ping_at(tried, Role.PRIMARY) == pytest.approx(10.0 + 25.0 * 0.985)
    assert rhythm.ping_at(tried, Role.RELAY) is None
    tried.asked_at = 15.0
    assert rhythm.ping_at(tried, Role.PRIMARY) == pytest.approx(15.0 + 25.0 * 0.915)
    rhythm.note_payload(12.0, 1)
    assert rhythm.ping_at(tried, Role.PRIMARY) == 10.0 + pace.ACTIVE_INTERVAL
    assert rhythm.ping_at(tried, Role.OTHER) == 10.0 + pace.BACKUP_INTERVAL
    assert rhythm.ping_at(Probe(OTHER), Role.OTHER) is None
    tried.hold = 30.0
    assert rhythm.ping_at(tried, Role.OTHER) == 10.0 + pace.HELD_INTERVAL
    rhythm.note_loss(12.0, is_bad=False)
    assert rhythm.ping_at(tried, Role.PRIMARY) == 10.0 + pace.SCRUTINY_INTERVAL


def test_scrutiny_needs_payload_and_has_pauses() -> None:
    rhythm = Pace()
    rhythm.note_loss(10.0, is_bad=False)
    assert rhythm.scrutiny_until == float("-inf")
    rhythm.note_payload(10.0, 1)
    rhythm.note_loss(10.0, is_bad=False)
    until = rhythm.scrutiny_until
    rhythm.note_payload(until + 1.0, 1)
    rhythm.note_loss(until + 1.0, is_bad=True)
    assert rhythm.scrutiny_until == until
    rhythm.note_loss(until - 0.5, is_bad=False)
    assert rhythm.scrutiny_until == until
    for _ in range(10):
        rhythm.note_loss(rhythm.scrutiny_until - 0.5, is_bad=True)
    assert rhythm.scrutiny_until == pytest.approx(until + (pace.SCRUTINY_LIMIT - 1) * (pace.SCRUTINY - 0.5))
    until = rhythm.scrutiny_until
    rhythm.note_payload(until + pace.SCRUTINY_PAUSE, 1)
    rhythm.note_loss(until + pace.SCRUTINY_PAUSE, is_bad=False)
    assert rhythm.scrutiny_until > until


def test_an_unproven_primary_is_asked_less_and_less_often() -> None:
    rhythm, tried, waits = Pace(), Probe(RELAY), []
    for number in range(8):
        tried.note_ping(bytes([number]), 0.0)
        waits.append(rhythm.ping_at(tried, Role.PRIMARY))
    assert waits == [2.0, 4.0, 8.0, 16.0, 25.0, 25.0, 25.0, 25.0]


def test_rounds_that_fail_are_repeated_at_growing_pauses() -> None:
    schedule, now, starts = Punch(), 0.0, []
    schedule.ask(now)
    for _ in range(200):
        assert schedule.next_at is not None
        now = schedule.next_at
        is_last = schedule.step(now)
        if schedule.started_at == now:
            starts.append(now)
        if is_last:
            schedule.rest(now, is_active=True, fraction=0.5)
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    lengths = [punch.STEPS[-1]] + [punch.SHORT_STEPS[-1]] * 7
    assert pauses[:8] == pytest.approx([pause + length for pause, length in zip(punch.PAUSES, lengths, strict=True)])
    assert pauses[8] == pytest.approx(300.0 + punch.SHORT_STEPS[-1])


def test_an_idle_peer_is_tried_every_half_hour_in_the_end() -> None:
    schedule = Punch()
    schedule.failures = len(punch.PAUSES)
    schedule.rest(0.0, is_active=False, fraction=0.5)
    assert schedule.next_at == punch.IDLE_PAUSE


def test_a_late_step_stands_for_those_that_were_missed() -> None:
    schedule = Punch()
    schedule.ask(0.0)
    schedule.step(0.0)
    assert not schedule.step(1.0)
    assert schedule.next_at == 1.75
    assert schedule.step(100.0)
    assert schedule.next_at is None


# Hearing.


def test_data_that_the_peer_does_not_count_makes_a_path_deaf() -> None:
    hearing = Hearing()
    hearing.note_sent(50, 1.0)
    hearing.note_heard(40)
    hearing.note_sent(100, 2.0)
    hearing.note_heard(40)
    assert not hearing.is_deaf(2.0 + DEAF_AFTER - 0.01)
    assert hearing.is_deaf(2.0 + DEAF_AFTER)
    hearing.note_heard(41)
    assert not hearing.is_deaf(1000.0)


def test_less_data_than_loss_may_take_makes_no_path_deaf() -> None:
    hearing = Hearing()
    hearing.note_sent(MIN_UNHEARD - 1, 1.0)
    assert not hearing.is_deaf(1000.0)
    hearing.note_sent(MIN_UNHEARD, 2.0)
    assert hearing.is_deaf(1000.0)
    hearing.start_anew()
    assert not hearing.is_deaf(1000.0)


def measured(path: Path, *, rtt: float = 0.08, jitter: float = 0.0, outcomes: str = "...") -> Probe:
    """A path that answered at 10 s, with these outcomes of pings before (x: lost)."""
    tried = Probe(path, is_candidate=path.is_direct, rtt=rtt, jitter=jitter, samples=10, verified_at=10.0)
    tried.worked_at = 10.0
    tried.outcomes.extend(Outcome(9.0, 0, outcome == ".", is_known=True) for outcome in outcomes)
    return tried


# Directions.


@pytest.mark.parametrize(
    ("lost_there", "lost_back"),
    [("..x.x...x.", ".........."), ("..........", ".x..x.x..."), ("x.x...x...", ".x.x...x..")],
)
def test_what_is_lost_on_the_way_there_is_told_from_what_is_lost_on_the_way_back(
    lost_there: str, lost_back: str
) -> None:
    tried, arrived = Probe(OUTSIDE), 0
    ways = list(zip("." + lost_there + ".", "." + lost_back + ".", strict=True))
    for number, (there, back) in enumerate(ways):
        now = number / 5
        tried.count_lost(now)
        tried.note_ping(bytes([number]), now)
        arrived += there == "."
        if there == back == ".":
            tried.note_pong(bytes([number]), arrived, now + 0.05)
    assert tried.tally(100) == (lost_there.count("x"), len(ways))


def test_a_count_that_makes_no_sense_is_no_worse_than_none() -> None:
    tried = Probe(OUTSIDE)
    for number, arrived in enumerate((5, 2**32 - 1, 0, 7, 7)):
        tried.count_lost(float(number))
        tried.note_ping(bytes([number]), float(number))
        tried.note_pong(bytes([number]), arrived, number + 0.05)
    assert tried.tally(100) == (0, 5)
