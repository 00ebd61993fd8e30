"""The audit list: nothing is taken out or put between unnoticed, and each entry is proven by who did it."""

from __future__ import annotations

import msgspec
import pytest
from msgspec import structs

from meshvpn.proto import owner
from meshvpn.proto.acts import MAX_DETAIL, Kind, decode_act, make_act, words_of
from meshvpn.proto.audit import GENESIS, MAX_LINK, AuditError, Chain, Entry, is_proven, read
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.keys import open_secret
from meshvpn.proto.member import Noted
from meshvpn.proto.owner import PasswordRule
from meshvpn.proto.roster import Roster
from meshvpn.proto.signed import DOMAIN_ACT, Signed

from .founded import WALL, Founded, found


@pytest.fixture
def network() -> Founded:
    return found(4)


@pytest.fixture
def entries(network: Founded) -> list[Entry]:
    """A join, a farewell and an eviction, as member 1 noted them."""
    roster = network.roster(1)
    roster.handle_leave(owner.make_leave(network.uid, network.identities[2], wall=WALL + 1), wall=WALL + 2)
    roster.handle_charter(evicting(network), [], wall=WALL + 3)
    return noted(roster)


def test_entries_say_who_did_what_to_whom_and_when(network: Founded, entries: list[Entry]) -> None:
    left, evicted = entries
    assert (left.kind, left.nick, left.actor_nick, left.at) == ("left", "pbx2", "pbx2", WALL + 1)
    assert (evicted.kind, evicted.nick, evicted.actor_nick, evicted.detail) == (
        "evict",
        "pbx3",
        "owner",
        "password keep",
    )
    assert evicted.subject == network.identities[3].public
    assert (evicted.at, evicted.seen_at) == (WALL, WALL + 3)
    assert all(is_proven(entry) for entry in entries)


def test_an_entry_that_somebody_else_signed_proves_nothing(network: Founded, entries: list[Entry]) -> None:
    entry = entries[1]
    assert not is_proven(structs.replace(entry, actor=network.identities[2].public))
    assert not is_proven(structs.replace(entry, kind="joined"))
    forged = Signed(entry.evidence.body, entry.evidence.signer, bytes(64))
    assert not is_proven(structs.replace(entry, evidence=forged))


def test_what_was_appended_is_read_back_and_can_be_continued(entries: list[Entry]) -> None:
    chain = Chain()
    data = b"".join(chain.link(entry) for entry in entries)
    found, head, size = read(data, GENESIS)
    assert (found, head, size) == (entries, chain.head, len(data))
    longer = Chain(head, found)
    again = structs.replace(entries[0], kind="evict")
    data += longer.link(again)
    assert read(data, GENESIS)[0] == [*entries, again]


def test_what_is_told_twice_is_written_once(entries: list[Entry]) -> None:
    chain = Chain()
    data = b"".join(chain.link(entry) for entry in entries)
    assert chain.link(structs.replace(entries[0], seen_at=5)) == b""
    assert Chain(chain.head, read(data)[0]).link(entries[1]) == b""


def test_a_link_that_is_missing_or_changed_is_noticed(entries: list[Entry]) -> None:
    chain = Chain()
    links = [chain.link(entry) for entry in [*entries, structs.replace(entries[0], kind="evict")]]
    for broken, head in (
        (links[0] + links[2], GENESIS),
        (links[1] + links[0] + links[2], GENESIS),
        (links[0] + links[1][:-1] + b"\0" + links[2], GENESIS),
        (links[1] + links[2], GENESIS),
        (b"\xff\xff\xff\xff" + bytes(MAX_LINK), GENESIS),
    ):
        with pytest.raises(AuditError, match="of the audit list"):
            read(broken, head)
    assert len(read(links[1] + links[2])[0]) == 2  # the beginning was put away


def test_a_write_that_a_crash_cut_short_costs_that_entry_alone(entries: list[Entry]) -> None:
    chain = Chain()
    first, second = (chain.link(entry) for entry in entries)
    for cut in range(len(first), len(first) + len(second)):
        found, _, size = read((first + second)[:cut], GENESIS)
        assert (found, size) == (entries[:1], len(first))


def test_whoever_joins_later_learns_what_happened_before_but_not_the_names(network: Founded) -> None:
    """They are sealed under the epoch keys of then."""
    roster = network.roster(0)
    for update in (
        owner.set_access(roster, network.owner, "open", wall=WALL - 1),
        None,
    ):
        signed = update.charter if update is not None else evicting(network, roster)
        assert roster.handle_charter(signed, [], wall=WALL) is None
    late = Roster(network.uid, network.identities[1], network.state)
    late.handle_charter(roster.signed_charter, [], wall=WALL + 9)
    told = noted(late)
    assert [(entry.kind, entry.detail) for entry in told if entry.kind != "joined"] == [
        ("access", "open"),
        ("evict", "password keep"),
    ]
    assert noted(late) == []
    again = Roster(network.uid, network.identities[1], late.export())
    again.handle_charter(roster.signed_charter, [], wall=WALL + 10)
    assert noted(again) == []


def test_an_act_whose_signature_does_not_hold_is_not_noted(network: Founded) -> None:
    roster = network.roster(1)
    act = make_act(network.owner, network.uid, Kind.UNBAN, roster.epoch_key, wall=WALL)
    forged = Signed(act.body, act.signer, bytes(64))
    charter = structs.replace(roster.charter, version=9, acts=[forged])
    signed = network.owner.sign(b"meshvpn charter v1\0", encode(charter))
    assert roster.handle_charter(signed, [], wall=WALL) is None
    assert noted(roster) == []
    assert roster.drops[DropReason.BAD_SIGNATURE] == 1


def test_what_an_act_says_is_bounded_and_printable(network: Founded) -> None:
    key = bytes(32)
    for detail in ("x" * (MAX_DETAIL + 1), "\x1b[2J"):
        act = make_act(network.owner, network.uid, Kind.ACCESS, key, wall=WALL, detail=detail)
        assert words_of(decode_act(act), lambda sealed: open_secret(key, sealed)).detail == ""
    for body in (encode([bytes(16), -1, "evict", None, b""]), encode([bytes(16), 1, "e" * 17, None, b""]), b""):
        with pytest.raises(MalformedMessage):
            decode_act(network.owner.sign(DOMAIN_ACT, body))


def evicting(network: Founded, roster: Roster | None = None) -> Signed:
    return owner.evict(
        roster or network.roster(0),
        network.owner,
        network.identities[0],
        network.records[0],
        network.identities[3].public,
        PasswordRule.KEEP,
        entropy=network.entropy,
        wall=WALL,
    ).charter


def noted(roster: Roster) -> list[Entry]:
    return [event.entry for event in roster.take_events() if isinstance(event, Noted)]


def encode(value: object) -> bytes:
    return msgspec.msgpack.encode(value)
