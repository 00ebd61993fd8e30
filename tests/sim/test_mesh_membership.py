"""Evictions and all that changes who is in: what everybody sees, what streams between the others notice."""

from __future__ import annotations

from meshvpn.proto.events import MembershipChanged, PeerChanged
from meshvpn.proto.keys import NetworkKeys
from meshvpn.proto.node import START_GRACE
from meshvpn.proto.owner import PasswordRule

from .member import Action, Member
from .mesh import KEYS, NEW_KEYS, Mesh, pairs
from .rendezvous import Wire
from .world import FULL_CONE, PORT_RESTRICTED, SYMMETRIC


def test_within_a_second_nobody_talks_to_the_evicted_and_nobody_else_notices() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, FULL_CONE, SYMMETRIC)
    evicted, staying = members[3], members[:3]
    streams = [mesh.stream(left, right) for left, right in pairs(members)]
    mesh.run(2.0)
    sessions = {(left.name, right.name): session_at(left, right) for left, right in pairs(staying)}
    evict(mesh, members[0], evicted, PasswordRule.RETIRE)
    out_at = mesh.network.now
    assert {(left.name, right.name): session_at(left, right) for left, right in pairs(staying)} == sessions
    mesh.run(5.0)
    mesh.stop_streams()
    for stream in streams:
        if evicted in (stream.source, stream.destination):
            assert not any(arrival.at > out_at for number in stream.sent for arrival in stream.arrivals(number))
        else:
            assert not stream.lost
            assert not stream.repeated
    for member in staying:
        assert member.roster.charter.epoch == 2
        assert member.peer(evicted) is None
        assert any(isinstance(event, PeerChanged) and event.reason == "evicted" for _, event in member.events)
    assert happened(evicted) == ["evicted"]
    assert evicted.node is not None
    assert not evicted.node.peers


def test_after_an_eviction_sessions_go_on_and_the_next_ones_use_the_new_epoch() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED)
    streams = [mesh.stream(left, right, 0.05) for left, right in pairs(members[:2])]
    mesh.run(1.0)
    before = session_at(members[0], members[1])
    evict(mesh, members[0], members[2], PasswordRule.RETIRE)
    mesh.run(300.0)
    mesh.stop_streams()
    assert session_at(members[0], members[1]) != before
    assert not any(stream.lost or stream.repeated for stream in streams)
    assert members[0].roster.epoch_key == members[1].roster.epoch_key != members[2].roster.epoch_key


def test_the_evicted_cannot_come_back_neither_with_its_identity_nor_with_the_password() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED)
    evicted = members[2]
    evict(mesh, members[0], evicted, PasswordRule.RETIRE)
    evicted.stop()
    evicted.start()
    mesh.run(5.0)
    assert not any(mesh.reaches(evicted, member, within=1.0) for member in members[:2])
    evicted.stop()
    evicted.join(KEYS)
    mesh.run(2.0)
    assert [refusal.code for refusal in evicted.refusals] == ["unknown_network"]


def test_with_the_password_kept_only_the_identity_is_refused() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED)
    evict(mesh, members[0], members[2], PasswordRule.KEEP)
    members[2].stop()
    members[2].join(KEYS)
    late = mesh.add_member("late")
    late.join(KEYS)
    mesh.run(2.0)
    assert [refusal.code for refusal in members[2].refusals] == ["evicted"]
    assert all(mesh.reaches(late, member) and mesh.reaches(member, late) for member in members[:2])


def test_a_member_that_was_offline_learns_of_an_eviction_before_it_hears_the_evicted() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED)
    sleeper, evicted = members[1], members[2]
    sleeper.stop()
    mesh.rendezvous.cut(wire(evicted))
    assert evicted.node is not None
    evicted.node.handle_control_message = lambda *_args, **_kwargs: None  # type: ignore[method-assign]  # it won't hear
    evict(mesh, members[0], evicted, PasswordRule.RETIRE)
    stream = mesh.stream(evicted, sleeper)
    mesh.run(1.0)
    sleeper.start()
    mesh.run(10.0)
    mesh.stop_streams()
    assert not any(stream.arrivals(number) for number in stream.sent)
    assert sleeper.peer(evicted) is None
    assert mesh.reaches(sleeper, members[0])


def test_without_the_server_a_member_believes_its_roster_after_a_moment() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    mesh.rendezvous.stop()
    mesh.server.link.is_up = False
    members[1].stop()
    members[1].start()
    assert members[1].node is not None
    assert not members[1].node.peers
    mesh.run(START_GRACE)
    assert len(members[1].node.peers) == 1


def test_who_joins_while_somebody_is_evicted_is_not_left_without_the_key() -> None:
    was_forgotten = 0
    for delay in (0.05, 0.07, 0.09, 0.11):
        mesh = Mesh()
        members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED)
        late = mesh.add_member("late")
        late.join(KEYS)
        mesh.run_until(lambda late=late: late.node is not None, within=1.0)  # type: ignore[misc]
        mesh.run(delay - 0.05)
        evict(mesh, members[0], members[2], PasswordRule.RETIRE)
        if members[0].peer(late) is None:
            continue  # too late: the password was retired before its record came
        was_forgotten += members[0].roster.charter.version == 3
        staying = [*members[:2], late]
        assert len({member.roster.epoch_key for member in staying}) == 1
        assert all(mesh.reaches(left, right) for left, right in pairs(staying))
    assert was_forgotten


