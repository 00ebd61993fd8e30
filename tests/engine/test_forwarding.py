"""A plane that relays for its peers: what it forwards, unchanged, and what it does not."""

from __future__ import annotations

import contextlib
import random
import struct
from collections import Counter

import pytest

from meshvpn.proto.commands import RelayPeer, apply
from meshvpn.proto.forwarder import FRAME_BYTES
from meshvpn.proto.transport import Path

from .sides import A_HOST, B_HOST, EngineSide, Side, install, packet, seal

OURS, FIRST, SECOND, THIRD, NOBODY = 7, 0x1001, 0x2002, 0x3003, 0x4004
RATE = 1_000_000


@pytest.fixture
def middle(joined: Side) -> Side:
    """Relays for peer 2 at far end 1 and peer 3 at far end 2; peer 1, at far end 0, is not relayed for."""
    for peer, relay_id in ((2, FIRST), (3, SECOND)):
        joined.plane.add_peer(peer)
        joined.plane.set_relay_paths(peer, relay_id, [(0, joined.far[peer - 1].host, joined.far[peer - 1].port)])
    joined.plane.set_relaying(RATE, RATE)
    return joined


def frame(source: int, destination: int, body: bytes) -> bytes:
    return struct.pack("<III", 5, source, destination) + body


def bodies(count: int) -> list[bytes]:
    """Two of three are of one size; nothing of them is read."""
    return [random.Random(number).randbytes((200, 200, 90)[number % 3]) for number in range(count)]


def test_frames_go_on_unchanged_in_order_and_both_ways(middle: Side) -> None:
    there = [frame(FIRST, SECOND, body) for body in bodies(60)]
    back = [frame(SECOND, FIRST, body) for body in bodies(30)]
    middle.inject(*there, far=1)
    middle.inject(*back, far=2)
    assert middle.sent(60, far=2) == there
    assert middle.sent(30, far=1) == back
    middle.settle()
    assert middle.drops() == {}
    assert middle.plane.relayed() == (90, sum(map(len, there + back)))
    assert middle.stats().last_received_at == 0.0


def test_what_it_relays_may_be_anything(middle: Side) -> None:
    # Handshakes and probes too, and a transport message of a keypair that is our own.
    for word in (1, 2, 3, 4, 5, 0xFFFF):
        item = frame(FIRST, SECOND, struct.pack("<I", word) + bytes(60))
        middle.inject(item, far=1)
        assert middle.sent(1, far=2) == [item]
    assert middle.datagrams() == []


def test_frames_for_us_are_opened_also_while_it_relays(middle: Side) -> None:
    item = packet(B_HOST, A_HOST, 1)
    middle.inject(frame(NOBODY, OURS, seal(1, 2, 0, item)))
    assert middle.take(1) == [item]
    middle.inject(frame(FIRST, OURS, b"\1\0\0\0"), far=1)
    assert [data for _, data in middle.datagrams()] == [b"\1\0\0\0"]


@pytest.mark.parametrize(
    ("far", "source"),
    [(0, FIRST), (2, FIRST), (1, SECOND), (2, SECOND), (1, NOBODY), (1, OURS), (1, 0)],
    ids=["stranger", "receiver", "another's id", "to itself", "unknown", "ours", "none"],
)
def test_a_frame_that_does_not_come_from_its_source_is_dropped(middle: Side, far: int, source: int) -> None:
    middle.inject(frame(source, SECOND, bytes(100)), far=far)
    middle.settle()
    assert middle.drops() == {"disallowed_source": 1}
    assert middle.plane.relayed() == (0, 0)
    assert_relays(middle)


def test_a_frame_for_nobody_is_handled_as_one_for_us(middle: Side) -> None:
    middle.inject(frame(FIRST, NOBODY, b"\4\0\0\0" + bytes(60)), frame(FIRST, THIRD, b"\1\0\0\0hello"), far=1)
    assert [data for _, data in middle.datagrams()] == [b"\1\0\0\0hello"]
    assert middle.drops() == {"unknown_index": 1}


def test_frames_of_every_short_length_are_too_short(middle: Side) -> None:
    whole = frame(FIRST, SECOND, bytes(4))
    middle.inject(*(whole[:length] for length in range(16)), far=1)
    middle.settle()
    assert middle.drops() == {"too_short": 16}
    middle.inject(whole, far=1)
    assert middle.sent(1, far=2) == [whole]


def test_a_frame_longer_than_any_packet_is_too_big(middle: Side) -> None:
    longest = frame(FIRST, SECOND, bytes(FRAME_BYTES - 12))
    middle.inject(longest + b"\0", longest, far=1)
    assert middle.sent(1, far=2) == [longest]
    middle.settle()
    assert middle.drops() == {"too_big": 1}


