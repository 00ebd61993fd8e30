"""A node where the simulation of whole ones does not reach: late events, limits, times that run out, who is out."""

from __future__ import annotations

import pytest

from meshvpn.proto import control, disco, owner
from meshvpn.proto.commands import MovePeer, RemovePeer
from meshvpn.proto.control import MemberChanged, MemberEntry, Presence, PresenceEntry
from meshvpn.proto.drafts import CharterUpdate
from meshvpn.proto.drops import DropReason
from meshvpn.proto.epochs import PREVIOUS_EPOCH_LIFETIME
from meshvpn.proto.errors import MembershipError
from meshvpn.proto.events import MembershipChanged, PeerChanged
from meshvpn.proto.node import START_GRACE, Node
from meshvpn.proto.owner import PasswordRule
from meshvpn.proto.peer import LastKnown, PeerState
from meshvpn.proto.peering import MAX_LAN_PATHS, MAX_PEERS
from meshvpn.proto.primitives import x25519_public
from meshvpn.proto.timers import Stamps
from meshvpn.proto.traffic import Traffic
from meshvpn.proto.transport import Address, Path, RelayHop

from .founded import WALL, WALL_NS, Founded, found, hear

PATH = Path(0, Address("192.0.2.1", 1000))


@pytest.fixture
def network() -> Founded:
    return found(3)


@pytest.fixture
def node(network: Founded) -> Node:
    """Member 1's, attached."""
    return attached(network, 1)


INITIATION = (1).to_bytes(4, "little")


def test_a_starting_node_waits_for_the_server_and_no_longer(network: Founded) -> None:
    node = network.node(1)
    node.handle_start({}, now=0.0, wall_ns=WALL_NS)
    assert not node.peers
    assert node.next_timeout() == START_GRACE
    node.handle_timeout(now=START_GRACE, wall_ns=WALL_NS)
    assert len(node.peers) == 2
    refused = network.node(1)
    refused.handle_start({}, now=0.0, wall_ns=WALL_NS)
    refused.handle_disconnected(now=0.1, wall_ns=WALL_NS)
    assert len(refused.peers) == 2
    assert len(attached(network, 1).peers) == 2


def test_the_data_plane_may_speak_of_peers_that_are_gone(network: Founded, node: Node) -> None:
    (number, *_), before = node.peer_numbers(), len(node.peers)
    leaver = node.roster.members[network.identities[0].public]
    hear(
        node,
        control.MemberLeft(leave=owner.make_leave(network.uid, network.identities[0], wall=WALL + 1)),
        now=2.0,
    )
    assert len(node.peers) == before - 1
    assert RemovePeer(number) in node.take_commands()
    node.handle_handshake_wanted(number, now=2.0, wall_ns=WALL_NS)
    node.handle_rekey_wanted(number, now=2.0, wall_ns=WALL_NS)
    node.handle_keypair_confirmed(number, 7, now=2.0, wall_ns=WALL_NS)
    node.handle_path_seen(number, PATH, now=2.0, wall_ns=WALL_NS)
    node.handle_traffic({number: (Traffic(1, 1, 1, 1), Stamps())}, now=2.0, wall_ns=WALL_NS)
    assert node.take_commands() == []
    assert PeerChanged(leaver, None, None, "left") in node.take_events()


def test_a_number_is_used_again_as_late_as_possible(network: Founded, node: Node) -> None:
    assert node.peer_numbers() == [1, 2]
    node._peering.remove(network.identities[0].public)
    node._peering.add_members(now=2.0, wall_ns=WALL_NS)
    assert node.peer_numbers() == [2, 3]


def test_a_node_has_no_more_peers_than_numbers() -> None:
    assert MAX_PEERS == control.MAX_MEMBERS
    network = found(3)
    node = network.node(1)
    node._peering._numbers.clear()
    node._peering._numbers.append(7)
    node.handle_start({}, now=0.0, wall_ns=WALL_NS)
    node.handle_disconnected(now=0.1, wall_ns=WALL_NS)
    assert node.peer_numbers() == [7]


def test_presences_of_strangers_are_bounded(node: Node) -> None:
    for number in range(MAX_PEERS + 50):
        hear(node, Presence(entry=PresenceEntry(number.to_bytes(32, "big"), number)), now=2.0)
    assert len(node._peering._relay_ids) == MAX_PEERS


