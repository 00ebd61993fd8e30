"""Two nodes find each other: over the relay at once, directly where their NATs allow it, without losing a packet."""

from __future__ import annotations

import itertools

import pytest

from meshvpn.proto.transport import Path

from .calls import Call, two_sites
from .nat import Filtering, Firewall, Mapping, Nat
from .network import Link, Router, Segment
from .world import (
    KINDS,
    ONE_WAY,
    PORT_RESTRICTED,
    PUBLIC,
    SERVER,
    SERVER6,
    SYMMETRIC,
    Reach,
    World,
    best_reach,
    direct_path_possible,
)


def test_the_first_packet_takes_one_way_over_the_relay() -> None:
    world = two_sites(SYMMETRIC, SYMMETRIC)
    both_know = world.network.run_until_true(lambda: has_path(world, "a", "b") and has_path(world, "b", "a"), 1.0)
    assert both_know is not None
    number = world.node("a").send_once("b")
    arrived = world.network.run_until_true(lambda: number in world.peer("b", "a").received, 5.0)
    assert arrived is not None
    assert arrived - both_know == pytest.approx(4 * ONE_WAY)


@pytest.mark.parametrize(("left", "right"), list(itertools.product(KINDS, KINDS)))
def test_every_pair_of_kinds_is_direct_exactly_if_it_can_be(left: str, right: str) -> None:
    world = two_sites(KINDS[left], KINDS[right])
    reach = best_reach(world.hosts["a"], world.hosts["b"])
    is_possible = reach in (Reach.DIRECT, Reach.PREDICTED)
    limit = 4.0 if reach is Reach.PREDICTED else 2.0
    assert (world.run_until_direct("a", "b", limit) is not None) == is_possible
    if "udp-blocked" in (left, right):
        return
    call = Call(world)
    # With payload a birthday attack starts; its own tests wait for it.
    world.run(2.0)
    call.hang_up()
    world.run(1.0)
    assert call.lost(0.0, world.network.now) == 0
    assert call.duplicates == 0
    # An address-dependent NAT looks to one server as if it kept its port: an attack on the other end may find it.
    may_be_found = reach is Reach.BIRTHDAY or any(kind.startswith("adm") for kind in (left, right))
    if is_possible or not may_be_found:
        assert world.is_direct("a", "b") == is_possible


@pytest.mark.parametrize("kinds", [("port-restricted", "carrier"), ("public", "symmetric"), ("restricted", "apdm-eif")])
def test_the_move_to_the_direct_path_loses_and_doubles_nothing(kinds: tuple[str, str]) -> None:
    world = two_sites(KINDS[kinds[0]], KINDS[kinds[1]])
    world.network.run_until_true(lambda: has_path(world, "a", "b") and has_path(world, "b", "a"), 1.0)
    assert not world.is_direct("a", "b")
    for name, other in (("a", "b"), ("b", "a")):
        world.node(name).start_traffic(other, 0.001)
    world.run(2.0)
    assert world.is_direct("a", "b")
    for name, other in (("a", "b"), ("b", "a")):
        world.node(name).stop_traffic(other)
    world.run(1.0)
    for name, other in (("a", "b"), ("b", "a")):
        sender, receiver = world.peer(name, other), world.peer(other, name)
        assert sender.sent > 1900
        assert len(receiver.received) == sender.sent
        assert receiver.duplicates == 0


def test_hosts_of_one_lan_use_it() -> None:
    world = World()
    world.add_site("a", SYMMETRIC)
    world.add_host("b", world.hosts["a"].segment, ("192.168.1.11",))
    assert world.run_until_direct("a", "b", 2.0) is not None
    world.run(10.0)
    assert remote_host(world.primary("a", "b")) == "192.168.1.11"
    assert remote_host(world.primary("b", "a")) == "192.168.1.10"


def test_hosts_of_one_lan_with_the_same_port_both_reach_a_third() -> None:
    world = World()
    world.add_site("a", PORT_RESTRICTED)
    world.add_host("b", world.hosts["a"].segment, ("192.168.1.11",))
    world.add_site("c", PORT_RESTRICTED)
    assert world.run_until_direct("a", "c", 2.0) is not None
    assert world.run_until_direct("b", "c", 2.0) is not None


def test_equal_private_addresses_lead_to_no_false_path() -> None:
    world = World()
    for name in ("a", "b"):
        world.add_site(name, PORT_RESTRICTED, host="192.168.1.10")
    # A stranger to the pair, a member as well, at the address that each would find the other at.
    world.add_host("c", world.hosts["a"].segment, ("192.168.1.11",))
    world.add_host("d", world.hosts["b"].segment, ("192.168.1.11",))
    for name, other in (("a", "b"), ("a", "d"), ("c", "d")):
        assert world.run_until_direct(name, other, 2.0) is not None
        assert remote_host(world.primary(name, other)) == "20.2.0.1"
        assert remote_host(world.primary(other, name)) == "20.1.0.1"
    assert remote_host(world.primary("a", "c")) == "192.168.1.11"


