"""Letting in by invite and by approval: what the server checks, counts and tells."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from meshvpn.proto.control import MemberChanged, PutApproval, RefusalCode
from meshvpn.proto.invites import invite_keys, make_invitation
from meshvpn.proto.owner import approval_by
from meshvpn.proto.signed import Signed
from rendezvous.core import invites_of

from .signing import identity
from .test_core import World

ANNA, BERT, CARL = identity("anna"), identity("bert"), identity("carl")
CODE = invite_keys(bytes(range(16)))
OTHER_CODE = invite_keys(bytes(16))
HOUR = 3600


@pytest.fixture
def world() -> World:
    """An invite for two, and no password."""
    world = World.founded()
    put(world, locator=None)
    charter = world.network.invite(CODE, uses=2, expires_at=world.wall + HOUR)
    world.accept(world.network.put_charter(charter), world.network.founder)
    return world


def test_an_invite_lets_in_as_many_as_it_says_and_counts_nobody_twice(world: World) -> None:
    assert invites_of(world.known) == [CODE.locator]
    for member, address in ((ANNA, "10.7.5.2"), (ANNA, "10.7.5.2"), (BERT, "10.7.5.3")):
        assert world.admit(world.network.join_invited(member, CODE)).address == address
    assert world.refusal(world.network.join_invited(CARL, CODE), CARL) is RefusalCode.INVITE_USED
    assert world.stored(ANNA).invitation == make_invitation(CODE, ANNA.public)
    # The count goes on through changes of the charter, and ends with the invite.
    put(world, access="approve")
    assert world.refusal(world.network.join_invited(CARL, CODE), CARL) is RefusalCode.INVITE_USED
    put(world, invites=[])
    assert world.known.uses == {}
    assert world.refusal(world.network.join_invited(CARL, CODE), CARL) is RefusalCode.INVITE_UNKNOWN


def test_an_invite_ends_in_time_and_counts_for_nothing_in_a_locked_network(world: World) -> None:
    put(world, access="locked")
    assert world.refusal(world.network.join_invited(ANNA, CODE), ANNA) is RefusalCode.LOCKED
    put(world, access="open")
    world.wall += HOUR
    assert world.refusal(world.network.join_invited(ANNA, CODE), ANNA) is RefusalCode.INVITE_EXPIRED


def test_an_invitation_is_by_who_has_the_code_for_who_joins(world: World) -> None:
    for bad, code in (
        (make_invitation(CODE, BERT.public), RefusalCode.BAD_SIGNATURE),
        (msgspec.structs.replace(make_invitation(CODE, ANNA.public), signature=bytes(64)), RefusalCode.BAD_SIGNATURE),
        (make_invitation(OTHER_CODE, ANNA.public), RefusalCode.STALE_CHARTER),
        (Signed(b"rubbish", CODE.signer.public, bytes(64)), RefusalCode.BAD_REQUEST),
    ):
        assert world.refusal(world.network.join_invited(ANNA, CODE, invitation=bad), ANNA) is code


def test_who_was_evicted_does_not_come_back_by_an_invite(world: World) -> None:
    world.admit(world.network.join_invited(ANNA, CODE))
    world.accept(world.network.put_charter(world.network.evict(ANNA.public)), world.network.founder)
    assert world.refusal(world.network.join_invited(ANNA, CODE), ANNA) is RefusalCode.EVICTED


def test_whom_the_owner_approved_joins_without_a_password_and_into_a_locked_network(world: World) -> None:
    put(world, access="locked")
    for signer, code in ((world.network.founder, RefusalCode.BAD_SIGNATURE), (BERT, RefusalCode.BAD_SIGNATURE)):
        assert world.refusal(world.network.join_approved(ANNA, signer), ANNA) is code
    other = world.network.join_approved(ANNA, approved=BERT)
    assert world.refusal(other, ANNA) is RefusalCode.BAD_SIGNATURE
    assert world.admit(world.network.join_approved(ANNA)).address == "10.7.5.2"
    assert world.stored(ANNA).approval is not None


def test_an_approval_is_stored_and_told_to_everybody() -> None:
    world = World.founded(ANNA)
    world.accept(world.network.put_charter(world.network.appoint(BERT.public)), world.network.founder)
    approval = approval_by(BERT, world.network.uid, ANNA.public, wall=0)
    outcome = world.accept(PutApproval(rid=2, approval=approval), ANNA)  # whoever passes it on
    assert world.stored(ANNA).approval == approval
    assert outcome.notice is not None
    (message,) = outcome.notice.messages
    assert isinstance(message, MemberChanged)
    assert message.entry.approval == approval


def test_an_approval_by_nobody_who_may_or_of_nobody_is_refused() -> None:
    world = World.founded(ANNA)
    uid = world.network.uid
    world.accept(world.network.put_charter(world.network.appoint(BERT.public)), world.network.founder)
    good = approval_by(BERT, uid, ANNA.public, wall=0)
    world.accept(world.network.put_charter(world.network.appoint(serial=2)), world.network.founder)
    for approval, code in (
        (good, RefusalCode.BAD_SIGNATURE),  # dismissed since
        (approval_by(CARL, uid, ANNA.public, wall=0), RefusalCode.BAD_SIGNATURE),
        (approval_by(world.network.owner, bytes(16), ANNA.public, wall=0), RefusalCode.NOT_ALLOWED),
        (approval_by(world.network.owner, uid, CARL.public, wall=0), RefusalCode.NOT_A_MEMBER),
        (Signed(bytes(500), world.network.owner.public, bytes(64)), RefusalCode.TOO_LARGE),
    ):
        assert world.refusal(PutApproval(rid=2, approval=approval), ANNA) is code


def put(world: World, **changes: Any) -> None:
    world.accept(world.network.put_charter(world.network.change(**changes)), world.network.founder)
