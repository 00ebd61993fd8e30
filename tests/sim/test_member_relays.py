"""Members that relay: two whose direct path is cut go through a third, which nobody configured."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from meshvpn.proto.options import Options
from meshvpn.proto.pace import HELPER_TRIES
from meshvpn.proto.path_table import MAX_HELPERS
from meshvpn.proto.peer import PeerState
from meshvpn.proto.relaying import BARRED_FOR
from meshvpn.proto.transport import RELAY_WORD, Path

from .member import Member
from .mesh import KEYS, Mesh
from .network import Packet
from .world import PORT_RESTRICTED, PUBLIC, SERVER, SYMMETRIC

SETTLED = 30.0
"""Seconds after which new members have told each other what they know (gossip, which is payload) and are silent."""

A, B, C, D = (f"20.{number}.0.1" for number in (1, 2, 3, 4))


def via(member: Member, other: Member) -> str | None:
    """The nick of the member that relays between the two."""
    peer = member.peer(other)
    assert peer is not None
    return None if peer.via is None else peer.via.nick


def longest_gap(mesh: Mesh, since: float) -> float:
    gaps = []
    for stream in mesh.streams:
        arrivals = sorted(
            arrival.at for number, at in stream.sent.items() if at >= since for arrival in stream.arrivals(number)
        )
        instants = [since, *arrivals, mesh.network.now]
        gaps.append(max(after - before for before, after in itertools.pairwise(instants)))
    return max(gaps)


def cut_off(mesh: Mesh) -> None:
    """The rendezvous is gone: machine and way."""
    mesh.rendezvous.stop()
    for site in (A, B, C, D):
        mesh.network.cut(site, SERVER)


@pytest.mark.parametrize("has_server", [True, False])
def test_a_cut_path_is_replaced_by_one_through_a_third_member(has_server: bool) -> None:
    mesh = Mesh()
    a, b, _ = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED)
    mesh.stream(a, b)
    mesh.stream(b, a)
    mesh.run(3.0)
    if not has_server:
        cut_off(mesh)
        mesh.run(20.0)
    cut_at = mesh.network.now
    mesh.network.cut(A, B)
    mesh.run(10.0)
    assert longest_gap(mesh, cut_at) <= 2.5
    assert via(a, b) == via(b, a) == "c"
    assert all(member.peer(other).state is PeerState.RELAY for member, other in ((a, b), (b, a)))  # type: ignore[union-attr]
    lost_from = mesh.network.now - 5.0
    mesh.network.spoilt.pop((A, B))
    mesh.network.spoilt.pop((B, A))
    mesh.run(40.0)
    assert a.is_direct(b)
    assert b.is_direct(a)
    assert via(a, b) is None
    mesh.stop_streams()
    assert all(stream.lost_since(lost_from) == 0 for stream in mesh.streams)
    assert all(stream.repeated == 0 for stream in mesh.streams)


def test_two_that_cannot_reach_each_other_go_through_a_member_while_they_talk() -> None:
    mesh, a, b, c = talking_through_a_public_member()
    assert via(a, b) == via(b, a) == "c"
    assert c.relayed_packets > 0
    mesh.stop_streams()
    assert all(not stream.lost and not stream.repeated for stream in mesh.streams)


def test_silent_peers_cost_a_member_that_relays_no_more_than_their_keepalives() -> None:
    mesh = Mesh()
    _, _, c = mesh.found(SYMMETRIC, SYMMETRIC, PUBLIC, settle=SETTLED)
    before = c.relayed_packets
    mesh.run(600.0)
    assert c.relayed_packets - before <= 2 * 600 / 20


def test_a_member_that_does_not_want_to_relay_is_not_asked() -> None:
    mesh = Mesh()
    members = [mesh.add_member(name, kind) for name, kind in (("a", SYMMETRIC), ("b", SYMMETRIC), ("c", PUBLIC))]
    members[2].options = Options(relay=False)
    members[0].create(KEYS)
    mesh.run(1.0)
    for member in members[1:]:
        member.join(KEYS)
    mesh.run(3.0)
    a, b, c = members
    mesh.stream(a, b)
    mesh.stream(b, a)
    mesh.run(10.0)
    assert c.relayed_packets == 0
    assert all(number.relays is (number.nick != "c") for number in a.roster.members.values())
    assert via(a, b) is None
    peer = a.peer(b)
    assert peer is not None
    assert not peer.agent.table.helpers


def test_a_member_that_lies_about_relaying_costs_a_few_pings() -> None:
    mesh = Mesh()
    a, b, c = (mesh.add_member(name, kind) for name, kind in (("a", SYMMETRIC), ("b", SYMMETRIC), ("c", PUBLIC)))
    a.create(KEYS)
    mesh.run(1.0)
    c.join(KEYS)
    mesh.run(1.0)
    c.plane.set_relaying(0, 0)
    b.join(KEYS)
    mesh.run(3.0)
    asked = count_frames(mesh, C)
    mesh.stream(a, b, 0.1)
    mesh.stream(b, a, 0.1)
    mesh.run(600.0)
    assert via(a, b) is None
    assert asked[A] <= 600 / BARRED_FOR * (HELPER_TRIES + 1) + HELPER_TRIES
    mesh.stop_streams()
    assert all(not stream.lost for stream in mesh.streams)


@pytest.mark.parametrize("end", ["dies", "stops", "is cut off"])
def test_when_the_member_in_between_goes_the_call_goes_on(end: str) -> None:
    mesh, a, b, c = talking_through_a_public_member()
    ended_at = mesh.network.now
    if end == "dies":
        c.stop()
    elif end == "stops":
        c.plane.set_relaying(0, 0)
    else:
        mesh.network.cut(B, C)
    mesh.run(10.0)
    assert via(a, b) is None
    assert longest_gap(mesh, ended_at) <= 2.5
    mesh.stop_streams()
    assert all(stream.lost_since(ended_at + 3.0) == 0 for stream in mesh.streams)


def test_a_member_that_leaves_is_left_at_once() -> None:
    mesh, a, b, c = talking_through_a_public_member()
    left_at = mesh.network.now
    c.act(lambda node, now, wall_ns: node.leave(now=now, wall_ns=wall_ns))
    mesh.run(2.0)
    assert via(a, b) is None
    assert longest_gap(mesh, left_at) <= 0.3


def test_a_slow_member_is_no_better_than_the_rendezvous() -> None:
    mesh = Mesh()
    a, b, _ = mesh.found(SYMMETRIC, SYMMETRIC, PUBLIC)
    mesh.network.detour(A, C, 0.3)
    mesh.stream(a, b)
    mesh.stream(b, a)
    mesh.run(30.0)
    assert via(a, b) is None
    assert via(b, a) is None


def test_no_more_than_three_members_are_asked_at_a_time_and_not_by_all_the_same() -> None:
    mesh = Mesh()
    members = mesh.found(SYMMETRIC, SYMMETRIC, SYMMETRIC, SYMMETRIC, *[PUBLIC] * 6, settle=5.0)
    talking = list(itertools.permutations(members[:4], 2))
    for source, destination in talking:
        mesh.stream(source, destination, 0.2)
    for _ in range(60):
        mesh.run(1.0)
        assert all(len(helpers(*pair)) <= MAX_HELPERS for pair in talking)
    assert {via(*pair) for pair in talking} <= {member.name for member in members[4:]}
    carried = [member for member in members[4:] if member.relayed_packets > 100]
    assert len(carried) >= 2


def talking_through_a_public_member() -> tuple[Mesh, Member, Member, Member]:
    mesh = Mesh()
    a, b, c = mesh.found(SYMMETRIC, SYMMETRIC, PUBLIC)
    mesh.stream(a, b)
    mesh.stream(b, a)
    mesh.run(5.0)
    return mesh, a, b, c


def helpers(member: Member, other: Member) -> tuple[Path, ...]:
    peer = member.peer(other)
    assert peer is not None
    return peer.agent.table.helpers


def count_frames(mesh: Mesh, to: str) -> Counter[str]:
    """Relay frames to that address from now on, by who sent them."""
    sent: Counter[str] = Counter()

    def note(packet: Packet) -> bool:
        if packet.destination.host == to and packet.data[0] == RELAY_WORD:
            sent[packet.source.host] += 1
        return False

    mesh.network.filters.append(note)
    return sent
