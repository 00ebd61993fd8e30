"""Lines of charters that admins sign while cut off from each other: whoever hears of them ends in one state."""

from __future__ import annotations

import random
from contextlib import suppress
from itertools import permutations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import owner, repair
from meshvpn.proto.acts import MAX_ACTS, Kind, make_act, merge_acts
from meshvpn.proto.charter import Charter, decode_charter, is_banned, may_sign_for_network, merge
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.keys import Identity
from meshvpn.proto.lines import MAX_LINES, Lines
from meshvpn.proto.roster import Roster
from meshvpn.proto.signed import Signed

from .test_charter import ADMINS, MEMBERS, WITNESS, World, founded

ACTIONS = ["evict", "unban", "passwd", "access", "admins"]
steps = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(3, MEMBERS - 1)), max_size=3)
owners_steps = st.lists(
    st.tuples(st.sampled_from([*ACTIONS, "dismiss"]), st.integers(1, MEMBERS - 1)),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(owners_steps, steps, steps, st.randoms(use_true_random=False))
def test_whoever_hears_all_lines_in_whatever_order_agrees_even_when_admins_are_put_out(
    owners: list[tuple[str, int]], first: list[tuple[str, int]], second: list[tuple[str, int]], rng: random.Random
) -> None:
    world = founded()
    charters = [signed for signer, line in enumerate((owners, first, second)) for signed in world.play(signer, line)]
    states = []
    for _ in range(3):
        roster = world.roster(WITNESS)
        hear_all(roster, charters, rng)
        states.append((roster.signed_charter, roster.charter, roster.key_epoch, roster.epoch_key))
        for signed in charters:  # no eviction is ever lost, except by whom the owner put out
            if may_sign_for_network(roster.charter, signed.signer):
                evicted = decode_charter(signed).evicted
                assert all(roster.charter.evicted[identity] >= at for identity, at in evicted.items())
    assert all(state == states[0] for state in states)


@settings(max_examples=40, deadline=None)
@given(steps, steps, st.randoms(use_true_random=False))
def test_members_that_only_hear_each_other_agree_too(
    first: list[tuple[str, int]], second: list[tuple[str, int]], rng: random.Random
) -> None:
    world = founded()
    rosters = [world.roster(WITNESS), world.roster(WITNESS)]
    for roster, signer, line in zip(rosters, ADMINS, (first, second), strict=True):
        hear_all(roster, world.play(signer, line), rng)
    for listener, speaker in (rosters, rosters[::-1]):
        for signed in speaker.charters():
            listener.handle_charter(signed, [], wall=9)
    assert rosters[0].charter == rosters[1].charter
    assert rosters[0].epoch_key == rosters[1].epoch_key


@settings(max_examples=40, deadline=None)
@given(steps, steps)
def test_one_charter_joins_all_lines_and_no_evicted_member_has_its_key(
    first: list[tuple[str, int]], second: list[tuple[str, int]]
) -> None:
    world = founded()
    admin = ADMINS[0]
    roster, witness = world.roster(admin), world.roster(WITNESS)
    charters = [
        signed for number, line in zip(ADMINS, (first, second), strict=True) for signed in world.play(number, line)
    ]
    for signed in charters:
        roster.handle_charter(signed, [], wall=9)
        witness.handle_charter(signed, [], wall=9)
    before = roster.charter
    update = repair.join_lines(
        roster,
        world.identities[admin],
        world.identities[admin],
        world.records[admin],
        entropy=random.Random(1).randbytes,
        wall=9,
    )
    if update is not None:
        for each in (roster, witness):
            assert each.handle_charter(update.charter, [], wall=9) is None
    assert roster.lines.are_joined
    assert roster.charters() == [roster.signed_charter]
    assert (roster.charter.evicted, roster.charter.unbanned) == (before.evicted, before.unbanned)
    assert not any(is_banned(roster.charter, who) for who in roster.charter.grants)
    assert witness.charter == roster.charter
    assert witness.epoch_key == roster.epoch_key
    assert join_again(world, roster, admin) is None


def test_charters_merge_alike_in_every_order_and_once_or_twice() -> None:
    world = founded()
    lines = [
        world.play(number, [("evict", 3 + number), ("access", 4)])[-1] for number in (0, 1, 2) if number + 3 != WITNESS
    ]
    expected: set[bytes] = set()
    for order in permutations([*lines, lines[0]]):
        known = Lines([world.states[0].charter])
        for signed in order:
            add(known, signed)
        expected.add(msgspec.msgpack.encode((known.export(), known.merged)))
    assert len(expected) == 1
    for left in map(decode_charter, lines):
        assert merge(left, left) == left


@pytest.mark.parametrize("is_first", [True, False])
def test_what_a_dismissed_admin_did_alone_counts_for_nothing_whichever_came_first(*, is_first: bool) -> None:
    world = founded()
    (late,) = world.play(1, [("evict", 4)])
    dismissal = owner.set_admins(world.roster(0), world.founder, [], wall=5).charter
    roster = world.roster(WITNESS)
    for signed in (dismissal, late) if is_first else (late, dismissal):
        roster.handle_charter(signed, [], wall=9)
    assert not is_banned(roster.charter, world.identities[4].public)
    assert roster.charters() == [dismissal]
    assert roster.key_epoch == 1


def test_what_another_admin_took_over_from_one_that_was_dismissed_stays() -> None:
    world = founded()
    (late,) = world.play(1, [("evict", 4)])
    second = world.roster(2)
    second.handle_charter(late, [], wall=5)
    taken_over = owner.set_access(second, world.identities[2], "locked", wall=6).charter
    dismissal = owner.set_admins(world.roster(0), world.founder, [world.identities[2].public], wall=5).charter
    roster = world.roster(WITNESS)
    for signed in (late, taken_over, dismissal):
        roster.handle_charter(signed, [], wall=9)
    assert is_banned(roster.charter, world.identities[4].public)


def test_a_line_that_was_covered_only_by_a_dismissed_admins_comes_back() -> None:
    world = founded()
    (honest,) = world.play(2, [("evict", 5)])
    thief = world.roster(1)
    thief.handle_charter(honest, [], wall=5)
    covering = owner.set_access(thief, world.identities[1], "locked", wall=6).charter
    dismissal = owner.set_admins(world.roster(0), world.founder, [world.identities[2].public], wall=5).charter
    roster = world.roster(WITNESS)
    for signed in (honest, covering, dismissal):
        assert roster.handle_charter(signed, [], wall=9) is None
    assert roster.charter.access == "open"
    assert is_banned(roster.charter, world.identities[5].public)
    again = Roster(roster.uid, world.identities[WITNESS], roster.export())
    assert again.charter == roster.charter
    assert again.charters() == roster.charters()


def test_a_charter_that_says_nothing_new_is_stale_also_if_somebody_else_signed_it() -> None:
    world = founded()
    base = world.states[0].charter
    (newer,) = world.play(1, [("evict", 4)])
    roster = world.roster(WITNESS)
    assert roster.handle_charter(newer, [], wall=9) is None
    before = roster.export()
    for signed in (base, newer):
        assert roster.handle_charter(signed, [], wall=9) in (DropReason.STALE, None)
    assert roster.export() == before


def test_lines_are_bounded() -> None:
    world = founded()
    known = Lines([world.states[0].charter])
    base = decode_charter(known.greatest)
    for number in range(2 * MAX_LINES):
        changed = msgspec.structs.replace(base, version=base.version + 1, evicted={bytes([number]) * 32: base.version})
        add(known, sign(world.identities[1], changed))
    assert len(known.export()) == MAX_LINES


def test_of_too_many_acts_the_newest_are_kept_in_whatever_order_lists_meet() -> None:
    signer = Identity(bytes(32))
    acts = [make_act(signer, bytes(16), Kind.UNBAN, bytes(32), wall=at) for at in range(MAX_ACTS + 40)]
    first, second, third = acts[:60], acts[40:110], acts[90:]
    assert merge_acts(merge_acts(first, second), third) == merge_acts(first, merge_acts(third, second)) == acts[40:]
    assert merge_acts(acts, acts) == acts[-MAX_ACTS:]


def test_a_member_that_leaves_a_void_line_has_the_key_of_before_again() -> None:
    world = founded()
    late = world.play(1, [("evict", 4), ("passwd", 4), ("evict", 5)])
    dismissal = owner.set_admins(world.roster(0), world.founder, [], wall=5).charter
    roster, before = world.roster(WITNESS), world.roster(WITNESS)
    for signed in (*late, dismissal):
        assert roster.handle_charter(signed, [], wall=9) is None
    assert (roster.key_epoch, roster.epoch_key) == (before.key_epoch, before.epoch_key)
    assert roster.settings.name == "net"


def hear_all(roster: Roster, charters: list[Signed], rng: random.Random) -> None:
    """As often as gossip repeats them: until nothing changes any more."""
    before = None
    while before != roster.charters():
        before = roster.charters()
        arriving = [*charters, *rng.choices(charters, k=2)] if charters else []
        rng.shuffle(arriving)
        for signed in arriving:
            roster.handle_charter(signed, [], wall=9)


def join_again(world: World, roster: Roster, admin: int) -> object:
    identity = world.identities[admin]
    return repair.join_lines(
        roster, identity, identity, world.records[admin], entropy=random.Random(2).randbytes, wall=9
    )


def add(known: Lines, signed: Signed) -> None:
    with suppress(MalformedMessage):
        known.add(signed)


def sign(signer: Identity, charter: Charter) -> Signed:
    return signer.sign(b"meshvpn charter v1\0", msgspec.msgpack.encode(charter))


def test_of_admins_that_evict_each_other_the_first_heard_counts_until_the_owner_says_who_is_right() -> None:
    world = founded()
    first, second = (world.identities[number].public for number in ADMINS)
    by_first = world.evict(world.roster(1), world.identities[1], 1, second).charter
    second_roster = world.roster(2)
    by_second = [world.evict(second_roster, world.identities[2], 2, first).charter]
    second_roster.handle_charter(by_second[0], [], wall=9)
    by_second.append(world.evict(second_roster, world.identities[2], 2, world.identities[4].public, 1).charter)
    left, right, owners = world.roster(WITNESS), world.roster(WITNESS), world.roster(0)
    for roster, charters in (
        (left, [by_first, *by_second]),
        (right, [*by_second, by_first]),
        (owners, [by_first, *by_second]),
    ):
        for signed in charters:
            roster.handle_charter(signed, [], wall=9)
    assert (is_banned(left.charter, second), is_banned(right.charter, first)) == (True, True)
    verdict = owner.set_access(owners, world.founder, "open", wall=10).charter
    for roster in (left, right):
        assert roster.handle_charter(verdict, [], wall=10) is None
        assert roster.charter == decode_charter(verdict)
        assert roster.key_epoch == roster.charter.epoch
    assert left.epoch_key == right.epoch_key
    assert not is_banned(right.charter, world.identities[4].public)
