"""What a member does when a change is overtaken, refused or not answered, and what it tells a server that missed it."""

from __future__ import annotations

from typing import Any

import pytest

from meshvpn.proto import control, owner
from meshvpn.proto.charter import decode_charter, is_banned
from meshvpn.proto.control import CharterChanged, Done, PutApproval, PutCharter, Refused
from meshvpn.proto.errors import MembershipError
from meshvpn.proto.events import ActionFinished
from meshvpn.proto.keys import Identity
from meshvpn.proto.membership import DONE_HERE, MAX_TRIES
from meshvpn.proto.node import Node
from meshvpn.proto.owner import PasswordRule
from meshvpn.proto.signed import Signed

from .founded import OTHER_KEYS, WALL, WALL_NS, Founded, found, hear


@pytest.fixture
def network() -> Founded:
    return found(4)


@pytest.fixture
def node(network: Founded) -> Node:
    """The owner's, attached."""
    return attached(network, 0)


def test_a_change_that_was_overtaken_is_made_anew_on_top_of_what_came_first(network: Founded, node: Node) -> None:
    rid = node.evict("pbx1", PasswordRule.KEEP, now=2.0, wall_ns=WALL_NS)
    (first,) = sent(node)
    other = other_eviction(network, 2)
    hear(node, CharterChanged(charter=other, members=[]), now=2.1)
    hear(node, Refused(rid=first.rid, code="stale_charter", message=""), now=2.1)
    (second,) = sent(node)
    charter = decode_charter(second.charter)
    assert all(is_banned(charter, network.identities[number].public) for number in (1, 2))
    hear(node, Done(rid=second.rid), now=2.2)
    assert finished(node) == [ActionFinished(rid, None, "")]
    assert node.roster.signed_charter == second.charter


def test_a_change_that_somebody_else_made_meanwhile_says_so(network: Founded, node: Node) -> None:
    rid = node.evict("pbx1", PasswordRule.KEEP, now=2.0, wall_ns=WALL_NS)
    (first,) = sent(node)
    hear(node, CharterChanged(charter=other_eviction(network, 1), members=[]), now=2.1)
    hear(node, Refused(rid=first.rid, code="stale_charter", message=""), now=2.1)
    assert finished(node) == [ActionFinished(rid, "stale_charter", "that member is evicted already")]


def test_a_change_is_not_tried_for_ever(node: Node) -> None:
    rid = node.set_access("locked", now=2.0, wall_ns=WALL_NS)
    for _ in range(MAX_TRIES):
        (request,) = sent(node)
        hear(node, Refused(rid=request.rid, code="stale_charter", message="too old"), now=2.1)
    assert sent(node) == []
    assert finished(node) == [ActionFinished(rid, "stale_charter", "too old")]


def test_without_an_answer_an_eviction_counts_and_a_password_does_not(network: Founded, node: Node) -> None:
    evicting = node.evict("pbx1", PasswordRule.RETIRE, now=2.0, wall_ns=WALL_NS)
    changing = node.change_password(OTHER_KEYS, now=2.0, wall_ns=WALL_NS)
    node.handle_disconnected(now=3.0, wall_ns=WALL_NS)
    told = {event.rid: (event.code, event.message) for event in finished(node)}
    assert told[evicting] == (None, DONE_HERE)
    assert told[changing][0] == "unavailable"
    assert is_banned(node.roster.charter, network.identities[1].public)
    assert node.roster.charter.locator is None


def test_a_server_that_missed_a_charter_and_approvals_gets_them_one_after_the_other() -> None:
    network = found(4, access="approve")
    node = network.node(0)
    for number in (1, 2):
        node.roster.handle_approval(approval(network, number), wall=WALL)
    charter = owner.set_access(node.roster, network.owner, "approve", wall=WALL).charter
    node.roster.handle_charter(charter, [], wall=WALL)
    node.handle_start({}, now=0.0, wall_ns=WALL_NS)
    network.attach(node, now=1.0)
    told: list[Signed] = []
    while requests := sent(node):
        (request,) = requests
        told.append(request.charter if isinstance(request, PutCharter) else request.approval)
        hear(node, Done(rid=request.rid), now=1.1)
    assert told == [charter, approval(network, 1), approval(network, 2)]
    assert finished(node) == []  # nobody asked for it


