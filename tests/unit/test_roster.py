"""A roster in front of a server that lies."""

from __future__ import annotations

import os
from ipaddress import IPv4Network

import msgspec
import pytest

from meshvpn.proto import admission, owner
from meshvpn.proto.control import MemberEntry
from meshvpn.proto.drafts import CharterUpdate
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MembershipError
from meshvpn.proto.keys import Identity, NetworkKeys, network_uid
from meshvpn.proto.member import MemberRemoved, Noted, SelfEvicted
from meshvpn.proto.owner import PasswordRule
from meshvpn.proto.roster import Roster, RosterState
from meshvpn.proto.signed import Signed


class World:
    """Three members; the first founded the network."""

    def __init__(self) -> None:
        self.owner = Identity(os.urandom(32))
        self.keys = NetworkKeys(os.urandom(32), os.urandom(32))
        self.identities = [Identity(os.urandom(32)) for _ in range(3)]
        pool = IPv4Network("10.1.2.0/24")
        state = owner.found_network("net", self.keys, pool, self.owner, self.identities[0], entropy=os.urandom, wall=1)
        self.charter = state.charter
        self.uid = network_uid(self.owner.public)
        joined = [admission.by_password(state.charter, self.keys) for _ in self.identities[1:]]
        states = [state, *joined]
        self.rosters = [Roster(self.uid, who, at) for who, at in zip(self.identities, states, strict=True)]
        self.records: list[Signed] = []
        self.entries: list[MemberEntry] = []
        for number, identity in enumerate(self.identities):
            address = f"10.1.2.{number + 1}"
            made = owner.make_record(
                self.rosters[number],
                identity,
                address=address,
                nick=f"pbx{number}",
                tunnel_key=os.urandom(32),
                disco_key=os.urandom(32),
                joined_at=5,
                sequence=5,
                software="test",
                entropy=os.urandom,
            )
            self.records.append(made.record)
            self.entries.append(MemberEntry(identity.public, address, made.envelope))
        for roster in self.rosters:
            roster.handle_charter(self.charter, self.entries, wall=2)
            roster.take_events()

    def evict(self, number: int, rule: PasswordRule = PasswordRule.RETIRE) -> CharterUpdate:
        return owner.evict(
            self.rosters[0],
            self.owner,
            self.identities[0],
            self.records[0],
            self.identities[number].public,
            rule,
            entropy=os.urandom,
            wall=3,
        )


@pytest.fixture
def world() -> World:
    return World()


def test_everybody_sees_the_others(world: World) -> None:
    assert [member.nick for member in world.rosters[1].members.values()] == ["pbx0", "pbx2"]


def test_an_evicted_member_is_out_everywhere_and_its_keys_are_worthless(world: World) -> None:
    update = world.evict(2)
    old_key = world.rosters[2].epoch_key
    for roster in world.rosters:
        assert roster.handle_charter(update.charter, [], wall=4) is None
    assert any(isinstance(event, MemberRemoved) for event in world.rosters[1].take_events())
    assert [event for event in world.rosters[2].take_events() if not isinstance(event, Noted)] == [SelfEvicted()]
    assert world.rosters[2].epoch_key == old_key
    assert world.rosters[1].epoch_key == world.rosters[0].epoch_key != old_key
    before = world.rosters[1].export()
    assert world.rosters[1].handle_entry(world.entries[2], wall=5) is not None
    assert world.rosters[1].export() == before


def test_an_older_charter_is_refused_and_changes_nothing(world: World) -> None:
    update = world.evict(2)
    world.rosters[1].handle_charter(update.charter, [], wall=4)
    before = world.rosters[1].export()
    assert world.rosters[1].handle_charter(world.charter, world.entries, wall=5) is DropReason.STALE
    assert world.rosters[1].export() == before


def test_a_charter_signed_by_a_mere_member_is_refused(world: World) -> None:
    update = world.evict(2)
    forged = world.identities[1].sign(b"meshvpn charter v1\0", update.charter.body)
    assert world.rosters[1].handle_charter(forged, [], wall=4) is DropReason.BAD_SIGNATURE


def test_a_mere_member_cannot_evict(world: World) -> None:
    with pytest.raises(MembershipError, match="not the owner"):
        owner.evict(
            world.rosters[1],
            world.identities[1],
            world.identities[1],
            None,
            world.identities[2].public,
            PasswordRule.RETIRE,
            entropy=os.urandom,
            wall=3,
        )


def test_a_second_identity_cannot_take_an_address_that_is_pinned(world: World) -> None:
    thief = Identity(os.urandom(32))
    made = owner.make_record(
        world.rosters[1],
        thief,
        address="10.1.2.1",
        nick="thief",
        tunnel_key=os.urandom(32),
        disco_key=os.urandom(32),
        joined_at=9,
        sequence=9,
        software="",
        entropy=os.urandom,
    )
    entry = MemberEntry(thief.public, "10.1.2.1", made.envelope)
    assert world.rosters[1].handle_entry(entry, wall=5) is DropReason.UNEXPECTED


def test_a_retired_password_opens_nothing_and_a_new_one_does(world: World) -> None:
    update = world.evict(2)
    world.rosters[0].handle_charter(update.charter, [], wall=4)
    with pytest.raises(MembershipError):
        admission.by_password(update.charter, world.keys)
    keys = NetworkKeys(os.urandom(32), os.urandom(32))
    changed = owner.change_password(world.rosters[0], world.owner, keys, entropy=os.urandom, wall=5)
    assert admission.by_password(changed.charter, keys).epoch_keys[0].key == world.rosters[0].epoch_key


def test_the_state_survives_the_disk(world: World) -> None:
    state = world.rosters[1].export()
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=RosterState)
    assert Roster(world.uid, world.identities[1], again).export() == state
