"""A server that is gone, and ways to it that are closed."""

from __future__ import annotations

import signal
from functools import partial

from .natmesh import NatMesh
from .nats import PORT_RESTRICTED
from .scenarios import Outcome, assert_whole, calling, settle, sites, talk_for

OUTAGE = 135.0
"""Seconds: a key lives 120. Ten minutes are simulated in virtual time (tests/sim)."""
UNNOTICED = 40.0
"""Seconds at most until a connection that fell silent is given up."""


def a_server_is_killed_and_comes_back(outcome: Outcome) -> None:
    """No call loses a packet, new keys included; a member that reboots meanwhile is found by those whose addresses
    did not change, and finds them; all are back within 5 s."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(4)
            mesh.end_server(signal.SIGKILL)
            talk_for(3)
            _reboot(mesh, 3)
            for here, there in ((3, 1), (2, 3)):
                what = f"{here} reaches {there}"
                outcome.seconds[what] = lab.wait(what, partial(mesh.reaches, here, mesh.addresses[there]))
            talk_for(OUTAGE)
            assert (mesh.peer(1, 2).last_handshake_s or OUTAGE) < 120, "they have new keys"
            mesh.start_server()
            outcome.seconds["all back"] = lab.wait("all are back", lambda: all(map(mesh.is_attached, mesh.hosts)))
            talk_for(2)
    assert_whole(outcome.heard)
    assert outcome.seconds["all back"] <= 5


def a_server_is_cut_off_and_heard_again(outcome: Outcome) -> None:
    """No call loses a packet; all are back within 5 s, and relayed when they have to be."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(2)
            for router in lab.routers:
                lab.between("net", router, cut=True)
            lab.wait("the loss is noticed", lambda: not any(map(mesh.is_attached, mesh.hosts)), timeout=UNNOTICED)
            talk_for(5)
            for router in lab.routers:
                lab.between("net", router, cut=False)
            outcome.seconds["all back"] = lab.wait("all are back", lambda: all(map(mesh.is_attached, mesh.hosts)))
            talk_for(5)
        assert_whole(outcome.heard)
        assert outcome.seconds["all back"] <= 5
        relayed = Outcome()
        with calling(mesh, relayed, (1, 2)):
            talk_for(3)
            lab.between("r1", "r2", cut=True)
            outcome.seconds["relay"] = mesh.wait_state("relay", 1, 2)
            talk_for(2)
        assert relayed.longest_gap <= 2.5


def _reboot(mesh: NatMesh, number: int) -> None:
    """The daemon is gone and so is its interface; the address stays."""
    daemon = mesh.daemons[number]
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    mesh.natlab.sh(mesh.hosts[number], "ip link del mesh0")
    mesh.start_daemon(number)


SCENARIOS = (a_server_is_killed_and_comes_back, a_server_is_cut_off_and_heard_again)
