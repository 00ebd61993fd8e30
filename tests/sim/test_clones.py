"""Machines that were copied with their state: who was there first stays, undisturbed, and the other one is told."""

from __future__ import annotations

import pytest

from meshvpn.proto.clones import RETRY_AFTER, STAND_DOWN
from meshvpn.proto.control import RefusalCode
from meshvpn.proto.control_session import BACKOFF_REFUSED
from meshvpn.proto.drops import DropReason
from meshvpn.proto.events import CloneSeen, CloneSight
from rendezvous.rivals import PATIENCE

from .member import Member
from .mesh import Mesh, assert_untouched
from .world import FULL_CONE, PORT_RESTRICTED

SEEDS = range(1, 4)
KINDS = (FULL_CONE, PORT_RESTRICTED, FULL_CONE)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_is_refused_by_the_server_keeps_quiet_and_disturbs_nobody(seed: int) -> None:
    mesh, original, others, copy = with_a_copy(seed)
    streams = [mesh.stream(original, other) for other in others] + [mesh.stream(other, original) for other in others]
    mesh.run(2.0)
    copy.start()
    mesh.run(100.0)
    mesh.stop_streams()
    assert_untouched(streams)
    assert not copy.arrivals
    assert sights(copy) == [(CloneSight.REFUSED, None)]
    assert sights(original) == [(CloneSight.RIVAL, None)]
    assert not any(sights(other) for other in others)
    assert copy.node is not None
    assert copy.node.is_copy
    assert not copy.node.peers
    assert copy.node.session.refusal is not None
    assert copy.node.session.refusal.code == RefusalCode.CLONED


@pytest.mark.parametrize("seed", SEEDS)
def test_without_the_server_members_stay_with_the_original_and_tell_the_copy(seed: int) -> None:
    mesh, original, others, copy = with_a_copy(seed)
    streams = [mesh.stream(original, other) for other in others] + [mesh.stream(other, original) for other in others]
    mesh.run(2.0)
    mesh.rendezvous.stop()
    copy.start()
    mesh.run(100.0)
    mesh.stop_streams()
    assert_untouched(streams)
    assert not copy.arrivals
    assert sights(copy) == [(CloneSight.REFUSED, other.name) for other in others]
    assert not sights(original)
    for other in others:
        assert sights(other) == [(CloneSight.MEMBER, original.name)]
        assert other.node is not None
        # It does not knock more often than it was told to.
        assert 1 <= other.node._peering._wireguard.drops[DropReason.CLONED] <= 1 + 100 / RETRY_AFTER


def test_an_idle_original_keeps_its_place_too() -> None:
    mesh, original, others, copy = with_a_copy(1)
    mesh.run(300.0)
    mesh.rendezvous.stop()
    copy.start()
    mesh.run(20.0)
    assert sights(copy)
    assert all(mesh.reaches(other, original) and mesh.reaches(original, other) for other in others)
    assert not copy.arrivals


@pytest.mark.parametrize("is_server_up", [True, False])
def test_who_starts_anew_is_taken_for_no_copy_and_is_back_at_once(*, is_server_up: bool) -> None:
    for seed in SEEDS:
        mesh, original, others, _ = with_a_copy(seed)
        streams = [mesh.stream(other, original) for other in others]
        mesh.run(3.0)
        if not is_server_up:
            mesh.rendezvous.stop()
        original.stop()
        mesh.run(0.5)
        original.start()
        started_at = mesh.network.now
        mesh.run(4.0)
        mesh.stop_streams()
        assert not any(stream.lost_since(started_at + 2.0) for stream in streams)
        assert not any(sights(member) for member in (original, *others))


def test_who_starts_anew_after_a_crash_that_its_connection_did_not_notice_is_let_in() -> None:
    mesh, original, others, _ = with_a_copy(1)
    half_open = original.wire
    original.wire = None
    original.stop()
    original.start()
    mesh.run(PATIENCE + 1.0)
    assert half_open is not None
    assert not half_open.is_open
    assert original.node is not None
    assert original.node.session.is_attached
    assert not original.refusals
    assert all(mesh.reaches(original, other) for other in others)


def test_a_copy_takes_the_place_of_an_original_that_was_switched_off() -> None:
    mesh, original, others, copy = with_a_copy(1)
    copy.start()
    mesh.run(5.0)
    original.stop()
    mesh.run(BACKOFF_REFUSED + 5.0)
    assert copy.node is not None
    assert not copy.node.is_copy
    assert all(mesh.reaches(copy, other) and mesh.reaches(other, copy) for other in others)


def test_without_the_server_too() -> None:
    mesh, original, others, copy = with_a_copy(1)
    mesh.rendezvous.stop()
    copy.start()
    mesh.run(5.0)
    assert sights(copy)
    original.stop()
    mesh.run(2 * RETRY_AFTER)
    assert all(mesh.reaches(copy, other) and mesh.reaches(other, copy) for other in others)


def test_a_copy_that_the_server_refused_asks_the_members_when_the_server_is_gone() -> None:
    mesh, original, others, copy = with_a_copy(1)
    copy.start()
    mesh.run(5.0)
    mesh.rendezvous.stop()
    original.stop()
    mesh.run(STAND_DOWN + RETRY_AFTER)
    assert all(mesh.reaches(copy, other) and mesh.reaches(other, copy) for other in others)


def test_an_original_that_roams_is_not_ousted_meanwhile() -> None:
    mesh, original, others, copy = with_a_copy(1)
    copy.start()
    mesh.run(5.0)
    assert original.wire is not None
    for _ in range(4):
        mesh.rendezvous.cut(original.wire)
        mesh.run_until(lambda: original.node is not None and original.node.session.is_attached, within=10.0)
        mesh.run(BACKOFF_REFUSED / 2)
    assert original.node is not None
    assert original.node.session.is_attached
    assert copy.node is not None
    assert copy.node.is_copy
    assert all(mesh.reaches(original, other) for other in others)


def with_a_copy(seed: int) -> tuple[Mesh, Member, list[Member], Member]:
    """Three members, and a copy of the second one's disk in a machine that is switched off."""
    mesh = Mesh(seed)
    first, original, last = mesh.found(*KINDS)
    copy = mesh.add_member("copy")
    copy.copy_disk(original)
    return mesh, original, [first, last], copy


def sights(member: Member) -> list[tuple[CloneSight, object]]:
    """What it told its user of copies, in whatever order members are named."""
    seen = [event for _, event in member.events if isinstance(event, CloneSeen)]
    named = [(event.sight, None if event.member is None else event.member.nick) for event in seen]
    return sorted(named, key=str)
