"""Keypairs of a peer — previous, current, next —, their end, and what is noted for the timers."""

from __future__ import annotations

import random
import time

import pytest

from meshvpn.proto.constants import REJECT_AFTER_TIME, REKEY_AFTER_TIME
from meshvpn.proto.dataplane import STAGED_BYTES, STAGED_LIMIT, HandshakeWanted, KeypairConfirmed, RekeyWanted

from .sides import A_HOST, B_HOST, Side, install, introduce, open_side, packet, seal, unseal

MOMENT = 1e-3
"""How far behind a stamp may lie: the engine reads the clock once a batch."""


def test_a_responder_sends_with_a_keypair_once_the_peer_used_it(side: Side) -> None:
    install(side.plane, 1, 2, is_initiator=False)
    side.push(packet(A_HOST, B_HOST, 1))
    side.settle()
    assert side.stats().tx_packets == 0
    side.inject(seal(1, 2, 0, b""))
    assert unseal(1, 2, side.sent(1)[0])[1][:200] == packet(A_HOST, B_HOST, 1)
    assert side.events() == [HandshakeWanted(1), KeypairConfirmed(1, 1)]


def test_previous_and_current_and_next_all_receive(side: Side) -> None:
    install(side.plane, 1, 2, is_initiator=True)
    install(side.plane, 3, 4, is_initiator=True)
    install(side.plane, 5, 6, is_initiator=False)
    items = [packet(B_HOST, A_HOST, number) for number in range(3)]
    for item, local in zip(items, (1, 3, 5), strict=True):
        side.inject(seal(local, local + 1, 0, item))
        assert side.take(1) == [item]
    assert side.events() == [KeypairConfirmed(1, 5)]


def test_the_one_before_the_previous_is_forgotten(side: Side) -> None:
    for local in (1, 3, 5):
        install(side.plane, local, local + 1, is_initiator=True)
    side.inject(seal(1, 2, 0, b""), seal(3, 4, 0, b""), seal(5, 6, 0, b""))
    side.settle()
    assert side.drops() == {"unknown_index": 1}


def test_a_next_that_is_never_used_makes_room_for_the_newer(side: Side) -> None:
    install(side.plane, 1, 2, is_initiator=True)
    install(side.plane, 3, 4, is_initiator=True)
    install(side.plane, 5, 6, is_initiator=False)
    install(side.plane, 7, 8, is_initiator=False)
    side.inject(seal(5, 6, 0, b""), seal(1, 2, 0, b""), seal(3, 4, 0, b""), seal(7, 8, 0, b""))
    side.settle()
    side.push(packet(A_HOST, B_HOST, 1))
    assert unseal(7, 8, side.sent(1)[0])[0] == 0
    assert side.drops() == {"unknown_index": 1}


def test_without_a_previous_a_next_that_makes_room_still_opens(side: Side) -> None:
    install(side.plane, 1, 2, is_initiator=True)
    install(side.plane, 3, 4, is_initiator=False)
    install(side.plane, 5, 6, is_initiator=False)
    side.inject(seal(3, 4, 0, b""), seal(1, 2, 0, b""), seal(5, 6, 0, b""))
    side.settle()
    side.push(packet(A_HOST, B_HOST, 1))
    assert unseal(5, 6, side.sent(1)[0])[0] == 0
    assert side.drops() == {}


def test_an_index_in_use_is_refused_and_changes_nothing(joined: Side) -> None:
    introduce(joined, joined.far[1], "10.0.0.3", peer=2)
    with pytest.raises(ValueError, match="in use"):
        install(joined.plane, 1, 9, is_initiator=True, peer=2)
    joined.inject(seal(1, 2, 0, packet(B_HOST, A_HOST, 1)))
    assert joined.take(1) == [packet(B_HOST, A_HOST, 1)]


@pytest.mark.parametrize("kind", ["engine", "twin"])
def test_thousands_of_indices_are_told_apart_after_many_changes(kind: str) -> None:
    chance = random.Random(6)
    indices = chance.sample(range(1, 1 << 32), 4000)
    with open_side(kind) as side:
        for peer, index in enumerate(indices, 1):
            side.plane.add_peer(peer)
            install(side.plane, index, 7, is_initiator=True, peer=peer)
        gone = chance.sample(range(1, 4001), 2000)
        for peer in gone:
            side.plane.forget_keypairs(peer)
        for peer in set(range(1, 4001)) - set(gone):
            with pytest.raises(ValueError, match="in use"):
                install(side.plane, indices[peer - 1], 7, is_initiator=True, peer=peer)
        for peer in gone:
            install(side.plane, indices[peer - 1], 7, is_initiator=True, peer=peer)


