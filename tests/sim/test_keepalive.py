"""Idle paths stay open through NATs of any memory, and cost little."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from .calls import connected_sites
from .mesh import Mesh
from .network import Packet
from .world import PORT_RESTRICTED, PUBLIC, SERVER, SYMMETRIC, Kind, World

MINUTES_10 = 600.0
HOUR = 3600.0


def test_after_ten_idle_minutes_the_first_packet_of_either_side_arrives() -> None:
    for sender, other in (("a", "b"), ("b", "a")):
        for memory in (30.0, 20.0, 12.0):
            world = remembering(memory, memory)
            world.run(MINUTES_10)
            assert is_heard(world, sender, other), f"memory {memory} s"
            assert world.is_direct("a", "b")


@pytest.mark.parametrize(("memory", "learned"), [(30.0, 25.0), (20.0, 15.0), (12.0, 10.0)])
@pytest.mark.parametrize("forgetful", ["a", "b", "ab"])
def test_what_one_nat_remembers_is_learned_and_no_packet_is_lost_from_then_on(
    memory: float, learned: float, forgetful: str
) -> None:
    world = remembering(*(memory if name in forgetful else None for name in "ab"))
    world.run(MINUTES_10)
    assert min(intervals(world)) == learned
    instants = random.Random(f"{memory}{forgetful}")
    for sender, other in [("a", "b"), ("b", "a")] * 15:
        world.run(instants.uniform(40.0, 80.0))
        assert is_heard(world, sender, other)
    assert min(intervals(world)) == learned


def test_relayed_peers_learn_it_as_well() -> None:
    world = remembering(12.0, None, kind=SYMMETRIC)
    assert not world.is_direct("a", "b")
    world.run(2 * MINUTES_10)
    instants = random.Random(1)
    for sender, other in [("a", "b"), ("b", "a")] * 10:
        world.run(instants.uniform(40.0, 80.0))
        assert is_heard(world, sender, other)


@pytest.mark.parametrize("outage", [2.0, 8.0, 60.0])
def test_an_outage_teaches_nothing(outage: float) -> None:
    world = remembering(None, None)
    for _ in range(20):
        world.run(97.0)
        world.routers["b"].link.is_up = False
        world.run(outage)
        world.routers["b"].link.is_up = True
    assert intervals(world) == (25.0, 25.0)


def test_a_little_loss_teaches_nothing() -> None:
    world = remembering(None, None)
    world.network.spoil("20.1.0.1", "20.2.0.1", 0.1)
    world.run(HOUR)
    assert intervals(world) == (25.0, 25.0)


def test_what_was_learned_survives_a_restart() -> None:
    mesh = Mesh()
    first, second = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    mesh.routers["a"].nat.lifetime = 12.0
    mesh.run(MINUTES_10)
    peer = second.peer(first)
    assert peer is not None
    assert peer.agent.keepalive == 10.0
    second.stop()
    second.start()
    mesh.run_until(lambda: second.is_direct(first), 10.0)
    peer = second.peer(first)
    assert peer is not None
    assert peer.agent.keepalive == 10.0


@pytest.mark.parametrize(("members", "seconds"), [(2, 1800.0), (10, 1800.0), (50, 180.0)])
def test_an_idle_member_sends_each_other_less_than_a_packet_in_twenty_seconds(members: int, seconds: float) -> None:
    """Pings, pongs, handshakes and all else, relayed or not. What goes to the server itself is counted apart: it does
    not grow with the members. Of the thousand pairs of fifty three minutes say as much as half an hour of few."""
    mesh = Mesh()
    crowd = mesh.found(*[PORT_RESTRICTED if members < 50 else PUBLIC] * members, settle=30.0)
    assert all(one.is_direct(other) for one in crowd for other in crowd if one is not other)
    to_members, to_server = count_sent(mesh)
    mesh.run(seconds)
    assert len(to_members) == members
    assert max(to_members.values()) <= (members - 1) * (seconds / 20 + 1)
    assert min(to_members.values()) >= (members - 1) * (seconds / 25 - 2), "who is silent for longer is forgotten"
    assert max(to_server.values()) <= 3 * (seconds / 20 + 1), "STUN on two ports, and the relay's binding"


def remembering(memory_a: float | None, memory_b: float | None, *, kind: Kind = PORT_RESTRICTED) -> World:
    """Two sites whose NATs remember for so long; None: as long as Linux does."""
    if kind is PORT_RESTRICTED:
        world = connected_sites()
    else:
        world = World()
        world.add_site("a", kind)
        world.add_site("b", kind)
        world.run(60.0)
    world.routers["a"].nat.lifetime = memory_a
    world.routers["b"].nat.lifetime = memory_b
    return world


def is_heard(world: World, sender: str, other: str) -> bool:
    """Does a packet that is sent now arrive?"""
    number = world.node(sender).send_once(other)
    world.run(1.0)
    return number in world.peer(other, sender).received


def intervals(world: World) -> tuple[float, float]:
    """Seconds between pings on the idle path, as each end knows them."""
    return world.peer("a", "b").agent.keepalive, world.peer("b", "a").agent.keepalive


def count_sent(mesh: Mesh) -> tuple[Counter[str], Counter[str]]:
    """Packets that leave each site from now on: to members, also through the relay, and to the server itself."""
    to_members: Counter[str] = Counter()
    to_server: Counter[str] = Counter()

    def note(packet: Packet) -> bool:
        is_outside = packet.source.host.startswith("20.") and not packet.destination.host.startswith("192.")
        if is_outside and packet.destination.host != SERVER:
            to_members[packet.source.host] += 1
        elif is_outside:
            kind = to_members if packet.data[:4] == b"\5\0\0\0" else to_server
            kind[packet.source.host] += 1
        return False

    mesh.network.filters.append(note)
    return to_members, to_server