@pytest.mark.parametrize("hairpin", [True, False])
def test_customers_of_one_carrier_are_direct_if_it_hairpins(hairpin: bool) -> None:
    world = World()
    inside = Segment("carrier")
    nat = Nat(Mapping.INDEPENDENT, Filtering.ADDRESS_AND_PORT, hairpin=hairpin)
    Router(
        world.network,
        "carrier",
        inside=inside,
        outside=world.internet,
        address="20.200.0.1",
        nat=nat,
        link=Link(latency=ONE_WAY),
    )
    for name in ("a", "b"):
        world.add_site(name, PORT_RESTRICTED, outside=inside)
    assert direct_path_possible(world.hosts["a"], world.hosts["b"]) is hairpin
    assert (world.run_until_direct("a", "b", 2.0) is not None) is hairpin


@pytest.mark.parametrize("server_ipv6", [True, False])
def test_ipv6_at_both_ends_is_direct_whatever_ipv4_does(server_ipv6: bool) -> None:
    world = World(server_ipv6=server_ipv6)
    world.add_site("a", SYMMETRIC, ipv6="2001:db8:a::1")
    world.add_site("b", SYMMETRIC, ipv6="2001:db8:b::1")
    assert world.run_until_direct("a", "b", 2.0) is not None
    assert remote_host(world.primary("a", "b")) == "2001:db8:b::1"


def test_ipv6_at_one_end_only_does_no_harm() -> None:
    world = World(server_ipv6=True)
    world.add_site("a", PORT_RESTRICTED, ipv6="2001:db8:a::1")
    world.add_site("b", PORT_RESTRICTED)
    assert world.run_until_direct("a", "b", 2.0) is not None


def test_ipv6_alone_and_ipv4_alone_meet_at_a_relay_that_has_both() -> None:
    world = World(server_ipv6=True)
    world.add_host("a", world.internet, ("2001:db8:a::1",), link=Link(latency=ONE_WAY))
    world.add_site("b", PORT_RESTRICTED)
    world.run(3.0)
    for name, other in (("a", "b"), ("b", "a")):
        path = world.primary(name, other)
        assert path is not None
        assert not path.is_direct
        assert world.peer(name, other).agent.is_reachable, "a round trip came back"
    assert remote_host(world.primary("a", "b")) == SERVER6
    assert remote_host(world.primary("b", "a")) == SERVER


def test_two_with_ipv6_alone_are_direct() -> None:
    world = World(server_ipv6=True)
    for name in ("a", "b"):
        world.add_host(name, world.internet, (f"2001:db8:{name}::1",), link=Link(latency=ONE_WAY), firewall=Firewall())
    assert world.run_until_direct("a", "b", 2.0) is not None
    assert remote_host(world.primary("a", "b")) == "2001:db8:b::1"


def test_late_signalling_delays_and_does_not_prevent() -> None:
    world = World(signalling_latency=0.5)
    for name in ("a", "b"):
        world.add_site(name, PORT_RESTRICTED)
    assert world.run_until_direct("a", "b", 4.0) is not None


def test_a_path_to_a_public_host_needs_one_end_that_knows_the_other() -> None:
    # The public one hears of the other by its pings alone: triggered checks, RFC 8445 §7.3.1.4.
    world = two_sites(PUBLIC, SYMMETRIC)
    world.run(0.2)
    world.signalling.is_up = False
    assert world.run_until_direct("a", "b", 2.0) is not None


def test_a_whole_mesh_over_lossy_links_becomes_direct() -> None:
    world = World(seed=7)
    link = Link(latency=ONE_WAY, jitter=0.005, loss=0.05, duplication=0.01, reordering=0.02)
    names = [f"n{number}" for number in range(12)]
    for name in names:
        world.add_site(name, PORT_RESTRICTED, link=link)
    pairs = list(itertools.combinations(names, 2))
    at = world.network.run_until_true(lambda: all(world.is_direct(*pair) for pair in pairs), 8.0)
    assert at is not None
    world.run(120.0)
    assert all(world.is_direct(*pair) for pair in pairs)


def has_path(world: World, name: str, other: str) -> bool:
    return world.primary(name, other) is not None


def remote_host(path: Path | None) -> str | None:
    return None if path is None else path.remote.host
