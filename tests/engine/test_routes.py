"""Longest prefix match: the engine's table and its twin against an oracle that looks at every prefix there is."""

from __future__ import annotations

import random
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto.allowedips import MAX_ROUTES

from .sides import A_HOST, Side, install, introduce, open_side, packet, unseal

PEERS = 4
Prefix = tuple[bytes, int]


def prefixes(size: int) -> st.SearchStrategy[Prefix]:
    """Of few different bits, so that many overlap, are equal, or lie in one another."""
    edges = st.sampled_from([b"\0", b"\1", b"\x80", b"\xff"])
    network = st.builds(lambda head, tail: (head * size)[: size - 1] + tail, edges, edges)
    return st.tuples(network, st.one_of(st.integers(0, size * 8), st.sampled_from([0, 1, size * 8 - 1, size * 8])))


def changes(size: int) -> st.SearchStrategy[tuple[Prefix, int]]:
    """A prefix and its peer; 0: remove it."""
    return st.tuples(prefixes(size), st.integers(0, PEERS))


CASES = st.sampled_from([4, 16]).flatmap(
    lambda size: st.tuples(st.lists(changes(size), max_size=25), st.lists(prefixes(size), min_size=1, max_size=12))
)


def test_engine_and_twin_route_as_the_oracle_does() -> None:
    with open_side("engine") as engine, open_side("twin") as twin:
        for side in (engine, twin):
            for peer in range(1, PEERS + 1):
                introduce(side, side.far[0], f"192.0.2.{peer}", peer=peer)
                install(side.plane, 2 * peer, 2 * peer + 1, is_initiator=True, peer=peer)

        @given(CASES)
        @settings(max_examples=120, deadline=None, derandomize=True)
        def check(case: tuple[list[tuple[Prefix, int]], list[Prefix]]) -> None:
            steps, asked = case
            for side in (engine, twin):
                change(side, steps)
            table = oracle(steps)
            addresses = [network for network, _ in (*asked, *(prefix for prefix, _ in steps))]
            expected = [peer for address in addresses if (peer := stupid_lookup(table, address))]
            for side in (engine, twin):
                assert route(side, addresses) == sorted(expected)
                change(side, [(prefix, 0) for prefix, _ in steps])

        check()


def test_a_removed_peers_routes_go_and_the_others_stay(side: Side) -> None:
    for peer in (2, 3):
        introduce(side, side.far[peer - 1], f"10.0.{peer}.1", peer=peer)
        for low in range(1, 60):
            side.plane.add_route(bytes([10, 0, peer, low]), 32, peer)
        install(side.plane, 2 * peer, 2 * peer + 1, is_initiator=True, peer=peer)
    side.plane.remove_peer(2)
    for low in range(1, 60):
        side.push(packet(A_HOST, f"10.0.2.{low}", low))
        side.push(packet(A_HOST, f"10.0.3.{low}", low))
    assert len(side.sent(59, far=2)) == 59
    side.settle()
    assert side.drops() == {"no_route": 59}


@pytest.mark.parametrize("kind", ["engine", "twin"])
def test_the_table_is_bounded(kind: str) -> None:
    with open_side(kind) as side:
        side.plane.add_peer(1)
        for number in range(MAX_ROUTES):
            side.plane.add_route(number.to_bytes(4, "big"), 32, 1)
        with pytest.raises(ValueError, match="full"):
            side.plane.add_route(b"\x7f\0\0\1", 32, 1)
        side.plane.add_route(b"\0\0\0\1", 32, 1)
        side.plane.remove_route(b"\0\0\0\1", 32)
        side.plane.add_route(b"\x7f\0\0\1", 32, 1)


@pytest.mark.parametrize("kind", ["engine", "twin"])
def test_a_crowded_table_knows_what_is_in_it_after_many_changes(kind: str) -> None:
    chance = random.Random(5)
    present = [number.to_bytes(4, "big") for number in chance.sample(range(1 << 32), MAX_ROUTES)]
    with open_side(kind) as side:
        side.plane.add_peer(1)
        for network in present:
            side.plane.add_route(network, 32, 1)
        chance.shuffle(present)
        gone, present = present[:4000], present[4000:]
        for network in gone:
            side.plane.remove_route(network, 32)
        for number in range(4000):
            present.append(b"\0\0" + number.to_bytes(2, "big"))
            side.plane.add_route(present[-1], 32, 1)
        for network in present:
            side.plane.add_route(network, 32, 1)
        for network in gone:
            with pytest.raises(ValueError, match="full"):
                side.plane.add_route(network, 32, 1)


@pytest.mark.parametrize(("network", "length"), [(b"\0\0\0", 8), (bytes(4), 33), (bytes(16), 129), (bytes(4), -1)])
def test_what_is_no_prefix_is_refused(side: Side, network: bytes, length: int) -> None:
    with pytest.raises(ValueError, match="no prefix"):
        side.plane.add_route(network, length, 1)


def test_a_route_to_nobody_is_refused(side: Side) -> None:
    with pytest.raises(ValueError, match="no peer 9"):
        side.plane.add_route(bytes(4), 0, 9)


def change(side: Side, steps: list[tuple[Prefix, int]]) -> None:
    for (network, length), peer in steps:
        if peer:
            side.plane.add_route(network, length, peer)
        else:
            side.plane.remove_route(network, length)


def oracle(steps: list[tuple[Prefix, int]]) -> dict[str, int]:
    """Prefixes as strings of bits, and their peers."""
    table: dict[str, int] = {}
    for (network, length), peer in steps:
        table.pop(bits(network)[:length], None)
        if peer:
            table[bits(network)[:length]] = peer
    return table


def stupid_lookup(table: dict[str, int], address: bytes) -> int:
    best = max((prefix for prefix in table if bits(address).startswith(prefix)), key=len, default=None)
    return 0 if best is None else table[best]


def bits(address: bytes) -> str:
    return f"{int.from_bytes(address, 'big'):0{len(address) * 8}b}"


def route(side: Side, addresses: list[bytes]) -> list[int]:
    """The peers that packets to these addresses went to, in no order."""
    before = side.drops().get("no_route", 0)
    for address in addresses:
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        source = A_HOST if len(address) == 4 else "fd00::1"
        side.push(packet(source, socket.inet_ntop(family, address), 0, 60))
    side.settle()
    unrouted = side.drops().get("no_route", 0) - before
    messages = side.sent(len(addresses) - unrouted)
    peers = [int.from_bytes(message[4:8], "little") // 2 for message in messages]
    for peer, message in zip(peers, messages, strict=True):
        unseal(2 * peer, 2 * peer + 1, message)
    return sorted(peers)
