"""Who counts as one source."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rendezvous.sources import Places, client_host, source_key

PROXIES = [ip_network("127.0.0.1"), ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


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


def test_places_are_limited_in_total_and_for_each_source() -> None:
    places = Places(3, 2)
    assert [places.take(source) for source in "aaabc"] == [True, True, False, True, False]
    places.leave("a")
    assert [len(places), places.take("c"), places.take("a")] == [2, True, False]
