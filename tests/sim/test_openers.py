"""Routers that take an early packet for a connection of their own: openers make the hole before a ping comes."""

from __future__ import annotations

import pytest

from meshvpn.proto.transport import Address

from .nat import Filtering, Mapping, Nat
from .network import Packet
from .world import ACCEPTING, PORT_RESTRICTED, Kind, World

HERE, THERE = "192.168.1.10", "20.2.0.1"


@pytest.mark.parametrize("late", [0.0, 0.05, 0.25])
@pytest.mark.parametrize(("left", "right"), [(ACCEPTING, ACCEPTING), (ACCEPTING, PORT_RESTRICTED)])
def test_routers_that_accept_input_are_direct_however_late_the_second_end_starts(
    left: Kind, right: Kind, late: float
) -> None:
    for slow in ("a", "b"):
        world = World()
        world.signalling.late[slow] = late
        for name, kind in (("a", left), ("b", right)):
            world.add_site(name, kind)
        assert world.run_until_direct("a", "b", 3.0) is not None


def test_without_openers_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # The router is as bad as it is said to be; without this the test above could not fail.
    monkeypatch.setattr("meshvpn.proto.path.needs_opener", lambda candidate: False)
    world = World()
    world.signalling.late["b"] = 0.25
    for name in ("a", "b"):
        world.add_site(name, ACCEPTING)
    # Later a fresh socket would find a way.
    assert world.run_until_direct("a", "b", 2.0) is None


def test_an_opener_passes_two_nats_and_dies_before_the_peers() -> None:
    world = World()
    for name in ("a", "b"):
        world.add_site(name, PORT_RESTRICTED)
    outcomes: list[tuple[str, str]] = []

    def note(packet: Packet, outcome: str) -> None:
        if packet.source.host == "20.1.0.1":
            outcomes.append((packet.destination.host, outcome))

    world.network.observers.append(note)
    world.run(0.4)
    assert ("20.2.0.1", "expired") in outcomes
    assert ("192.168.2.10", "delivered") not in outcomes
    world.run(1.0)
    assert ("192.168.2.10", "delivered") in outcomes


def test_an_early_packet_steals_the_port_until_it_is_forgotten() -> None:
    inside, peer, other = Address(HERE, 41000), Address(THERE, 41000), Address(THERE, 41001)
    nat = Nat(Mapping.INDEPENDENT, Filtering.ADDRESS_AND_PORT, accepts_input=True)
    assert nat.translate_inbound(41000, peer, 0.0) is None
    stolen = nat.translate_outbound(inside, peer, 1.0)
    assert stolen != 41000
    assert nat.translate_outbound(inside, other, 1.0) == 41000
    assert nat.translate_inbound(41000, peer, 2.0) is None
    assert nat.translate_outbound(inside, peer, 3.0) == stolen
    assert nat.translate_outbound(inside, peer, 40.0) == 41000
    assert nat.translate_inbound(41000, peer, 41.0) == inside
