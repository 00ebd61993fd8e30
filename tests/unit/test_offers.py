"""Offers: at what pace ours leave, and which of theirs count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import msgspec
import pytest

from meshvpn.proto import disco
from meshvpn.proto.candidate import Candidate, Offer
from meshvpn.proto.control import Signal, Signalled
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.node import Node
from meshvpn.proto.offers import HOLD, LEAST_RATE, OFFER_BURST, OFFER_RATE, Offers
from meshvpn.proto.peer import MeshPeer, make_peer
from meshvpn.proto.turn import SMALL
from rendezvous.limits import Limits

from .founded import WALL_NS, Founded, found

NEAR = Candidate(1, "192.0.2.7", 7000)


@pytest.fixture
def network() -> Founded:
    return found(3)


def test_offers_keep_below_what_the_server_takes_and_none_is_lost() -> None:
    network = found(400)
    node = network.node(0)
    node.handle_start({}, now=0.0, wall_ns=WALL_NS)
    network.attach(node, now=0.0)
    node.handle_local_addresses(["192.168.1.10"], {0: 41000}, now=0.1, wall_ns=WALL_NS)
    node.handle_local_addresses(["192.168.1.11"], {0: 41000}, now=0.2, wall_ns=WALL_NS)
    sent = run(node, until=200.0)
    assert {signal.to for _, signal in sent} == {identity.public for identity in network.identities[1:]}
    assert len(sent) == 399
    limits, tokens, last = Limits(), Limits().message_burst, 0.0
    for at, _ in sent:
        tokens, last = min(limits.message_burst, tokens + (at - last) * limits.message_rate) - 1, at
        assert tokens > 20
    # Nobody talks to anybody: none is in a hurry, and none comes in step.
    assert HOLD + 300 / LEAST_RATE < sent[-1][0] < HOLD + 500 / LEAST_RATE
    assert max(sum(at <= other < at + 1.0 for other, _ in sent) for at, _ in sent) <= 4 * LEAST_RATE


def test_in_a_small_mesh_all_are_told_at_once() -> None:
    network = found(SMALL)
    node = network.node(0)
    node.handle_start({}, now=0.0, wall_ns=WALL_NS)
    network.attach(node, now=0.0)
    node.handle_local_addresses(["192.168.1.10"], {0: 41000}, now=0.1, wall_ns=WALL_NS)
    sent = run(node, until=2.0)
    assert len(sent) == SMALL - 1
    assert all(at == pytest.approx(HOLD) for at, _ in sent)


def test_peers_with_payload_come_before_silent_ones_and_who_begins_to_talk_is_one() -> None:
    network = found(60)
    offers, peers = machine(network, peers=range(1, 60))
    for number in range(1, 51):
        offers.want(peers[number], is_urgent=False)
    for number in range(51, 60):
        offers.want(peers[number], is_urgent=True)
    first = [signal.to for signal in offers.take_signals(now=1.0)]
    assert first[:9] == [network.identities[number].public for number in range(51, 60)]
    assert len(first) <= 12
    talks = next(peers[number] for number in range(1, 51) if network.identities[number].public not in first)
    offers.hurry(talks)
    assert offers.next_timeout() is not None
    assert offers.take_signals(now=1.0)[0].to == talks.member.identity
    # To whom nothing is to be said, payload says nothing either.
    offers.hurry(talks)
    assert talks.member.identity not in [signal.to for signal in offers.take_signals(now=1.0)]


def test_even_urgent_ones_keep_below_what_the_server_takes() -> None:
    network = found(200)
    offers, peers = machine(network, peers=range(1, 200))
    for peer in peers.values():
        offers.want(peer, is_urgent=True)
    assert len(offers.take_signals(now=1.0)) == OFFER_BURST + 1
    assert len(offers.take_signals(now=2.0)) == OFFER_RATE


def test_offers_wait_a_moment_after_attaching_and_no_longer_once_the_candidates_are_complete(network: Founded) -> None:
    offers, peers = machine(network)
    offers.hold(now=1.0)
    offers.want(peers[1], is_urgent=False)
    assert offers.next_timeout() == 1.0 + HOLD
    assert offers.take_signals(now=1.1) == []
    offers.release(now=1.2)
    assert len(offers.take_signals(now=1.2)) == 1
    offers.release(now=9.0)
    offers.want(peers[1], is_urgent=False)
    assert len(offers.take_signals(now=2.0)) == 1


def test_who_wants_an_offer_twice_before_its_turn_gets_one_that_is_up_to_date(network: Founded) -> None:
    offers, peers = machine(network)
    for candidate in (NEAR, Candidate(1, "192.0.2.8", 7000)):
        offers.candidates = (candidate,)
        offers.want(peers[1], is_urgent=False)
    (signal,) = offers.take_signals(now=1.0)
    assert opened(network, signal).candidates == [Candidate(1, "192.0.2.8", 7000)]
    assert offers.next_timeout() is None


def test_nobody_sends_an_offer_to_who_is_not_connected_or_no_peer_any_more(network: Founded) -> None:
    offers, peers = machine(network)
    peers[1].is_online = False
    offers.want(peers[1], is_urgent=False)
    offers.want(peers[2], is_urgent=True)
    offers.forget(peers[2])
    assert offers.take_signals(now=1.0) == []


def test_an_offer_is_read_by_whom_it_is_for(network: Founded) -> None:
    offers, peers = machine(network)
    _, candidates = offers.open(signalled(network, candidates=[NEAR, Candidate(1, "10.1.0.9", 1)]), peers[1])
    assert candidates == [NEAR]  # the other one is an address inside the tunnel


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"uid": bytes(16)}, DropReason.NOT_FOR_US),
        ({"destination": bytes(32)}, DropReason.NOT_FOR_US),
        ({"source": bytes(32)}, DropReason.BAD_SIGNATURE),
        ({"disco_key": bytes(32)}, DropReason.STALE),
        ({"format": 2}, DropReason.MALFORMED),
        ({"candidates": [NEAR] * 33}, DropReason.OVER_LIMIT),
    ],
)
def test_an_offer_that_is_not_what_it_should_be_is_dropped_by_name(
    network: Founded, changes: dict[str, object], reason: DropReason
) -> None:
    offers, peers = machine(network)
    assert refusal(offers, signalled(network, **changes), peers[1]) is reason
    assert peers[1].last_offer is None


def test_an_offer_that_is_played_back_is_stale_and_one_of_the_daemons_next_run_is_not(network: Founded) -> None:
    offers, peers = machine(network)
    offers.open(signalled(network, sequence=5), peers[1])
    for sequence in (4, 5):
        assert refusal(offers, signalled(network, sequence=sequence), peers[1]) is DropReason.STALE
    offers.open(signalled(network, sequence=6), peers[1])
    fresh = bytes(31) + b"n"
    peers[1].member = replace(peers[1].member, disco_key=fresh)
    offers.open(signalled(network, sequence=1, disco_key=fresh), peers[1])


def test_an_offer_of_nobody_and_one_that_does_not_open_are_dropped(network: Founded) -> None:
    offers, peers = machine(network)
    assert refusal(offers, signalled(network), None) is DropReason.UNKNOWN_PEER
    rubbish = Signalled(source=network.identities[1].public, payload=bytes(200))
    assert refusal(offers, rubbish, peers[1]) is DropReason.DECRYPT_FAILED


def run(node: Node, *, until: float) -> list[tuple[float, Signal]]:
    """Every signal that leaves, and when."""
    sent, now = [], 0.0
    while now <= until:
        messages = [msgspec.msgpack.decode(data) for data in node.take_control_messages()]
        sent += [(now, Signal(to=raw["to"], payload=raw["payload"])) for raw in messages if raw["t"] == "signal"]
        at = node.next_timeout()
        assert at is not None
        now = max(at, now)
        node.handle_timeout(now=now, wall_ns=WALL_NS)
    return sent


def machine(network: Founded, peers: Iterable[int] = (1, 2)) -> tuple[Offers, dict[int, MeshPeer]]:
    """Member 0's offers and its peers."""
    roster = network.roster(0)
    offers = Offers(network.identities[0], disco.public_key(network.disco_keys[0]), roster, entropy=network.entropy)
    made = {}
    for number in peers:
        member = roster.members[network.identities[number].public]
        made[number] = make_peer(number, member, network.disco_keys[0], number, entropy=network.entropy, mtu=1400)
        made[number].is_online = True
    return offers, made


def signalled(network: Founded, **changes: object) -> Signalled:
    """Member 1's offer for member 0."""
    offer = Offer(
        format=1,
        uid=network.uid,
        source=network.identities[1].public,
        destination=network.identities[0].public,
        sequence=1,
        disco_key=disco.public_key(network.disco_keys[1]),
        candidates=[NEAR],
    )
    body = msgspec.structs.replace(offer, **changes).encode()
    return Signalled(
        source=network.identities[1].public, payload=network.roster(1).seal_for_members(body, network.entropy)
    )


def opened(network: Founded, signal: Signal) -> Offer:
    plaintext = network.roster(1).open_from_members(signal.payload)
    assert plaintext is not None
    return msgspec.msgpack.decode(plaintext, type=Offer)


def refusal(offers: Offers, message: Signalled, peer: MeshPeer | None) -> DropReason:
    with pytest.raises(MalformedMessage) as caught:
        offers.open(message, peer)
    return caught.value.reason
