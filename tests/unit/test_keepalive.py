"""The keepalive's interval: what makes it shorter, and longer again. Whole paths through NATs are in tests/sim."""

from __future__ import annotations

import pytest

from meshvpn.proto.keepalive import INTERVALS, TRIAL_AFTER, TRIAL_LIMIT, Keepalive
from meshvpn.proto.probe import Probe

from .agents import ELSEWHERE, OUTSIDE

TRANSACTION = bytes(12)


class Idle:
    """A proven path that nobody talks on, and the keepalive for it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.keepalive = Keepalive()
        self.probe = Probe(OUTSIDE)
        self.probe.note_ping(TRANSACTION, self.now)
        self.probe.note_pong(TRANSACTION, 1, self.now + 0.08)

    @property
    def interval(self) -> float:
        return self.keepalive.interval

    def hold(self, *, is_turn: bool = True) -> None:
        """The next ping is answered."""
        self._ask(is_turn)
        self.keepalive.note_pong(self.probe, self.now)
        self.probe.note_pong(TRANSACTION, self.probe.number, self.now + 0.08)

    def forget(self, *, is_turn: bool = True) -> None:
        """The next one is not, until the peer pings."""
        self._ask(is_turn)
        self.probe.tries = 3
        self.now = self.probe.overdue_at
        self.keepalive.note_ask(self.probe, self.now)
        self.probe.note_pong(TRANSACTION, self.probe.number, self.now + 0.08)

    def _ask(self, is_turn: bool) -> None:
        self.probe.asked_at = self.probe.sent_at + 0.04 if is_turn else self.probe.sent_at - 0.04
        self.now = self.keepalive.ping_at(self.probe)
        self.keepalive.note_ping(self.probe, self.now)
        self.probe.note_ping(TRANSACTION, self.now)


def test_two_failures_in_a_row_shorten_the_interval_down_to_the_last() -> None:
    idle = Idle()
    for interval in (*INTERVALS[1:], INTERVALS[-1]):
        idle.forget()
        idle.forget()
        assert idle.interval == interval
    assert idle.keepalive.take_change()
    assert not idle.keepalive.take_change()


def test_one_failure_may_be_an_outage() -> None:
    idle = Idle()
    for _ in range(5):
        idle.forget()
        idle.hold()
    idle.forget()
    idle.now += 600.0
    idle.probe.sent_at = idle.now
    idle.forget()
    assert idle.interval == INTERVALS[0]


def test_an_answer_out_of_turn_undoes_no_failure() -> None:
    idle = Idle()
    idle.forget()
    idle.hold(is_turn=False)
    idle.forget()
    assert idle.interval == INTERVALS[1]


def test_a_ping_after_less_than_a_silence_tests_nothing() -> None:
    idle = Idle()
    for _ in range(4):
        idle.now += 5.0
        idle.keepalive.note_ping(idle.probe, idle.now)
        idle.probe.note_ping(TRANSACTION, idle.now)
        idle.keepalive.note_silence(idle.probe, idle.now)
        idle.probe.note_pong(TRANSACTION, idle.probe.number, idle.now)
    assert idle.interval == INTERVALS[0]


def test_another_path_that_falls_silent_is_not_the_one_under_test() -> None:
    idle, other = Idle(), Probe(ELSEWHERE)
    idle.forget()
    idle.hold(is_turn=False)
    idle._ask(is_turn=True)
    assert not idle.keepalive.note_silence(other, idle.now)
    assert idle.keepalive.note_silence(idle.probe, idle.now)


def test_after_hours_a_longer_interval_is_tried_ever_more_seldom_until_it_holds() -> None:
    idle = Idle()
    idle.forget()
    idle.forget()
    patience = TRIAL_AFTER
    for _ in range(7):
        tried_at = trial(idle)
        assert tried_at == pytest.approx(patience, abs=60.0)
        idle.forget()
        assert idle.interval == INTERVALS[1], "one failure ends it"
        patience = min(2 * patience, TRIAL_LIMIT)
    trial(idle)
    idle.hold()
    idle.forget()
    assert idle.interval == INTERVALS[0], "it has held once"


@pytest.mark.parametrize(("saved", "restored"), [(25.0, 25.0), (15.0, 15.0), (20.0, 15.0), (1.0, 10.0), (99.0, 25.0)])
def test_what_is_on_the_disk_is_one_of_the_intervals_again(saved: float, restored: float) -> None:
    keepalive = Keepalive()
    keepalive.restore(saved, 1000.0)
    assert keepalive.interval == restored
    assert not keepalive.take_change()


def trial(idle: Idle) -> float:
    """All is well until a longer interval is tried; the seconds that it took."""
    started_at, before = idle.now, idle.interval
    while idle.interval == before:
        idle.hold()
    return idle.now - started_at