def test_more_than_the_rate_is_over_the_limit(middle: Side) -> None:
    middle.plane.set_relaying(0.001, 1000.0)
    item = frame(FIRST, SECOND, bytes(288))
    middle.inject(*[item] * 5, far=1)
    assert middle.sent(3, far=2) == [item] * 3
    middle.settle()
    assert middle.drops() == {"over_limit": 2}
    assert middle.plane.relayed() == (3, 900)
    middle.plane.set_relaying(RATE, RATE)
    assert_relays(middle)


def test_it_relays_nothing_until_told_and_when_told_not_to(joined: Side) -> None:
    for peer, relay_id in ((2, FIRST), (3, SECOND)):
        joined.plane.add_peer(peer)
        apply(RelayPeer(peer, relay_id, (Path(0, joined.far[peer - 1]),)), joined.plane)
    item = frame(FIRST, SECOND, b"\1\0\0\0hello")
    joined.inject(item, far=1)
    assert len(joined.datagrams()) == 1
    joined.plane.set_relaying(RATE, RATE)
    assert_relays(joined)
    joined.plane.set_relaying(0, 0)
    joined.inject(item, far=1)
    assert len(joined.datagrams()) == 1


@pytest.mark.parametrize("peer", [2, 3])
@pytest.mark.parametrize("way", ["no paths", "removed"])
def test_nothing_is_relayed_without_a_proven_path_at_both_ends(middle: Side, peer: int, way: str) -> None:
    if way == "removed":
        middle.plane.remove_peer(peer)
    else:
        apply(RelayPeer(peer, (FIRST, SECOND)[peer - 2], ()), middle.plane)
    middle.inject(frame(FIRST, SECOND, b"\1\0\0\0hello"), far=1)
    middle.inject(frame(SECOND, FIRST, b"\1\0\0\0hello"), far=2)
    assert len(middle.datagrams()) == 1  # the one for whom we do not know; the other has a source that we do not
    assert middle.drops() == {"disallowed_source": 1}
    assert middle.plane.relayed() == (0, 0)


def test_frames_may_come_from_any_of_the_paths_and_go_to_the_first(middle: Side) -> None:
    ends = [(0, far.host, far.port) for far in middle.far]
    middle.plane.set_relay_paths(2, FIRST, [ends[1], ends[0]])
    item = frame(FIRST, SECOND, bytes(100))
    middle.inject(item, far=0)
    middle.inject(item, far=1)
    assert middle.sent(2, far=2) == [item] * 2
    back = frame(SECOND, FIRST, bytes(100))
    middle.inject(back, far=2)
    assert middle.sent(1, far=1) == [back]
    middle.plane.set_relay_paths(2, FIRST, [ends[0]])
    middle.inject(item, far=1)
    middle.inject(back, far=2)
    assert middle.sent(1, far=0) == [back]
    assert middle.drops() == {"disallowed_source": 1}


def test_an_id_belongs_to_whom_it_was_given_first(middle: Side) -> None:
    middle.plane.add_peer(4)
    stranger = [(0, middle.far[0].host, middle.far[0].port)]
    assert not middle.plane.set_relay_paths(4, SECOND, stranger)
    assert_relays(middle)
    middle.plane.remove_peer(4)
    assert_relays(middle)
    middle.plane.add_peer(4)
    middle.plane.remove_peer(3)
    assert middle.plane.set_relay_paths(4, SECOND, stranger)
    item = frame(FIRST, SECOND, bytes(100))
    middle.inject(item, far=1)
    assert middle.sent(1, far=0) == [item]


def test_a_peer_may_get_another_id(middle: Side) -> None:
    assert middle.plane.set_relay_paths(3, THIRD, [(0, middle.far[2].host, middle.far[2].port)])
    item = frame(FIRST, THIRD, bytes(100))
    middle.inject(item, frame(FIRST, SECOND, b"\1\0\0\0"), far=1)
    assert middle.sent(1, far=2) == [item]
    assert len(middle.datagrams()) == 1


def test_what_makes_no_sense_is_refused_and_changes_nothing(middle: Side) -> None:
    end = (0, middle.far[0].host, middle.far[0].port)
    for peer, relay_id, paths in (
        (3, 0, [end]),
        (3, THIRD, [end] * 5),
        (3, THIRD, [(9, *end[1:])]),
        (99, THIRD, [end]),
    ):
        with pytest.raises(ValueError, match=r"relay|socket|peer"):
            middle.plane.set_relay_paths(peer, relay_id, paths)
    with pytest.raises(ValueError, match="below 0"):
        middle.plane.set_relaying(-1.0, 1.0)
    assert_relays(middle)


