"""Whole members find each other: packets take the relay first, then go direct; none is lost and none comes twice."""

from __future__ import annotations

import pytest

from meshvpn.proto.events import PeerChanged
from meshvpn.proto.peer import PeerState

from .member import Member
from .mesh import KEYS, NEW_KEYS, Mesh, assert_untouched, pairs
from .world import FULL_CONE, KINDS, PORT_RESTRICTED, PUBLIC, SYMMETRIC, direct_path_possible

REACHABLE = [kind for kind in KINDS.values() if not kind.is_udp_blocked]
"""Whose rendezvous can be asked by UDP: without it there is no relay either (the engine's tests have that one)."""


def test_the_first_packet_arrives_over_the_relay_and_later_ones_directly() -> None:
    mesh = Mesh()
    left, right = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, settle=0.0)
    outside = [mesh.routers[member.name].address for member in (left, right)]
    mesh.network.cut(*outside)
    mesh.run_until(lambda: None not in (left.peer(right), right.peer(left)), within=1.0)
    streams = [mesh.stream(left, right), mesh.stream(right, left)]
    mesh.run(3.0)
    mesh.network.heal()
    mesh.run_until(lambda: left.is_direct(right) and right.is_direct(left), within=10.0)
    mesh.run(5.0)
    mesh.stop_streams()
    for stream in streams:
        arrivals = [stream.arrivals(number)[0] for number in stream.sent]
        assert arrivals[0].is_relayed
        assert arrivals[0].at - next(iter(stream.sent.values())) < 0.5
        assert not arrivals[-1].is_relayed
    assert_untouched(streams)


def test_a_direct_path_is_found_within_a_second() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED, settle=0.0)
    assert mesh.run_until(lambda: all(left.is_direct(right) for left, right in pairs(members)), within=3.0) < 1.0


def test_two_behind_symmetric_nats_stay_on_the_relay() -> None:
    mesh = Mesh()
    left, right = mesh.found(SYMMETRIC, SYMMETRIC)
    streams = [mesh.stream(left, right), mesh.stream(right, left)]
    mesh.run(30.0)
    assert [peer.state for member in (left, right) for peer in member.node.peers.values()] == 2 * [PeerState.RELAY]  # type: ignore[union-attr]
    mesh.stop_streams()
    assert_untouched(streams)


@pytest.mark.parametrize("loss", [0.02, 0.05])
def test_those_behind_every_kind_of_nat_reach_each_other(loss: float) -> None:
    mesh = Mesh(int(loss * 100))
    members = mesh.found(*REACHABLE, loss=loss, settle=4.0)
    assert len({member.address for member in members}) == len(members)
    check_reachability(mesh, members, pairs(members))


def test_sixty_that_join_at_once_reach_each_other() -> None:
    mesh = Mesh()
    members = mesh.found(*(20 * (PORT_RESTRICTED, PUBLIC, FULL_CONE)), loss=0.02, settle=1.5)
    check_reachability(mesh, members, list(zip(members, members[1:] + members[:1], strict=True)))


def test_members_that_join_in_the_same_instant_get_addresses_of_their_own() -> None:
    mesh = Mesh()
    members = mesh.found(*(20 * [PORT_RESTRICTED]), settle=1.0)
    assert len({member.address for member in members}) == len(members)
    for member in members:
        known = {other.address for other in member.roster.members.values()}
        assert known == {other.address for other in members if other is not member}


def test_a_wrong_password_is_an_unknown_network() -> None:
    mesh = Mesh()
    mesh.found(PORT_RESTRICTED)
    stranger = mesh.add_member("stranger")
    stranger.join(NEW_KEYS)
    mesh.run(2.0)
    assert [refusal.code for refusal in stranger.refusals] == ["unknown_network"]
    assert stranger.node is None


def test_a_second_network_of_that_name_and_password_is_refused() -> None:
    mesh = Mesh()
    mesh.found(PORT_RESTRICTED)
    second = mesh.add_member("second")
    second.create(KEYS)
    mesh.run(2.0)
    assert [refusal.code for refusal in second.refusals] == ["network_exists"]


@pytest.mark.parametrize("seed", [1, 2])
def test_equal_seeds_give_equal_transcripts(seed: int) -> None:
    assert transcript(seed) == transcript(seed)
    assert transcript(seed) != transcript(seed + 1)


def check_reachability(mesh: Mesh, members: list[Member], wanted: list[tuple[Member, Member]]) -> None:
    """A packet may be lost, and a message of a handshake too; in the end one gets through, and none comes twice."""
    unanswered = {(left.name, right.name): (left, right) for left, right in wanted}
    indirect = [(left, right) for left, right in pairs(members) if direct_path_possible(left.host, right.host)]
    for _ in range(20):
        arrivals = {}
        for names, (left, right) in unanswered.items():
            arrivals[names] = mesh.send(left, right)
            mesh.run(0.0005)
        mesh.run(1.0)
        unanswered = {names: pair for names, pair in unanswered.items() if not arrivals[names]()}
        # At either end: the other may need the next ping of an idle path, after up to 25 s, if one message was lost.
        direct = {member.name: found_directly(member) for member in members}
        indirect = [
            (left, right)
            for left, right in indirect
            if right.address not in direct[left.name] and left.address not in direct[right.name]
        ]
        if not unanswered and not indirect:
            break
    assert not unanswered
    assert not indirect
    assert all(len(found) == 1 for member in members for found in member.arrivals.values())


def found_directly(member: Member) -> set[str]:
    """The addresses of those that it has reached directly so far."""
    changes = [event for _, event in member.events if isinstance(event, PeerChanged)]
    return {event.member.address for event in changes if event.state is PeerState.DIRECT}


def transcript(seed: int) -> str:
    mesh = Mesh(seed)
    members = mesh.found(*REACHABLE[2:7], loss=0.05, settle=2.0)
    for left, right in pairs(members):
        mesh.stream(left, right, 0.1)
    mesh.run(2.0)
    return mesh.transcript
