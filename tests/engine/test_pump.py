"""From one TUN to the other: two planes, A and B, that know each other as peer 1."""

from __future__ import annotations

import threading
from collections import deque

from meshvpn.proto.drops import DropReason
from tun.engine import DROP_REASONS

from .sides import A_HOST, B_HOST, Side, handshake, install, introduce, packet, unseal, until

Sides = tuple[Side, Side]


def test_packets_arrive_whole_and_in_order(sides: Sides) -> None:
    a, b = sides
    handshake(a.plane, b.plane, 1)
    packets = [packet(A_HOST, B_HOST, number, size) for number in range(50) for size in (200, 60, 1400)]
    for item in packets:
        a.push(item)
    assert b.take(len(packets)) == packets
    assert a.drops() == b.drops() == {}


def test_a_hundred_calls_that_start_before_the_handshake_lose_nothing(sides: Sides) -> None:
    a, b = sides
    packets = [packet(A_HOST, B_HOST, number) for number in range(300)]
    for item in packets[:200]:
        a.push(item)
    handshake(a.plane, b.plane, 1)
    for item in packets[200:]:
        a.push(item)
    assert b.take(300) == packets
    assert a.drops() == {}


def test_none_overtakes_those_that_wait_for_a_keypair(side: Side) -> None:
    for index in range(1, 60, 2):
        side.plane.forget_keypairs(1)
        packets = [packet(A_HOST, B_HOST, number) for number in range(30)]
        for item in packets:
            side.push(item)
        install(side.plane, index, index + 1, is_initiator=True)
        assert [unseal(index, index + 1, message)[1][:200] for message in side.sent(30)] == packets


def test_what_the_peer_still_sends_with_survives_another_handshake_of_its(sides: Sides) -> None:
    a, b = sides
    # Both start at once: A holds B's keypair as previous and its own as current.
    install(a.plane, 22, 12, is_initiator=False)
    install(a.plane, 21, 11, is_initiator=True)
    install(b.plane, 12, 22, is_initiator=True)
    # B asks once more; until it has the answer it goes on with what it has.
    install(a.plane, 23, 13, is_initiator=False)
    sent = packet(B_HOST, A_HOST, 7)
    b.push(sent)
    assert a.take(1) == [sent]


def test_a_packet_from_an_address_that_is_not_the_peers_is_dropped(sides: Sides) -> None:
    a, b = sides
    handshake(a.plane, b.plane, 1)
    good = packet(A_HOST, B_HOST, 2)
    a.push(packet("10.0.0.9", B_HOST, 1))
    a.push(good)
    assert b.take(1) == [good]
    assert b.drops() == {"disallowed_source": 1}


def test_what_is_no_ip_or_has_no_route_is_dropped_by_name(sides: Sides) -> None:
    a, b = sides
    handshake(a.plane, b.plane, 1)
    good = packet(A_HOST, B_HOST, 3)
    for item in (b"rubbish", packet(A_HOST, "10.9.9.9", 1), good):
        a.push(item)
    assert b.take(1) == [good]
    assert a.drops() == {"not_ip": 1, "no_route": 1}


def test_a_removed_peer_gets_and_sends_nothing(sides: Sides) -> None:
    a, b = sides
    handshake(a.plane, b.plane, 1)
    b.plane.remove_peer(1)
    b.plane.add_peer(2)
    a.push(packet(A_HOST, B_HOST, 1))
    until(lambda: b.take(0) == [] and b.drops() == {"unknown_index": 1})


def test_a_peer_removed_and_added_under_traffic_harms_nobody(sides: Sides) -> None:
    a, b = sides
    other, packets = "10.0.0.3", [packet(A_HOST, B_HOST, number) for number in range(400)]
    handshake(a.plane, b.plane, 1)
    sender = threading.Thread(target=deque, args=(map(a.push, packets), 0))
    sender.start()
    for number in range(50):
        introduce(a, a.far[1], other, peer=2)
        install(a.plane, 1000 + number, 7, is_initiator=True, peer=2)
        a.push(packet(A_HOST, other, number))
        a.plane.remove_peer(2)
    sender.join()
    assert b.take(len(packets)) == packets
    a.settle()
    assert a.drops().keys() <= {"no_route"}


def test_ipv6_goes_inside_as_ipv4_does(sides: Sides) -> None:
    a, b = sides
    handshake(a.plane, b.plane, 1)
    network = bytes.fromhex("fd00" + 6 * "00") + bytes(8)
    a.plane.add_route(network, 64, 1)
    b.plane.add_route(network, 64, 1)
    packets = [packet("fd00::1", "fd00::2", number, size) for number, size in enumerate((44, 60, 200, 1280))]
    for item in packets:
        a.push(item)
    a.push(packet("fd01::1", "fd00::2", 9))
    assert b.take(len(packets)) == packets
    b.settle()
    assert b.drops() == {"disallowed_source": 1}


def test_two_paths_at_once_deliver_each_packet_once(sides: Sides) -> None:
    a, b = sides
    handshake(a.plane, b.plane, 1)
    there = (0, b.address.host, b.address.port, b"")
    a.plane.set_endpoint(1, there[0], there[1], there[2], secondary=there)
    packets = [packet(A_HOST, B_HOST, number, size) for number in range(40) for size in (200, 200, 60)]
    for item in packets:
        a.push(item)
    assert b.take(len(packets)) == packets
    until(lambda: b.take(0) == [] and b.drops() == {"replayed": len(packets)})
    assert a.stats().tx_packets == b.stats().rx_packets == len(packets)
    assert b.stats().lost_packets == 0


def test_the_engines_names_of_drops_are_the_protocols() -> None:
    assert tuple(reason.value for reason in list(DropReason)[: len(DROP_REASONS)]) == DROP_REASONS
