"""DSCP and ECN on the wire: what the outer header of a real UDP datagram shows, and what a mark there does inside."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from .sides import (
    A_HOST,
    B_HOST,
    SOL_UDP,
    UDP_SEGMENT,
    WITHOUT,
    EngineSide,
    checksum,
    install,
    introduce,
    packet,
    seal,
    unseal,
)

EF, AF41, CS0 = 46 << 2, 34 << 2, 0
NOT_ECT, ECT1, ECT0, CE = range(4)


@pytest.fixture(params=WITHOUT)
def engine(request: pytest.FixtureRequest) -> Iterator[EngineSide]:
    with contextlib.closing(EngineSide(without=WITHOUT[request.param])) as side:
        introduce(side, side.far[0], B_HOST)
        side.plane.add_route(bytes.fromhex("fd00") + bytes(14), 16, 1)
        install(side.plane, 1, 2, is_initiator=True)
        side.ends[0].setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        yield side


@pytest.mark.parametrize("tos", [EF, AF41, CS0, EF | ECT0, EF | ECT1, EF | CE, 0xFF])
@pytest.mark.parametrize(("source", "destination"), [(A_HOST, B_HOST), ("fd00::1", "fd00::2")])
def test_the_outer_header_has_the_marks_of_the_inner(
    engine: EngineSide, tos: int, source: str, destination: str
) -> None:
    engine.push(packet(source, destination, 1, tos=tos))
    assert [mark for mark, _ in received(engine, 1)] == [tos]


def test_a_batch_is_cut_where_the_mark_changes_and_keeps_its_order(engine: EngineSide) -> None:
    marks = [EF, EF, EF, CS0, CS0, EF, AF41, AF41, AF41, CS0] * 6
    packets = [packet(A_HOST, B_HOST, number, tos=tos) for number, tos in enumerate(marks)]
    for item in packets:
        engine.push(item)
    got = received(engine, len(packets))
    assert [mark for mark, _ in got] == marks
    assert [unseal(1, 2, message)[1][:200] for _, message in got] == packets


def test_the_second_path_has_the_marks_too(engine: EngineSide) -> None:
    engine.ends[1].setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    far = engine.far
    engine.plane.set_endpoint(1, 0, far[0].host, far[0].port, secondary=(0, far[1].host, far[1].port, b""))
    for number in range(10):
        engine.push(packet(A_HOST, B_HOST, number, tos=EF))
    assert [mark for mark, _ in received(engine, 10)] == [EF] * 10
    assert [mark for mark, _ in received(engine, 10, far=1)] == [EF] * 10


def test_a_keepalive_has_no_mark(engine: EngineSide) -> None:
    engine.settle()
    assert engine.plane.send_keepalive(1)
    assert [(mark, len(message)) for mark, message in received(engine, 1)] == [(0, 32)]


def test_marks_are_left_alone_where_that_is_asked_for() -> None:
    with contextlib.closing(EngineSide(without=frozenset({"send_tos", "recv_tos"}))) as side:
        introduce(side, side.far[0], B_HOST)
        install(side.plane, 1, 2, is_initiator=True)
        side.ends[0].setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        side.push(packet(A_HOST, B_HOST, 1, tos=EF | ECT0))
        assert [mark for mark, _ in received(side, 1)] == [0]
        assert not side.plane.features["send_tos"]


# RFC 6040 §4.2, figure 4; rows by inner, columns by outer field; None: dropped.
RFC_6040: dict[int, dict[int, int | None]] = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: None},
    ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
    ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
    CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}
TABLE = [(inner, outer, result) for inner, row in RFC_6040.items() for outer, result in row.items()]


@pytest.mark.parametrize(("inner", "outer", "result"), TABLE)
@pytest.mark.parametrize(("source", "destination"), [(B_HOST, A_HOST), ("fd00::2", "fd00::1")])
def test_what_the_path_marked_is_told_inside_by_rfc_6040(
    engine: EngineSide, inner: int, outer: int, result: int | None, source: str, destination: str
) -> None:
    engine.ends[0].setsockopt(socket.IPPROTO_IP, socket.IP_TOS, outer)
    item = packet(source, destination, 1, tos=EF | inner)
    engine.inject(seal(1, 2, 0, item))
    if result is None:
        engine.ends[0].setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0)
        engine.settle()
        assert engine.drops() == {"congested": 1}
        return
    [got] = engine.take(1)
    assert got == packet(source, destination, 1, tos=EF | result)
    assert ":" in source or checksum(got[:20]) == 0xFFFF


def test_a_train_marked_on_its_way_is_marked_in_every_packet(engine: EngineSide) -> None:
    engine.ends[0].setsockopt(socket.IPPROTO_IP, socket.IP_TOS, CE)
    messages = [seal(1, 2, number, packet(B_HOST, A_HOST, number, tos=ECT0)) for number in range(20)]
    size = struct.pack("=H", len(messages[0]))
    engine.ends[0].sendmsg([b"".join(messages)], [(SOL_UDP, UDP_SEGMENT, size)], 0, engine.udp.getsockname())
    assert engine.take(20) == [packet(B_HOST, A_HOST, number, tos=CE) for number in range(20)]


def received(engine: EngineSide, count: int, far: int = 0) -> list[tuple[int, bytes]]:
    """The outer mark and the message of what came to a far end."""
    taken = []
    engine.ends[far].settimeout(5.0)
    for _ in range(count):
        data, control, _, _ = engine.ends[far].recvmsg(65536, 256)
        [mark] = [value[0] for level, kind, value in control if (level, kind) == (socket.IPPROTO_IP, socket.IP_TOS)]
        taken.append((mark, data))
    return taken
