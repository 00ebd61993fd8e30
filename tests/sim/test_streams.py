"""Where UDP does not pass: the relay by stream, moves between it and UDP in mid-call, and what a crowd costs."""

from __future__ import annotations

from itertools import pairwise

import pytest

from meshvpn.proto.peer import PeerState
from meshvpn.proto.transport import STREAM_SOCKET

from .member import Member
from .mesh import Mesh, Stream
from .test_mesh_join import check_reachability
from .world import KINDS, PORT_RESTRICTED, PUBLIC, SYMMETRIC, Kind

BLOCKED = KINDS["udp-blocked"]


@pytest.mark.parametrize("other", [PORT_RESTRICTED, SYMMETRIC, PUBLIC, BLOCKED])
def test_who_joins_where_udp_is_blocked_reaches_everybody_by_stream_and_loses_nothing(other: Kind) -> None:
    mesh = Mesh()
    left, right = mesh.found(other, BLOCKED, settle=0.0)
    mesh.run_until(lambda: None not in (left.peer(right), right.peer(left)), within=1.0)
    assert mesh.reaches(left, right, within=3.0), "the first packet waits for the stream and for the handshake"
    assert mesh.reaches(right, left, within=0.5)
    streams = [mesh.stream(left, right), mesh.stream(right, left)]
    mesh.run(60.0)
    mesh.stop_streams()
    assert [len(stream.lost) for stream in streams] == [0, 0]
    assert [stream.repeated for stream in streams] == [0, 0]
    assert state(right, left) is PeerState.RELAY
    assert socket(right, left) == STREAM_SOCKET
    assert len(mesh.rendezvous.streams.opened) == (2 if other is BLOCKED else 1)


@pytest.mark.parametrize(
    "kinds", [(PORT_RESTRICTED, PORT_RESTRICTED), (PUBLIC, PORT_RESTRICTED), (SYMMETRIC, SYMMETRIC)]
)
def test_udp_that_is_blocked_in_mid_call_costs_less_than_five_seconds_and_is_back_in_thirty(
    kinds: tuple[Kind, Kind],
) -> None:
    mesh = Mesh()
    left, right = mesh.found(*kinds)
    was_direct = left.is_direct(right)
    call = [mesh.stream(left, right), mesh.stream(right, left)]
    mesh.run(7.0)
    mesh.routers[right.name].is_udp_blocked = True
    blocked_at = mesh.network.now
    mesh.run(120.0)
    assert max(gap(stream, blocked_at) for stream in call) < 5.0
    assert all(lost(stream, blocked_at + 5.0, mesh.network.now - 1.0) == 0 for stream in call)
    mesh.routers[right.name].is_udp_blocked = False
    healed_at = mesh.network.now
    if was_direct:
        mesh.run_until(lambda: left.is_direct(right) and right.is_direct(left), within=30.0)
    mesh.run(90.0)
    mesh.stop_streams()
    assert socket(right, left) == 0
    assert len(mesh.rendezvous.streams) == 0, "it was closed"
    for stream in call:
        # Relayed, a packet or two pass each other by: those that TCP carries come after the seat has moved.
        assert stream.lost_since(healed_at) <= (0 if was_direct else 3)
        assert stream.repeated == 0


def test_a_direct_path_stays_when_only_the_rendezvous_cannot_be_reached_by_udp() -> None:
    mesh = Mesh()
    left, right = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    streams = [mesh.stream(left, right), mesh.stream(right, left)]
    mesh.network.cut(mesh.routers[left.name].address, "198.51.100.1")
    mesh.run(60.0)
    mesh.stop_streams()
    assert left.is_direct(right)
    assert [len(stream.lost) for stream in streams] == [0, 0]
    assert left.stream is not None
    assert right.stream is None


def test_one_that_is_blocked_changes_nothing_for_the_others() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PUBLIC, BLOCKED, PORT_RESTRICTED, BLOCKED, settle=5.0)
    free = [member for number, member in enumerate(members) if number not in (2, 4)]
    assert all(left.is_direct(right) for left in free for right in free if left is not right)
    check_reachability(mesh, members, [(left, right) for left in members for right in members if left is not right])


def test_a_stream_is_made_anew_when_it_breaks_and_when_the_server_was_away() -> None:
    mesh = Mesh()
    left, right = mesh.found(PORT_RESTRICTED, BLOCKED, settle=5.0)
    mesh.rendezvous.streams.cut()
    mesh.run(5.0)
    assert mesh.reaches(left, right)
    mesh.rendezvous.stop()
    mesh.run(60.0)
    mesh.rendezvous.start()
    mesh.run(40.0)
    assert mesh.reaches(left, right)
    assert mesh.reaches(right, left)


def test_twenty_whose_udp_ends_at_once_open_one_stream_each_and_not_in_one_instant() -> None:
    mesh = Mesh()
    members = mesh.found(*(20 * [PORT_RESTRICTED]), settle=30.0)
    for member in members:
        mesh.routers[member.name].is_udp_blocked = True
    mesh.run(40.0)
    opened = mesh.rendezvous.streams.opened
    assert len(opened) == 20
    assert max(sum(at <= other < at + 0.1 for other in opened) for at in opened) < 12


def test_tcp_that_is_blocked_too_is_tried_again_with_care_and_found_when_it_heals() -> None:
    mesh = Mesh()
    left, right = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    mesh.rendezvous.streams.is_blocked = True
    mesh.routers[right.name].is_udp_blocked = True
    mesh.run(600.0)
    assert 600 / 30 < len(mesh.rendezvous.streams.opened) < 80
    mesh.rendezvous.streams.is_blocked = False
    mesh.run(35.0)
    assert mesh.reaches(left, right)


def state(member: Member, other: Member) -> PeerState:
    peer = member.peer(other)
    assert peer is not None
    return peer.state


def socket(member: Member, other: Member) -> int | None:
    peer = member.peer(other)
    assert peer is not None
    return None if peer.agent.primary is None else peer.agent.primary.socket


def lost(stream: Stream, since: float, until: float) -> int:
    return sum(since <= at < until for at in stream.lost)


def gap(stream: Stream, since: float) -> float:
    """The longest time without an arrival."""
    times = [since, *sorted(arrival.at for number in stream.sent for arrival in stream.arrivals(number))]
    times = [at for at in times if at >= since]
    return max(after - before for before, after in pairwise(times))
