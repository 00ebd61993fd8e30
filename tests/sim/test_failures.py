"""What goes wrong while two nodes talk: a listener notices for 2.5 s at most, and it is direct again within 10 s."""

from __future__ import annotations

import pytest

from .calls import Call, connected_sites, two_sites
from .network import Segment
from .world import KINDS, PORT_RESTRICTED, PUBLIC, SERVER, SYMMETRIC, Kind, World

OUTSIDE_A = "20.1.0.1"
OUTSIDE_B = "20.2.0.1"
SEEDS = [1, 2, 3]
REACHABLE = [
    ("port-restricted", "port-restricted"),
    ("public", "symmetric"),
    ("restricted", "apdm-eif"),
    ("carrier", "full-cone"),
    ("firewalled", "port-restricted-random"),
]


@pytest.mark.parametrize(("left", "right"), REACHABLE)
@pytest.mark.parametrize("outage", [8.0, 60.0])
def test_a_cut_direct_path_is_bridged_by_the_relay_and_found_again(left: str, right: str, outage: float) -> None:
    world = connected_sites(KINDS[left], KINDS[right])
    call = Call(world)
    world.run(5.0)
    cut_at = world.network.now
    world.network.cut(OUTSIDE_A, OUTSIDE_B)
    world.run(outage)
    assert call.gap(cut_at) <= 2.5
    assert call.lost(cut_at + 3.0, world.network.now - 1.0) == 0
    assert not world.is_direct("a", "b")
    healed_at = world.network.now
    world.network.heal()
    assert world.run_until_direct("a", "b", 10.0) is not None
    world.run(30.0)
    assert world.is_direct("a", "b")
    assert call.lost(healed_at - 1.0, world.network.now - 1.0) == 0


def test_a_path_that_heals_in_silence_is_back_soon_after_the_next_payload() -> None:
    world = connected_sites()
    world.network.cut(OUTSIDE_A, OUTSIDE_B)
    world.run(600.0)
    assert not world.is_direct("a", "b")
    world.network.heal()
    call = Call(world)
    assert world.run_until_direct("a", "b", 10.0) is not None
    world.run(1.0)
    assert call.lost(0.0, world.network.now - 0.5) == 0


def test_a_nat_that_reboots_and_keeps_its_ports_is_hardly_noticed() -> None:
    world = connected_sites()
    call = Call(world)
    world.run(5.0)
    rebooted_at = world.network.now
    world.routers["a"].reboot()
    world.run(20.0)
    assert call.gap(rebooted_at) <= 0.2
    assert world.is_direct("a", "b")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("other", ["public", "port-restricted", "port-restricted-random", "restricted", "carrier"])
def test_a_nat_that_reboots_to_other_ports_is_bridged_and_punched_anew(other: str, seed: int) -> None:
    world = connected_sites(KINDS["port-restricted-random"], KINDS[other], seed=seed)
    call = Call(world)
    world.run(5.0)
    rebooted_at = world.network.now
    world.routers["a"].reboot()
    world.run(2.5)
    assert call.gap(rebooted_at) <= 2.5
    assert world.run_until_direct("a", "b", 7.5) is not None
    settled_at = world.network.now
    world.run(30.0)
    assert call.lost(settled_at, world.network.now - 1.0) == 0


@pytest.mark.parametrize("is_idle", [True, False])
@pytest.mark.parametrize("other", ["public", "port-restricted", "symmetric"])
def test_a_new_address_that_nobody_reports_is_found_by_silence(other: str, is_idle: bool) -> None:
    world = connected_sites(KINDS["full-cone"], KINDS[other])
    call = Call(world)
    world.run(5.0)
    if is_idle:
        call.hang_up()
        world.run(60.0)
    moved_at = world.network.now
    world.routers["a"].reboot("20.77.0.1")
    if is_idle:
        world.run(40.0)
    else:
        world.run(3.0)
        assert call.gap(moved_at) <= 2.5
    assert world.run_until_direct("a", "b", 7.0) is not None


@pytest.mark.parametrize("other", ["public", "port-restricted", "symmetric"])
def test_a_host_carried_elsewhere_is_direct_from_there(other: str) -> None:
    world = connected_sites(KINDS["full-cone"], KINDS[other])
    world.add_site("cafe", KINDS["full-cone"])
    call = Call(world)
    world.run(5.0)
    moved_at = world.network.now
    world.carry("a", world.hosts["cafe"].segment, ("192.168.3.50",))
    world.run(5.0)
    assert call.gap(moved_at) <= 1.0
    assert world.run_until_direct("a", "b", 5.0) is not None
    path = world.primary("b", "a")
    assert path is not None
    assert path.remote.host == "20.3.0.1"


