"""Who comes in and by whom: approvals, invites, admins, the owner's key on another host; also without the server."""

from __future__ import annotations

import pytest

from meshvpn.proto.acts import Kind
from meshvpn.proto.admission import rejoin_keys
from meshvpn.proto.audit import Entry, is_proven
from meshvpn.proto.events import Audited
from meshvpn.proto.invites import invite_keys
from meshvpn.proto.owner import PasswordRule

from .member import Action, Member
from .mesh import KEYS, NEW_KEYS, Mesh, pairs
from .test_mesh_membership import do, evict
from .world import PORT_RESTRICTED

SECRET = bytes(range(16))
TWO = (PORT_RESTRICTED, PORT_RESTRICTED)
THREE = (*TWO, PORT_RESTRICTED)
HOUR = 3600


def test_who_joins_a_network_that_approves_waits_until_somebody_lets_it_in() -> None:
    mesh = Mesh()
    a, b = mesh.found(*TWO)
    do(mesh, a, access("approve"))
    assert mesh.reaches(b, a)  # nobody who is in has to be approved
    late = joined(mesh)
    assert all([entry.nick for entry in member.roster.pending] == ["late"] for member in (a, b))
    assert not late.roster.is_approved(late.identity.public)
    assert a.peer(late) is None
    do(mesh, a, lambda node, now, wall_ns: node.approve("late", now=now, wall_ns=wall_ns))
    assert all(mesh.reaches(left, right) for left, right in pairs([a, b, late]))
    for member in (b, late):  # and it stays in
        member.stop()
        member.start()
    mesh.run(4.0)
    assert all(mesh.reaches(left, right) for left, right in pairs([a, b, late]))
    assert not b.roster.pending


def test_who_is_rejected_is_out_for_good() -> None:
    mesh = Mesh()
    a, b = mesh.found(*TWO)
    do(mesh, a, access("approve"))
    spy, before = joined(mesh), a.roster.epoch_key
    do(mesh, a, lambda node, now, wall_ns: node.reject("late", now=now, wall_ns=wall_ns))
    assert spy.roster.is_evicted
    assert a.roster.epoch_key == b.roster.epoch_key != before
    assert not b.roster.members.get(spy.identity.public)
    assert a.roster.charter.locator == KEYS.locator
    spy.stop()
    spy.join(KEYS)
    mesh.run(1.0)
    assert spy.refusals[-1].code == "evicted"


def test_opening_the_network_lets_in_who_waits() -> None:
    mesh = Mesh()
    a, b = mesh.found(*TWO)
    do(mesh, a, access("approve"))
    late = joined(mesh)
    do(mesh, a, access("open"))
    assert all(mesh.reaches(left, right) for left, right in pairs([a, b, late]))


@pytest.mark.parametrize("mode", ["open", "approve"])
def test_an_invite_lets_in_without_the_password_as_often_as_it_may_be_used(mode: str) -> None:
    mesh = Mesh()
    a, b = mesh.found(*TWO)
    c = joined(mesh, "c")
    evict(mesh, a, c, PasswordRule.RETIRE)
    if mode != "open":
        do(mesh, a, access(mode))
    do(mesh, a, lambda node, now, wall_ns: node.invite(SECRET, 1, HOUR, now=now, wall_ns=wall_ns))
    late, later = mesh.add_member("late"), mesh.add_member("later")
    late.join_invited(invite_keys(SECRET))
    mesh.run(3.0)
    assert late.roster.settings.name == "net"
    assert all(mesh.reaches(left, right) for left, right in pairs([a, b, late]))
    later.join_invited(invite_keys(SECRET))
    mesh.run(1.0)
    assert [refusal.code for refusal in later.refusals] == ["invite_used"]


def test_an_invite_is_worth_nothing_once_it_expired_was_revoked_or_somebody_was_evicted() -> None:
    for end, code in (("expire", "invite_expired"), ("revoke", "invite_unknown"), ("evict", "invite_unknown")):
        mesh = Mesh()
        a, b = mesh.found(*TWO)
        do(mesh, a, lambda node, now, wall_ns: node.invite(SECRET, 5, 60, now=now, wall_ns=wall_ns))
        (invite,) = b.roster.invites
        if end == "expire":
            mesh.run(61.0)
        elif end == "revoke":
            do(mesh, a, revoke(invite.locator.hex()[:8]))
        else:
            evict(mesh, a, b, PasswordRule.KEEP)
        late = mesh.add_member("late")
        late.join_invited(invite_keys(SECRET))
        mesh.run(1.0)
        assert [refusal.code for refusal in late.refusals] == [code]


