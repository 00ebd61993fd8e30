"""What looking for paths costs: packets between two sites, relayed ones included, STUN to the server not."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from meshvpn.proto.disco import OVERHEAD, PING_BYTES
from meshvpn.proto.transport import RELAY_HEADER

from .calls import Call, connected_sites, two_sites
from .network import Link, Packet
from .world import KINDS, ONE_WAY, PORT_RESTRICTED, SYMMETRIC, World

OUTSIDE_A = "20.1.0.1"
OUTSIDE_B = "20.2.0.1"
PROBES = (OVERHEAD + PING_BYTES, OVERHEAD + PING_BYTES + RELAY_HEADER.size)
"""Bytes of a ping or pong, direct and relayed."""


@pytest.mark.parametrize(
    "kinds", [("port-restricted", "port-restricted"), ("public", "symmetric"), ("public", "public")]
)
def test_an_idle_direct_peer_costs_a_packet_in_twenty_seconds(kinds: tuple[str, str]) -> None:
    world = connected_sites(KINDS[kinds[0]], KINDS[kinds[1]])
    world.run(60.0)
    sent = counter(world)
    world.run(1000.0)
    assert max(sent.values()) <= 1000 / 20
    # Few enough to be cheap, and enough for a NAT that forgets after 30 s.
    assert sum(sent.values()) >= 2 * 1000 / 27


def test_a_failed_attempt_costs_few_packets_and_the_next_ones_fewer() -> None:
    world = two_sites(SYMMETRIC, SYMMETRIC)
    sent = counter(world)
    world.run(6.0)
    first = max(sent.values())
    assert first <= 70
    world.run(3600.0)
    assert max(sent.values()) - first <= 3600 / 25 * 2 + 250
    settled = max(sent.values())
    world.run(3600.0)
    assert max(sent.values()) - settled <= 3600 / 20 + 60


def test_an_absent_peer_costs_a_packet_in_twenty_seconds() -> None:
    world = connected_sites()
    world.routers["b"].link.is_up = False
    world.run(1200.0)
    sent = counter(world)
    world.run(3600.0)
    assert sent[OUTSIDE_A] <= 3600 / 20 + 60


@pytest.mark.parametrize(("loss", "limit"), [(0.0, 5.0), (0.02, 12.0)])
def test_watching_a_call_costs_less_than_a_tenth_of_it(loss: float, limit: float) -> None:
    link = Link(latency=ONE_WAY, loss=loss)
    world = connected_sites(link=link)
    call = Call(world, interval=0.1)
    world.run(5.0)
    sent = counter(world)
    world.run(200.0)
    call.hang_up()
    assert max(sent.values()) / 200 <= limit


def test_equal_seeds_give_equal_runs_through_failures() -> None:
    assert eventful_transcript(5) == eventful_transcript(5)
    assert eventful_transcript(5) != eventful_transcript(6)


def test_a_mesh_of_idle_peers_stays_cheap() -> None:
    world = World()
    names = [f"n{number}" for number in range(10)]
    for name in names:
        world.add_site(name, PORT_RESTRICTED)
    world.run(10.0)
    assert all(world.is_direct(*pair) for pair in itertools.combinations(names, 2))
    sent = counter(world)
    world.run(600.0)
    assert max(sent.values()) <= 9 * 600 / 20


def eventful_transcript(seed: int) -> str:
    world = connected_sites(KINDS["port-restricted-random"], seed=seed, link=Link(latency=ONE_WAY, loss=0.02))
    Call(world, interval=0.1)
    world.run(3.0)
    world.routers["a"].reboot()
    world.run(10.0)
    world.network.cut(OUTSIDE_A, OUTSIDE_B)
    world.run(10.0)
    world.network.heal()
    world.run(10.0)
    return world.network.transcript


def counter(world: World) -> Counter[str]:
    """Probes by the site that they leave, from now on; filters see each packet on its way out."""
    sent: Counter[str] = Counter({OUTSIDE_A: 0, OUTSIDE_B: 0})

    def note(packet: Packet) -> bool:
        is_outside = packet.source.host.startswith("20.") and not packet.destination.host.startswith("192.")
        if len(packet.data) in PROBES and is_outside:
            sent[packet.source.host] += 1
        return False

    world.network.filters.append(note)
    return sent