def test_the_previous_epochs_key_is_worth_nothing_after_a_day(network: Founded, node: Node) -> None:
    update = evict(network, 2)
    hear(node, control.CharterChanged(charter=update.charter, members=[]), now=10.0)
    entry = node._peering._wireguard._peers[node.peer_numbers()[0]]
    assert len(entry.preshared_keys) == 2
    end = 10.0 + PREVIOUS_EPOCH_LIFETIME
    for at, count in ((end - 1.0, 2), (end, 1)):
        node.handle_timeout(now=at, wall_ns=WALL_NS + int((at - 10.0) * 1e9))
        assert len(entry.preshared_keys) == count
    assert node._epoch_lapses_at is None


def test_who_is_evicted_has_no_peers_and_who_is_reinstated_has_them_again(network: Founded, node: Node) -> None:
    update = evict(network, 1)
    hear(node, control.CharterChanged(charter=update.charter, members=[]), now=2.0)
    assert not node.peers
    hear(node, MemberChanged(entry=network.entries[2]), now=2.0)
    node.handle_disconnected(now=3.0, wall_ns=WALL_NS)
    assert not node.peers
    with pytest.raises(MembershipError, match="cannot be reached"):
        node.find_peer("pbx2")
    signer = network.roster(0)
    signer.handle_charter(update.charter, [], wall=WALL)
    again = owner.unban(signer, network.owner, network.identities[1].public, wall=WALL)
    node.roster.handle_charter(again.charter, [], wall=WALL)
    node.handle_timeout(now=4.0, wall_ns=WALL_NS)
    assert len(node.peers) == 2
    happened = [event.what for event in node.take_events() if isinstance(event, MembershipChanged)]
    assert happened == ["evicted", "reinstated"]


def test_who_is_reinstated_meets_members_as_they_are_by_then(network: Founded, node: Node) -> None:
    update = evict(network, 1)
    hear(node, control.CharterChanged(charter=update.charter, members=[]), now=2.0)
    signer = network.roster(0)
    signer.handle_charter(update.charter, [], wall=WALL)
    again = owner.unban(signer, network.owner, network.identities[1].public, wall=WALL)
    hear(node, control.CharterChanged(charter=again.charter, members=[restarted(network, 2)]), now=3.0)
    assert len(node.peers) == 2
    peer = node.peers[network.identities[2].public]
    assert peer.member == node.roster.members[peer.member.identity]
    assert node._peering._by_disco[peer.member.disco_key] is peer


def test_a_record_that_comes_in_the_moment_of_the_start_is_the_one_that_counts(network: Founded) -> None:
    node = network.node(1)
    node.handle_start({}, now=0.0, wall_ns=WALL_NS)
    node.handle_connected([], now=0.0, wall_ns=WALL_NS)
    hear(node, control.Welcome(version=1, nonce=b"", observed_host="", udp_port=1, udp_port2=2, software=""), now=0.0)
    hear(node, MemberChanged(entry=restarted(network, 2)), now=START_GRACE)
    peer = node.peers[network.identities[2].public]
    assert peer.member.sequence == WALL + 1
    assert node._peering._by_disco[peer.member.disco_key] is peer


def test_a_member_that_waits_for_approval_is_no_peer_until_it_has_it() -> None:
    network = found(3, access="approve")
    node = attached(network, 1)
    founder = network.identities[0].public
    assert set(node.peers) == {founder}
    with pytest.raises(MembershipError, match="not approved yet"):
        node.find_peer("pbx2")
    approval = owner.approve(network.roster(0), network.owner, network.identities[2].public, wall=WALL)
    entry = network.entries[2]
    approved = control.MemberEntry(entry.identity, entry.address, entry.envelope, approval)
    hear(node, MemberChanged(entry=approved), now=2.0)
    assert set(node.peers) == {founder, entry.identity}


def test_a_path_that_worked_is_tried_with_a_handshake_and_kept_open_until_one_is_verified(network: Founded) -> None:
    node = network.node(1)
    identity = network.identities[0].public
    relayed = Path(0, Address("198.51.100.1", 7770), RelayHop(1, 2))
    known = LastKnown(PATH, keepalive=15.0)
    last_known = {identity: known, bytes(32): known, network.identities[2].public: LastKnown(relayed)}
    node.handle_start(last_known, now=0.0, wall_ns=WALL_NS)
    node.handle_disconnected(now=0.1, wall_ns=WALL_NS)
    peer = node.peers[identity]
    assert [transmit.path for transmit in node.take_transmits()] == [PATH]
    assert [command for command in node.take_commands() if isinstance(command, MovePeer)] == [
        MovePeer(peer.number, PATH, None)
    ]
    assert peer.state is PeerState.CONNECTING
    assert node.last_known() == {identity: known}
    assert node.peers[network.identities[2].public].state is PeerState.OFFLINE


