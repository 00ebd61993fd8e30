"""Token buckets, bounded tables, and who counts as one source."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto.buckets import Bucket, Buckets
from rendezvous.sources import client_host, source_key

PROXIES = [ip_network("127.0.0.1"), ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


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


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_source_is_an_ipv4_address_or_an_ipv6_prefix(host: str, key: str) -> None:
    assert source_key(host) == key


@pytest.mark.parametrize(
    ("peer", "forwarded", "host"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),  # not from a proxy of ours: anybody can write that
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["203.0.113.9, 198.51.100.1"], "198.51.100.1"),  # the client wrote the first one
        ("127.0.0.1", ["203.0.113.9", "198.51.100.1, 10.1.1.1"], "198.51.100.1"),
        ("::ffff:127.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        ("127.0.0.1", ["198.51.100.1, nonsense"], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["10.9.9.9"], "10.9.9.9"),  # a client inside the proxies' network
    ],
)
def test_a_trusted_proxy_says_whom_it_speaks_for(peer: str, forwarded: list[str], host: str) -> None:
    assert client_host(peer, forwarded, PROXIES) == host


@given(st.lists(st.text(max_size=40), max_size=5), st.ip_addresses())
def test_whatever_the_header_says_an_address_comes_out(headers: list[str], peer: IPv4Address | IPv6Address) -> None:
    assert source_key(client_host(str(peer), headers, PROXIES))
    untrusted = client_host("192.0.2.1", headers, PROXIES)
    assert untrusted == "192.0.2.1"
