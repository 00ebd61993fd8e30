"""A member's part in its network: names people type, records, and requests that end in one way or another."""

from __future__ import annotations

import msgspec
import pytest

from meshvpn.proto import owner
from meshvpn.proto.control import MemberEntry
from meshvpn.proto.errors import MembershipError
from meshvpn.proto.events import ActionFinished
from meshvpn.proto.node import Node
from meshvpn.proto.owner import PasswordRule
from meshvpn.proto.record import record_of

from .founded import OTHER_KEYS, WALL, WALL_NS, Founded, found


@pytest.fixture
def network() -> Founded:
    return found(3)


@pytest.fixture
def node(network: Founded) -> Node:
    """The owner's, attached."""
    node = network.node(0)
    node.handle_start({}, now=0.0, wall_ns=WALL_NS)
    network.attach(node, now=1.0)
    node.take_control_messages()
    return node


def test_a_member_is_found_by_nick_address_or_the_start_of_its_identity(network: Founded, node: Node) -> None:
    member = node.roster.members[network.identities[1].public]
    for text in ("pbx1", "PBX1", member.address, member.address6, member.identity.hex()[:4], member.identity.hex()):
        assert node.membership.find_member(text) is member


def test_who_is_not_found_or_not_alone_is_told_so(network: Founded, node: Node) -> None:
    for text in ("nobody", network.identities[1].public.hex()[:3], "10.1.0.77"):
        with pytest.raises(MembershipError, match="is not a member"):
            node.membership.find_member(text)
    for text in ("pbx0", "PBX0", node.membership.profile.address):
        with pytest.raises(MembershipError, match="is this host itself"):
            node.membership.find_member(text)
    with pytest.raises(MembershipError, match="is not evicted"):
        node.membership.find_banned("pbx1")


def test_an_evicted_member_is_found_by_its_last_nick(network: Founded, node: Node) -> None:
    rid = node.evict("pbx1", PasswordRule.KEEP, now=2.0, wall_ns=WALL_NS)
    finish(node, rid)
    identity = network.identities[1].public
    assert node.membership.find_banned("PBX1") == node.membership.find_banned(identity.hex()[:6]) == identity
    with pytest.raises(MembershipError, match="is not a member"):
        node.membership.find_member("pbx1")


@pytest.mark.parametrize("code", ["unavailable", "network_exists"])
def test_a_change_of_who_may_join_counts_when_the_server_has_it_and_not_before_or_without(
    node: Node, code: str
) -> None:
    before = node.roster.charter
    rid = node.change_password(OTHER_KEYS, now=2.0, wall_ns=WALL_NS)
    assert finish(node, rid, code, "no") == ActionFinished(rid, code, "no")
    assert node.roster.charter == before
    rid = node.change_password(OTHER_KEYS, now=2.0, wall_ns=WALL_NS)
    assert finish(node, rid) == ActionFinished(rid, None, "")
    assert node.roster.charter.locator == OTHER_KEYS.locator


def test_an_eviction_that_the_server_refuses_does_not_count(node: Node) -> None:
    before = node.roster.charter
    rid = node.evict("pbx1", PasswordRule.KEEP, now=2.0, wall_ns=WALL_NS)
    assert finish(node, rid, "rate_limited", "slow down") == ActionFinished(rid, "rate_limited", "slow down")
    assert node.roster.charter == before


def test_a_member_that_is_no_owner_can_change_nothing(network: Founded) -> None:
    node = network.node(1)
    with pytest.raises(MembershipError, match="not the owner"):
        node.evict("pbx2", PasswordRule.KEEP, now=1.0, wall_ns=WALL_NS)
    with pytest.raises(MembershipError, match="not the owner"):
        node.change_password(OTHER_KEYS, now=1.0, wall_ns=WALL_NS)
    with pytest.raises(MembershipError, match="not the owner"):
        node.delete(now=1.0, wall_ns=WALL_NS)


def test_each_new_record_has_a_higher_number_whatever_the_clock_says(network: Founded, node: Node) -> None:
    sequences = []
    for nick, wall in (("one", WALL), ("two", WALL), ("three", WALL - 3600), ("four", WALL + 3600)):
        node.membership.rename(nick, now=2.0, wall=wall)
        assert node.membership.own_record is not None
        record = record_of(node.membership.own_record)
        assert record.nick == nick
        sequences.append(record.sequence)
    assert sequences == sorted(set(sequences))
    assert sequences[-1] == WALL + 3600


def test_a_record_is_published_again_when_the_server_has_none_or_another(network: Founded, node: Node) -> None:
    membership = node.membership
    own = network.entries[0]
    stale = msgspec.structs.replace(own, envelope=network.entries[1].envelope)
    for members, is_published in (([own], False), ([], True), ([stale], True), ([MemberEntry(own.identity, "")], True)):
        node.take_control_messages()
        membership.publish_record_if_missing(members, now=3.0, wall=WALL)
        assert bool(node.take_control_messages()) == is_published


def test_without_a_connection_nothing_is_sent_and_everything_is_kept(network: Founded) -> None:
    node = network.node(1)
    assert node.rename("later", now=1.0, wall_ns=WALL_NS) is None
    rid = node.leave(now=1.0, wall_ns=WALL_NS)
    assert node.take_control_messages() == []
    finished = [event for event in node.take_events() if isinstance(event, ActionFinished)]
    assert [(event.rid, event.code) for event in finished] == [(rid, "unavailable")]
    assert node.membership.profile.nick == "later"


def test_who_is_out_publishes_nothing(network: Founded, node: Node) -> None:
    evicted = network.node(1)
    evicted.handle_start({}, now=0.0, wall_ns=WALL_NS)
    network.attach(evicted, now=1.0)
    rid = node.evict("pbx1", PasswordRule.KEEP, now=2.0, wall_ns=WALL_NS)
    update = node.membership._changes[rid].update
    evicted.roster.handle_charter(update.charter, [], wall=WALL)
    evicted.take_control_messages()
    evicted.membership.publish_record_if_missing([], now=3.0, wall=WALL)
    assert evicted.take_control_messages() == []


def test_secrets_show_in_no_representation(network: Founded, node: Node) -> None:
    shown = repr(node.membership._keys) + repr(node.roster.export().epoch_keys) + repr(network.identities[0])
    for secret in (network.tunnel_keys[0], network.disco_keys[0], network.owner.seed, node.roster.epoch_key):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


def test_our_own_address_and_key_are_ours(network: Founded) -> None:
    roster = network.roster(0)
    roster.reserve(network.addresses[0], b"k" * 32)
    made = owner.make_record(
        roster,
        network.identities[2],
        address=network.addresses[0],
        nick="thief",
        tunnel_key=bytes(31) + b"t",
        disco_key=bytes(31) + b"d",
        joined_at=WALL,
        sequence=WALL + 9,
        software="",
        entropy=network.entropy,
    )
    entry = MemberEntry(network.identities[2].public, network.addresses[0], made.envelope)
    assert roster.handle_entry(entry, wall=WALL) is not None
    assert roster.members[network.identities[2].public].nick == "pbx2"


def finish(node: Node, rid: int, code: str | None = None, text: str = "") -> ActionFinished | None:
    """The server's answer came."""
    return node.membership.handle_finished(rid, code, text, now=2.0, wall=WALL)
