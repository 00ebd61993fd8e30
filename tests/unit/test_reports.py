"""What the peer says that it got and missed: which path answers for it, and how much it proves."""

from __future__ import annotations

import pytest

from meshvpn.proto.reports import MAX_REPORTS, SPAN, Counts, Losses, Report


def test_growth_between_two_pongs_is_a_report() -> None:
    counts = alone()
    assert counts.note(1, 1.0, 100, 5, 1.1) is None
    assert counts.note(2, 2.0, 140, 15, 2.1) == Report(2.1, 10, 50)


def test_what_was_asked_before_the_path_was_alone_says_nothing() -> None:
    counts = Counts()
    assert counts.note(1, 1.0, 10, 0, 1.1) is None
    counts.start_anew(5.0)
    assert counts.note(2, 4.9, 20, 0, 5.1) is None
    assert counts.note(3, 5.0, 30, 0, 5.2) is None
    assert counts.note(4, 6.0, 40, 0, 6.2) == Report(6.2, 0, 10)
    counts.start_anew(float("inf"))
    assert counts.note(5, 7.0, 50, 0, 7.2) is None


def test_a_pong_that_was_overtaken_says_nothing() -> None:
    counts = alone()
    counts.note(2, 2.0, 140, 15, 2.1)
    assert counts.note(1, 1.0, 100, 5, 2.2) is None
    assert counts.note(3, 3.0, 150, 15, 3.1) == Report(3.1, 0, 10)


def test_packets_that_came_late_are_taken_back() -> None:
    counts, losses = alone(), Losses()
    counts.note(1, 1.0, 0, 0, 1.0)
    for number, (received, lost) in enumerate([(40, 10), (90, 2)], 2):
        report = counts.note(number, float(number), received, lost, float(number))
        assert report is not None
        losses.note(report)
    assert (losses.lost, losses.total) == (2, 92)


def test_counts_run_over_at_32_bits_and_start_anew() -> None:
    counts = alone()
    counts.note(1, 1.0, 2**32 - 10, 2**32 - 1, 1.0)
    assert counts.note(2, 2.0, 30, 4, 2.0) == Report(2.0, 5, 45)
    assert counts.note(3, 3.0, 0, 0, 3.0) is None
    assert counts.note(4, 4.0, 8, 2, 4.0) == Report(4.0, 2, 10)


def test_nothing_new_is_no_report() -> None:
    counts = alone()
    counts.note(1, 1.0, 10, 0, 1.0)
    assert counts.note(2, 2.0, 10, 0, 2.0) is None


@pytest.mark.parametrize("burst", [3, 20])
def test_one_burst_proves_nothing(burst: int) -> None:
    losses = losing(0, reports=6)
    losses.note(Report(10.0, burst, 25))
    assert losses.at_least == 0.0
    assert losses.lost == burst


def test_loss_that_lasts_is_proven_in_two_seconds() -> None:
    losses = losing(0, reports=20)
    shown = []
    for second in range(4):
        losses.note(Report(20.0 + second / 2, 8, 25))
        shown.append(losses.at_least)
    assert shown[0] == 0.0
    assert shown[3] > 0.15


def test_few_packets_prove_nothing() -> None:
    losses = Losses()
    losses.note(Report(1.0, 9, 20))
    assert losses.at_least == 0.0
    assert not losses.is_notable


def test_a_burst_of_three_is_not_notable_and_a_third_of_a_second_is() -> None:
    for lost, is_notable in ((3, False), (8, True)):
        losses = losing(0, reports=5)
        losses.note(Report(10.0, lost, 25))
        assert losses.is_notable is is_notable


def test_old_reports_and_too_many_are_forgotten() -> None:
    losses = losing(1, reports=2)
    losses.note(Report(SPAN + 0.2, 0, 25))
    assert (losses.lost, losses.total) == (1, 50)
    for _ in range(2 * MAX_REPORTS):
        losses.note(Report(SPAN + 0.2, 1, 10))
    assert losses.total == 10 * MAX_REPORTS
    losses.clear()
    assert (losses.lost, losses.total, losses.at_least) == (0, 0, 0.0)


def alone() -> Counts:
    counts = Counts()
    counts.start_anew(0.0)
    return counts


def losing(lost: int, *, reports: int) -> Losses:
    losses = Losses()
    for number in range(reports):
        losses.note(Report(number / 2, lost, 25))
    return losses
