"""Where a plane sends, and what it learns of where its peer sends from."""

from __future__ import annotations

import contextlib
import socket

import pytest

from meshvpn.proto.dataplane import PathSeen
from meshvpn.proto.transport import Path, RelayHop

from .sides import A_HOST, B_HOST, EngineSide, Side, install, introduce, packet, seal, unseal

HOP = RelayHop(local_id=7, remote_id=9)
"""As the plane under test sees it: it is 7, its peer is 9."""
SO_NO_CHECK = 11
BACK = RelayHop(local_id=9, remote_id=7)


def test_frames_for_a_relay_carry_its_header_before_each_packet(joined: Side) -> None:
    joined.plane.set_endpoint(1, 0, *endpoint(joined, 0), HOP.header())
    packets = [packet(A_HOST, B_HOST, number) for number in range(30)]
    for item in packets:
        joined.push(item)
    frames = joined.sent(len(packets))
    assert {frame[:12] for frame in frames} == {HOP.header()}
    assert [opened(frame[12:]) for frame in frames] == packets


def test_a_relayed_packet_is_delivered_and_its_path_reported_with_the_way_back(joined: Side) -> None:
    item = packet(B_HOST, A_HOST, 1)
    joined.inject(BACK.header() + seal(1, 2, 0, item), far=1)
    assert joined.take(1) == [item]
    assert joined.events() == [PathSeen(1, Path(0, joined.far[1], HOP))]


def test_what_comes_on_the_relayed_endpoint_itself_is_no_news(joined: Side) -> None:
    joined.plane.set_endpoint(1, 0, *endpoint(joined, 0), HOP.header())
    item = packet(B_HOST, A_HOST, 1)
    joined.inject(BACK.header() + seal(1, 2, 0, item))
    assert joined.take(1) == [item]
    assert joined.events() == []


def test_a_path_through_the_relay_differs_from_the_direct_one_to_the_same_address(joined: Side) -> None:
    joined.inject(BACK.header() + seal(1, 2, 0, b""))
    assert joined.events() == [PathSeen(1, Path(0, joined.far[0], HOP))]


def test_a_relay_frame_for_python_comes_opened_with_the_way_back(side: Side) -> None:
    side.inject(BACK.header() + b"\x01\x00\x00\x00initiation", b"\x02\x00\x00\x00response", far=2)
    assert side.datagrams() == [
        (Path(0, side.far[2], HOP), b"\x01\x00\x00\x00initiation"),
        (Path(0, side.far[2]), b"\x02\x00\x00\x00response"),
    ]


def test_a_relay_frame_in_a_relay_frame_is_not_opened_twice(joined: Side) -> None:
    inner = BACK.header() + seal(1, 2, 0, packet(B_HOST, A_HOST, 1))
    joined.inject(BACK.header() + inner)
    assert joined.datagrams() == [(Path(0, joined.far[0], HOP), inner)]
    assert joined.stats().last_authenticated_at == 0.0


@pytest.mark.parametrize("header", [b"", HOP.header()], ids=["direct", "relayed"])
def test_on_two_paths_each_packet_is_sealed_once(joined: Side, header: bytes) -> None:
    joined.plane.set_endpoint(1, 0, *endpoint(joined, 0), secondary=(0, *endpoint(joined, 1), header))
    packets = [packet(A_HOST, B_HOST, number, size) for number in range(40) for size in (200, 200, 90)]
    for item in packets:
        joined.push(item)
    first, second = joined.sent(len(packets), far=0), joined.sent(len(packets), far=1)
    assert [opened(frame) for frame in first] == packets
    assert second == [header + frame for frame in first]
    assert joined.stats().tx_packets == len(packets)


def test_the_second_copy_is_dropped_whichever_path_is_first(joined: Side) -> None:
    packets = [packet(B_HOST, A_HOST, number) for number in range(20)]
    for number, item in enumerate(packets):
        copy = seal(1, 2, number, item)
        joined.inject(copy, far=number % 2)
        joined.inject(copy, far=1 - number % 2)
    assert joined.take(len(packets)) == packets
    joined.settle()
    # The other path is known when a packet has come on it first.
    assert joined.drops() == {"replayed": 1, "second_copy": len(packets) - 1}


def test_the_secondary_path_is_no_news_either(joined: Side) -> None:
    joined.plane.set_endpoint(1, 0, *endpoint(joined, 0), secondary=(0, *endpoint(joined, 1), b""))
    joined.inject(seal(1, 2, 0, b""), far=1)
    assert joined.events() == []
    joined.inject(seal(1, 2, 1, b""), far=2)
    assert joined.events() == [PathSeen(1, Path(0, joined.far[2]))]


