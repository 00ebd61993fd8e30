"""What a user is told of the paths to a peer, and how one of them is asked."""

from __future__ import annotations

import pytest

from meshvpn.net.views import path_kind, path_name
from meshvpn.proto.candidate import CandidateKind
from meshvpn.proto.path_events import PingAnswered
from meshvpn.proto.path_view import PathState, views
from meshvpn.proto.transport import Address, Path

from .agents import ELSEWHERE, LAN, OUTSIDE, RELAY, Bench, connected


def states(bench: Bench) -> dict[Path, PathState]:
    return {seen.path: seen.state for seen in views(bench.agent, now=bench.now)}


def test_each_path_is_told_with_what_it_is_good_for() -> None:
    bench = connected()
    bench.offer(OUTSIDE, LAN)
    bench.run(3.0)
    seen = views(bench.agent, now=bench.now)
    assert [path.path for path in seen] == [OUTSIDE, RELAY, LAN]
    assert seen[0].rtt == pytest.approx(0.08)
    assert seen[2].r_factor is None
    assert states(bench) == {OUTSIDE: PathState.IN_USE, RELAY: PathState.STANDBY, LAN: PathState.SILENT}
    assert bench.agent.table.direct_ways() == (OUTSIDE,)


def test_a_path_that_breaks_is_doubled_and_then_dead() -> None:
    bench = connected()
    bench.call(5.0)
    del bench.rtts[OUTSIDE]
    for _ in range(200):
        bench.run(0.05)
        if bench.agent.secondary is not None:
            break
    assert states(bench) == {OUTSIDE: PathState.IN_USE, RELAY: PathState.DOUBLES}
    bench.call(10.0)
    assert states(bench) == {OUTSIDE: PathState.DEAD, RELAY: PathState.IN_USE}
    assert bench.agent.table.direct_ways() == ()


def test_the_users_ping_goes_on_the_path_that_is_asked_for() -> None:
    bench = connected()
    assert bench.agent.handle_ping_request(5, RELAY, now=bench.now)
    assert not bench.agent.handle_ping_request(6, ELSEWHERE, now=bench.now)
    bench.run(1.0)
    (answer,) = [event for event in bench.events if isinstance(event, PingAnswered)]
    assert (answer.token, answer.path) == (5, RELAY)
    assert answer.rtt == pytest.approx(0.16)


@pytest.mark.parametrize(
    ("path", "candidate", "kind"),
    [
        (RELAY, None, "relay"),
        (OUTSIDE, CandidateKind.SERVER_REFLEXIVE, "direct v4"),
        (OUTSIDE, CandidateKind.MAPPED, "mapped"),
        (Path(1, Address("2001:db8::5", 5)), CandidateKind.HOST, "direct v6"),
        (Path(0, Address("192.168.1.5", 5)), CandidateKind.HOST, "LAN"),
        (Path(0, Address("192.168.1.5", 5)), None, "direct v4"),
        (Path(1, Address("fd00::5", 5)), CandidateKind.HOST, "LAN"),
    ],
)
def test_a_path_has_a_kind(path: Path, candidate: int | None, kind: str) -> None:
    assert path_kind(path, candidate) == kind


def test_a_path_has_a_name() -> None:
    assert path_name(None, None) == "no path"
    assert path_name(OUTSIDE, None) == f"direct {OUTSIDE.remote}"
    assert path_name(RELAY, None) == "relay via rendezvous"
    assert path_name(Path(2, RELAY.remote, RELAY.relay), None) == "relay via rendezvous by TCP"
