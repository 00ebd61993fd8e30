"""What of a peer's figures is of late."""

from __future__ import annotations

from meshvpn.proto.traffic import SPAN, RecentTraffic, Traffic


def test_what_is_of_late_is_the_difference_of_totals() -> None:
    recent, total = RecentTraffic(), Traffic()
    for second in range(1000):
        total = Traffic(rx_packets=50 * second, lost_packets=5 * second, jitter=0.25)
        recent.note(total, now=100.0 + second)
        assert recent.counts.rx_packets <= 50 * 2 * SPAN
        assert recent.counts.lost_packets * 10 == recent.counts.rx_packets
        assert recent.counts.jitter == 0.25
    assert recent.counts.rx_packets >= 50 * SPAN


def test_trouble_of_before_is_forgotten() -> None:
    recent = RecentTraffic()
    lost = 0
    for second in range(300):
        lost += 10 if second < 100 else 0
        recent.note(Traffic(rx_packets=50 * second, lost_packets=lost), now=float(second))
    assert recent.counts.lost_packets == 0
    assert recent.counts.rx_packets > 0


def test_the_first_reading_and_one_after_a_pause_count_for_nothing() -> None:
    recent = RecentTraffic()
    assert recent.counts == Traffic()
    recent.note(Traffic(rx_packets=1000), now=5.0)
    assert recent.counts.rx_packets == 0
    recent.note(Traffic(rx_packets=1010), now=6.0)
    assert recent.counts.rx_packets == 10
    recent.note(Traffic(rx_packets=5000), now=1000.0)
    assert recent.counts.rx_packets == 0


def test_a_loss_that_turned_out_to_be_late_is_not_negative() -> None:
    recent = RecentTraffic()
    recent.note(Traffic(lost_packets=5), now=5.0)
    recent.note(Traffic(lost_packets=3), now=6.0)
    assert recent.counts.lost_packets == 0