def test_an_admin_may_what_the_owner_may_and_a_dismissed_one_nothing() -> None:
    mesh = Mesh()
    a, b, c = mesh.found(*THREE)
    do(mesh, a, access("approve"))
    do(mesh, a, lambda node, now, wall_ns: node.add_admin("b", now=now, wall_ns=wall_ns))
    late = joined(mesh)
    do(mesh, b, lambda node, now, wall_ns: node.approve("late", now=now, wall_ns=wall_ns))
    evict(mesh, b, c, NEW_KEYS)
    assert mesh.reaches(late, a)
    assert c.roster.is_evicted
    do(mesh, a, lambda node, now, wall_ns: node.remove_admin("b", now=now, wall_ns=wall_ns))
    assert mesh.reaches(late, a)  # whom it approved stays
    assert not a.roster.pending
    with pytest.raises(Exception, match="not the owner"):
        b.act(access("open"))


def test_changes_that_two_admins_make_at_once_both_count() -> None:
    mesh = Mesh()
    a, b, c = mesh.found(*THREE)
    do(mesh, a, lambda node, now, wall_ns: node.add_admin("b", now=now, wall_ns=wall_ns))
    d, e = joined(mesh, "d"), joined(mesh, "e")
    rids = {who: who.act(put_out(whom)) for who, whom in ((a, d), (b, e))}
    mesh.run(2.0)
    assert all(who.finished[rid].code is None for who, rid in rids.items() if rid is not None)
    for member in (a, b, c):
        assert set(member.roster.members) == {other.identity.public for other in (a, b, c) if other is not member}
    assert len({member.roster.epoch_key for member in (a, b, c)}) == 1
    assert d.roster.is_evicted
    assert e.roster.is_evicted


def test_an_eviction_without_the_server_counts_at_once_and_the_server_hears_of_it() -> None:
    mesh = Mesh()
    a, b, c = mesh.found(*THREE)
    mesh.rendezvous.stop()
    mesh.run(1.0)
    rid = a.act(put_out(c))
    mesh.run(1.0)
    assert rid is not None
    assert a.finished[rid].code is None
    assert "rendezvous is told" in a.finished[rid].message
    assert a.peer(c) is None
    a.stop()
    a.start()
    assert a.roster.charter.epoch == 2  # it survives a restart
    mesh.rendezvous.start()
    mesh.run(10.0)
    assert c.roster.is_evicted
    assert b.peer(c) is None
    assert mesh.reaches(a, b)
    assert a.roster.epoch_key == b.roster.epoch_key


def test_what_admins_did_while_cut_off_from_each_other_and_the_server_is_joined_when_it_is_back() -> None:
    mesh = Mesh()
    a, b, c = mesh.found(*THREE)
    do(mesh, a, lambda node, now, wall_ns: node.add_admin("b", now=now, wall_ns=wall_ns))
    d, e = joined(mesh, "d"), joined(mesh, "e")
    mesh.rendezvous.stop()
    mesh.run(1.0)
    a.act(put_out(d))
    b.act(put_out(e))
    mesh.run(1.0)
    mesh.rendezvous.start()
    mesh.run(15.0)
    for member in (a, b, c):
        assert set(member.roster.members) == {other.identity.public for other in (a, b, c) if other is not member}
        assert member.roster.lines.are_joined
        assert member.roster.charter.locator is None  # both retired it
    assert len({member.roster.epoch_key for member in (a, b, c)}) == 1
    known = {a.roster.epoch_key}
    assert not known & {d.roster.epoch_key, e.roster.epoch_key}
    assert all(mesh.reaches(left, right) for left, right in pairs([a, b, c]))


def test_any_member_tells_the_server_of_a_charter_that_it_heard_elsewhere() -> None:
    mesh = Mesh()
    a, b, c = mesh.found(*THREE)
    mesh.rendezvous.stop()
    mesh.run(1.0)
    a.act(put_out(c))
    charter = a.roster.signed_charter
    a.stop()
    assert b.node is not None
    b.roster.handle_charter(charter, [], wall=1)
    mesh.rendezvous.start()
    mesh.run(10.0)
    assert mesh.rendezvous.stored(b.roster.uid).document.charter == charter
    assert c.roster.is_evicted
    late = mesh.add_member("late")
    late.join(KEYS)
    mesh.run(1.0)
    assert [refusal.code for refusal in late.refusals] == ["unknown_network"]


