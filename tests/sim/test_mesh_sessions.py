"""Calls through whole members while keys are renewed, connections break, daemons and the server restart."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest

from meshvpn.proto.constants import REKEY_AFTER_TIME
from meshvpn.proto.peer import MeshPeer, PeerState

from .member import Member
from .mesh import KEYS, Mesh, Stream, assert_untouched, pairs
from .world import ONE_WAY, PORT_RESTRICTED, SYMMETRIC, Kind

OUTSIDE_A, OUTSIDE_B = "20.1.0.1", "20.2.0.1"


def test_ten_minutes_of_calls_cross_every_rekey_without_a_lost_packet() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    streams = [mesh.stream(left, right, 0.05) for left, right in pairs(members)]
    sessions = count_sessions(mesh, members, seconds=600.0)
    mesh.stop_streams()
    assert sessions >= 600 // REKEY_AFTER_TIME
    assert [len(stream.sent) for stream in streams] > [11_000, 11_000]
    assert_untouched(streams)


def test_a_call_in_one_direction_crosses_every_rekey_too() -> None:
    mesh = Mesh()
    left, right = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    stream = mesh.stream(left, right, 0.05)
    assert count_sessions(mesh, [left, right], seconds=300.0) >= 3
    mesh.stop_streams()
    assert_untouched([stream])


def test_rekeys_recover_where_every_fifth_packet_is_lost() -> None:
    mesh = Mesh(2)
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, loss=0.1)
    streams = [mesh.stream(left, right, 0.1) for left, right in pairs(members)]
    assert count_sessions(mesh, members, seconds=600.0) >= 5
    mesh.stop_streams()
    for stream in streams:
        assert len(stream.lost) < 0.25 * len(stream.sent)
        assert longest_gap(stream) < 3.0


def test_a_control_connection_that_breaks_disturbs_no_call_on_the_relay() -> None:
    mesh = Mesh()
    members = mesh.found(SYMMETRIC, SYMMETRIC)
    streams = [mesh.stream(left, right) for left, right in pairs(members)]
    mesh.run(2.0)
    assert all(relayed(left, right) for left, right in pairs(members))
    for member in members:
        assert member.wire is not None
        mesh.rendezvous.cut(member.wire)
        mesh.run(10.0)
        assert member.wire is not None
    mesh.stop_streams()
    assert_untouched(streams)


def test_a_server_that_restarts_interrupts_relayed_calls_for_a_moment_and_direct_ones_not_at_all() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, SYMMETRIC)
    direct, relay = members[:2], [members[0], members[2]]
    untouched = [mesh.stream(left, right) for left, right in pairs(direct)]
    interrupted = [mesh.stream(left, right) for left, right in pairs(relay)]
    mesh.run(2.0)
    mesh.rendezvous.stop()
    mesh.rendezvous.start()
    back_at = mesh.network.now + 2.0
    mesh.run(20.0)
    mesh.stop_streams()
    assert_untouched(untouched)
    assert not any(stream.lost_since(back_at) for stream in interrupted)


def test_a_server_that_dies_takes_no_call_with_it_that_has_a_direct_path_too() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    streams = [mesh.stream(left, right) for left, right in pairs(members)]
    mesh.run(2.0)
    mesh.network.spoil(OUTSIDE_A, OUTSIDE_B, 0.3)
    mesh.run_until(lambda: all(relayed(left, right) for left, right in pairs(members)), within=20.0)
    mesh.network.heal()
    mesh.run(5.0)
    assert all(relayed(left, right) for left, right in pairs(members))
    lost_at = mesh.network.now
    lose_server(mesh)
    mesh.run(20.0)
    mesh.stop_streams()
    assert not any(stream.lost_since(lost_at) for stream in streams)
    assert all(left.is_direct(right) for left, right in pairs(members))


@pytest.mark.parametrize("kind", [PORT_RESTRICTED, SYMMETRIC], ids=["direct", "relayed"])
def test_a_member_that_goes_is_seen_to_be_gone_within_five_seconds_though_nobody_talks_to_it(kind: Kind) -> None:
    mesh = Mesh()
    left, right = mesh.found(kind, kind)
    mesh.run(100.0)
    assert left.is_direct(right) or relayed(left, right)
    right.stop()
    mesh.run_until(lambda: state_of(left, right) is PeerState.OFFLINE, within=5.0)
    mesh.run(600.0)
    assert state_of(left, right) is PeerState.OFFLINE


def test_a_member_whose_control_connection_alone_ends_is_not_thought_to_be_gone() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    mesh.run(100.0)
    assert members[1].wire is not None
    mesh.rendezvous.cut(members[1].wire)
    for _ in range(100):
        mesh.run(0.1)
        assert all(left.is_direct(right) for left, right in pairs(members))


def test_ten_minutes_without_the_server_disturb_no_direct_call_and_end_by_themselves() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, SYMMETRIC)
    streams = [mesh.stream(left, right, 0.1) for left, right in pairs(members[:2])]
    mesh.run(2.0)
    lose_server(mesh)
    mesh.run(600.0)
    mesh.rendezvous.start()
    mesh.server.link.is_up = True
    mesh.run_until(lambda: all(attached(member) for member in members), within=35.0)
    mesh.run(5.0)
    mesh.stop_streams()
    assert_untouched(streams)
    assert mesh.reaches(members[0], members[2])
    late = mesh.add_member("late")
    late.join(KEYS)
    mesh.run(2.0)
    assert all(mesh.reaches(late, member) for member in members)


@pytest.mark.parametrize("has_server", [True, False])
def test_a_daemon_that_restarts_is_reached_again_within_two_seconds(has_server: bool) -> None:
    mesh = Mesh()
    left, right = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    assert left.is_direct(right)
    assert right.is_direct(left)
    inward = mesh.stream(left, right)  # the one who restarts only listens
    mesh.run(1.0)
    if not has_server:
        lose_server(mesh)
    right.stop()
    mesh.run(0.5)
    right.start()
    back_at = mesh.network.now + 2.0
    mesh.run(2.0)
    outward = mesh.stream(right, left)
    mesh.run(120.0)
    mesh.stop_streams()
    assert not inward.lost_since(back_at)
    assert_untouched([outward])


@pytest.mark.parametrize("downtime", [0.5, 10.0])
def test_daemons_that_restart_in_turn_without_the_server_lose_nothing_once_a_packet_arrived(downtime: float) -> None:
    mesh = Mesh()
    left, right = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    lose_server(mesh)
    for member in (right, left):
        member.stop()
        mesh.run(downtime)
        member.start()
        streams = [mesh.stream(left, right), mesh.stream(right, left)]
        mesh.run(20.0)
        mesh.stop_streams()
        for stream in streams:
            assert not stream.lost_since(min(set(stream.sent.values()) - set(stream.lost)))
            assert len(stream.lost) * stream.interval < 3.0


def test_a_daemon_that_restarts_is_reached_again_over_the_relay() -> None:
    mesh = Mesh()
    left, right = mesh.found(SYMMETRIC, SYMMETRIC)
    inward = mesh.stream(left, right)
    mesh.run(1.0)
    right.stop()
    mesh.run(0.5)
    right.start()
    back_at = mesh.network.now + 2.0
    mesh.run(20.0)
    mesh.stop_streams()
    assert not inward.lost_since(back_at)


def test_a_daemon_that_restarts_without_the_server_is_direct_again_time_after_time() -> None:
    mesh = Mesh()
    left, right = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    lose_server(mesh)
    for _ in range(3):
        right.stop()
        mesh.run(1.0)
        right.start()
        mesh.run(40.0)  # longer than a NAT remembers an idle path
        assert mesh.reaches(left, right)
        assert mesh.reaches(right, left)
        peer = right.peer(left)
        assert peer is not None
        assert peer.state is PeerState.DIRECT


def test_a_host_that_moves_to_another_address_is_reached_again_within_two_seconds() -> None:
    mesh = Mesh()
    left, right = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    streams = [mesh.stream(left, right), mesh.stream(right, left)]
    mesh.run(1.0)
    mesh.routers[right.name].reboot("20.200.0.1")
    right.tell_network_change()
    back_at = mesh.network.now + 2.0
    mesh.run(20.0)
    mesh.stop_streams()
    assert not any(stream.lost_since(back_at) for stream in streams)
    assert left.is_direct(right)


def test_peers_of_a_far_away_member_lose_no_more_than_its_way_to_the_relay_when_it_connects_again() -> None:
    mesh = Mesh()
    far, near = mesh.found(SYMMETRIC, SYMMETRIC)
    mesh.routers[far.name].link.latency = 8 * ONE_WAY
    streams = [mesh.stream(far, near), mesh.stream(near, far)]
    mesh.run(5.0)
    assert far.wire is not None
    mesh.rendezvous.cut(far.wire)
    mesh.run(10.0)
    mesh.stop_streams()
    assert not streams[0].lost
    assert len(streams[1].lost) * streams[1].interval < 2 * 8 * ONE_WAY  # its new relay id is told before it is bound


def count_sessions(mesh: Mesh, members: list[Member], *, seconds: float) -> int:
    """How often a session was renewed meanwhile."""
    seen: set[float] = set()
    for _ in range(int(seconds)):
        mesh.run(1.0)
        seen |= {peer.session_at for member in members for peer in peers_of(member) if peer.session_at is not None}
    return len(seen) // 2


def peers_of(member: Member) -> Iterable[MeshPeer]:
    assert member.node is not None
    return member.node.peers.values()


def attached(member: Member) -> bool:
    return member.node is not None and member.node.session.is_attached


def relayed(left: Member, right: Member) -> bool:
    return state_of(left, right) is PeerState.RELAY


def state_of(left: Member, right: Member) -> PeerState | None:
    peer = left.peer(right)
    return None if peer is None else peer.state


def lose_server(mesh: Mesh) -> None:
    mesh.rendezvous.stop()
    mesh.server.link.is_up = False


def longest_gap(stream: Stream) -> float:
    arrived = sorted(arrival.at for number in stream.sent for arrival in stream.arrivals(number))
    return max(later - earlier for earlier, later in pairwise(arrived))
