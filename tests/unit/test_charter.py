"""Charters: who may sign which, and lines of them that meet in any order and end in one state."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import owner
from meshvpn.proto.charter import (
    MAX_ADMINS,
    MAX_EVICTED,
    MAX_VERSION,
    AdminSet,
    Charter,
    check_charter,
    check_genuine,
    decode_charter,
    is_banned,
    merge,
    merge_versions,
)
from meshvpn.proto.control import MAX_MEMBERS, MemberEntry
from meshvpn.proto.drafts import CharterUpdate
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage, MembershipError
from meshvpn.proto.keys import Identity, NetworkKeys, network_uid
from meshvpn.proto.owner import PasswordRule
from meshvpn.proto.roster import Roster, RosterState
from meshvpn.proto.signed import DOMAIN_ADMINS, DOMAIN_CHARTER, Signed

KEYS = NetworkKeys(b"L" * 32, b"W" * 32)
MEMBERS = 6
ADMINS = (1, 2)
"""Members that the owner delegated to; member 0 is the founder."""
WITNESS = 3
"""The member in whose roster the lines meet."""
versions = st.dictionaries(st.binary(min_size=1, max_size=2), st.integers(1, 9), max_size=5)


@given(versions, versions, versions)
def test_merging_versions_is_commutative_associative_and_idempotent(
    left: dict[bytes, int], middle: dict[bytes, int], right: dict[bytes, int]
) -> None:
    assert merge_versions(left, right) == merge_versions(right, left)
    assert merge_versions(merge_versions(left, middle), right) == merge_versions(left, merge_versions(middle, right))
    assert merge_versions(left, left) == left
    assert all(merge_versions(left, right)[key] >= at for key, at in left.items())


steps = st.lists(
    st.tuples(st.sampled_from(["evict", "unban", "passwd", "access", "admins"]), st.integers(3, MEMBERS - 1)),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(st.tuples(steps, steps, steps), st.randoms(use_true_random=False))
def test_lines_of_charters_that_meet_in_any_order_and_number_end_in_one_state(
    lines: tuple[list[tuple[str, int]], ...], rng: random.Random
) -> None:
    world = founded()
    charters = [charter for signer, line in enumerate(lines) for charter in world.play(signer, line)]
    states = []
    for _ in range(3):
        arriving = charters + rng.choices(charters, k=3) if charters else []
        rng.shuffle(arriving)
        roster = world.roster(WITNESS)
        for signed in arriving:
            roster.handle_charter(signed, [], wall=9)
        states.append((roster.signed_charter, roster.charter, roster.key_epoch, roster.epoch_key))
        for signed in charters:  # no eviction is ever lost
            evicted = decode_charter(signed).evicted
            assert all(roster.charter.evicted[identity] >= at for identity, at in evicted.items())
        again = Roster(roster.uid, world.identities[WITNESS], reloaded(roster.export()))
        assert again.charter == roster.charter
    assert all(state == states[0] for state in states)


def test_an_admin_that_the_owner_dismissed_or_evicted_changes_nothing_any_more() -> None:
    for dismiss in ("admins", "evict"):
        world = founded()
        (late,) = world.play(1, [("evict", 4)])
        roster, state = world.roster(WITNESS), world.roster(0)
        if dismiss == "admins":
            update = owner.set_admins(state, world.founder, [], wall=5)
        else:
            update = world.evict(state, world.founder, 0, world.identities[1].public)
        assert roster.handle_charter(update.charter, [], wall=5) is None
        before = roster.export()
        assert roster.handle_charter(late, [], wall=5) in (DropReason.STALE, DropReason.BAD_SIGNATURE)
        assert roster.export() == before


def test_the_servers_line_never_goes_back() -> None:
    world = founded()
    base = world.states[0].charter
    first, second = world.play(0, [("evict", 4), ("unban", 4)])
    assert check_charter(first, base).version == 3
    assert check_charter(second, first).version == 4
    for late, previous in ((base, first), (first, second), (first, first)):
        with pytest.raises(MalformedMessage) as caught:
            check_charter(late, previous)
        assert caught.value.reason is DropReason.STALE


def test_the_servers_line_keeps_the_newest_list_of_admins_and_ends_with_deletion() -> None:
    world = founded()
    base = world.states[0].charter
    admins = owner.set_admins(world.roster(0), world.founder, [], wall=5).charter
    longer = world.play(0, [("access", 4), ("access", 5)])[-1]
    with pytest.raises(MalformedMessage):
        check_charter(longer, admins)
    deleted = owner.delete_network(world.roster(0), world.founder, wall=5).charter
    assert check_charter(deleted, base).is_deleted
    with pytest.raises(MalformedMessage):
        check_charter(longer, deleted)


def test_only_the_owner_can_sign_a_deletion() -> None:
    world = founded()
    deleted = owner.delete_network(world.roster(0), world.founder, wall=5).charter
    check_genuine(deleted)
    assert refusal(world.identities[1].sign(DOMAIN_CHARTER, deleted.body)) is DropReason.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, DropReason.MALFORMED),
        ({"version": 0}, DropReason.MALFORMED),
        ({"version": MAX_VERSION + 1}, DropReason.MALFORMED),
        ({"epoch": 0}, DropReason.MALFORMED),
        ({"epoch": MAX_VERSION + 1}, DropReason.MALFORMED),
        ({"access": "everybody"}, DropReason.MALFORMED),
        ({"pool": "8.8.8.0/24"}, DropReason.MALFORMED),
        ({"pool": "rubbish"}, DropReason.MALFORMED),
        ({"locator": b"short"}, DropReason.MALFORMED),
        ({"owner": b"short"}, DropReason.MALFORMED),
        ({"grants": {b"short": b""}}, DropReason.MALFORMED),
        ({"evicted": {bytes(32): 99}}, DropReason.MALFORMED),
        ({"unbanned": {bytes(32): 0}}, DropReason.MALFORMED),
        ({"evicted": {n.to_bytes(32, "big"): 1 for n in range(MAX_EVICTED + 1)}}, DropReason.OVER_LIMIT),
        ({"grants": {n.to_bytes(32, "big"): b"" for n in range(MAX_MEMBERS + 2)}}, DropReason.OVER_LIMIT),
        ({"sealed": bytes(400_000)}, DropReason.OVER_LIMIT),
    ],
)
def test_a_charter_that_makes_no_sense_is_refused_even_from_the_owner(
    changes: dict[str, Any], reason: DropReason
) -> None:
    world = founded()
    charter = msgspec.structs.replace(decode_charter(world.states[0].charter), **changes)
    assert refusal(world.founder.sign(DOMAIN_CHARTER, msgspec.msgpack.encode(charter))) is reason


@pytest.mark.parametrize(
    ("uid", "count", "is_owners", "reason"),
    [
        (b"other", 1, True, DropReason.BAD_SIGNATURE),
        (None, 1, False, DropReason.BAD_SIGNATURE),
        (None, MAX_ADMINS + 1, True, DropReason.OVER_LIMIT),
    ],
)
def test_a_forged_or_too_long_list_of_admins_is_refused(
    uid: bytes | None, count: int, is_owners: bool, reason: DropReason
) -> None:
    world = founded()
    admin = world.identities[1]
    body = AdminSet(uid or world.uid, 9, [admin.public] * count)
    signed = (world.founder if is_owners else admin).sign(DOMAIN_ADMINS, msgspec.msgpack.encode(body))
    charter = msgspec.structs.replace(decode_charter(world.states[0].charter), admins=signed)
    assert refusal(admin.sign(DOMAIN_CHARTER, msgspec.msgpack.encode(charter))) is reason


def test_bans_beyond_the_limit_are_not_merged() -> None:
    base = decode_charter(founded().states[0].charter)

    def banning(start: int) -> Charter:
        evicted = {n.to_bytes(32, "big"): 1 for n in range(start, start + MAX_EVICTED)}
        return msgspec.structs.replace(base, evicted=evicted)

    with pytest.raises(MalformedMessage) as caught:
        merge(banning(0), banning(1))
    assert caught.value.reason is DropReason.OVER_LIMIT


def test_an_unban_counts_from_its_version_on_and_an_eviction_wins_a_draw() -> None:
    base, who = decode_charter(founded().states[0].charter), bytes(32)
    for evicted, unbanned, banned in ((5, 0, True), (5, 4, True), (5, 5, True), (5, 6, False), (0, 5, False)):
        charter = msgspec.structs.replace(
            base, evicted={who: evicted} if evicted else {}, unbanned={who: unbanned} if unbanned else {}
        )
        assert is_banned(charter, who) == banned


@dataclass
class World:
    """A network with two admins, as each member has it."""

    founder: Identity
    identities: list[Identity]
    states: list[RosterState]
    records: list[Signed]

    @property
    def uid(self) -> bytes:
        return network_uid(self.founder.public)

    def roster(self, number: int) -> Roster:
        return Roster(self.uid, self.identities[number], self.states[number])

    def play(self, number: int, line: list[tuple[str, int]]) -> list[Signed]:
        """The charters that a signer (0 the owner, then the admins) makes of a line of steps, cut off from others."""
        signer = self.founder if number == 0 else self.identities[number]
        roster = self.roster(number)
        made: list[Signed] = []
        for action, target in line:
            try:
                update = self.step(roster, signer, number, action, target, len(made))
            except MembershipError:
                continue  # evicted already, not evicted, not the owner
            roster.handle_charter(update.charter, [], wall=5)
            made.append(update.charter)
        return made

    def step(
        self, roster: Roster, signer: Identity, number: int, action: str, target: int, count: int
    ) -> CharterUpdate:
        who, entropy = self.identities[target].public, random.Random(repr((number, action, target, count))).randbytes
        match action:
            case "evict":
                return self.evict(roster, signer, number, who, count)
            case "unban":
                return owner.unban(roster, signer, who, wall=5)
            case "passwd":
                keys = NetworkKeys(bytes([number, target, count]).ljust(32), bytes(32))
                return owner.change_password(roster, signer, keys, entropy=entropy, wall=5)
            case "access":
                return owner.set_access(roster, signer, ["open", "approve", "locked"][target % 3], wall=5)
            case "dismiss":
                return owner.set_admins(roster, signer, [a for a in roster.admins if a != who], wall=5)
            case _:
                admins = [self.identities[admin].public for admin in (*ADMINS, target)]
                known = [admin for admin in admins if admin in roster.members]
                return owner.set_admins(roster, signer, known, wall=5)

    def evict(self, roster: Roster, signer: Identity, number: int, who: bytes, count: int = 0) -> CharterUpdate:
        if who == self.identities[WITNESS].public:
            raise MembershipError("the witness stays")
        return owner.evict(
            roster,
            signer,
            self.identities[number],
            self.records[number],
            who,
            PasswordRule.KEEP,
            entropy=random.Random(repr((number, who, count))).randbytes,
            wall=5,
        )


@cache
def founded() -> World:
    entropy = random.Random("charter").randbytes
    network_owner, identities = Identity(entropy(32)), [Identity(entropy(32)) for _ in range(MEMBERS)]
    pool = IPv4Network("10.1.2.0/24")
    state = owner.found_network("net", KEYS, pool, network_owner, identities[0], entropy=entropy, wall=1)
    uid = network_uid(network_owner.public)
    rosters = [Roster(uid, identity, state) for identity in identities]
    entries, records = [], []
    for number, identity in enumerate(identities):
        made = owner.make_record(
            rosters[number],
            identity,
            address=f"10.1.2.{number + 1}",
            nick=f"m{number}",
            tunnel_key=entropy(32),
            disco_key=entropy(32),
            joined_at=2,
            sequence=2,
            software="",
            entropy=entropy,
        )
        records.append(made.record)
        entries.append(MemberEntry(identity.public, f"10.1.2.{number + 1}", made.envelope))
    for roster in rosters:
        roster.handle_charter(state.charter, entries, wall=2)
    admins = [identities[number].public for number in ADMINS]
    update = owner.set_admins(rosters[0], network_owner, admins, wall=3)
    for roster in rosters:
        assert roster.handle_charter(update.charter, [], wall=3) is None
    return World(network_owner, identities, [roster.export() for roster in rosters], records)


def reloaded(state: RosterState) -> RosterState:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=RosterState)


def refusal(signed: Signed) -> DropReason:
    with pytest.raises(MalformedMessage) as caught:
        check_genuine(signed)
    return caught.value.reason
