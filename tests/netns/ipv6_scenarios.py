"""Sites that have IPv6 too, or nothing else."""

from __future__ import annotations

from .natlab import SERVER_HOST6, NatLab, inside6
from .natmesh import NatMesh
from .nats import SYMMETRIC
from .scenarios import LINE_DELAY, Outcome, assert_whole, calling, talk_for


def firewalls_on_both_ends_of_ipv6(outcome: Outcome) -> None:
    """Direct by IPv6 where IPv4 could only be relayed, also if one end has no IPv4; those without a family in common
    meet at the server, which has both."""
    with NatLab(LINE_DELAY) as lab:
        lab.add_server_ipv6()
        hosts = {}
        for number, has_ipv4 in ((1, True), (2, True), (3, False)):
            router = lab.add_router(number, SYMMETRIC)
            hosts[number] = lab.add_inside(number, router)
            lab.add_ipv6(number, router, hosts[number], has_ipv4=has_ipv4)
        hosts[4] = lab.add_site(4, SYMMETRIC)
        mesh = NatMesh(lab, hosts)
        mesh.server_hosts.append(f"[{SERVER_HOST6}]")
        mesh.server_of[3] = f"[{SERVER_HOST6}]"
        mesh.start()
        pairs = (1, 2), (1, 3)
        for pair in pairs:
            mesh.wait_state("direct", *pair)
        mesh.wait_state("relay", 3, 4)
        with calling(mesh, outcome, *pairs, (3, 4)):
            talk_for(4)
        for a, b in pairs:
            for here, there in ((a, b), (b, a)):
                assert (mesh.peer(here, there).endpoint or "").startswith(f"[{inside6(there)}2]:")
        assert [mesh.peer(*ends).relay for ends in ((3, 4), (4, 3))] == ["rendezvous", "rendezvous"]
    assert_whole(outcome.heard)


SCENARIOS = (firewalls_on_both_ends_of_ipv6,)
