"""What befalls a host itself while it talks."""

from __future__ import annotations

import signal
import time

from .nats import PORT_RESTRICTED
from .scenarios import Outcome, calling, settle, sites, talk_for


def a_cable_is_pulled_and_put_back(outcome: Outcome) -> None:
    """Traffic within 2 s, directly."""
    with sites(None, PORT_RESTRICTED) as (lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(3)
            lab.line("s1", carrier=False, cut=True)
            talk_for(10)
            lab.line("s1", carrier=True, cut=False)
            back_at = time.time()
            talk_for(6)
            assert mesh.is_reached("direct", 1, 2)
        outcome.seconds["traffic"] = outcome.heard_again_at - back_at
        assert outcome.longest_gap >= 10
        assert outcome.seconds["traffic"] <= 2


def a_daemon_is_started_anew_at_another_port(outcome: Outcome) -> None:
    """Traffic within 2 s of its being ready, directly again within 10 s."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (_lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(3)
            mesh.daemons[2].send_signal(signal.SIGKILL)
            mesh.daemons[2].wait()
            mesh.configs[2] = "[network.piaf-vpn]\nport = 41641\n"
            mesh.start_daemon(2)
            ready_at = time.time()
            outcome.seconds["direct again"] = mesh.wait_state("direct", 1, 2)
            talk_for(3)
        assert (mesh.peer(1, 2).endpoint or "").endswith(":41641")
        outcome.seconds["traffic"] = outcome.heard_again_at - ready_at
        assert outcome.seconds["traffic"] <= 2
        assert outcome.seconds["direct again"] <= 10


SCENARIOS = (a_cable_is_pulled_and_put_back, a_daemon_is_started_anew_at_another_port)
