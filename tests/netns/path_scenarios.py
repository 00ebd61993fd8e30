"""Paths that break, heal, get bad and get better."""

from __future__ import annotations

import signal
import time

from .natmesh import NatMesh
from .nats import PORT_RESTRICTED, UDP_BLOCKED
from .scenarios import Outcome, assert_whole, calling, settle, sites, talk_for

UPGRADE_RATE = 1000.0


def an_upgrade_to_the_direct_path_under_load(outcome: Outcome) -> None:
    """The first packet takes the relay within a second; nothing is lost at the switch, nothing arrives twice."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        lab.between("r1", "r2", cut=True)
        mesh.start()
        mesh.wait_known(1, 2)
        mesh.begin(1, 2)
        outcome.seconds["first packet"] = lab.wait("the first packet", lambda: mesh.heard(1, 2).received > 0)
        mesh.wait_state("relay", 1, 2)
        mesh.begin(1, 2, rate=UPGRADE_RATE)
        talk_for(2)
        lab.between("r1", "r2", cut=False)
        outcome.seconds["direct"] = mesh.wait_state("direct", 1, 2, timeout=30)
        talk_for(2)
        outcome.add(mesh.end(1, 2))
    assert_whole(outcome.heard)
    assert outcome.seconds["first packet"] <= 1


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
        outcome.seconds["traffic"] = outcome.heard_again_at - healed_at
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
        assert [one.repeated for one in outcome.heard] == [0, 0]
        assert outcome.lost <= sum(one.sent for one in outcome.heard) * 0.03, (
            "2 %, and what chance adds to 4,000 packets"
        )
        assert sum(one.reordered for one in outcome.heard) > 0, "they were late"
        assert changes <= 2, "at most one move, seen from both ends"


def a_lossy_direct_path_is_left_and_taken_again(outcome: Outcome) -> None:
    """30 % loss with a clean relay: voice is on the relay within 3 s, and back when it heals, without flapping."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            talk_for(6)
            before = [len(mesh.changes(*ends)) for ends in ((1, 2), (2, 1))]
            lab.between("r1", "r2", loss=0.3)
            outcome.seconds["relay"] = mesh.wait_state("relay", 1, 2, timeout=15)
            talk_for(1)
        relayed = Outcome()
        with calling(mesh, relayed, (1, 2)):
            talk_for(6)
            lab.between("r1", "r2", loss=0)
            outcome.seconds["direct again"] = mesh.wait_state("direct", 1, 2, timeout=90)
            talk_for(2)
        assert_whole(relayed.heard)
        assert outcome.seconds["relay"] <= 3
        for ends, seen in zip(((1, 2), (2, 1)), before, strict=True):
            assert [change.state for change in mesh.changes(*ends)[seen:]] == ["relay", "direct"], "no flapping"


def udp_is_blocked_in_mid_call_and_passes_again(outcome: Outcome) -> None:
    """The relay by TCP within 5 s; direct again within 30 s of the end, and that loses nothing."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        settle(mesh)
        router = lab.routers["r1"]
        with calling(mesh, outcome, (1, 2)):
            talk_for(4)
            lab.change_nat(router, UDP_BLOCKED)
            mesh.wait_state("relay", 1, 2)
            talk_for(6)
            assert mesh.peer(1, 2).relay == "rendezvous by TCP"
        assert outcome.longest_gap <= 5
        healed = Outcome()
        with calling(mesh, healed, (1, 2)):
            talk_for(1)
            lab.change_nat(router, PORT_RESTRICTED)
            outcome.seconds["direct again"] = mesh.wait_state("direct", 1, 2, timeout=60)
            talk_for(2)
        assert_whole(healed.heard)
        assert outcome.seconds["direct again"] <= 30


def two_members_without_each_other_and_without_the_server(outcome: Outcome) -> None:
    """A third one relays within 2.5 s, which nobody asked it to; they are direct again when they can be, and that loses
    nothing."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        settle(mesh)
        mesh.end_server(signal.SIGKILL)
        with calling(mesh, outcome, (1, 2)):
            talk_for(3)
            lab.between("r1", "r2", cut=True)
            mesh.wait_state("relay", 1, 2)
            talk_for(4)
            assert [mesh.peer(*ends).relay for ends in ((1, 2), (2, 1))] == ["piaf-server3", "piaf-server3"]
        assert outcome.longest_gap <= 2.5
        healed = Outcome()
        with calling(mesh, healed, (1, 2)):
            talk_for(1)
            lab.between("r1", "r2", cut=False)
            outcome.seconds["direct again"] = mesh.wait_state("direct", 1, 2, timeout=60)
            talk_for(2)
        assert_whole(healed.heard)


def voice_on_two_paths_at_once(outcome: Outcome) -> None:
    """Losing either of them loses no packet, and nothing arrives twice."""
    doubled = {number: 'duplicate = "voice"\n' for number in (1, 2)}
    with sites(PORT_RESTRICTED, PORT_RESTRICTED, configs=doubled) as (lab, mesh):
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            lab.wait("both paths work", lambda: _is_doubled(mesh), timeout=30)
            lab.between("r1", "r2", cut=True)
            mesh.wait_state("relay", 1, 2)
            talk_for(2)
            lab.between("r1", "r2", cut=False)
            outcome.seconds["direct again"] = mesh.wait_state("direct", 1, 2, timeout=60)
            lab.wait("both paths work again", lambda: _is_doubled(mesh), timeout=30)
            for router in lab.routers:
                lab.between("net", router, cut=True)
            lab.wait("the relay is gone", lambda: not any(_has_relay(mesh, *ends) for ends in ((1, 2), (2, 1))))
            talk_for(3)
            assert mesh.is_reached("direct", 1, 2)
    assert_whole(outcome.heard)


def _is_doubled(mesh: NatMesh) -> bool:
    return all(_has_relay(mesh, *ends, state="doubles") for ends in ((1, 2), (2, 1)))


def _has_relay(mesh: NatMesh, number: int, other: int, state: str = "") -> bool:
    """True if a path through the relay works, and is in this state."""
    rows = mesh.paths(number, other)
    return any(row.relay is not None and row.rtt_ms is not None and state in ("", row.state) for row in rows)


SCENARIOS = (
    an_upgrade_to_the_direct_path_under_load,
    a_direct_path_is_cut_and_heals,
    a_site_is_offline_for_half_a_minute,
    a_bad_line,
    a_lossy_direct_path_is_left_and_taken_again,
    udp_is_blocked_in_mid_call_and_passes_again,
    two_members_without_each_other_and_without_the_server,
    voice_on_two_paths_at_once,
)
