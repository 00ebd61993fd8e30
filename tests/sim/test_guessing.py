"""NATs whose port towards a peer must be guessed: predicted where they count, found by many tries where they do not."""

from __future__ import annotations

import random

import pytest

from meshvpn.proto.guess import Guessing
from meshvpn.proto.permit import Permit
from meshvpn.proto.transport import FIRST_EXTRA_SOCKET, Address

from .calls import Call, two_sites
from .network import Link, Packet
from .world import KINDS, ONE_WAY, Reach, World, best_reach

PREDICTED = [
    ("firewalled", "symmetric-counting"),
    ("port-restricted", "symmetric-counting"),
    ("carrier", "symmetric-counting"),
    ("symmetric-counting", "symmetric-counting"),
]
BIRTHDAY = [("firewalled", "symmetric"), ("port-restricted", "symmetric"), ("carrier", "carrier-symmetric")]
RELAYED = [("symmetric-counting", "symmetric"), ("symmetric", "symmetric"), ("port-restricted", "udp-blocked")]
OUTSIDE_A, OUTSIDE_B = "20.1.0.1", "20.2.0.1"
SEEDS = range(1, 21)


def talking(kinds: tuple[str, str], seed: int = 1, *, loss: float = 0.0, neighbours: float = 0.0) -> World:
    """Two sites with a call over the relay. `neighbours` are the flows a second that others open at each NAT."""
    world = two_sites(KINDS[kinds[0]], KINDS[kinds[1]], seed=seed, link=Link(latency=ONE_WAY, loss=loss))
    for name in world.routers if neighbours else ():
        open_flows(world, name, neighbours, random.Random(f"{seed}/{name}"), 0)
    world.run(0.1)
    Call(world, interval=0.1)
    return world


def open_flows(world: World, name: str, rate: float, dice: random.Random, number: int) -> None:
    neighbour, server = Address("192.168.77.9", 1024 + number % 60_000), Address("20.99.0.1", 443)
    world.routers[name].nat.translate_outbound(neighbour, server, world.network.now)
    world.network.call_at(
        world.network.now + dice.expovariate(rate), lambda: open_flows(world, name, rate, dice, number + 1)
    )


def successes(kinds: tuple[str, str], limit: float, **how: float) -> int:
    return sum(talking(kinds, seed, **how).run_until_direct("a", "b", limit) is not None for seed in SEEDS)


@pytest.mark.parametrize("kinds", PREDICTED)
def test_a_counting_nat_is_predicted(kinds: tuple[str, str]) -> None:
    for pair in (kinds, kinds[::-1]):
        world = talking(pair)
        assert best_reach(world.hosts["a"], world.hosts["b"]) is Reach.PREDICTED
        assert world.run_until_direct("a", "b", 4.0) is not None


@pytest.mark.parametrize("kinds", [PREDICTED[1], PREDICTED[3]])
def test_prediction_succeeds_nineteen_times_of_twenty_and_with_loss_in_twice_the_time(kinds: tuple[str, str]) -> None:
    assert successes(kinds, 4.0) == 20
    assert successes(kinds, 8.0, loss=0.05) >= 19


@pytest.mark.parametrize(("kinds", "rate"), [(PREDICTED[1], 200.0), (PREDICTED[3], 100.0)])
def test_busy_neighbours_do_not_hide_the_count(kinds: tuple[str, str], rate: float) -> None:
    assert successes(kinds, 4.0, neighbours=rate) >= 19


@pytest.mark.parametrize("kinds", BIRTHDAY)
def test_a_nat_that_rolls_dice_is_found(kinds: tuple[str, str]) -> None:
    for pair in (kinds, kinds[::-1]):
        world = talking(pair)
        assert best_reach(world.hosts["a"], world.hosts["b"]) is Reach.BIRTHDAY
        assert world.run_until_direct("a", "b", 10.0) is not None


def test_the_birthday_attack_succeeds_nineteen_times_of_twenty_and_with_loss_in_twice_the_time() -> None:
    assert successes(BIRTHDAY[1], 10.0) >= 19
    assert successes(BIRTHDAY[1], 20.0, loss=0.05) >= 19


@pytest.mark.parametrize("kinds", RELAYED)
def test_what_cannot_be_guessed_stays_on_the_relay(kinds: tuple[str, str]) -> None:
    world = two_sites(KINDS[kinds[0]], KINDS[kinds[1]])
    world.run(0.1)
    call = Call(world, interval=0.1)
    assert best_reach(world.hosts["a"], world.hosts["b"]) is Reach.RELAYED
    assert world.run_until_direct("a", "b", 20.0) is None
    call.hang_up()
    world.run(1.0)
    if "udp-blocked" not in kinds:
        assert call.lost(1.0, world.network.now) == 0


@pytest.mark.parametrize(
    "kinds", [("port-restricted", "symmetric"), ("port-restricted", "symmetric-counting"), PREDICTED[3]]
)
def test_a_full_failed_attempt_costs_at_most_2500_packets(kinds: tuple[str, str]) -> None:
    world = talking(kinds)
    sent = cut_and_count(world)
    world.run(60.0)
    assert 100 < len(sent) <= 2500
    # Nothing is left open, and there is no second attack while the first one's time is not over.
    assert [extra_sockets(world, name) for name in ("a", "b")] == [0, 0]
    before = len(sent)
    world.run(200.0)
    assert len(sent) - before <= 500


def test_two_that_keep_their_ports_and_cannot_reach_each_other_cost_no_more() -> None:
    world = talking(("port-restricted", "port-restricted"))
    sent = cut_and_count(world)
    world.run(280.0)
    assert len(sent) <= 2500 + 300