def test_thousands_of_ids_come_and_go(middle: Side) -> None:
    chance, end = random.Random(1), (0, middle.far[2].host, middle.far[2].port)
    ids = {peer: chance.getrandbits(32) or 1 for peer in range(10, 2010)}
    for peer, relay_id in ids.items():
        middle.plane.add_peer(peer)
        assert middle.plane.set_relay_paths(peer, relay_id, [end])
    gone = chance.sample(sorted(ids), 1000)
    for peer in gone:
        middle.plane.remove_peer(peer)
        del ids[peer]
    items = [frame(FIRST, relay_id, bytes(20)) for relay_id in ids.values()]
    for start in range(0, len(items), 100):
        middle.inject(*items[start : start + 100], far=1)
        assert middle.sent(100, far=2) == items[start : start + 100]
    middle.settle()
    assert middle.drops() == {}


def test_random_frames_are_harmless(middle: Side) -> None:
    chance, expected = random.Random(4), Counter[str]()
    ids = [FIRST, SECOND, THIRD, NOBODY, OURS, 0, 0xFFFFFFFF]
    relayed: list[bytes] = []
    for _ in range(600):
        source, destination, far = chance.choice(ids), chance.choice(ids), chance.randrange(3)
        item = frame(source, destination, b"\4\0\0\0" + chance.randbytes(chance.randrange(0, 300)))
        item = item[: chance.randrange(4, len(item) + 1)] if chance.random() < 0.3 else item
        middle.inject(item, far=far)
        middle.settle()  # the far ends' datagrams in one order
        if len(item) < 16:
            expected["too_short"] += 1
        elif destination not in (FIRST, SECOND):
            expected["too_short" if len(item) < 44 else "unknown_index"] += 1
        elif {FIRST: 1, SECOND: 2}.get(source) != far or source == destination:
            expected["disallowed_source"] += 1
        else:
            relayed.append(item)
    assert middle.drops() == expected
    assert middle.plane.relayed() == (len(relayed), sum(map(len, relayed)))
    for far, destination in ((1, FIRST), (2, SECOND)):
        expected_there = [item for item in relayed if item[8:12] == destination.to_bytes(4, "little")]
        assert middle.sent(len(expected_there), far=far) == expected_there
    assert_relays(middle)


def test_trains_go_on_as_trains_and_hostile_frames_among_them_are_told_apart() -> None:
    with contextlib.closing(EngineSide()) as side:
        for peer, relay_id, far in ((2, FIRST, 0), (3, SECOND, 1), (4, THIRD, 2)):
            side.plane.add_peer(peer)
            side.plane.set_relay_paths(peer, relay_id, [(0, side.far[far].host, side.far[far].port)])
        install_own(side)
        side.plane.set_relaying(RATE, RATE)
        mine = seal(1, 2, 0, packet(B_HOST, A_HOST, 0, 88))  # 16 + 96 + 16 bytes: as long as the frames
        train = [frame(FIRST, SECOND, bytes([number]) * 116) for number in range(30)]
        train[7] = frame(THIRD, SECOND, bytes(116))
        train[11] = frame(FIRST, THIRD, bytes(116))
        train[20] = mine
        side.inject_joined(*train, frame(FIRST, SECOND, b"tail"))
        good = [item for number, item in enumerate(train) if number not in (7, 11, 20)]
        assert side.sent(28, far=1) == [*good, frame(FIRST, SECOND, b"tail")]
        assert side.sent(1, far=2) == [train[11]]
        assert side.take(1) == [packet(B_HOST, A_HOST, 0, 88)]
        side.settle()
        assert side.drops() == {"disallowed_source": 1}
        assert side.plane.relayed()[0] == 29


def test_a_frame_keeps_its_mark() -> None:
    with contextlib.closing(EngineSide()) as side:
        for peer, relay_id, far in ((2, FIRST, 0), (3, SECOND, 1)):
            side.plane.add_peer(peer)
            side.plane.set_relay_paths(peer, relay_id, [(0, side.far[far].host, side.far[far].port)])
        side.plane.set_relaying(RATE, RATE)
        side.ends[0].setsockopt(0, 1, 0xB8)  # IP_TOS
        side.ends[1].setsockopt(0, 13, 1)  # IP_RECVTOS
        side.inject(frame(FIRST, SECOND, bytes(100)))
        data, control, _, _ = side.ends[1].recvmsg(4096, 256)
        assert data == frame(FIRST, SECOND, bytes(100))
        assert control[0][2][0] == 0xB8


def install_own(side: EngineSide) -> None:
    side.plane.add_peer(1)
    side.plane.add_route(bytes([10, 0, 0, 2]), 32, 1)
    install(side.plane, 1, 2, is_initiator=True)


def assert_relays(side: Side) -> None:
    item = frame(FIRST, SECOND, b"still there")
    side.inject(item, far=1)
    assert side.sent(1, far=2) == [item]