def test_an_unbanned_member_joins_again_with_its_identity() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED)
    evict(mesh, members[0], members[2], PasswordRule.KEEP)
    do(mesh, members[0], lambda node, now, wall_ns: node.unban("c", now=now, wall_ns=wall_ns))
    members[2].stop()
    members[2].join(KEYS)
    mesh.run(3.0)
    assert all(mesh.reaches(left, right) for left, right in pairs(members))


def test_a_new_password_lets_in_whom_the_old_one_does_not_and_disturbs_nobody() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    stream = mesh.stream(members[0], members[1])
    do(mesh, members[0], lambda node, now, wall_ns: node.change_password(NEW_KEYS, now=now, wall_ns=wall_ns))
    first, second = mesh.add_member("first"), mesh.add_member("second")
    first.join(KEYS)
    second.join(NEW_KEYS)
    mesh.run(2.0)
    assert [refusal.code for refusal in first.refusals] == ["unknown_network"]
    assert all(mesh.reaches(second, member) for member in members)
    mesh.stop_streams()
    assert not stream.lost


def test_a_new_password_survives_a_restart_of_who_heard_of_it() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    do(mesh, members[0], lambda node, now, wall_ns: node.change_password(NEW_KEYS, now=now, wall_ns=wall_ns))
    mesh.rendezvous.stop()
    for member in members:
        member.stop()
        member.start()
        assert member.roster.charter.locator == NEW_KEYS.locator


def test_an_eviction_can_set_the_new_password_itself() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED)
    evict(mesh, members[0], members[2], NEW_KEYS)
    late = mesh.add_member("late")
    late.join(NEW_KEYS)
    mesh.run(2.0)
    assert all(mesh.reaches(late, member) for member in members[:2])


def test_a_new_member_reads_the_records_of_those_who_are_offline_since_before_an_eviction() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED)
    members[1].stop()
    evict(mesh, members[0], members[2], NEW_KEYS)
    late = mesh.add_member("late")
    late.join(NEW_KEYS)
    mesh.run(2.0)
    assert {member.nick for member in late.roster.members.values()} == {"a", "b"}
    members[1].start()
    mesh.run(2.0)
    assert mesh.reaches(late, members[1])
    assert mesh.reaches(members[1], late)


def test_every_rename_reaches_everybody_also_two_within_a_second() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED, settle=0.5)
    stream = mesh.stream(members[1], members[2])
    for nick in ("zulu", "alpha", "mike"):
        do(mesh, members[1], rename(nick), wait=0.2)
    mesh.run(1.0)
    for member in (members[0], members[2]):
        assert {other.nick for other in member.roster.members.values()} > {"mike"}
    mesh.stop_streams()
    assert not stream.lost


def test_a_rename_without_the_server_is_told_when_it_is_back() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    mesh.rendezvous.stop()
    members[1].act(lambda node, now, wall_ns: node.rename("later", now=now, wall_ns=wall_ns))
    members[1].stop()
    mesh.rendezvous.start()
    members[1].start()
    mesh.run(3.0)
    assert [member.nick for member in members[0].roster.members.values()] == ["later"]


def test_who_leaves_is_gone_for_everybody_and_its_address_is_not_given_to_the_next() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED)
    address = members[2].address
    do(mesh, members[2], lambda node, now, wall_ns: node.leave(now=now, wall_ns=wall_ns))
    members[2].stop()
    assert all(member.peer(members[2]) is None for member in members[:2])
    late = mesh.add_member("late")
    late.join(KEYS)
    mesh.run(2.0)
    assert late.address not in {address, *(member.address for member in members[:2])}


def test_a_deleted_network_is_over_for_everybody_also_after_a_restart() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED)
    do(mesh, members[0], lambda node, now, wall_ns: node.delete(now=now, wall_ns=wall_ns))
    assert [happened(member) for member in members] == 3 * [["deleted"]]
    for member in members:
        member.stop()
        member.start()
    mesh.run(10.0)
    assert not any(member.node.peers for member in members if member.node is not None)
    late = mesh.add_member("late")
    late.join(KEYS)
    mesh.run(2.0)
    assert [refusal.code for refusal in late.refusals] == ["unknown_network"]


def test_a_mere_member_changes_nothing() -> None:
    mesh = Mesh()
    members = mesh.found(PORT_RESTRICTED, PORT_RESTRICTED)
    before = members[0].roster.export()
    forged = members[1].identity.sign(b"meshvpn charter v1\0", before.charter.body)
    assert members[0].roster.handle_charter(forged, [], wall=1) is not None
    assert members[0].roster.export() == before


def evict(mesh: Mesh, who: Member, whom: Member, rule: PasswordRule | NetworkKeys) -> None:
    """Put out, and give everybody a second to hear it."""
    do(mesh, who, lambda node, now, wall_ns: node.evict(whom.address, rule, now=now, wall_ns=wall_ns))


def do(mesh: Mesh, member: Member, action: Action, *, wait: float = 1.0) -> None:
    """The action is carried out and nobody objects."""
    rid = member.act(action)
    mesh.run(wait)
    assert rid is not None
    assert member.finished[rid].code is None, member.finished[rid]


def rename(nick: str) -> Action:
    return lambda node, now, wall_ns: node.rename(nick, now=now, wall_ns=wall_ns)


def session_at(left: Member, right: Member) -> float | None:
    peer = left.peer(right)
    return None if peer is None else peer.session_at


def happened(member: Member) -> list[str]:
    return [event.what for _, event in member.events if isinstance(event, MembershipChanged)]


def wire(member: Member) -> Wire:
    assert member.wire is not None
    return member.wire
