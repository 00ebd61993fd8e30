"""What strangers, and peers that turned bad, may send: each is dropped by its name, and the good ones go on."""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest

from .sides import A_HOST, B_HOST, Side, packet, seal, until

GOOD_INDEX = 1


def test_random_bytes_of_every_length_are_counted_and_harm_nothing(joined: Side) -> None:
    chance = random.Random(1)
    datagrams = [chance.randbytes(length) for length in range(1, 201) for _ in range(2)]
    joined.inject(*datagrams)
    # The first word of random bytes is none of ours: short ones are dropped, the others Python's to refuse.
    assert [data for _, data in joined.datagrams()] == [data for data in datagrams if len(data) >= 4]
    assert joined.drops() == {"too_short": 6}
    assert_alive(joined, 0)


def test_transport_messages_of_random_bytes_of_every_length_are_dropped_by_name(joined: Side) -> None:
    chance, expected = random.Random(2), Counter[str]()
    for length in range(4, 201):
        body = chance.randbytes(length - 4)
        joined.inject(b"\4\0\0\0" + body)
        expected["too_short" if length < 32 else "unknown_index"] += 1
    joined.settle()
    assert joined.drops() == expected
    assert_alive(joined, 0)


def test_a_known_index_with_random_bytes_behind_it_fails_to_open(joined: Side) -> None:
    chance = random.Random(3)
    lengths = range(32, 1500, 7)
    for length in lengths:
        joined.inject(struct.pack("<IIQ", 4, GOOD_INDEX, chance.getrandbits(40)) + chance.randbytes(length - 16))
    joined.settle()
    assert joined.drops() == {"decrypt_failed": len(lengths)}
    assert_alive(joined, 0)


def test_a_good_message_cut_anywhere_is_dropped_by_name(joined: Side) -> None:
    whole, expected = seal(1, 2, 5, packet(B_HOST, A_HOST, 1, 100)), Counter[str]()
    for length in range(4, len(whole)):
        joined.inject(whole[:length])
        expected["too_short" if length < 32 else "decrypt_failed"] += 1
    joined.settle()
    assert joined.drops() == expected
    joined.inject(whole)
    assert joined.take(1) == [packet(B_HOST, A_HOST, 1, 100)]