def test_what_the_server_refuses_is_not_sent_again_before_the_next_connection(network: Founded) -> None:
    node = network.node(1)
    newer = other_eviction(network, 2)
    node.roster.handle_charter(newer, [], wall=WALL)
    node.handle_start({}, now=0.0, wall_ns=WALL_NS)
    network.attach(node, now=1.0)
    (request,) = sent(node)
    assert request.charter == newer
    assert len(request.envelopes) == 1  # a mere member seals its own record only
    hear(node, Refused(rid=request.rid, code="rate_limited", message=""), now=1.1)
    hear(node, CharterChanged(charter=network.charter, members=[]), now=1.2)
    assert sent(node) == []
    node.handle_disconnected(now=2.0, wall_ns=WALL_NS)
    node.handle_timeout(now=60.0, wall_ns=WALL_NS)
    network.attach(node, now=60.0)
    assert [request.charter for request in sent(node)] == [newer]


def test_a_server_whose_charter_makes_no_sense_is_told_nothing(network: Founded, node: Node) -> None:
    node.roster.handle_charter(other_eviction(network, 2), [], wall=WALL)
    hear(node, CharterChanged(charter=Signed(b"rubbish", bytes(32), bytes(64)), members=[]), now=2.0)
    assert sent(node) == []


def test_approving_without_the_server_counts_here_and_is_told_later() -> None:
    network = found(3, access="approve")
    node = network.node(0)
    rid = node.approve("pbx1", now=1.0, wall_ns=WALL_NS)
    assert finished(node) == [ActionFinished(rid, None, DONE_HERE)]
    assert [entry.nick for entry in node.roster.pending] == ["pbx2"]
    with pytest.raises(MembershipError, match="a member already"):
        node.approve("pbx1", now=1.0, wall_ns=WALL_NS)
    with pytest.raises(MembershipError, match="a member already"):
        node.reject("pbx1", now=1.0, wall_ns=WALL_NS)
    node.handle_start({}, now=2.0, wall_ns=WALL_NS)
    network.attach(node, now=3.0)
    (request,) = sent(node)
    assert isinstance(request, PutApproval)


def test_the_owners_key_of_another_network_is_not_taken(network: Founded) -> None:
    node = network.node(1)
    with pytest.raises(MembershipError, match="another network"):
        node.import_owner(Identity(bytes(32)))
    node.import_owner(network.owner)
    node.add_admin("pbx2", now=1.0, wall_ns=WALL_NS)
    assert node.roster.admins == [network.identities[2].public]


def test_whoever_was_admin_and_is_no_member_any_more_can_be_dismissed(network: Founded, node: Node) -> None:
    identity = network.identities[1].public
    node.handle_disconnected(now=1.5, wall_ns=WALL_NS)
    node.add_admin("pbx1", now=2.0, wall_ns=WALL_NS)
    with pytest.raises(MembershipError, match="an admin already"):
        node.add_admin("pbx1", now=2.0, wall_ns=WALL_NS)
    node.roster.handle_leave(owner.make_leave(network.uid, network.identities[1], wall=WALL + 1), wall=WALL)
    node.remove_admin(identity.hex()[:8], now=2.0, wall_ns=WALL_NS)
    assert node.roster.admins == []
    with pytest.raises(MembershipError, match="is no admin"):
        node.remove_admin("pbx1", now=2.0, wall_ns=WALL_NS)


def attached(network: Founded, number: int) -> Node:
    node = network.node(number)
    node.handle_start({}, now=0.0, wall_ns=WALL_NS)
    network.attach(node, now=1.0)
    node.take_control_messages()
    node.take_events()
    return node


def sent(node: Node) -> list[Any]:
    """The changes that it asked the server for since the last call."""
    requests = map(control.decode_request, node.take_control_messages())
    return [request for request in requests if isinstance(request, PutCharter | PutApproval)]


def finished(node: Node) -> list[ActionFinished]:
    return [event for event in node.take_events() if isinstance(event, ActionFinished)]


def other_eviction(network: Founded, number: int) -> Signed:
    """By the owner's key on another host."""
    return owner.evict(
        network.roster(3),
        network.owner,
        network.identities[3],
        network.records[3],
        network.identities[number].public,
        PasswordRule.KEEP,
        entropy=network.entropy,
        wall=WALL,
    ).charter


def approval(network: Founded, number: int) -> Signed:
    return owner.approval_by(network.owner, network.uid, network.identities[number].public, wall=WALL)