@pytest.mark.parametrize("late", [0.0, 0.3, 0.9])
def test_an_end_that_hears_of_payload_late_takes_part_all_the_same(late: float) -> None:
    world = two_sites(KINDS["port-restricted"], KINDS["symmetric"])
    world.run(10.0)
    world.node("b").start_traffic("a", 0.1)
    world.peer("a", "b").statistics_at = world.network.now + 1.0 + late
    assert world.run_until_direct("a", "b", 10.0) is not None


def test_without_payload_there_is_no_birthday_attack() -> None:
    world = two_sites(KINDS["port-restricted"], KINDS["symmetric"])
    sent = cut_and_count(world)
    world.run(60.0)
    assert len(sent) < 200


def test_who_refuses_is_neither_guessed_nor_guesses() -> None:
    for name in ("a", "b"):
        world = two_sites(KINDS["port-restricted"], KINDS["symmetric"])
        node = world.node(name)
        node.guessing = Guessing(entropy=world.network.entropy("no"), permit=Permit(), is_allowed=False)
        world.run(0.1)
        Call(world, interval=0.1)
        sent = cut_and_count(world)
        world.run(20.0)
        assert len(sent) < 300


def test_a_path_on_an_extra_socket_lives_on_and_its_socket_ends_with_it() -> None:
    world = talking(("port-restricted", "symmetric"))
    assert world.run_until_direct("a", "b", 10.0) is not None
    world.run(1.0)
    path = world.primary("b", "a")
    assert path is not None
    assert path.socket >= FIRST_EXTRA_SOCKET
    assert extra_sockets(world, "b") == 1
    for name, other in (("a", "b"), ("b", "a")):
        world.node(name).stop_traffic(other)
    world.run(600.0)
    assert world.primary("b", "a") == path
    assert world.is_direct("a", "b")
    world.network.cut(OUTSIDE_A, OUTSIDE_B)
    world.run(1500.0)
    assert extra_sockets(world, "b") == 0


def test_one_attack_at_a_time_per_host() -> None:
    world = World()
    world.add_site("a", KINDS["symmetric"])
    for name in ("b", "c", "d"):
        world.add_site(name, KINDS["port-restricted"])
    world.run(0.1)
    for name in ("b", "c", "d"):
        world.node("a").start_traffic(name, 0.1)
        world.node(name).start_traffic("a", 0.1)
    most = 0
    for _ in range(3000):
        world.run(0.01)
        most = max(most, extra_sockets(world, "a"))
    assert 256 <= most < 300
    assert all(world.is_direct("a", name) for name in ("b", "c", "d"))


@pytest.mark.parametrize("seed", range(1, 9))
def test_who_is_attacked_by_three_at_once_serves_them_in_turn(seed: int) -> None:
    world = World(seed)
    world.add_site("a", KINDS["port-restricted"])
    for name in ("b", "c", "d"):
        world.add_site(name, KINDS["symmetric"])
    world.run(0.1)
    for name in ("b", "c", "d"):
        world.node("a").start_traffic(name, 0.1)
        world.node(name).start_traffic("a", 0.1)
    for _ in range(400):
        world.run(0.05)
        assert sum(side.sprayer.is_at_holes for side in world.node("a").guessing._sides.values()) <= 1
    assert all(world.is_direct("a", name) for name in ("b", "c", "d"))


@pytest.mark.parametrize("seed", range(1, 6))
def test_who_was_told_that_the_other_is_busy_tries_again_soon(seed: int) -> None:
    world = two_sites(KINDS["port-restricted"], KINDS["symmetric"], seed=seed)
    busy = Permit()
    assert busy.take("another network", now=0.0, until=12.0)
    world.node("a").guessing = Guessing(entropy=world.network.entropy("busy"), permit=busy, is_allowed=True)
    world.run(0.1)
    Call(world, interval=0.1)
    assert world.run_until_direct("a", "b", 45.0) is not None


def test_who_is_always_told_that_the_other_is_busy_stays_within_its_packets() -> None:
    world = two_sites(KINDS["port-restricted"], KINDS["symmetric"])
    busy = Permit()
    assert busy.take("another network", now=0.0, until=1e9)
    world.node("a").guessing = Guessing(entropy=world.network.entropy("busy"), permit=busy, is_allowed=True)
    world.run(0.1)
    Call(world, interval=0.1)
    sent = cut_and_count(world)
    world.run(290.0)
    # Once, and twice more: the holes alone, and the pings that are sent anyway.
    assert 3 * 256 < len(sent) <= 3 * 256 + 400
    assert extra_sockets(world, "b") == 0


@pytest.mark.parametrize("seed", range(2, 12))
def test_no_seed_makes_a_failed_attempt_dearer(seed: int) -> None:
    world = talking(("port-restricted", "symmetric"), seed)
    sent = cut_and_count(world)
    world.run(60.0)
    assert 1000 < len(sent) <= 2500


def extra_sockets(world: World, name: str) -> int:
    return sum(number >= FIRST_EXTRA_SOCKET for number in world.hosts[name].ports)


def cut_and_count(world: World) -> list[Packet]:
    """Nothing passes between the two sites directly; what would have."""
    sent: list[Packet] = []

    def drop(packet: Packet) -> bool:
        is_between = {packet.source.host, packet.destination.host} == {OUTSIDE_A, OUTSIDE_B}
        if is_between:
            sent.append(packet)
        return is_between

    world.network.filters.append(drop)
    return sent
