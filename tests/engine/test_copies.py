"""What goes on two paths: by class where not all does, once to the TUN, and nothing lost with either path."""

from __future__ import annotations

import random
import select
import socket
import struct

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meshvpn.proto.commands import MovePeer, apply
from meshvpn.proto.copies import Copies, is_copied
from meshvpn.proto.transport import Path

from .sides import A_HOST, B_HOST, EngineSide, Side, install, introduce, open_side, packet, seal, unseal

TCP, UDP, ICMP = 6, 17, 1
CS3, AF31, CS5, EF, VOICE_ADMIT, AF41 = (dscp << 2 for dscp in (24, 26, 40, 46, 44, 34))


def ipv4(
    protocol: int, ports: tuple[int, int] = (0, 0), *, size: int = 1000, tos: int = 0, body: int = 0, offset: int = 0
) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, tos, size, 0, offset, 64, protocol, 0)
    rest = struct.pack("!HHHH", *ports, 0, 0) + bytes([body])
    return (head + socket.inet_aton(A_HOST) + socket.inet_aton(B_HOST) + rest).ljust(size, b"\0")[:size]


def ipv6(protocol: int, payload: bytes, *, tos: int = 0, size: int = 1000) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, "fd00::1") + socket.inet_pton(socket.AF_INET6, "fd00::2")
    return (struct.pack("!IHBB", 6 << 28 | tos << 20, size - 40, protocol, 64) + addresses + payload).ljust(size, b"\0")


def ports(one: int, other: int) -> bytes:
    return struct.pack("!HH", one, other) + bytes(4)


