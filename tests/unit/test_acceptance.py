"""Which records a roster accepts: claims, numbers, epochs, limits; what is refused leaves everything as it was."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from meshvpn.proto import disco, owner, roster
from meshvpn.proto.control import MemberEntry
from meshvpn.proto.drops import DropReason
from meshvpn.proto.epochs import EpochKey, EpochKeys
from meshvpn.proto.keys import Identity
from meshvpn.proto.member import MemberChanged
from meshvpn.proto.owner import PasswordRule
from meshvpn.proto.primitives import x25519_public
from meshvpn.proto.record import check_record
from meshvpn.proto.roster import Roster, StoredMember
from meshvpn.proto.signed import DOMAIN_RECORD, Signed

from .founded import WALL, Founded, found


@pytest.fixture
def network() -> Founded:
    return found(4)


def test_a_nick_stays_with_who_was_known_first_whatever_the_case(network: Founded) -> None:
    own = network.roster(0)
    assert own.handle_entry(entry(network, 2, nick="PBX1"), wall=WALL) is None
    assert own.handle_entry(entry(network, 3, nick="pbx1"), wall=WALL) is None
    assert [member.nick for member in own.members.values()] == ["pbx1", "PBX1-2", "pbx1-3"]
    assert own.handle_entry(entry(network, 1, nick="other"), wall=WALL) is None
    assert own.handle_entry(entry(network, 3, nick="pbx1", sequence=WALL + 20), wall=WALL) is None
    assert [member.nick for member in own.members.values()] == ["other", "PBX1-2", "pbx1"]


@pytest.mark.parametrize("claim", ["address", "tunnel_key", "disco_key"])
def test_what_is_anothers_cannot_be_claimed_until_that_one_leaves(network: Founded, claim: str) -> None:
    own = network.roster(0)
    victim = own.members[network.identities[1].public]
    claimed = entry(network, 2, **{claim: getattr(victim, claim)})
    before = own.export()
    assert own.handle_entry(claimed, wall=WALL) is DropReason.UNEXPECTED
    assert own.export() == before
    own.handle_leave(owner.make_leave(network.uid, network.identities[1], wall=WALL + 1), wall=WALL)
    assert own.handle_entry(claimed, wall=WALL) is None


def test_a_member_may_change_what_is_its_own_and_then_others_may_have_it(network: Founded) -> None:
    own = network.roster(0)
    former = own.members[network.identities[1].public].disco_key
    assert own.handle_entry(entry(network, 1), wall=WALL) is None
    assert own.handle_entry(entry(network, 2, disco_key=former), wall=WALL) is None


def test_who_uses_a_number_twice_is_seen_the_same_by_all(network: Founded) -> None:
    twice = [entry(network, 1, nick=nick, sequence=WALL + 5) for nick in ("alpha", "bravo", "zulu")]
    seen = set()
    for order in itertools.permutations(twice):
        own = network.roster(0)
        for one in (*order, *order):
            own.handle_entry(one, wall=WALL)
        seen.add(own.members[network.identities[1].public].nick)
    assert len(seen) == 1


def test_an_older_record_is_stale_and_the_same_one_is_no_change(network: Founded) -> None:
    own = network.roster(0)
    assert own.handle_entry(network.entries[1], wall=WALL) is None
    assert own.take_events() == []
    assert own.handle_entry(entry(network, 1, sequence=WALL + 9), wall=WALL) is None
    assert [type(event) for event in own.take_events()] == [MemberChanged]
    assert own.handle_entry(network.entries[1], wall=WALL) is DropReason.STALE


def test_a_record_of_the_previous_epoch_counts_only_for_who_was_known_then(network: Founded) -> None:
    signer = network.roster(0)
    update = owner.evict(
        signer,
        network.owner,
        network.identities[0],
        network.records[0],
        network.identities[3].public,
        PasswordRule.KEEP,
        entropy=network.entropy,
        wall=WALL,
    )
    late = Roster(network.uid, network.identities[2], network.state)
    late.handle_charter(network.charter, network.entries[:1], wall=WALL)
    newer = entry(network, 0, sequence=WALL + 5)
    for own in (network.roster(1), late):
        assert own.handle_charter(update.charter, [], wall=WALL) is None
        assert own.handle_entry(newer, wall=WALL) is None
    assert late.handle_entry(network.entries[1], wall=WALL) is DropReason.STALE
    assert late.handle_entry(network.entries[3], wall=WALL) is DropReason.STALE  # the evicted


def test_members_and_those_who_were_are_bounded(network: Founded, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Roster(network.uid, network.identities[0], network.state)
    monkeypatch.setattr(roster, "MAX_MEMBERS", 2)
    assert [own.handle_entry(one, wall=WALL) for one in network.entries[1:]] == [None, None, DropReason.OVER_LIMIT]
    assert own.handle_entry(entry(network, 1), wall=WALL) is None  # who is in may still change
    monkeypatch.setattr(roster, "MAX_FORMER", 1)
    for number in (1, 2):
        own.handle_leave(owner.make_leave(network.uid, network.identities[number], wall=WALL + 1), wall=WALL)
    assert len(own.export().former) == 1


def test_an_approval_that_is_too_large_is_not_kept(network: Founded) -> None:
    own = network.roster(0)
    large = msgspec.structs.replace(entry(network, 1), approval=Signed(bytes(500), bytes(32), bytes(64)))
    assert own.handle_entry(large, wall=WALL) is None
    assert own.export().approvals == []


def test_what_does_not_check_on_the_disk_is_left_out(network: Founded) -> None:
    state = network.roster(0).export()
    forged = Signed(state.members[0].record.body, state.members[0].record.signer, bytes(64))
    same_key = StoredMember(record(network, 3, disco_key=disco.public_key(network.disco_keys[2])), 1)
    state.members = [StoredMember(forged, 1), state.members[1], same_key]
    own = Roster(network.uid, network.identities[0], state)
    assert [member.nick for member in own.members.values()] == ["pbx2"]
    assert (own.drops[DropReason.BAD_SIGNATURE], own.drops[DropReason.UNEXPECTED]) == (1, 1)


def test_a_clock_that_was_set_back_does_not_lengthen_an_epochs_life() -> None:
    keys = EpochKeys(bytes(16), Identity(bytes(32)), [EpochKey(2, b"n" * 32), EpochKey(1, b"o" * 32, WALL)])
    for wall, count in ((WALL, 2), (WALL + 86_399, 2), (WALL + 86_400, 1), (WALL - 86_400, 1), (0, 1)):
        assert len(keys.preshared_keys(b"a" * 32, b"b" * 32, since=1, wall=wall)) == count
        assert (keys.previous_left(wall=wall) is None) == (count == 1)


def record(network: Founded, number: int, **changes: Any) -> Signed:
    return made(network, number, **changes).record


def test_whether_a_member_relays_is_in_its_record_and_true_in_those_that_are_too_old_to_say(network: Founded) -> None:
    own = network.roster(0)
    identity = network.identities[1].public
    assert own.handle_entry(entry(network, 1, relays=False), wall=WALL) is None
    assert not own.members[identity].relays
    assert own.handle_entry(entry(network, 1, sequence=WALL + 20), wall=WALL) is None
    assert own.members[identity].relays
    shortened = msgspec.msgpack.encode(msgspec.msgpack.decode(own.records()[identity].body)[:-1])
    older = network.identities[1].sign(DOMAIN_RECORD, shortened)
    assert check_record(older, own.charter).relays


def entry(network: Founded, number: int, **changes: Any) -> MemberEntry:
    """A newer record of a member, with new keys of the daemon's run unless they are given."""
    envelope = made(network, number, **changes).envelope
    address = changes.get("address", network.addresses[number])
    return MemberEntry(network.identities[number].public, address, envelope)


def made(network: Founded, number: int, **changes: Any) -> owner.OwnRecord:
    facts: dict[str, Any] = {
        "address": network.addresses[number],
        "nick": f"pbx{number}",
        "tunnel_key": x25519_public(network.tunnel_keys[number]),
        "disco_key": disco.public_key(network.entropy(32)),
        "joined_at": WALL,
        "sequence": WALL + 1,
        "software": "",
        **changes,
    }
    return owner.make_record(network.roster(number), network.identities[number], entropy=network.entropy, **facts)
