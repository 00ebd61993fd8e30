"""NATs that forget, move, take early packets for their own, or look all alike."""

from __future__ import annotations

from dataclasses import replace

from .natlab import NatLab, elsewhere, outside
from .natmesh import NatMesh
from .nats import CARRIER_GRADE, PORT_RESTRICTED, Nat
from .scenarios import LINE_DELAY, Outcome, assert_whole, calling, settle, sites, talk_for

NO_GAP = 0.5
"""Seconds: a packet or two that met the NAT while it reloaded its rules."""


def a_nat_reboots_and_keeps_ports(outcome: Outcome) -> None:
    """No gap."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(4)
            lab.reboot(lab.routers["r1"])
            talk_for(5)
        assert outcome.longest_gap <= NO_GAP


def a_nat_reboots_and_gives_other_ports(outcome: Outcome) -> None:
    """A gap of at most 2.5 s, direct again within 10 s."""
    with sites(CARRIER_GRADE, PORT_RESTRICTED) as (lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(4)
            lab.reboot(lab.routers["r1"])
            talk_for(10)
            assert mesh.is_reached("direct", 1, 2)
        assert outcome.longest_gap <= 2.5


def a_site_gets_another_address(outcome: Outcome) -> None:
    """A gap of at most 3 s, direct again within 10 s."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(4)
            lab.renumber(lab.routers["r1"], elsewhere(1))
            talk_for(10)
            assert mesh.is_reached("direct", 1, 2)
        assert (mesh.peer(2, 1).endpoint or "").startswith(f"{elsewhere(1)}:")
        assert outcome.longest_gap <= 3


def a_carrier_gets_another_address(outcome: Outcome) -> None:
    """The same for all of its customers."""
    with NatLab(LINE_DELAY) as lab:
        carrier = lab.add_carrier(9, CARRIER_GRADE)
        hosts = {number: lab.add_site(number, PORT_RESTRICTED, behind=carrier) for number in (1, 2)}
        mesh = NatMesh(lab, {**hosts, 3: lab.add_site(3, PORT_RESTRICTED)})
        mesh.start()
        pairs = (1, 3), (2, 3)
        for pair in pairs:
            mesh.wait_state("direct", *pair)
        with calling(mesh, outcome, *pairs):
            talk_for(4)
            lab.renumber(carrier, elsewhere(9))
            talk_for(10)
            for pair in pairs:
                assert mesh.is_reached("direct", *pair)
        assert outcome.longest_gap <= 3


def a_host_is_carried_into_another_lan(outcome: Outcome) -> None:
    """A gap of at most 3 s once it has an address there; then into the peer's own LAN, where the local path is taken
    within 5 s."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        other = lab.add_router(3, PORT_RESTRICTED)
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(4)
            lab.plug("s2", other, 7)
            talk_for(10)
            assert mesh.is_reached("direct", 1, 2)
            lab.plug("s2", lab.routers["r1"], 7)
            local = f"{lab.routers['r1'].inside}.7:"
            outcome.seconds["local"] = lab.wait(
                "the local path", lambda: (mesh.peer(1, 2).endpoint or "").startswith(local)
            )
            talk_for(2)
        assert outcome.longest_gap <= 3
        assert outcome.seconds["local"] <= 5


def a_mapping_lives_half_a_minute_and_nobody_talks(outcome: Outcome) -> None:
    """The first packet of either side arrives. 70 s, more than two lives of the mapping, for ten minutes."""
    nat = replace(PORT_RESTRICTED, timeout_replied=30)
    with sites(nat, nat, nat) as (_lab, mesh):
        settle(mesh)
        talk_for(70)
        for pair in ((1, 2), (3, 1)):
            mesh.begin(*pair)
            talk_for(1)
            outcome.add(mesh.end(*pair))
        for pair in ((1, 2), (1, 3), (2, 3)):
            assert mesh.is_reached("direct", *pair)
    assert_whole(outcome.heard)


def routers_that_take_early_packets_for_their_own(outcome: Outcome) -> None:
    """20 ms one way, and one end hears 250 ms later what the server says: direct within 3 s."""
    nat = Nat(drops=False)
    with sites(nat, nat, delay=10) as (lab, mesh):
        lab.between("net", "r2", delay=125)
        mesh.start()
        outcome.seconds["direct"] = mesh.wait_state("direct", 1, 2)
        with calling(mesh, outcome, (1, 2)):
            talk_for(2)
    assert outcome.seconds["direct"] <= 3
    assert_whole(outcome.heard)


def equal_lans_and_equal_hosts(outcome: Outcome) -> None:
    """Both are 192.168.1.2: no false path, direct by the NATs' addresses."""
    with NatLab(LINE_DELAY) as lab:
        hosts = {number: lab.add_site(number, PORT_RESTRICTED, inside="192.168.1") for number in (1, 2)}
        mesh = NatMesh(lab, hosts)
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(3)
        for here, there in ((1, 2), (2, 1)):
            assert (mesh.peer(here, there).endpoint or "").startswith(f"{outside(there)}:")
    assert_whole(outcome.heard)


def two_in_one_lan_with_one_port(outcome: Outcome) -> None:
    """Linux' NAT gives the second of them another port for each destination; both are direct to a third."""
    port = {number: "[network.piaf-vpn]\nport = 41641\n" for number in (1, 2)}
    with NatLab(LINE_DELAY) as lab:
        router = lab.add_router(1, PORT_RESTRICTED)
        hosts = {1: lab.add_inside(1, router, 2), 2: lab.add_inside(2, router, 3), 3: lab.add_public(3)}
        mesh = NatMesh(lab, hosts, configs=port)
        settle(mesh)
        with calling(mesh, outcome, (1, 3), (2, 3), (1, 2)):
            talk_for(3)
    assert_whole(outcome.heard)


SCENARIOS = (
    a_mapping_lives_half_a_minute_and_nobody_talks,
    a_nat_reboots_and_keeps_ports,
    a_nat_reboots_and_gives_other_ports,
    a_site_gets_another_address,
    a_carrier_gets_another_address,
    a_host_is_carried_into_another_lan,
    routers_that_take_early_packets_for_their_own,
    equal_lans_and_equal_hosts,
    two_in_one_lan_with_one_port,
)