def test_a_forgotten_keypair_opens_and_seals_nothing(joined: Side) -> None:
    joined.plane.forget_keypairs(1)
    joined.inject(seal(1, 2, 0, b""))
    joined.push(packet(A_HOST, B_HOST, 1))
    joined.settle()
    assert joined.drops() == {"unknown_index": 1}
    assert joined.events() == [HandshakeWanted(1)]
    assert joined.stats().keypair_created_at == 0.0


def test_an_expired_keypair_neither_opens_nor_seals(side: Side) -> None:
    install(side.plane, 1, 2, is_initiator=True, age=REJECT_AFTER_TIME)
    side.inject(seal(1, 2, 0, packet(B_HOST, A_HOST, 1)))
    side.push(packet(A_HOST, B_HOST, 1))
    side.settle()
    assert side.drops() == {"expired_key": 1}
    assert side.events() == [HandshakeWanted(1)]
    assert not side.plane.send_keepalive(1)


@pytest.mark.parametrize(("age", "events"), [(REKEY_AFTER_TIME + 1, [RekeyWanted(1)]), (REKEY_AFTER_TIME - 30, [])])
def test_sending_with_an_old_keypair_asks_for_a_new_one_once(side: Side, age: float, events: list[object]) -> None:
    install(side.plane, 1, 2, is_initiator=True, age=age)
    for number in range(5):
        side.push(packet(A_HOST, B_HOST, number))
    assert len(side.sent(5)) == 5
    assert side.events() == events


@pytest.mark.parametrize(("age", "events"), [(166.0, [RekeyWanted(1)]), (130.0, [])])
def test_receiving_with_a_keypair_near_its_end_asks_for_a_new_one_once(
    side: Side, age: float, events: list[object]
) -> None:
    install(side.plane, 1, 2, is_initiator=True, age=age)
    side.inject(*(seal(1, 2, counter, b"") for counter in range(5)))
    assert side.events() == events


def test_the_responder_leaves_asking_to_the_initiator(side: Side) -> None:
    install(side.plane, 1, 2, is_initiator=False, age=170.0)
    side.inject(seal(1, 2, 0, b""))
    side.settle()
    side.push(packet(A_HOST, B_HOST, 1))
    assert len(side.sent(1)) == 1
    assert side.events() == [KeypairConfirmed(1, 1)]


def test_a_handshake_is_asked_for_once_a_second_while_packets_wait(side: Side) -> None:
    for number in range(20):
        side.push(packet(A_HOST, B_HOST, number))
    assert side.events() == [HandshakeWanted(1)]


def test_of_what_waits_the_oldest_is_dropped_beyond_the_limit(side: Side) -> None:
    packets = [packet(A_HOST, B_HOST, number, 60) for number in range(STAGED_LIMIT + 10)]
    for item in packets:
        side.push(item)
    side.settle()
    assert side.drops() == {"no_keypair": 10}
    install(side.plane, 1, 2, is_initiator=True)
    assert [unseal(1, 2, message)[1][:60] for message in side.sent(STAGED_LIMIT)] == packets[10:]


