"""Candidates and offers: what is worth a probe, and offers from members that mean harm."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto.candidate import MAX_CANDIDATES, MAX_OFFER, Candidate, CandidateKind, Offer, decode_offer, usable
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.transport import Address

TUNNEL: list[IPv4Network | IPv6Network] = [IPv4Network("10.77.0.0/24"), IPv6Network("fd00:77::/64")]
HOSTS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
CANDIDATES = st.builds(Candidate, st.integers(0, 9), st.one_of(HOSTS, st.text(max_size=20)), st.integers(-5, 70000))


def offer_of(*candidates: Candidate, **changes: object) -> Offer:
    offer = Offer(
        format=1,
        uid=bytes(16),
        source=bytes([1]) * 32,
        destination=bytes([2]) * 32,
        sequence=7,
        disco_key=bytes([3]) * 32,
        candidates=list(candidates),
    )
    return msgspec.structs.replace(offer, **changes)


def hosts_of(*hosts: str, allow_loopback: bool = False) -> list[str]:
    candidates = [Candidate(CandidateKind.HOST, host, 4500) for host in hosts]
    return [candidate.host for candidate in usable(candidates, TUNNEL, allow_loopback=allow_loopback)]


@given(st.lists(st.builds(Candidate, st.integers(0, 9), HOSTS, st.integers(0, 65535)), max_size=MAX_CANDIDATES))
@settings(max_examples=60, deadline=None)
def test_an_offer_is_read_back(candidates: list[Candidate]) -> None:
    offer = offer_of(*candidates)
    assert decode_offer(offer.encode()) == offer


def test_an_offer_is_positional_so_that_the_wire_carries_no_names() -> None:
    raw = msgspec.msgpack.decode(offer_of(Candidate(1, "192.0.2.1", 9)).encode())
    old = [1, bytes(16), bytes([1]) * 32, bytes([2]) * 32, 7, bytes([3]) * 32, [[1, "192.0.2.1", 9]]]
    assert raw[: len(old)] == old
    # What earlier versions sent, and what they make of ours.
    assert decode_offer(msgspec.msgpack.encode(old)) == decode_offer(offer_of(Candidate(1, "192.0.2.1", 9)).encode())
    assert decode_offer(msgspec.msgpack.encode([*raw, "of a later version"])) == decode_offer(
        msgspec.msgpack.encode(raw)
    )


def test_fields_that_a_later_version_adds_are_ignored() -> None:
    raw = msgspec.msgpack.decode(offer_of(Candidate(1, "192.0.2.1", 9)).encode())
    raw.append("new")
    raw[6][0].append("newer")
    assert decode_offer(msgspec.msgpack.encode(raw)) == offer_of(Candidate(1, "192.0.2.1", 9))


@pytest.mark.parametrize(
    "changes",
    [{"format": 2}, {"format": 0}, {"source": bytes(31)}, {"destination": b""}, {"disco_key": bytes(33)}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_an_offer_with_a_field_that_makes_no_sense_is_malformed(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedMessage) as caught:
        decode_offer(offer_of(**changes).encode())
    assert caught.value.reason is DropReason.MALFORMED


def test_more_candidates_than_the_cap_are_refused() -> None:
    most = [Candidate(1, "192.0.2.1", port) for port in range(1, MAX_CANDIDATES + 1)]
    assert len(decode_offer(offer_of(*most).encode()).candidates) == MAX_CANDIDATES
    with pytest.raises(MalformedMessage) as caught:
        decode_offer(offer_of(*most, Candidate(1, "192.0.2.2", 1)).encode())
    assert caught.value.reason is DropReason.OVER_LIMIT


def test_more_bytes_than_the_cap_are_refused() -> None:
    with pytest.raises(MalformedMessage) as caught:
        decode_offer(bytes(MAX_OFFER + 1))
    assert caught.value.reason is DropReason.OVER_LIMIT


def test_the_longest_honest_offer_fits() -> None:
    longest = [Candidate(4, f"2001:db8:1234:5678:9abc:def0:1234:{number:04x}", 65535) for number in range(4096, 4128)]
    assert len(longest) == MAX_CANDIDATES
    assert len(offer_of(*longest).encode()) <= MAX_OFFER


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_arbitrary_bytes_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_offer(data)


@given(st.integers(0, 200), st.binary(min_size=1, max_size=8))
@settings(max_examples=300)
def test_a_damaged_offer_parses_or_is_malformed(position: int, patch: bytes) -> None:
    data = bytearray(offer_of(Candidate(1, "192.0.2.1", 9), Candidate(4, "2001:db8::1", 10)).encode())
    data[position : position + len(patch)] = patch
    try:
        offer = decode_offer(bytes(data))
    except MalformedMessage:
        return
    usable(offer.candidates, TUNNEL)


def test_documentation_private_and_shared_addresses_are_worth_a_probe() -> None:
    hosts = [
        "192.168.1.1",
        "10.0.0.1",
        "100.64.0.1",
        "172.16.0.1",
        "203.0.113.9",
        "198.18.0.1",
        "fd12::1",
        "2001:db8::1",
    ]
    assert sorted(hosts_of(*hosts)) == sorted(hosts)


NOT_WORTH_A_PROBE = [
    *("0.0.0.0", "255.255.255.255", "224.0.0.251", "239.1.2.3", "169.254.1.1", "127.0.0.1", "127.8.8.8"),
    *("::", "ff02::1", "fe80::1", "::1", "10.77.0.1", "10.77.0.255", "fd00:77::5"),
    *("::ffff:10.77.0.1", "::ffff:192.0.2.1", "::ffff:127.0.0.1", "fe80::1%eth0", "2001:db8::1%eth0"),
    *("", "example.org", "192.0.2.1 ", "192.0.2", "192.0.2.01", "1.2.3.4/32", "0x7f.0.0.1", "[::1]", "\x00"),
]


@pytest.mark.parametrize("host", NOT_WORTH_A_PROBE)
def test_addresses_that_are_nobody_ours_or_the_tunnel_are_not_probed(host: str) -> None:
    assert hosts_of(host) == []


def test_loopback_is_allowed_by_the_flag_alone() -> None:
    assert hosts_of("127.0.0.1", "::1", allow_loopback=True) == ["127.0.0.1", "::1"]
    assert hosts_of("0.0.0.0", "10.77.0.1", allow_loopback=True) == []


@pytest.mark.parametrize("port", [0, -1, 65536, 2**40])
def test_a_port_that_cannot_be_is_not_probed(port: int) -> None:
    assert usable([Candidate(1, "192.0.2.1", port)], []) == []


def test_one_address_in_several_spellings_and_kinds_is_probed_once() -> None:
    spellings = ["2001:db8::1", "2001:DB8:0:0::1", "2001:0db8:0000:0000:0000:0000:0000:0001"]
    kept = usable([Candidate(kind, host, 5) for kind in (4, 1) for host in spellings], [])
    assert kept == [Candidate(1, "2001:db8::1", 5)]


def test_a_kind_of_a_later_version_is_probed_all_the_same() -> None:
    assert usable([Candidate(99, "192.0.2.1", 5)], []) == [Candidate(99, "192.0.2.1", 5)]


@given(st.lists(CANDIDATES, max_size=60), st.booleans())
@settings(max_examples=150, deadline=None)
def test_whatever_is_offered_what_remains_can_be_sent_to(candidates: list[Candidate], allow_loopback: bool) -> None:
    kept = usable(candidates, TUNNEL, allow_loopback=allow_loopback)
    assert len(kept) <= MAX_CANDIDATES
    assert len({candidate.address for candidate in kept}) == len(kept)
    for candidate in kept:
        host = ip_address(candidate.host)
        assert str(host) == candidate.host
        assert 0 < candidate.port < 65536
        assert not any(host in network for network in TUNNEL)
        assert not host.is_multicast
        assert candidate.address == Address(candidate.host, candidate.port)


def test_the_tunnel_is_recognised_in_both_families() -> None:
    assert [str(ip_network(network)) for network in TUNNEL] == ["10.77.0.0/24", "fd00:77::/64"]
    assert hosts_of("10.77.1.1", "fd00:77:0:1::5") == ["10.77.1.1", "fd00:77:0:1::5"]