@pytest.mark.parametrize(
    ("age", "slept", "is_renewed"),
    [(30.0, 3600.0, True), (30.0, 91.0, True), (30.0, 20.0, False), (200.0, 60.0, False)],
)
def test_a_session_that_grew_too_old_in_a_sleep_is_made_anew(
    network: Founded, age: float, slept: float, is_renewed: bool
) -> None:
    node = network.node(1)
    node.handle_start({network.identities[0].public: LastKnown(PATH)}, now=0.0, wall_ns=WALL_NS)
    node.handle_disconnected(now=0.1, wall_ns=WALL_NS)
    with_session, without = (node.peers[network.identities[number].public] for number in (0, 2))
    now = 1.0
    while (at := node.next_timeout()) is not None and at < 500.0:  # nobody answers: all attempts come to their end
        now = max(now, at)
        node.handle_timeout(now=now, wall_ns=WALL_NS)
    with_session.session_at, without.session_at = 1000.0 - age, None
    node.take_transmits()
    node.handle_wake(slept, now=1000.0, wall_ns=WALL_NS)
    sent = [transmit for transmit in node.take_transmits() if transmit.data[:4] == INITIATION]
    assert [transmit.path for transmit in sent] == ([PATH] if is_renewed else [])


def test_a_node_without_deadlines_has_none(network: Founded) -> None:
    assert network.node(1).next_timeout() is None


def attached(network: Founded, number: int) -> Node:
    node = network.node(number)
    node.handle_start({}, now=0.0, wall_ns=WALL_NS)
    network.attach(node, now=1.0)
    node.take_events()
    return node


def restarted(network: Founded, number: int) -> MemberEntry:
    """The record of a member's next run."""
    identity, address = network.identities[number], network.addresses[number]
    record = owner.make_record(
        network.roster(number),
        identity,
        address=address,
        nick=f"pbx{number}",
        tunnel_key=x25519_public(network.tunnel_keys[number]),
        disco_key=disco.public_key(network.entropy(32)),
        joined_at=WALL,
        sequence=WALL + 1,
        software="test",
        entropy=network.entropy,
    )
    return MemberEntry(identity.public, address, record.envelope)


def evict(network: Founded, number: int) -> CharterUpdate:
    return owner.evict(
        network.roster(0),
        network.owner,
        network.identities[0],
        network.records[0],
        network.identities[number].public,
        PasswordRule.KEEP,
        entropy=network.entropy,
        wall=WALL,
    )


def test_a_member_that_the_lan_tells_is_pinged_and_shaken_hands_with_there(network: Founded) -> None:
    node = network.node(1)
    node.handle_start({}, now=0.0, wall_ns=WALL_NS)
    node.handle_timeout(now=START_GRACE, wall_ns=WALL_NS)
    node.take_transmits()
    there = Path(0, Address("192.168.1.7", 41000))
    (tag, *_) = node.roster.lan_tags(network.identities[0].public)
    inside = Address(node.roster.members[network.identities[0].public].address, 41000)
    node.handle_lan(tag, [there.remote, inside, Address("192.168.1.7", 0)], now=3.0, wall_ns=WALL_NS)
    sent = node.take_transmits()
    assert {transmit.path for transmit in sent} == {there}
    assert sorted(disco.is_disco(transmit.data) for transmit in sent) == [False, True]


def test_what_strangers_announce_in_the_lan_is_dropped(network: Founded) -> None:
    node = network.node(1)
    node.handle_start({}, now=0.0, wall_ns=WALL_NS)
    node.handle_timeout(now=START_GRACE, wall_ns=WALL_NS)
    node.take_transmits()
    for tag in (bytes(16), b"", node.lan_tag):
        node.handle_lan(tag, [Address("192.168.1.7", 41000)], now=3.0, wall_ns=WALL_NS)
    assert node.take_transmits() == []
    assert node.drops[DropReason.UNKNOWN_PEER] == 3


def test_a_false_announcement_in_the_lan_leads_no_packet_astray(network: Founded, node: Node) -> None:
    identity = network.identities[0].public
    number = node.peers[identity].number
    node.handle_path_seen(number, PATH, now=1.0, wall_ns=WALL_NS)
    before = node.peers[identity].agent.primary
    node.take_commands()
    for port in range(1, 200):
        (tag, *_) = node.roster.lan_tags(identity)
        node.handle_lan(tag, [Address("192.168.1.66", port)] * 20, now=2.0 + port, wall_ns=WALL_NS)
    assert node.peers[identity].agent.primary == before
    assert not [command for command in node.take_commands() if isinstance(command, MovePeer)]
    assert len(node.peers[identity].lan) <= MAX_LAN_PATHS