def test_the_owner_has_the_last_word_when_a_dismissed_admin_was_faster_at_the_server() -> None:
    mesh = Mesh()
    a, b, c = mesh.found(*THREE)
    do(mesh, a, lambda node, now, wall_ns: node.add_admin("b", now=now, wall_ns=wall_ns))
    mesh.rendezvous.stop()
    mesh.run(1.0)
    a.act(lambda node, now, wall_ns: node.remove_admin("b", now=now, wall_ns=wall_ns))
    a.stop()
    mesh.rendezvous.start()
    mesh.run(6.0)
    evict(mesh, b, c, NEW_KEYS)  # nobody but a knows that it may not
    a.start()
    mesh.run(6.0)
    assert a.roster.charter == b.roster.charter
    assert mesh.rendezvous.stored(a.roster.uid).document.charter == a.roster.signed_charter
    assert not a.roster.charter.admins or not a.roster.admins
    assert a.roster.charter.locator == KEYS.locator
    c.stop()
    c.join(KEYS)
    mesh.run(3.0)
    assert all(mesh.reaches(left, right) for left, right in pairs([a, b, c]))


def test_the_owners_key_on_another_host_opens_a_network_whose_password_is_retired() -> None:
    mesh = Mesh()
    a, b, c = mesh.found(*THREE)
    evict(mesh, a, c, PasswordRule.RETIRE)
    do(mesh, a, access("approve"))
    a.stop()  # the machine is gone, the exported key is not
    assert a.owner is not None
    new = mesh.add_member("new")
    new.join_owned(a.owner)
    mesh.run(3.0)
    assert mesh.reaches(new, b)
    evict(mesh, new, a, NEW_KEYS)
    late = joined(mesh, keys=NEW_KEYS)
    do(mesh, new, lambda node, now, wall_ns: node.approve("late", now=now, wall_ns=wall_ns))
    assert mesh.reaches(late, b)


def test_a_member_that_gets_the_owners_key_may_what_the_owner_may() -> None:
    mesh = Mesh()
    a, b, _ = mesh.found(*THREE)
    assert a.owner is not None
    assert b.node is not None
    b.node.import_owner(a.owner)
    do(mesh, b, lambda node, now, wall_ns: node.add_admin("c", now=now, wall_ns=wall_ns))
    assert len(a.roster.admins) == 1


def test_everybody_notes_the_same_things_once_with_the_signature_of_who_did_them() -> None:
    mesh = Mesh()
    a, b, c = mesh.found(*THREE)
    do(mesh, a, access("approve"))
    late = joined(mesh)
    do(mesh, a, lambda node, now, wall_ns: node.approve("late", now=now, wall_ns=wall_ns))
    do(mesh, late, lambda node, now, wall_ns: node.leave(now=now, wall_ns=wall_ns))
    evict(mesh, a, c, NEW_KEYS)
    b.stop()
    b.start()
    mesh.run(5.0)
    expected = [
        (Kind.ACCESS, "", "owner"),
        (Kind.JOINED, "late", "late"),
        (Kind.APPROVE, "late", "owner"),
        (Kind.LEFT, "late", "late"),
        (Kind.EVICT, "c", "owner"),
    ]
    for member in (a, b):
        entries = noted(member)
        assert [(entry.kind, entry.nick, entry.actor_nick) for entry in entries][-5:] == expected
        assert all(is_proven(entry) for entry in entries)
    assert noted(b)[-1].detail == "password new"


def test_a_member_can_join_again_as_another_and_leave_its_old_identity_alone() -> None:

    mesh = Mesh()
    a, b = mesh.found(*TWO)
    keys = rejoin_keys(b.roster)
    assert keys == KEYS
    clone = joined(mesh, "clone", keys=keys)
    assert b.identity.public in a.roster.members
    assert all(mesh.reaches(left, right) for left, right in pairs([a, b, clone]))


def joined(mesh: Mesh, name: str = "late", keys: object = KEYS) -> Member:
    late = mesh.add_member(name)
    late.join(keys)  # type: ignore[arg-type]
    mesh.run(2.0)
    return late


def access(mode: str) -> Action:
    return lambda node, now, wall_ns: node.set_access(mode, now=now, wall_ns=wall_ns)


def revoke(text: str) -> Action:
    return lambda node, now, wall_ns: node.revoke_invite(text, now=now, wall_ns=wall_ns)


def put_out(whom: Member) -> Action:
    return lambda node, now, wall_ns: node.evict(whom.address, PasswordRule.RETIRE, now=now, wall_ns=wall_ns)


def noted(member: Member) -> list[Entry]:
    return [event.entry for _, event in member.events if isinstance(event, Audited)]
