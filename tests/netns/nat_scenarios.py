"""NATs that forget, move, take early packets for their own, or look all alike."""

from __future__ import annotations

import sys
from dataclasses import replace

from .igd import Igd
from .natlab import NatLab, elsewhere, outside
from .natmesh import NatMesh
from .nats import CARRIER_GRADE, PORT_RESTRICTED, SYMMETRIC, SYMMETRIC_COUNTING, Nat
from .scenarios import LINE_DELAY, Outcome, assert_whole, calling, settle, sites, talk_for

NO_GAP = 0.5
"""Seconds: a packet or two that met the NAT while it reloaded its rules."""
FOREIGN_FLOWS = 100
"""A second."""


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
        lab.towards("r2", "net", delay=250)
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


def customers_of_one_carrier(outcome: Outcome) -> None:
    """Directly by its outside address where it hairpins; else relayed, without loss."""
    with NatLab(LINE_DELAY) as lab:
        hosts = {}
        for first, has_hairpin in ((1, True), (3, False)):
            carrier = lab.add_carrier(10 + first, replace(CARRIER_GRADE, has_hairpin=has_hairpin))
            for number in (first, first + 1):
                hosts[number] = lab.add_site(number, PORT_RESTRICTED, behind=carrier)
        mesh = NatMesh(lab, hosts)
        mesh.start()
        outcome.seconds["direct"] = mesh.wait_state("direct", 1, 2)
        mesh.wait_state("relay", 3, 4)
        with calling(mesh, outcome, (1, 2), (3, 4)):
            talk_for(6)
            assert mesh.is_reached("direct", 1, 2)
            assert mesh.is_reached("relay", 3, 4)
        for here, there in ((1, 2), (2, 1)):
            assert (mesh.peer(here, there).endpoint or "").startswith(f"{outside(11)}:")
    assert_whole(outcome.heard)


def a_counting_nat_with_busy_neighbours(outcome: Outcome) -> None:
    """Every 10 ms they take the port that would be next: direct within 4 s."""
    with NatLab(LINE_DELAY) as lab:
        router = lab.add_router(1, SYMMETRIC_COUNTING)
        hosts = {1: lab.add_inside(1, router), 2: lab.add_site(2, PORT_RESTRICTED)}
        mesh = NatMesh(lab, hosts)
        command = [sys.executable, "-m", "tests.netns.neighbours", outside(9), str(FOREIGN_FLOWS)]
        lab.add_public(9)
        lab.start(lab.add_inside(8, router, 8), "neighbours", command)
        lab.wait("they are busy", lambda: lab.passed("r1", "s9") > FOREIGN_FLOWS)
        mesh.start()
        mesh.wait_known(1, 2)
        before = lab.passed("r1", "s9")
        with calling(mesh, outcome, (1, 2)):
            outcome.seconds["direct"] = mesh.wait_state("direct", 1, 2)
            talk_for(2)
            assert lab.passed("r1", "s9") - before > FOREIGN_FLOWS * 1.5, "they were busy all the while"
    assert outcome.seconds["direct"] <= 4
    assert_whole(outcome.heard)


def ports_that_routers_open_when_asked(outcome: Outcome) -> None:
    """By UPnP: behind a symmetric NAT, and one that is wrong about its address, others get through; behind a carrier's
    the relay serves, and nobody complains."""
    with NatLab(LINE_DELAY) as lab:
        hosts = {number: lab.add_site(number, SYMMETRIC) for number in (1, 2, 3)}
        hosts[4] = lab.add_site(4, SYMMETRIC, behind=lab.add_carrier(9, CARRIER_GRADE))
        for number, address in ((1, None), (3, "20.1.0.77"), (4, None)):
            Igd(lab, number, "upnp", ext_ip=address).start()
        mesh = NatMesh(lab, hosts, log_level="DEBUG")
        mesh.start()
        for pair in ((1, 2), (3, 2)):
            mesh.wait_state("direct", *pair)
        mesh.wait_state("relay", 4, 2)
        lab.wait("the router refuses", lambda: "the router maps no port" in lab.log("daemon4"))
        with calling(mesh, outcome, (1, 2), (3, 2), (4, 2)):
            talk_for(4)
            assert mesh.is_reached("relay", 4, 2)
        assert (mesh.peer(2, 3).endpoint or "").startswith(f"{outside(3)}:")
        assert not {"WARNING", "ERROR"} & set(lab.log("daemon4").split())
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
    customers_of_one_carrier,
    a_counting_nat_with_busy_neighbours,
    ports_that_routers_open_when_asked,
)