def test_a_host_carried_into_the_peers_lan_talks_there() -> None:
    world = connected_sites()
    call = Call(world)
    world.run(5.0)
    moved_at = world.network.now
    world.carry("a", world.hosts["b"].segment, ("192.168.2.50",))
    world.run(5.0)
    assert call.gap(moved_at) <= 1.0
    for name, other, host in (("a", "b", "192.168.2.10"), ("b", "a", "192.168.2.50")):
        path = world.primary(name, other)
        assert path is not None
        assert path.remote.host == host


@pytest.mark.parametrize("other", ["public", "port-restricted", "symmetric"])
def test_a_daemon_that_restarts_is_reached_at_once_and_directly_in_two_seconds(other: str) -> None:
    world = connected_sites(KINDS["restricted"], KINDS[other])
    world.hosts["a"].ports = {0: 42000, 1: 42000}
    node = world.restart("a")
    assert world.run_until_direct("a", "b", 3.0) is not None
    assert world.peer("b", "a").public_key == node.public_key
    call = Call(world)
    world.run(10.0)
    assert call.lost(0.0, world.network.now - 1.0) == 0


def test_direct_paths_live_on_without_the_rendezvous() -> None:
    world = connected_sites()
    call = Call(world, interval=0.1)
    world.run(5.0)
    died_at = world.network.now
    world.signalling.is_up = False
    for site in (OUTSIDE_A, OUTSIDE_B):
        world.network.cut(site, SERVER)
    world.run(600.0)
    assert call.lost(died_at, world.network.now - 1.0) == 0
    call.hang_up()
    world.run(600.0)
    number = world.node("a").send_once("b")
    world.run(1.0)
    assert number in world.peer("b", "a").received


@pytest.mark.parametrize(("left", "right"), REACHABLE)
@pytest.mark.parametrize("sender", ["a", "b"])
def test_after_ten_silent_minutes_the_first_packet_arrives(left: str, right: str, sender: str) -> None:
    world = connected_sites(KINDS[left], KINDS[right])
    world.run(600.0)
    assert world.is_direct("a", "b")
    other = "b" if sender == "a" else "a"
    number = world.node(sender).send_once(other)
    world.run(1.0)
    assert number in world.peer(other, sender).received


@pytest.mark.parametrize("has_new_ports", [False, True])
def test_half_a_minute_offline_is_over_within_two_seconds(has_new_ports: bool) -> None:
    world = connected_sites(KINDS["port-restricted-random"])
    call = Call(world)
    world.run(5.0)
    link = world.routers["a"].link
    link.is_up = False
    world.run(30.0)
    if has_new_ports:
        world.routers["a"].reboot()
    link.is_up = True
    healed_at = world.network.now
    world.run(15.0)
    assert call.gap(healed_at) <= (6.0 if has_new_ports else 2.0)
    assert world.is_direct("a", "b")


def test_losing_the_relay_during_a_call_over_it_is_healed_by_its_return() -> None:
    world = two_sites(SYMMETRIC, SYMMETRIC)
    world.run(2.0)
    call = Call(world)
    world.run(5.0)
    world.network.cut(OUTSIDE_A, SERVER)
    world.run(30.0)
    healed_at = world.network.now
    world.network.heal()
    world.run(10.0)
    assert call.gap(healed_at) <= 2.0


@pytest.mark.parametrize("kind", [PUBLIC, PORT_RESTRICTED])
def test_udp_that_is_blocked_in_mid_call_comes_back(kind: Kind) -> None:
    world = connected_sites(right=kind)
    call = Call(world)
    world.run(5.0)
    world.routers["a"].is_udp_blocked = True
    world.run(60.0)
    world.routers["a"].is_udp_blocked = False
    healed_at = world.network.now
    world.run(10.0)
    assert call.gap(healed_at) <= 6.0
    assert world.is_direct("a", "b")


def test_a_whole_mesh_survives_a_move() -> None:
    world = World(seed=3)
    names = [f"n{number}" for number in range(8)]
    for name in names:
        world.add_site(name, PORT_RESTRICTED)
    world.run(5.0)
    lan = world.hosts["n1"].segment
    assert isinstance(lan, Segment)
    world.carry("n0", lan, ("192.168.2.77",))
    others = names[1:]
    at = world.network.run_until_true(lambda: all(world.is_direct("n0", name) for name in others), 15.0)
    assert at is not None
