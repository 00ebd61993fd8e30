"""A server that is gone, and ways to it that are closed."""

from __future__ import annotations

import signal

from .nats import PORT_RESTRICTED
from .scenarios import Outcome, assert_whole, calling, settle, sites, talk_for

OUTAGE = 135.0
"""Seconds: a key lives 120. Ten minutes are simulated in virtual time (tests/sim)."""


def a_server_is_killed_and_comes_back(outcome: Outcome) -> None:
    """No call loses a packet, new keys included; a member that restarts meanwhile is found by those whose addresses
    did not change; all are back within 5 s."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED, None) as (lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(2)
            mesh.end_server(signal.SIGKILL)
            talk_for(5)
            mesh.daemons[3].send_signal(signal.SIGKILL)
            mesh.daemons[3].wait()
            mesh.start_daemon(3)
            outcome.seconds["restarted member"] = lab.wait(
                "the restarted member is reached", lambda: mesh.reaches(1, mesh.addresses[3])
            )
            talk_for(OUTAGE)
            assert (mesh.peer(1, 2).last_handshake_s or OUTAGE) < 120, "they have new keys"
            mesh.start_server()
            outcome.seconds["all back"] = lab.wait("all are back", lambda: all(map(mesh.is_attached, mesh.hosts)))
            talk_for(2)
    assert_whole(outcome.heard)
    assert outcome.seconds["all back"] <= 5


SCENARIOS = (a_server_is_killed_and_comes_back,)
