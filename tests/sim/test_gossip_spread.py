"""How fast news is everywhere, and that it costs each member a few messages, not one to everybody."""

from __future__ import annotations

from functools import cache

import pytest

from meshvpn.proto import charter as charter_module
from meshvpn.proto import keys, owner, record
from meshvpn.proto.charter import is_banned
from meshvpn.proto.drafts import CharterUpdate
from meshvpn.proto.owner import PasswordRule
from meshvpn.proto.roster import Roster
from tests.unit.founded import WALL, found

from .gossips import LATENCY, Gossips

ROUND_TRIPS = 14 * LATENCY
"""Two hops of connect, summary, digest and charter each."""


@pytest.fixture(autouse=True)
def _signatures_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of rosters check the same records."""
    verify = cache(keys.verify)
    for module in (record, charter_module):
        monkeypatch.setattr(module, "verify", verify)


@pytest.mark.parametrize("members", [50, 200])
def test_an_eviction_is_everywhere_in_a_few_round_trips_and_costs_a_few_messages_each(members: int) -> None:
    gossips = make(members)
    gossips.connect_settled()
    gossips.run(members + 20.0)
    before, links = gossips.messages.total(), gossips.links
    update = eviction(gossips, members - 1)
    gossips.change(0, lambda roster: roster.handle_charter(update.charter, [], wall=WALL))
    took = gossips.run(5.0, until=lambda: is_known(gossips, update, members - 1))
    assert took <= ROUND_TRIPS
    gossips.run(10.0)
    assert gossips.links - links <= 8 * members
    assert gossips.messages.total() - before <= 25 * members
    charters = gossips.messages["Charters"]
    assert members - 2 <= charters <= 1.2 * members, "the large message goes once to each"


def test_with_an_honest_server_only_hashes_are_exchanged() -> None:
    members = 50
    gossips = make(members)
    gossips.connect_settled()
    gossips.run(100.0)
    before, links = gossips.messages.copy(), gossips.links
    update = eviction(gossips, members - 1)
    for number in range(members - 1):
        gossips.change(number, lambda roster: roster.handle_charter(update.charter, [], wall=WALL), is_attached=True)
    gossips.run(10.0)
    sent = gossips.messages - before
    assert set(sent) == {"Summary", "Done"}
    assert gossips.links - links <= 6 * members


def test_members_that_come_together_all_compare_what_they_have_once() -> None:
    gossips = make(20)
    gossips.connect()
    gossips.run(60.0)
    assert gossips.links <= 1.5 * 20 * 19 / 2
    assert set(gossips.messages) == {"Summary", "Done"}


def test_idle_members_cost_next_to_nothing() -> None:
    gossips = make(20)
    gossips.connect()
    for machine in gossips.machines:
        machine.follow(is_attached=True, now=gossips.now)
    gossips.run(60.0)
    links = gossips.links
    gossips.run(3600.0)
    # `follow` in gossips.py says that there is no server: a round in half a minute.
    assert gossips.links - links <= 20 * 3600 / 20


def test_heads_that_cannot_be_reached_keep_nobody_else_from_the_news() -> None:
    gossips = make(40)
    gossips.connect_settled()
    gossips.run(60.0)
    gossips.withheld = {1, 2, 3}
    update = eviction(gossips, 39)
    gossips.change(0, lambda roster: roster.handle_charter(update.charter, [], wall=WALL))
    reached = [number for number in range(1, 39) if number not in gossips.withheld]
    took = gossips.run(30.0, until=lambda: all(knows(gossips, number, 39) for number in reached))
    assert took <= 5.0


def test_a_chain_of_members_passes_it_on_at_once() -> None:
    gossips = make(12)
    gossips.is_cut = lambda left, right: abs(left - right) != 1
    gossips.connect()
    gossips.run(60.0)
    update = eviction(gossips, 11)
    gossips.change(0, lambda roster: roster.handle_charter(update.charter, [], wall=WALL))
    took = gossips.run(30.0, until=lambda: all(knows(gossips, number, 11) for number in range(11)))
    assert took <= 10 * ROUND_TRIPS / 2


def test_halves_that_heal_agree_at_once_by_the_first_two_that_meet() -> None:
    gossips = make(20)
    gossips.is_cut = lambda left, right: (left < 10) != (right < 10)
    gossips.connect()
    gossips.run(40.0)
    update = eviction(gossips, 19)
    gossips.change(0, lambda roster: roster.handle_charter(update.charter, [], wall=WALL))
    gossips.run(10.0)
    assert not any(knows(gossips, number, 19) for number in range(10, 19))
    gossips.is_cut = lambda _left, _right: False
    gossips.meet(5, 15)
    took = gossips.run(30.0, until=lambda: all(knows(gossips, number, 19) for number in range(19)))
    assert took <= 2 * ROUND_TRIPS


def test_the_evicted_is_told_nothing_any_more() -> None:
    gossips = make(5)
    gossips.connect()
    gossips.run(30.0)
    update = eviction(gossips, 4)
    gossips.change(0, lambda roster: roster.handle_charter(update.charter, [], wall=WALL))
    gossips.run(5.0)
    before = gossips.received[4]
    evicted = gossips.made.addresses[4]
    assert all(machine.handle_incoming(evicted, now=gossips.now) is None for machine in gossips.machines[:4])
    gossips.run(600.0)
    assert gossips.received[4] == before


def test_a_new_record_is_everywhere_in_seconds() -> None:
    gossips = make(30)
    gossips.connect()
    gossips.run(60.0)
    changed = owner.make_record(
        gossips.rosters[7],
        gossips.made.identities[7],
        address=gossips.made.addresses[7],
        nick="renamed",
        tunnel_key=keys_of(gossips, 7),
        disco_key=keys_of(gossips, 7),
        joined_at=WALL,
        sequence=WALL + 1,
        software="test",
        entropy=gossips.made.entropy,
    ).record
    gossips.made.records[7] = changed
    gossips.change(7, lambda roster: roster)
    others = [roster for number, roster in enumerate(gossips.rosters) if number != 7]
    took = gossips.run(60.0, until=lambda: all("renamed" in nicks(roster) for roster in others))
    assert took <= 15.0


def make(members: int) -> Gossips:
    made = found(members)
    states = made.roster(0).export(), made.roster(1).export()
    rosters = []
    for number, identity in enumerate(made.identities):
        roster = Roster(made.uid, identity, states[number == 0])
        rosters.append(made.roster(number) if number < 2 else roster)
        for other, record_of_other in enumerate(made.records):
            if other != number:
                rosters[-1].handle_record(record_of_other, wall=WALL)
        rosters[-1].take_events()
    return Gossips(made, rosters)


def eviction(gossips: Gossips, target: int) -> CharterUpdate:
    made = gossips.made
    return owner.evict(
        gossips.rosters[0],
        made.owner,
        made.identities[0],
        made.records[0],
        made.identities[target].public,
        PasswordRule.KEEP,
        entropy=made.entropy,
        wall=WALL,
    )


def knows(gossips: Gossips, number: int, evicted: int) -> bool:
    return is_banned(gossips.rosters[number].charter, gossips.made.identities[evicted].public)


def is_known(gossips: Gossips, update: CharterUpdate, evicted: int) -> bool:
    others = gossips.rosters[:evicted]
    return all(roster.signed_charter == update.charter for roster in others)


def keys_of(gossips: Gossips, number: int) -> bytes:
    identity = gossips.made.identities[number].public
    return gossips.rosters[(number + 1) % len(gossips.rosters)].members[identity].tunnel_key


def nicks(roster: Roster) -> set[str]:
    return {member.nick for member in roster.members.values()}
