"""What one member's gossip takes from another, and what it does not: forgeries, floods, old news, silence."""

from __future__ import annotations

import random

import msgspec
import pytest

from meshvpn.proto import gossip as machine
from meshvpn.proto import gossip_messages as messages
from meshvpn.proto import owner
from meshvpn.proto.charter import is_banned
from meshvpn.proto.control import MAX_CHARTER
from meshvpn.proto.drafts import CharterUpdate
from meshvpn.proto.drops import DropReason
from meshvpn.proto.gossip import BARRED_FOR, LINK_TIMEOUT, MAX_INCOMING_OF_ONE, Gossip, LinkUnwanted, LinkWanted
from meshvpn.proto.gossip_messages import MAX_FRAME, MAX_ITEMS, NAME, Charters, Digest, Done, Kind, News, Summary
from meshvpn.proto.keys import Identity
from meshvpn.proto.owner import PasswordRule
from meshvpn.proto.record import record_of
from meshvpn.proto.roster import Roster, RosterState
from meshvpn.proto.signed import DOMAIN_CHARTER, DOMAIN_RECORD, Signed

from .founded import WALL, Founded, found

NOTHING = Summary(bytes(NAME), bytes(NAME))


def test_an_older_charter_changes_nothing_and_is_no_crime() -> None:
    made, roster, gossip = make()
    old = made.state.charter
    roster.handle_charter(eviction(made).charter, [], wall=WALL)
    link = listening(made, gossip)
    assert say(gossip, link, Charters([old])) is None
    assert is_banned(roster.charter, made.identities[3].public)
    assert say(gossip, link, Charters([old])) is None, "it is listened to as before"


def test_a_forged_charter_ends_the_link_and_is_the_last_that_is_heard_for_a_while() -> None:
    made, roster, gossip = make()
    forged = made.identities[1].sign(DOMAIN_CHARTER, eviction(made).charter.body)
    before = roster.export()
    link = listening(made, gossip)
    gossip.take_events()
    assert say(gossip, link, Charters([forged])) is DropReason.BAD_SIGNATURE
    assert gossip.take_events() == [LinkUnwanted(link)]
    assert roster.export() == before
    assert gossip.handle_incoming(made.addresses[1], now=1.0) is None
    assert gossip.handle_incoming(made.addresses[2], now=1.0) is not None
    assert gossip.handle_incoming(made.addresses[1], now=BARRED_FOR + 1.0) is not None


def test_a_forged_record_is_refused_and_what_came_before_it_counts() -> None:
    made, roster, gossip = make()
    update = eviction(made)
    stranger = Identity(b"s" * 32)
    genuine, forged = newer(made, 2), stranger.sign(DOMAIN_RECORD, made.records[2].body)
    link = listening(made, gossip)
    assert say(gossip, link, Charters([update.charter])) is None
    assert say(gossip, link, news(roster, [(Kind.RECORD, genuine), (Kind.RECORD, forged)])) in (
        DropReason.BAD_SIGNATURE,
        DropReason.MALFORMED,
    )
    assert roster.records()[made.identities[2].public] == genuine
    assert is_banned(roster.charter, made.identities[3].public)


def test_only_who_has_the_newest_epoch_key_can_vouch_for_somebody_unknown() -> None:
    made, roster, gossip = make()
    newcomer = made.identities[4].public
    roster = Roster(made.uid, made.identities[0], without(made.roster(0), newcomer))
    gossip = make_gossip(made, roster)
    old = made.roster(1)
    roster.handle_charter(eviction(made).charter, [], wall=WALL)
    roster.take_events()
    link = listening(made, gossip)
    gossip.note_change()
    records = [(Kind.RECORD, made.records[4]), (Kind.RECORD, newer(made, 2))]
    assert say(gossip, link, news(old, records)) is None
    assert newcomer not in roster.members
    assert roster.records()[made.identities[2].public] == newer(made, 2), "known before the change"
    assert say(gossip, link, news(roster, records)) is None
    assert newcomer in roster.members


