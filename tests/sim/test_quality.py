"""Paths that work badly: a listener is moved off what is surely worse, and not moved for nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshvpn.proto.transport import RELAY_WORD, Path

from .calls import Call, connected_sites, path_changes
from .network import Link, Packet
from .nodes import PAYLOAD
from .world import ONE_WAY, World

OUTSIDE_A = "20.1.0.1"
OUTSIDE_B = "20.2.0.1"
SEEDS = [1, 2, 3, 4]
SPARSE = 0.2
"""Seconds between packets, where it only matters that there are some."""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bad_network_at_both_ends_is_no_reason_to_flap(seed: int) -> None:
    # Jitter, reordering, duplicates, and 2 % of each packet lost on the way.
    link = Link(latency=ONE_WAY, jitter=0.01, loss=0.01, duplication=0.01, reordering=0.02)
    world = connected_sites(seed=seed, link=link)
    call = Call(world, interval=SPARSE)
    started_at = world.network.now
    world.run(600.0)
    assert path_changes(world, started_at) <= 2 * 10
    assert call.gap(started_at) <= 6 * SPARSE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", [0.005, 0.01])
def test_slight_loss_on_the_direct_path_alone_is_no_reason_to_flap(seed: int, loss: float) -> None:
    world = connected_sites(seed=seed)
    Call(world, interval=SPARSE)
    world.network.spoil(OUTSIDE_A, OUTSIDE_B, loss)
    started_at = world.network.now
    world.run(600.0)
    assert path_changes(world, started_at) <= 4


@pytest.mark.parametrize("seed", SEEDS)
def test_a_direct_path_that_loses_a_third_is_left_and_taken_again_when_it_heals(seed: int) -> None:
    world = connected_sites(seed=seed)
    Call(world, interval=SPARSE)
    world.run(30.0)
    spoilt_at = world.network.now
    world.network.spoil(OUTSIDE_A, OUTSIDE_B, 0.3)
    world.run(60.0)
    assert not is_direct_at_either_end(world)
    healed_at = world.network.now
    world.network.heal()
    assert world.run_until_direct("a", "b", 150.0) is not None
    world.run(120.0)
    assert world.is_direct("a", "b")
    assert path_changes(world, healed_at) <= 2
    assert path_changes(world, spoilt_at) <= 8


@pytest.mark.parametrize("loss", [0.3, 0.5])
def test_heavy_loss_is_noticed_within_three_seconds(loss: float) -> None:
    waits = sorted(seconds_until_left(seed, loss) for seed in range(1, 21))
    assert waits[9] <= 2.0
    assert waits[15] <= 3.0
    assert waits[19] <= 5.0


def test_loss_that_listeners_hear_moves_a_call_to_the_relay_for_good() -> None:
    world = connected_sites()
    Call(world, interval=SPARSE)
    world.network.spoil(OUTSIDE_A, OUTSIDE_B, 0.05)
    started_at = world.network.now
    world.run(600.0)
    assert not is_direct_at_either_end(world)
    assert path_changes(world, started_at) <= 8


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_in_one_direction_moves_that_one_and_no_other(seed: int) -> None:
    world = connected_sites(seed=seed)
    call = Call(world)
    world.run(30.0)
    spoilt_at = world.network.now
    world.network.spoilt[OUTSIDE_A, OUTSIDE_B] = 0.3
    world.run(30.0)
    path = world.primary("a", "b")
    assert path is not None
    assert not path.is_direct
    assert call.lost(spoilt_at + 10.0, world.network.now - 1.0) == 0
    assert len(world.peer("b", "a").moves(spoilt_at)) == 0
    assert "direct" in world.peer("a", "b").agent.why(now=world.network.now)
    healed_at = world.network.now
    world.network.heal()
    assert world.run_until_direct("a", "b", 60.0) is not None
    world.run(60.0)
    assert world.is_direct("a", "b")
    assert len(world.peer("a", "b").moves(healed_at)) == 1


def test_a_path_that_was_bad_for_a_moment_is_back_soon_even_if_the_call_has_ended() -> None:
    world = connected_sites()
    call = Call(world)
    world.run(10.0)
    world.network.spoil(OUTSIDE_A, OUTSIDE_B, 0.3)
    world.run(8.0)
    assert not is_direct_at_either_end(world)
    call.hang_up()
    world.network.heal()
    assert world.run_until_direct("a", "b", 30.0) is not None


def test_a_slow_detour_is_left_for_a_clean_relay() -> None:
    world = connected_sites()
    Call(world, interval=SPARSE)
    world.run(10.0)
    world.network.detour(OUTSIDE_A, OUTSIDE_B, 0.3)
    started_at = world.network.now
    world.run(300.0)
    assert not is_direct_at_either_end(world)
    assert path_changes(world, started_at) <= 2


def test_a_path_that_comes_and_goes_is_left_alone_ever_longer() -> None:
    world = connected_sites()
    Call(world, interval=SPARSE)
    started_at = world.network.now
    for _ in range(40):
        world.network.cut(OUTSIDE_A, OUTSIDE_B)
        world.run(6.0)
        world.network.heal()
        world.run(9.0)
    assert path_changes(world, started_at) <= 2 * 12


@pytest.mark.parametrize("way", ["both", "there"])
def test_a_path_that_passes_pings_but_no_data_is_left(way: str) -> None:
    world = connected_sites()
    call = Call(world)
    world.run(5.0)
    scrubbed_at = world.network.now
    world.network.filters.append(scrubber(world, ("20.1.0.1",) if way == "there" else ("20.1.0.1", "20.2.0.1")))
    world.run(120.0)
    assert call.gap(scrubbed_at) <= 5.0
    path = world.primary("a", "b")
    assert path is not None
    assert not path.is_direct
    assert call.lost(scrubbed_at + 5.0, world.network.now - 1.0) == 0
    call.hang_up()
    Call(world, interval=SPARSE)
    world.run(900.0)
    # It is tried again now and then, which costs a few seconds each time.
    assert path_changes(world, scrubbed_at) <= 2 * 2 * 2


def test_data_that_is_lost_on_every_path_is_not_the_fault_of_one() -> None:
    world = connected_sites()
    Call(world, interval=SPARSE)
    world.run(5.0)
    started_at = world.network.now
    world.network.filters.append(lambda packet: is_payload(packet))
    world.run(200.0)
    assert path_changes(world, started_at) <= 4


def test_one_way_payload_is_no_sign_of_a_deaf_path() -> None:
    world = connected_sites()
    world.node("a").start_traffic("b", SPARSE)
    started_at = world.network.now
    world.run(300.0)
    assert path_changes(world, started_at) == 0


def test_payload_that_starts_and_stops_moves_nothing() -> None:
    world = connected_sites()
    started_at = world.network.now
    for pause in (1.0, 4.0, 6.0, 20.0, 40.0, 90.0):
        for _ in range(5):
            call = Call(world, interval=SPARSE)
            world.run(7.0)
            call.hang_up()
            world.run(pause)
    assert path_changes(world, started_at) == 0
    assert world.is_direct("a", "b")


def seconds_until_left(seed: int, loss: float) -> float:
    world = connected_sites(seed=seed)
    Call(world, interval=SPARSE)
    world.run(30.0 + seed / 20)
    started_at = world.network.now
    world.network.spoil(OUTSIDE_A, OUTSIDE_B, loss)
    at = world.network.run_until_true(lambda: sends_by_relay(world, "a", "b"), started_at + 20.0)
    return float("inf") if at is None else at - started_at


def sends_by_relay(world: World, name: str, other: str) -> bool:
    agent = world.peer(name, other).agent
    return any(path is not None and not path.is_direct for path in (agent.primary, agent.secondary))


def is_direct_at_either_end(world: World) -> bool:
    paths: list[Path | None] = [world.primary("a", "b"), world.primary("b", "a")]
    return any(path is not None and path.is_direct for path in paths)


def is_payload(packet: Packet) -> bool:
    return len(packet.data) in (PAYLOAD.size, PAYLOAD.size + 12) and packet.data[0] in (4, RELAY_WORD)


def scrubber(world: World, sources: tuple[str, ...]) -> Callable[[Packet], bool]:
    """Drops data between the two sites from these addresses, and nothing else."""
    sites = (OUTSIDE_A, OUTSIDE_B)
    return lambda packet: packet.source.host in sources and packet.destination.host in sites and is_payload(packet)
