"""Paths that break, heal, get bad and get better."""

from __future__ import annotations

import time

from .nats import PORT_RESTRICTED
from .scenarios import Outcome, assert_whole, calling, settle, sites, talk_for

UPGRADE_RATE = 1000.0


def an_upgrade_to_the_direct_path_under_load(outcome: Outcome) -> None:
    """Nothing is lost at the switch, nothing arrives twice."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        lab.between("r1", "r2", cut=True)
        mesh.start()
        mesh.wait_state("relay", 1, 2)
        mesh.begin(1, 2, rate=UPGRADE_RATE)
        talk_for(2)
        lab.between("r1", "r2", cut=False)
        outcome.seconds["direct"] = mesh.wait_state("direct", 1, 2, timeout=30)
        talk_for(2)
        outcome.add(mesh.end(1, 2))
    assert_whole(outcome.heard)


def a_direct_path_is_cut_and_heals(outcome: Outcome) -> None:
    """The relay takes over within 2.5 s; direct again within 10 s of the end, and that loses nothing."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(4)
            lab.between("r1", "r2", cut=True)
            mesh.wait_state("relay", 1, 2)
            talk_for(3)
        assert outcome.longest_gap <= 2.5
        healed = Outcome()
        with calling(mesh, healed, (1, 2)):
            talk_for(1)
            lab.between("r1", "r2", cut=False)
            outcome.seconds["direct again"] = mesh.wait_state("direct", 1, 2, timeout=30)
            talk_for(2)
        assert_whole(healed.heard)
        assert outcome.seconds["direct again"] <= 10


def a_site_is_offline_for_half_a_minute(outcome: Outcome) -> None:
    """Traffic within 2 s of the end."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(4)
            lab.line("r2", cut=True)
            talk_for(30)
            lab.line("r2", cut=False)
            healed_at = time.time()
            talk_for(8)
        outcome.seconds["traffic"] = max(one.gap_at + one.longest_gap for one in outcome.heard) - healed_at
        assert outcome.longest_gap >= 30
        assert outcome.seconds["traffic"] <= 2


def a_bad_line(outcome: Outcome) -> None:
    """30 ms, 10 ms more or less, reordering, 1 % copies, 2 % loss: what is lost was lost on the way, and paths do not
    flap."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED, delay=15) as (lab, mesh):
        settle(mesh)
        # Of one line: of a path as a whole.
        lab.line("r1", jitter=10, late=0.01, copies=0.01, loss=0.02)
        before = len(mesh.changes(1, 2)) + len(mesh.changes(2, 1))
        with calling(mesh, outcome, (1, 2)):
            talk_for(40)
        changes = len(mesh.changes(1, 2)) + len(mesh.changes(2, 1)) - before
        for one in outcome.heard:
            assert one.repeated == 0
            assert one.lost <= one.sent * 0.045, "2 %, and what chance adds to 2,000 packets"
        assert sum(one.reordered for one in outcome.heard) > 0, "they were late"
        assert changes <= 2, "at most one move, seen from both ends"


def a_lossy_direct_path_is_left_and_taken_again(outcome: Outcome) -> None:
    """30 % loss with a clean relay: voice is on the relay within 3 s, and back when it heals, without flapping."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(6)
            lab.between("r1", "r2", loss=0.3)
            outcome.seconds["relay"] = mesh.wait_state("relay", 1, 2, timeout=15)
        relayed = Outcome()
        with calling(mesh, relayed, (1, 2)):
            talk_for(6)
            lab.between("r1", "r2", loss=0)
            outcome.seconds["direct again"] = mesh.wait_state("direct", 1, 2, timeout=90)
            talk_for(2)
        assert_whole(relayed.heard)
        assert outcome.seconds["relay"] <= 3
        assert mesh.changes(1, 2)[-2].state == "relay", "once there and once back"


SCENARIOS = (
    an_upgrade_to_the_direct_path_under_load,
    a_direct_path_is_cut_and_heals,
    a_site_is_offline_for_half_a_minute,
    a_bad_line,
    a_lossy_direct_path_is_left_and_taken_again,
)