def test_what_is_sealed_with_no_key_of_ours_is_dropped() -> None:
    made, _, gossip = make()
    link = listening(made, gossip)
    assert say(gossip, link, News(bytes(100))) is DropReason.DECRYPT_FAILED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        bytes(MAX_FRAME + 1),
        messages.encode(Summary(b"short", bytes(NAME))),
        messages.encode(Summary(bytes(NAME), bytes(NAME), share=bytes(7))),
        messages.encode(Summary(bytes(NAME), bytes(NAME), covered=bytes(8 * 1025))),
        messages.encode(Digest(bytes(15))),
        messages.encode(Digest(bytes(NAME * 8193))),
        messages.encode(Charters([])),
        messages.encode(Charters([Signed(b"", b"", b"")] * (MAX_ITEMS + 1))),
        msgspec.msgpack.encode([9, b""]),
    ],
)
def test_what_cannot_be_meant_is_refused(data: bytes) -> None:
    made, _, gossip = make()
    link = gossip.handle_incoming(made.addresses[1], now=0.0)
    assert link is not None
    reason = gossip.handle_frame(link, data, now=0.0, wall=WALL)
    assert reason in (DropReason.MALFORMED, DropReason.OVER_LIMIT)
    assert gossip.handle_frame(link, messages.encode(NOTHING), now=0.0, wall=WALL) is DropReason.UNEXPECTED


@pytest.mark.parametrize(
    "first",
    [Digest(b""), Charters([Signed(b"", b"", b"")]), News(b""), Done()],
    ids=["digest", "charters", "news", "done"],
)
def test_a_link_begins_with_a_summary(first: messages.Message) -> None:
    made, _, gossip = make()
    link = gossip.handle_incoming(made.addresses[1], now=0.0)
    assert link is not None
    assert say(gossip, link, first) is DropReason.UNEXPECTED


def test_a_charter_among_sealed_things_is_refused() -> None:
    made, roster, gossip = make()
    link = listening(made, gossip)
    assert say(gossip, link, news(roster, [(Kind.CHARTER, eviction(made).charter)])) is DropReason.OVER_LIMIT


def test_who_opens_links_without_end_is_refused_more_of_them() -> None:
    made, _, gossip = make()
    opened = [gossip.handle_incoming(made.addresses[1], now=0.0) for _ in range(10)]
    assert sum(link is not None for link in opened) == MAX_INCOMING_OF_ONE
    now, taken = 0.0, 0
    for _ in range(1000):
        now += 0.01
        if (link := gossip.handle_incoming(made.addresses[2], now=now)) is not None:
            gossip.handle_closed(link, now=now)
            taken += 1
    assert taken <= machine.LINK_BURST + 1000 * 0.01 * machine.LINK_RATE + 1
    assert gossip.handle_incoming(made.addresses[3], now=now) is not None, "others are heard as before"


def test_who_sends_without_end_is_cut() -> None:
    made, _, gossip = make()
    link = listening(made, gossip)
    big = messages.encode(News(bytes(MAX_CHARTER)))
    reasons = [gossip.handle_frame(link, big, now=0.0, wall=WALL) for _ in range(100)]
    assert DropReason.FLOOD in reasons
    assert reasons.index(DropReason.FLOOD) <= machine.BYTE_BURST / MAX_CHARTER + 1
    assert reasons[-1] is DropReason.UNEXPECTED, "the link is gone"


def test_who_asks_for_everything_again_and_again_gets_it_only_so_often() -> None:
    made, _, gossip = make()
    sent, now = 0, 0.0
    for _ in range(20_000):
        now += 0.001
        link = gossip.handle_incoming(made.addresses[1], now=now)
        if link is None:
            continue
        say(gossip, link, NOTHING, now=now)
        say(gossip, link, Digest(b""), now=now)
        sent += sum(len(frame) for _, frame in gossip.take_frames())
        gossip.handle_closed(link, now=now)
    assert sent <= (machine.LINK_BURST + 20 * machine.LINK_RATE + 1) * 8000


def test_a_link_on_which_nothing_is_said_ends_by_itself() -> None:
    made, _, gossip = make()
    link = gossip.handle_incoming(made.addresses[1], now=0.0)
    assert link is not None
    assert gossip.next_timeout() == LINK_TIMEOUT
    gossip.handle_timeout(now=LINK_TIMEOUT)
    assert gossip.take_events() == [LinkUnwanted(link)]


@pytest.mark.parametrize("address", ["10.1.0.99", "192.0.2.1", "", "rubbish"])
def test_strangers_are_not_listened_to(address: str) -> None:
    _, _, gossip = make()
    assert gossip.handle_incoming(address, now=0.0) is None


def test_who_is_evicted_or_waits_for_an_approval_is_not_listened_to() -> None:
    made, roster, gossip = make()
    roster.handle_charter(eviction(made).charter, [], wall=WALL)
    gossip.note_change()
    gossip.follow(is_attached=True, now=0.0)
    assert gossip.handle_incoming(made.addresses[3], now=0.0) is None
    closed = owner.set_access(roster, made.owner, "approve", wall=WALL).charter
    roster.handle_charter(closed, [], wall=WALL)
    waiting = [number for number in (1, 2) if roster.members[made.identities[number].public].is_pending]
    assert all(gossip.handle_incoming(made.addresses[number], now=0.0) is None for number in waiting)


