"""Longest-prefix match against a search through all prefixes."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto import allowedips
from meshvpn.proto.allowedips import AllowedIPs

Route = tuple[bytes, int]


@st.composite
def routes(draw: st.DrawFn) -> Route:
    """Prefixes of a small part of both families, so that they nest and collide."""
    size = draw(st.sampled_from([4, 16]))
    first = draw(st.sampled_from([b"\x0a\x00", b"\x0a\x01", b"\x00\x00", b"\xff\xff"]))
    rest = draw(st.sampled_from([b"\x00\x00", b"\x00\x01", b"\x80\x00", b"\xff\xff"]))
    return first + bytes(size - 4) + rest, draw(st.integers(0, size * 8))


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), routes(), st.integers(1, 4)),
        st.tuples(st.just("remove"), routes(), st.just(0)),
        st.tuples(st.just("remove_peer"), routes(), st.integers(1, 4)),
    ),
    max_size=40,
)


@given(actions, st.lists(routes().map(lambda route: route[0]), max_size=10))
def test_it_agrees_with_a_search_through_everything(
    steps: list[tuple[str, Route, int]], addresses: list[bytes]
) -> None:
    table, model = AllowedIPs(), dict[Route, int]()
    for action, (network, length), peer in steps:
        key = (masked(network, length), length)
        if action == "add":
            table.add(network, length, peer)
            model[key] = peer
        elif action == "remove":
            table.remove(network, length)
            model.pop(key, None)
        else:
            table.remove_peer(peer)
            model = {route: owner for route, owner in model.items() if owner != peer}
        assert len(table) == len(model)
        for address in [*addresses, network]:
            assert table.lookup(address) == search(model, address)


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("10.1.2.3", 3),
        ("10.1.2.4", 2),
        ("10.9.9.9", 1),
        ("192.0.2.1", 9),
        ("fd00::1", 5),
        ("fd00::2", 4),
        ("2001:db8::1", None),
        ("::ffff:10.1.2.3", None),
    ],
)
def test_the_longest_of_nested_prefixes_wins_in_each_family(address: str, peer: int | None) -> None:
    table = AllowedIPs()
    for text, number in (
        ("0.0.0.0/0", 9),
        ("10.0.0.0/8", 1),
        ("10.1.2.0/24", 2),
        ("10.1.2.3/32", 3),
        ("fd00::/64", 4),
        ("fd00::1/128", 5),
    ):
        network = ip_network(text)
        table.add(network.network_address.packed, network.prefixlen, number)
    assert table.lookup(ip_address(address).packed) == peer


def test_a_prefix_that_is_added_again_moves_to_the_other_peer() -> None:
    table = AllowedIPs()
    table.add(bytes([10, 0, 0, 5]), 24, 1)
    table.add(bytes([10, 0, 0, 9]), 24, 2)
    assert len(table) == 1
    assert table.lookup(bytes([10, 0, 0, 1])) == 2


@pytest.mark.parametrize(
    ("network", "length"), [(bytes(4), 33), (bytes(4), -1), (bytes(16), 129), (bytes(5), 8), (b"", 0)]
)
def test_what_is_no_prefix_is_a_value_error(network: bytes, length: int) -> None:
    table = AllowedIPs()
    with pytest.raises(ValueError, match="no prefix"):
        table.add(network, length, 1)
    with pytest.raises(ValueError, match="no prefix"):
        table.remove(network, length)


def test_what_is_no_address_has_no_peer() -> None:
    table = AllowedIPs()
    table.add(bytes(4), 0, 1)
    table.add(bytes(16), 0, 2)
    assert [table.lookup(bytes(size)) for size in (0, 3, 4, 5, 16, 17)] == [None, None, 1, None, 2, None]


def test_a_full_table_takes_no_further_prefix_but_moves_those_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowedips, "MAX_ROUTES", 3)
    table = AllowedIPs()
    for number in range(3):
        table.add(bytes([10, 0, 0, number]), 32, 1)
    with pytest.raises(ValueError, match="full"):
        table.add(bytes([10, 0, 0, 3]), 32, 1)
    table.add(bytes([10, 0, 0, 2]), 32, 2)
    assert table.lookup(bytes([10, 0, 0, 2])) == 2


def masked(network: bytes, length: int) -> bytes:
    return ip_network((network, length), strict=False).network_address.packed


def search(model: dict[Route, int], address: bytes) -> int | None:
    holding = [
        (length, peer)
        for (network, length), peer in model.items()
        if len(network) == len(address) and masked(address, length) == network
    ]
    return max(holding)[1] if holding else None
