"""How a NAT maps, read from what servers saw."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto.nat import MAX_STEP, Mapping4787, NatMapping, PortRule, classify, describe, step_of
from meshvpn.proto.transport import Address

FIRST, SECOND = Address("198.51.100.1", 7770), Address("198.51.100.1", 7771)
ELSEWHERE = Address("198.51.100.2", 7770)


def seen(*ports: int, servers: tuple[Address, ...] = (FIRST, SECOND, ELSEWHERE)) -> list[tuple[Address, Address]]:
    return [(server, Address("203.0.113.5", port)) for server, port in zip(servers, ports, strict=False)]


@pytest.mark.parametrize(
    ("ports", "mapping"),
    [
        ((), Mapping4787.UNKNOWN),
        ((40000,), Mapping4787.UNKNOWN),
        ((40000, 40000), Mapping4787.INDEPENDENT),
        ((40000, 40000, 40000), Mapping4787.INDEPENDENT),
        ((40000, 40000, 50000), Mapping4787.ADDRESS),
        ((40000, 50000), Mapping4787.ADDRESS_AND_PORT),
        ((40000, 50000, 40000), Mapping4787.ADDRESS_AND_PORT),
    ],
)
def test_a_mapping_is_told_by_which_servers_see_the_same(ports: tuple[int, ...], mapping: Mapping4787) -> None:
    assert classify(seen(*ports)) is mapping
    assert mapping.is_dependent == (mapping in (Mapping4787.ADDRESS, Mapping4787.ADDRESS_AND_PORT))


def test_one_server_asked_twice_tells_nothing() -> None:
    assert classify(seen(40000, 50000, servers=(FIRST, FIRST))) is Mapping4787.UNKNOWN


@pytest.mark.parametrize(
    ("ports", "step"),
    [
        ([], 0),
        ([40000], 0),
        ([40000, 40000], 0),
        ([40000, 40001], 1),
        ([40001, 40000], -1),
        ([40000, 40002, 40004], 2),
        ([40000, 40003, 40004], 1),
        ([40000, 40001, 40000], 0),
        ([40000, 40000 + MAX_STEP + 1], 0),
        ([40000, 51234], 0),
    ],
)
def test_a_count_is_told_from_dice(ports: list[int], step: int) -> None:
    assert step_of(ports) == step


def test_a_peer_is_told_what_to_expect() -> None:
    host = "203.0.113.5"
    assert describe([]) == NatMapping()
    assert describe(seen(40000)) == NatMapping(PortRule.UNKNOWN, host, 40000)
    assert describe(seen(40000, 40000)) == NatMapping(PortRule.KEPT, host, 40000)
    assert describe(seen(40000, 40001)) == NatMapping(PortRule.COUNTED, host, 40001, 1)
    assert describe(seen(40000, 51234)) == NatMapping(PortRule.RANDOM, host, 51234)


@given(start=st.integers(1024, 60000), step=st.sampled_from([-2, -1, 1, 2]), count=st.integers(2, 6))
def test_any_even_count_is_recognised(start: int, step: int, count: int) -> None:
    assert step_of([start + step * number for number in range(count)]) == step