def test_what_waits_of_all_peers_together_is_bounded(side: Side) -> None:
    count, size = 2, 8000
    while count * STAGED_LIMIT * size <= STAGED_BYTES:
        count += 1
    for peer in range(2, 2 + count):
        introduce(side, side.far[0], f"10.0.1.{peer}", peer=peer)
        for number in range(STAGED_LIMIT):
            side.push(packet(A_HOST, f"10.0.1.{peer}", number, size))
    side.settle()
    assert side.drops() == {"no_keypair": count * STAGED_LIMIT - STAGED_BYTES // size}
    for peer in range(2, 2 + count):
        side.plane.remove_peer(peer)
    side.push(packet(A_HOST, B_HOST, 0, size))
    install(side.plane, 1, 2, is_initiator=True)
    assert len(side.sent(1)) == 1


def test_what_waits_goes_when_the_endpoint_comes_after_the_keypair(side: Side) -> None:
    side.plane.clear_endpoint(1)
    side.push(packet(A_HOST, B_HOST, 1))
    side.settle()
    install(side.plane, 1, 2, is_initiator=True)
    side.settle()
    side.plane.set_endpoint(1, 0, side.far[1].host, side.far[1].port)
    assert unseal(1, 2, side.sent(1, far=1)[0])[1][:200] == packet(A_HOST, B_HOST, 1)


def test_a_keepalive_is_an_empty_packet(joined: Side) -> None:
    joined.settle()
    assert joined.plane.send_keepalive(1)
    [message] = joined.sent(1)
    assert (len(message), unseal(1, 2, message)) == (32, (0, b""))


def test_a_keepalive_needs_a_keypair_of_which_the_peer_knows(side: Side) -> None:
    assert not side.plane.send_keepalive(1)
    install(side.plane, 1, 2, is_initiator=False)
    side.settle()
    assert not side.plane.send_keepalive(1)


class TestStamps:
    """The four stamps that meshvpn.proto.timers reads."""

    def test_data_sent_is_stamped_first_until_anything_authentic_comes(self, joined: Side) -> None:
        start = time.monotonic()
        joined.push(packet(A_HOST, B_HOST, 1))
        joined.sent(1)
        first = joined.stats()
        assert start - MOMENT <= first.first_sent_at == first.last_sent_at <= time.monotonic()
        joined.push(packet(A_HOST, B_HOST, 2))
        joined.sent(1)
        again = joined.stats()
        assert again.first_sent_at == first.first_sent_at < again.last_sent_at
        joined.inject(seal(1, 2, 0, b""))
        assert joined.stats().first_sent_at == 0.0

    def test_data_received_is_stamped_first_until_anything_is_sent(self, joined: Side) -> None:
        start = time.monotonic()
        joined.inject(seal(1, 2, 0, packet(B_HOST, A_HOST, 1)))
        first = joined.stats()
        assert start <= first.first_received_at == first.last_authenticated_at == first.last_received_at
        assert not first.more_arrived
        joined.inject(seal(1, 2, 1, packet(B_HOST, A_HOST, 2)))
        again = joined.stats()
        assert again.first_received_at == first.first_received_at < again.last_received_at
        assert again.more_arrived
        joined.push(packet(A_HOST, B_HOST, 1))
        joined.sent(1)
        after = joined.stats()
        assert (after.first_received_at, after.more_arrived) == (0.0, False)

    def test_a_keepalive_stamps_neither_end_as_data(self, joined: Side) -> None:
        joined.settle()
        assert joined.plane.send_keepalive(1)
        joined.sent(1)
        joined.inject(seal(1, 2, 0, b""))
        stats = joined.stats()
        assert (stats.first_sent_at, stats.first_received_at, stats.more_arrived) == (0.0, 0.0, False)
        assert stats.last_sent_at > 0.0 < stats.last_authenticated_at
        assert (stats.tx_packets, stats.rx_packets) == (1, 0)

    def test_a_keepalive_is_followed_by_another_if_more_data_came_meanwhile(self, joined: Side) -> None:
        joined.inject(*(seal(1, 2, counter, packet(B_HOST, A_HOST, counter)) for counter in range(3)))
        joined.settle()
        assert joined.plane.send_keepalive(1)
        joined.sent(1)
        stats = joined.stats()
        assert stats.first_received_at == stats.last_sent_at
        assert not stats.more_arrived

    def test_an_unauthentic_packet_leaves_no_stamp(self, joined: Side) -> None:
        joined.inject(seal(1, 2, 0, b"")[:-1] + b"\0", seal(1, 3, 0, b""), seal(9, 9, 0, b""))
        stats = joined.stats()
        assert stats.last_authenticated_at == stats.last_received_at == 0.0

    def test_counters_tell_packets_and_their_bytes_without_padding(self, joined: Side) -> None:
        joined.push(packet(A_HOST, B_HOST, 1, 61))
        joined.sent(1)
        joined.inject(seal(1, 2, 0, packet(B_HOST, A_HOST, 1, 99)))
        stats = joined.stats()
        assert (stats.tx_packets, stats.tx_bytes, stats.rx_packets, stats.rx_bytes) == (1, 61, 1, 99)
