"""Token buckets, and bounded tables of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto.buckets import Bucket, Buckets


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    bucket = Bucket(2.0, 3.0, now=0.0)
    assert [bucket.take(now=0.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(now=0.25)
    assert bucket.take(now=0.5)
    assert not bucket.take(now=0.5)


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    bucket = Bucket(1.0, 2.0, now=0.0)
    assert [bucket.take(now=1e9) for _ in range(3)] == [True, True, False]


def test_a_bucket_takes_all_or_nothing() -> None:
    bucket = Bucket(1.0, 10.0, now=0.0)
    assert not bucket.take(11.0, now=0.0)
    assert bucket.take(10.0, now=0.0)


def test_a_debt_is_paid_off_before_there_are_tokens_again() -> None:
    bucket = Bucket(1.0, 2.0, now=0.0)
    for _ in range(5):
        bucket.charge(now=0.0)
    assert not bucket.has(now=3.9)
    assert bucket.has(now=4.0)


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    bucket = Bucket(1.0, 2.0, now=10.0)
    assert bucket.take(2.0, now=10.0)
    assert not bucket.take(now=0.0)
    assert bucket.take(now=11.0)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), max_size=50))
def test_a_bucket_never_gives_more_than_burst_and_rate_allow(steps: list[tuple[float, float]]) -> None:
    bucket = Bucket(1.5, 5.0, now=0.0)
    now = taken = 0.0
    for wait, amount in steps:
        now += wait
        if bucket.take(amount, now=now):
            taken += amount
        assert taken <= 5.0 + 1.5 * now + 1e-6


def test_keys_do_not_share_their_tokens() -> None:
    buckets = Buckets(0.0, 1.0)
    assert buckets.take("a", now=0.0)
    assert not buckets.take("a", now=0.0)
    assert buckets.take("b", now=0.0)


def test_a_table_of_buckets_forgets_the_key_that_was_silent_for_longest() -> None:
    buckets = Buckets(0.0, 1.0, size=2)
    for key in ("a", "b", "a", "c"):
        buckets.take(key, now=0.0)
    assert len(buckets) == 2
    assert not buckets.take("a", now=0.0)
    assert buckets.take("b", now=0.0)


def test_asking_for_a_key_takes_nothing_and_remembers_nothing() -> None:
    buckets = Buckets(0.0, 1.0)
    assert buckets.has("a", now=0.0)
    assert len(buckets) == 0
    buckets.charge("a", now=0.0)
    assert not buckets.has("a", now=0.0)


def test_a_key_that_is_forgotten_starts_anew() -> None:
    buckets = Buckets(0.0, 1.0)
    buckets.take("a", now=0.0)
    buckets.forget("a")
    buckets.forget("unknown")
    assert buckets.take("a", now=0.0)


@given(st.lists(st.integers(), max_size=100))
def test_a_table_of_buckets_is_bounded_whatever_comes(keys: list[int]) -> None:
    buckets = Buckets(1.0, 1.0, size=8)
    for key in keys:
        buckets.take(key, now=0.0)
        buckets.charge(key, now=0.0)
    assert len(buckets) <= 8