NOT = frozenset[Copies]()
SIGNALLING = frozenset({Copies.SIGNALLING, Copies.VOICE})
VOICE = frozenset({Copies.VOICE})
CLASSES = {
    "SIP by UDP": (ipv4(UDP, (5060, 30000)), SIGNALLING),
    "SIP by TCP": (ipv4(TCP, (30000, 5060)), SIGNALLING),
    "SIP by TLS": (ipv4(TCP, (5061, 30000)), SIGNALLING),
    "SIP over IPv6": (ipv6(UDP, ports(30000, 5060)), SIGNALLING),
    "DUNDi": (ipv4(UDP, (4520, 4520)), SIGNALLING),
    "a full frame of IAX2": (ipv4(UDP, (4569, 4569), body=0x80), SIGNALLING),
    "a long mini frame of IAX2": (ipv4(UDP, (4569, 4569), body=0x01), VOICE),
    "port 4569 by TCP": (ipv4(TCP, (4569, 4569), body=0x80), NOT),
    "an IAX2 header without a frame": (ipv4(UDP, (4569, 4569), size=28), VOICE),
    "marked CS3": (ipv4(TCP, tos=CS3), SIGNALLING),
    "marked AF31 with ECN": (ipv4(TCP, tos=AF31 | 2), SIGNALLING),
    "marked CS5": (ipv6(TCP, b"", tos=CS5), SIGNALLING),
    "marked EF": (ipv4(TCP, tos=EF), VOICE),
    "marked VOICE-ADMIT": (ipv6(TCP, b"", tos=VOICE_ADMIT), VOICE),
    "marked AF41": (ipv4(TCP, tos=AF41), NOT),
    "G.711 unmarked": (ipv4(UDP, (10000, 10002), size=200), VOICE),
    "UDP of 400 bytes": (ipv4(UDP, (10000, 10002), size=400), VOICE),
    "UDP of 401 bytes": (ipv4(UDP, (10000, 10002), size=401), NOT),
    "a web page": (ipv4(TCP, (443, 30000)), NOT),
    "a short TCP packet": (ipv4(TCP, (443, 30000), size=60), NOT),
    "a ping to 5060 in its body": (ipv4(ICMP, (5060, 5060)), NOT),
    "the rest of a long SIP message": (ipv4(UDP, (7, 7), offset=185), SIGNALLING),
    "the rest of something by TCP": (ipv4(TCP, (5060, 5060), offset=185), NOT),
    "the first fragment of something else": (ipv4(UDP, (7, 7), offset=0x2000), NOT),
    "the rest of a long SIP message over IPv6": (
        ipv6(44, struct.pack("!BBHI", UDP, 0, 1448, 1) + ports(7, 7)),
        SIGNALLING,
    ),
    "the first fragment of SIP over IPv6": (ipv6(44, struct.pack("!BBHI", UDP, 0, 1, 1) + ports(7, 5060)), SIGNALLING),
    "cut before its ports": (ipv4(TCP, size=24), NOT),
    "IPv6 cut before its fragment header": (ipv6(44, b"", size=44), NOT),
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_class_decides_what_is_copied(side: Side, name: str) -> None:
    item, classes = CLASSES[name]
    ready(side)
    for counter, copies in enumerate(Copies):
        double(side, copies)
        side.push(item)
        [first] = side.sent(1)
        assert unseal(1, 2, first)[0] == counter
        expected = copies is Copies.ALL or copies in classes
        assert side.sent(1, far=1) == [first] if expected else is_quiet(side)


def test_empty_packets_always_go_on_both_paths(side: Side) -> None:
    ready(side)
    double(side, Copies.SIGNALLING)
    assert side.plane.send_keepalive(1)
    assert side.sent(1) == side.sent(1, far=1)


def test_voice_between_bulk_keeps_its_order_and_is_copied_alone(side: Side) -> None:
    ready(side)
    double(side, Copies.VOICE)
    items = [ipv4(UDP, (10000, number), size=200 if number % 3 else 1200) for number in range(60)]
    same_size = [ipv4(UDP if number % 2 else TCP, (10000, number), size=300) for number in range(60)]
    for item in items + same_size:
        side.push(item)
    first = side.sent(120)
    assert [unseal(1, 2, message)[1][:24] for message in first] == [item[:24] for item in items + same_size]
    copied = [unseal(1, 2, message)[0] for message in side.sent(70, far=1)]
    assert copied == [number for number, item in enumerate(items + same_size) if is_copied(Copies.VOICE, item)]


def test_staged_packets_are_copied_by_class(side: Side) -> None:
    double(side, Copies.SIGNALLING)
    for number in range(20):
        side.push(ipv4(UDP, (5060 if number % 2 else 7, 9)))
    install(side.plane, 1, 2, is_initiator=True)
    assert len(side.sent(20)) == 20
    assert [unseal(1, 2, message)[0] for message in side.sent(10, far=1)] == list(range(1, 20, 2))


def test_a_command_says_what_is_copied(side: Side) -> None:
    ready(side)
    paths = [Path(0, far) for far in side.far[:2]]
    apply(MovePeer(1, paths[0], paths[1], Copies.SIGNALLING), side.plane)
    side.push(ipv4(TCP, (443, 443)))
    side.push(ipv4(TCP, (5060, 443)))
    assert side.sent(2)[1:] == side.sent(1, far=1)


def test_a_class_that_is_none_is_refused(side: Side) -> None:
    for copies in (-1, 3):
        with pytest.raises(ValueError, match=str(copies)):
            side.plane.set_endpoint(1, 0, side.far[0].host, side.far[0].port, copies=copies)


@pytest.mark.parametrize("dead", [None, 0, 1])
def test_with_either_path_dead_nothing_is_lost_and_nothing_comes_twice(
    sides: tuple[Side, Side], dead: int | None
) -> None:
    # The paths are the test: what A sends to its two far ends comes to B from B's, each copy after a delay of its own.
    a, b = sides
    install(b.plane, 2, 1, is_initiator=False)
    install(a.plane, 1, 2, is_initiator=True)
    double(a, Copies.VOICE)
    b.plane.set_endpoint(1, 0, b.far[0].host, b.far[0].port, secondary=(0, b.far[1].host, b.far[1].port, b""))
    chance = random.Random(dead)
    items = [packet(A_HOST, B_HOST, number) for number in range(200)]
    for item in items:
        a.push(item)
    arrivals = [
        (number * 0.02 + chance.uniform(0.0, 0.3), far, message)
        for far in (0, 1)
        for number, message in enumerate(a.sent(len(items), far=far))
        if far != dead
    ]
    for _, far, message in sorted(arrivals):
        b.inject(message, far=far)
    assert sorted(b.take(len(items))) == items
    b.settle()
    assert b.stats().rx_packets == len(items)
    assert b.stats().lost_packets == 0
    assert b.drops() == ({"second_copy": len(items)} if dead is None else {})


def test_what_is_played_back_from_elsewhere_or_to_a_peer_on_one_path_is_replayed(joined: Side) -> None:
    message = seal(1, 2, 0, packet(B_HOST, A_HOST, 0))
    joined.inject(message, message)
    joined.settle()
    assert joined.drops() == {"replayed": 1}
    double(joined, Copies.VOICE)
    joined.inject(message, far=2)
    joined.settle()
    assert joined.drops() == {"replayed": 2}
    joined.inject(message, far=1)
    joined.settle()
    assert joined.drops() == {"replayed": 2, "second_copy": 1}
    # Behind the window nothing is known of a counter.
    joined.inject(seal(1, 2, 20_000, b""), message)
    joined.settle()
    assert joined.drops() == {"replayed": 3, "second_copy": 1}


HEADS = st.sampled_from([item[:60] for item, _ in CLASSES.values()])
EDITS = st.lists(st.tuples(st.integers(0, 59), st.integers(0, 255)), max_size=4)


def test_the_engine_and_its_twin_copy_the_same() -> None:
    with open_side("engine") as side:
        introduce(side, side.far[0], B_HOST)
        ready(side)
        counter = 0

        @given(HEADS, EDITS, st.integers(20, 60) | st.integers(380, 420), st.sampled_from(Copies))
        @settings(max_examples=300, deadline=None, derandomize=True)
        def check(head: bytes, edits: list[tuple[int, int]], size: int, copies: Copies) -> None:
            nonlocal counter
            changed = bytearray(head.ljust(size, b"\0")[:size])
            for at, value in edits:
                changed[at % size] = value
            item = bytes([head[0]]) + bytes(changed[1:])
            assume(size >= 40 or item[0] >> 4 == 4)
            double(side, copies)
            side.push(item)
            [first] = side.sent(1)
            assert unseal(1, 2, first)[0] == counter
            counter += 1
            copied = is_copied(copies, item)
            assert side.sent(1, far=1) == [first] if copied else is_quiet(side)

        check()


def ready(side: Side) -> None:
    """Whatever is pushed goes to peer 1."""
    for anything in (bytes(4), bytes(16)):
        side.plane.add_route(anything, 0, 1)
    install(side.plane, 1, 2, is_initiator=True)


def double(side: Side, copies: Copies) -> None:
    first, second = side.far[:2]
    side.plane.set_endpoint(1, 0, first.host, first.port, secondary=(0, second.host, second.port, b""), copies=copies)


def is_quiet(side: Side) -> bool:
    """Whether nothing went to the second path."""
    side.settle()
    if isinstance(side, EngineSide):
        return not select.select([side.ends[1]], [], [], 0)[0]
    return side.sent(1, far=1) == []
