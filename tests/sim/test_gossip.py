"""Charters, records and farewells from member to member: the server is dead, lies, or keeps them back."""

from __future__ import annotations

import pytest

from meshvpn.proto import control
from meshvpn.proto.control import CharterChanged, Goodbye, MemberChanged
from meshvpn.proto.events import PeerChanged
from meshvpn.proto.options import Options
from meshvpn.proto.owner import PasswordRule, make_leave

from .member import Member
from .mesh import KEYS, Mesh, assert_untouched, pairs
from .rendezvous import WALL
from .world import FULL_CONE, PORT_RESTRICTED, Kind

SEEDS = (1, 2, 3)
FOUR: tuple[Kind, ...] = (PORT_RESTRICTED, FULL_CONE, PORT_RESTRICTED, FULL_CONE)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_eviction_without_the_server_reaches_everybody_within_a_second(seed: int) -> None:
    mesh, members = settled(seed)
    owner, others, evicted = members[0], members[1:3], members[3]
    streams = [mesh.stream(left, right) for left, right in pairs(members)]
    mesh.run(2.0)
    mesh.rendezvous.stop()
    evict(owner, evicted)
    mesh.run_until(lambda: all(knows_it_out(member, evicted) for member in others), within=1.0)
    out_at = mesh.network.now
    mesh.run(2.0)
    mesh.stop_streams()
    for stream in streams:
        if evicted in (stream.source, stream.destination):
            assert not any(stream.arrivals(number) for number, sent_at in stream.sent.items() if sent_at > out_at)
    assert_untouched([stream for stream in streams if evicted not in (stream.source, stream.destination)])
    assert len({member.roster.epoch_key for member in (owner, *others)}) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_server_that_keeps_an_eviction_back_does_not_help_the_evicted(seed: int) -> None:
    mesh, members = settled(seed)
    withhold_changes(mesh)
    evict(members[0], members[3])
    mesh.run_until(lambda: all(knows_it_out(member, members[3]) for member in members[1:3]), within=1.0)


def test_idle_members_without_sessions_hear_of_it_too() -> None:
    mesh, members = settled(1)
    mesh.run(400.0)
    mesh.rendezvous.stop()
    evict(members[0], members[3])
    mesh.run_until(lambda: all(knows_it_out(member, members[3]) for member in members[1:3]), within=1.0)


def test_who_was_away_learns_it_from_the_first_member_that_it_meets() -> None:
    mesh, (owner, friend, sleeper, evicted) = settled(1)
    sleeper.stop()
    mesh.rendezvous.stop()
    evict(owner, evicted)
    mesh.run(2.0)
    owner.stop()
    sleeper.start()
    mesh.run_until(lambda: friend.peer(sleeper) is not None and session_of(sleeper, friend), within=5.0)
    mesh.run_until(lambda: knows_it_out(sleeper, evicted), within=1.0)
    assert not mesh.reaches(evicted, sleeper, within=1.0)
    assert mesh.reaches(friend, sleeper)


def test_an_eviction_goes_on_through_whoever_reaches_the_others() -> None:
    mesh, (owner, middle, far, evicted) = settled(1, Options(relay=False))
    mesh.rendezvous.stop()
    mesh.server.link.is_up = False
    cut(mesh, owner, far)
    mesh.run_until(lambda: not reaches_directly(owner, far), within=60.0)
    evict(owner, evicted)
    mesh.run_until(lambda: all(knows_it_out(member, evicted) for member in (middle, far)), within=1.5)


def test_two_halves_that_were_cut_off_from_each_other_agree_when_they_meet() -> None:
    mesh, members = settled(1)
    left, right = members[:2], members[2:]
    admin = right[0]
    members[0].act(lambda node, now, wall_ns: node.add_admin(admin.address, now=now, wall_ns=wall_ns))
    mesh.run(2.0)
    assert admin.roster.role(admin.identity) == "admin"
    late = [mesh.add_member(name, FULL_CONE) for name in ("x", "y")]
    for member in late:
        member.join(KEYS)
    mesh.run(30.0)
    mesh.rendezvous.stop()
    for one in left:
        for other in right:
            cut(mesh, one, other)
    evict(members[0], late[0])
    evict(admin, late[1])
    mesh.run(10.0)
    mesh.network.heal()
    mesh.run_until(lambda: len({charters_of(member) for member in members}) == 1, within=60.0)
    assert all(knows_it_out(member, one) for member in members for one in late)


def test_who_starts_anew_without_the_server_is_found_by_all() -> None:
    mesh, members = settled(1)
    mesh.rendezvous.stop()
    for member in members[1:]:
        member.stop()
        member.start()
    mesh.run_until(lambda: all(left.is_direct(right) for left, right in pairs(members)), within=20.0)


def test_a_farewell_that_only_one_member_heard_is_told_to_the_others() -> None:
    mesh, members = settled(1)
    leaver = members[3]
    mesh.rendezvous.stop()
    leaver.stop()
    assert leaver.saved is not None
    farewell = make_leave(leaver.saved.uid, leaver.identity, wall=WALL + 1000)
    assert members[1].roster.handle_leave(farewell, wall=WALL + 1000) is None
    mesh.run_until(lambda: not any(leaver.identity.public in it.roster.members for it in members[:3]), within=10.0)


def test_a_member_whose_firewall_lets_no_gossip_in_is_named() -> None:
    mesh, members = settled(1)
    members[1].links.is_firewalled = True
    mesh.rendezvous.stop()
    evict(members[0], members[3])
    mesh.run(120.0)
    assert members[0].node is not None
    assert members[0].node.gossip.silent == [members[1].identity.public]
    # It asks others by itself.
    assert knows_it_out(members[1], members[3])


def settled(seed: int, options: Options | None = None) -> tuple[Mesh, list[Member]]:
    """Four members that have reached and met each other."""
    mesh = Mesh(seed)
    members = mesh.found(*FOUR, settle=20.0, options=options)
    assert all(left.is_direct(right) for left, right in pairs(members))
    return mesh, members


def withhold_changes(mesh: Mesh) -> None:
    """The server tells nobody anything new."""

    def tamper(message: control.Response) -> list[control.Response]:
        return [] if isinstance(message, CharterChanged | MemberChanged | Goodbye) else [message]

    mesh.rendezvous.tamper = tamper


def evict(who: Member, whom: Member) -> None:
    who.act(lambda node, now, wall_ns: node.evict(whom.address, PasswordRule.KEEP, now=now, wall_ns=wall_ns))


def cut(mesh: Mesh, one: Member, other: Member) -> None:
    mesh.network.cut(outside(mesh, one), outside(mesh, other))


def outside(mesh: Mesh, member: Member) -> str:
    router = mesh.routers.get(member.name)
    return member.host.addresses[0] if router is None else router.address


def knows_it_out(member: Member, evicted: Member) -> bool:
    is_told = any(isinstance(event, PeerChanged) and event.reason == "evicted" for _, event in member.events)
    return is_told and member.peer(evicted) is None


def session_of(member: Member, other: Member) -> bool:
    peer = member.peer(other)
    return peer is not None and peer.session_at is not None


def reaches_directly(member: Member, other: Member) -> bool:
    peer = member.peer(other)
    return peer is not None and peer.agent.is_reachable


def charters_of(member: Member) -> bytes:
    return b"".join(sorted(signed.signature for signed in member.roster.charters()))