def test_each_bit_of_a_message_counts(joined: Side) -> None:
    whole = seal(1, 2, 0, packet(B_HOST, A_HOST, 1, 60))
    for position in range(32, len(whole) * 8):
        changed = bytearray(whole)
        changed[position // 8] ^= 1 << position % 8
        joined.inject(bytes(changed))
    joined.settle()
    assert joined.take(0) == []
    # Of another index nothing is known; a counter beyond the end is expired; the rest does not open.
    assert joined.drops().keys() <= {"unknown_index", "decrypt_failed", "expired_key"}
    assert sum(joined.drops().values()) == len(whole) * 8 - 32
    assert_alive(joined, 0)


def test_cut_relay_frames_are_too_short(joined: Side) -> None:
    frame = struct.pack("<III", 5, 9, 7) + seal(1, 2, 0, b"")
    for length in range(4, 16):
        joined.inject(frame[:length])
    joined.settle()
    assert joined.drops() == {"too_short": 12}


LIES = {
    "version 5": b"\x55" + packet(B_HOST, A_HOST, 1)[1:],
    "version 0": bytes(200),
    "longer than it is": b"\x45\0\x05\x00" + packet(B_HOST, A_HOST, 1)[4:],
    "one byte longer than its padding": b"\x45\0" + (209).to_bytes(2, "big") + packet(B_HOST, A_HOST, 1)[4:],
    "shorter than a header": b"\x45\0\0\x13" + packet(B_HOST, A_HOST, 1)[4:],
    "of length 0": b"\x45\0\0\0" + packet(B_HOST, A_HOST, 1)[4:],
    "half an IPv4 header": packet(B_HOST, A_HOST, 1)[:16],
    "half an IPv6 header": packet("fd00::2", "fd00::1", 1)[:32],
    "IPv6 longer than it is": b"\x60\0\0\0\xff\xff" + packet("fd00::2", "fd00::1", 1)[6:],
}


@pytest.mark.parametrize("name", LIES)
def test_a_peer_that_lies_about_its_packet_is_dropped_by_name(joined: Side, name: str) -> None:
    joined.inject(seal(1, 2, 0, LIES[name]))
    joined.settle()
    assert joined.drops() == {"not_ip": 1}
    assert_alive(joined, 1)


def test_a_packet_shorter_than_its_padding_is_delivered_without_it(joined: Side) -> None:
    for counter, size in enumerate(range(24, 200, 7)):
        item = packet(B_HOST, A_HOST, counter, size)
        joined.inject(seal(1, 2, counter, item))
        assert joined.take(1) == [item]


def test_a_packet_that_fills_the_mtu_may_come_without_padding(joined: Side) -> None:
    for counter, size in enumerate((*range(24, 60), 1391, 1399, 1400)):
        item = packet(B_HOST, A_HOST, counter, size)
        joined.inject(seal(1, 2, counter, item, is_padded=False))
        assert joined.take(1) == [item]


def test_good_and_hostile_datagrams_of_one_train_are_told_apart(joined: Side) -> None:
    good = [packet(B_HOST, A_HOST, number) for number in range(20)]
    train: list[bytes] = []
    for counter, item in enumerate(good):
        message = seal(1, 2, counter, item)
        train += [message, message, seal(7, 2, counter, item), message[:-1] + bytes([message[-1] ^ 1])]
        train += [b"\x01\0\0\0" + bytes(len(message) - 4)] if counter % 4 == 0 else []
    joined.inject_joined(*train[:50])
    joined.inject_joined(*train[50:], train[0][:33])
    assert joined.take(len(good)) == good
    assert len(joined.datagrams()) == 5
    assert joined.drops() == {"replayed": 41, "unknown_index": 20}


def test_an_empty_datagram_is_too_short(joined: Side) -> None:
    joined.inject(b"")
    joined.settle()
    assert joined.drops() == {"too_short": 1}


def test_what_is_too_long_for_python_is_dropped(joined: Side) -> None:
    joined.inject(b"\1\0\0\0" + bytes(2045), b"\1\0\0\0" + bytes(2044))
    assert [len(data) for _, data in joined.datagrams()] == [2048]
    assert joined.drops() == {"too_big": 1}


@pytest.mark.parametrize("packet_size", [1, 19])
def test_what_is_shorter_than_a_header_is_not_sent(joined: Side, packet_size: int) -> None:
    joined.push(packet(A_HOST, B_HOST, 1)[:packet_size])
    joined.push(packet("fd00::1", "fd00::2", 1)[:39])
    joined.settle()
    assert joined.drops() == {"not_ip": 2}


def test_the_queue_to_python_is_bounded(side: Side) -> None:
    flood = [b"\1\0\0\0" + number.to_bytes(4, "big") for number in range(3000)]
    side.inject(*flood)
    until(lambda: side.drops().get("queue_full", 0) >= 3000 - 1024)
    assert side.drops() == {"queue_full": 3000 - 1024}


def test_a_flood_for_python_is_limited_in_rate_however_fast_it_is_taken(side: Side) -> None:
    # More than the queue holds and than the rate lets through in the time that this takes.
    taken, sent = 0, 0
    while "queue_full" not in side.drops() and sent < 500_000:
        side.inject(*(b"\1\0\0\0" + (sent + i).to_bytes(4, "big") for i in range(200)))
        taken, sent = taken + len(side.datagrams()), sent + 200
    assert 1000 <= taken < sent < 500_000


def assert_alive(side: Side, counter: int) -> None:
    item = packet(B_HOST, A_HOST, counter)
    side.inject(seal(1, 2, counter, item))
    assert side.take(1) == [item]