def test_a_flood_on_another_path_is_reported_once_for_a_while(joined: Side) -> None:
    joined.inject(*(seal(1, 2, number, b"") for number in range(50)), far=1)
    events = joined.events()
    # Fifty packets take less than a tenth of a second, unless the machine stalls in between.
    assert events[0] == PathSeen(1, Path(0, joined.far[1]))
    assert len(events) < 10
    assert joined.stats().last_authenticated_at > 0.0


def test_what_is_not_authentic_moves_and_reports_nothing(joined: Side) -> None:
    forged = bytearray(seal(1, 2, 0, b""))
    forged[-1] ^= 1
    joined.inject(bytes(forged), far=1)
    assert joined.events() == []
    assert joined.drops() == {"decrypt_failed": 1}


def test_a_peer_that_may_roam_is_answered_where_it_was_last_heard(side: Side) -> None:
    side.plane.add_peer(2, roams=True)
    side.plane.add_route(b"\x0a\x00\x00\x05", 32, 2)
    install(side.plane, 5, 6, is_initiator=False, peer=2)
    for counter, far in enumerate((1, 2, 1)):
        side.inject(seal(5, 6, counter, packet("10.0.0.5", A_HOST, counter)), far=far)
        side.take(1)
        side.push(packet(A_HOST, "10.0.0.5", counter))
        assert len(side.sent(1, far=far)) == 1
    assert not any(isinstance(event, PathSeen) for event in side.events())


def test_a_peer_that_roams_through_a_relay_is_answered_through_it(side: Side) -> None:
    side.plane.add_peer(2, roams=True)
    side.plane.add_route(b"\x0a\x00\x00\x05", 32, 2)
    install(side.plane, 5, 6, is_initiator=False, peer=2)
    side.inject(BACK.header() + seal(5, 6, 0, packet("10.0.0.5", A_HOST, 0)), far=1)
    side.take(1)
    side.push(packet(A_HOST, "10.0.0.5", 0))
    [frame] = side.sent(1, far=1)
    assert frame[:12] == HOP.header()


def test_a_peer_that_roams_with_every_packet_is_followed(side: Side) -> None:
    side.plane.add_peer(2, roams=True)
    side.plane.add_route(b"\x0a\x00\x00\x05", 32, 2)
    install(side.plane, 5, 6, is_initiator=False, peer=2)
    for counter in range(1000):
        side.inject(seal(5, 6, counter, b""), far=counter % 3)
    side.settle()
    side.push(packet(A_HOST, "10.0.0.5", 0))
    assert len(side.sent(1, far=999 % 3)) == 1


def test_without_an_endpoint_a_packet_is_dropped_by_name(joined: Side) -> None:
    joined.plane.clear_endpoint(1)
    joined.push(packet(A_HOST, B_HOST, 1))
    joined.settle()
    assert joined.drops() == {"no_endpoint": 1}
    assert not joined.plane.send_keepalive(1)


def test_two_peers_packets_do_not_mix(joined: Side) -> None:
    introduce(joined, joined.far[1], "10.0.0.3", peer=2)
    install(joined.plane, 3, 4, is_initiator=True, peer=2)
    mine = [packet(A_HOST, B_HOST, number) for number in range(40)]
    other = [packet(A_HOST, "10.0.0.3", number) for number in range(40)]
    for one, two in zip(mine, other, strict=True):
        joined.push(one)
        joined.push(two)
    assert [opened(frame) for frame in joined.sent(40, far=0)] == mine
    assert [unseal(3, 4, frame)[1][:200] for frame in joined.sent(40, far=1)] == other


def opened(message: bytes) -> bytes:
    item = unseal(1, 2, message)[1]
    return item[: int.from_bytes(item[2:4], "big")]


def endpoint(side: Side, far: int) -> tuple[str, int]:
    return side.far[far].host, side.far[far].port


def test_where_the_kernel_does_not_segment_packets_go_one_by_one_with_their_marks() -> None:
    with contextlib.closing(EngineSide()) as side:
        # The kernel refuses UDP_SEGMENT without checksums, as it does on a way with a small MTU.
        side.udp.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        side.ends[0].setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        introduce(side, side.far[0], B_HOST)
        install(side.plane, 1, 2, is_initiator=True)
        side.plane.stop()
        packets = [packet(A_HOST, B_HOST, number, tos=0xB8) for number in range(60)]
        for item in packets:
            side.push(item)
        side.plane.start()
        got = [side.ends[0].recvmsg(4096, 256) for _ in packets]
        assert [opened(data) for data, _, _, _ in got] == packets
        assert {control[0][2][0] for _, control, _, _ in got} == {0xB8}
        assert side.drops() == {}
        assert side.plane.features["udp_gso"]