def test_a_link_to_who_was_evicted_is_cut_in_the_middle() -> None:
    made, roster, gossip = make()
    link = gossip.handle_incoming(made.addresses[3], now=0.0)
    assert link is not None
    roster.handle_charter(eviction(made).charter, [], wall=WALL)
    gossip.note_change()
    gossip.follow(is_attached=True, now=0.0)
    assert LinkUnwanted(link) in gossip.take_events()
    assert say(gossip, link, NOTHING) is DropReason.UNEXPECTED


def test_a_peer_that_does_not_answer_is_left_alone_longer_and_longer_and_named() -> None:
    made, _, gossip = make()
    gossip.handle_connected(made.identities[1].public, now=0.0)
    now, tries = 0.0, []
    while now < 3600.0:
        at = gossip.next_timeout()
        assert at is not None
        now = max(now, at)
        gossip.handle_timeout(now=now)
        for event in gossip.take_events():
            if isinstance(event, LinkWanted):
                tries.append(now)
                gossip.handle_closed(event.link, now=now)
    assert gossip.silent == [made.identities[1].public]
    assert 5 <= len(tries) <= 20
    gossip.handle_gone(made.identities[1].public)
    assert gossip.silent == []


def test_a_peer_that_was_unreachable_is_told_when_it_comes() -> None:
    made, roster, gossip = make()
    roster.handle_charter(eviction(made).charter, [], wall=WALL)
    gossip.note_change()
    gossip.follow(is_attached=False, now=0.0)
    for number in (1, 2, 4):
        gossip.handle_connected(made.identities[number].public, now=100.0)
    gossip.handle_timeout(now=100.0)
    assert {event.address for event in gossip.take_events() if isinstance(event, LinkWanted)} == {
        made.addresses[number] for number in (1, 2, 4)
    }


def test_a_record_of_ours_that_we_did_not_make_is_told_upwards() -> None:
    made, roster, gossip = make()
    double = newer(made, 0)
    link = listening(made, gossip)
    assert say(gossip, link, news(roster, [(Kind.RECORD, double), (Kind.RECORD, made.records[0])])) is None
    assert gossip.take_doubles() == [double]
    assert gossip.take_doubles() == []


def test_batches_are_never_too_long() -> None:
    signed = [Signed(bytes(size), bytes(32), bytes(64)) for size in (10, 60_000, 60_000, MAX_CHARTER, *[10] * 200)]
    parts = list(messages.batches([(Kind.RECORD, item) for item in signed]))
    assert [item for part in parts for _, item in part] == signed
    assert all(len(part) <= MAX_ITEMS for part in parts)
    assert all(len(messages.encode_items(part)) <= MAX_FRAME for part in parts)


def make() -> tuple[Founded, Roster, Gossip]:
    """Member 0 of five, the owner."""
    made = found(5)
    roster = made.roster(0)
    return made, roster, make_gossip(made, roster)


def make_gossip(made: Founded, roster: Roster) -> Gossip:
    own = [made.identities[0].public, made.owner.public]
    return Gossip(roster, own, lambda: made.records[0], entropy=random.Random(1).randbytes)


def listening(made: Founded, gossip: Gossip) -> int:
    """A link from member 1 that has been told to tell."""
    link = gossip.handle_incoming(made.addresses[1], now=0.0)
    assert link is not None
    assert say(gossip, link, NOTHING) is None
    return link


def say(gossip: Gossip, link: int, message: messages.Message, *, now: float = 0.0) -> DropReason | None:
    return gossip.handle_frame(link, messages.encode(message), now=now, wall=WALL)


def news(sealer: Roster, items: list[messages.Item]) -> News:
    return News(sealer.seal_for_members(messages.encode_items(items), random.Random(2).randbytes))


def eviction(made: Founded) -> CharterUpdate:
    """Of member 3."""
    target = made.identities[3].public
    return owner.evict(
        made.roster(0),
        made.owner,
        made.identities[0],
        made.records[0],
        target,
        PasswordRule.KEEP,
        entropy=random.Random(3).randbytes,
        wall=WALL,
    )


def newer(made: Founded, number: int) -> Signed:
    """A member's next record."""
    body = msgspec.structs.replace(record_of(made.records[number]), sequence=WALL + 9)
    return made.identities[number].sign(DOMAIN_RECORD, msgspec.msgpack.encode(body))


def without(roster: Roster, identity: bytes) -> RosterState:
    state = roster.export()
    state.members = [stored for stored in state.members if stored.record.signer != identity]
    return state
