"""Large packets from and for a TUN device with virtio_net_hdr: cut and joined as the kernel would do it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .flows import (
    ACK,
    CWR,
    FIN,
    NEEDS_CSUM,
    PLAIN,
    PSH,
    TCP,
    TCP4,
    TCP_6,
    UDP,
    UDP_6,
    VNET,
    Flow,
    resplit,
    take_packets,
)
from .sides import A_HOST, B_HOST, EngineSide, install, introduce, packet, seal, unseal

FLOWS = pytest.mark.parametrize("flow", [TCP, UDP, TCP_6, UDP_6], ids=["tcp4", "udp4", "tcp6", "udp6"])


@pytest.fixture
def engine() -> Iterator[EngineSide]:
    with open_engine() as side:
        yield side


@contextlib.contextmanager
def open_engine() -> Iterator[EngineSide]:
    with contextlib.closing(EngineSide(vnet_hdr=True)) as side:
        introduce(side, side.far[0], B_HOST)
        side.plane.add_route(bytes.fromhex("fd00") + bytes(14), 16, 1)
        install(side.plane, 1, 2, is_initiator=True)
        yield side


class TestFromTheDevice:
    @FLOWS
    @pytest.mark.parametrize("size", [1, 2, 7, 8, 160, 1311])
    def test_a_checksum_left_to_us_is_completed(self, engine: EngineSide, flow: Flow, size: int) -> None:
        payload = bytes(range(256))[:1] * size
        engine.push(flow.vnet() + flow.packet(9, payload, is_whole=False))
        assert opened(engine, 1) == [flow.packet(9, payload)]

    def test_a_packet_with_its_checksum_goes_as_it_is(self, engine: EngineSide) -> None:
        item = packet(A_HOST, B_HOST, 1)
        engine.push(PLAIN + item)
        assert opened(engine, 1) == [item]

    @FLOWS
    @pytest.mark.parametrize(
        ("size", "gso_size"), [(60_000, 1300), (1301, 1300), (1299, 1300), (2600, 1300), (9001, 61)]
    )
    def test_a_large_packet_is_cut_as_the_kernel_would(
        self, engine: EngineSide, flow: Flow, size: int, gso_size: int
    ) -> None:
        payload = bytes(number * 7 % 251 for number in range(size))
        sequence = 0xFFFFFFFF - 2000
        flags = ACK | PSH | FIN | CWR
        engine.push(flow.vnet(gso_size) + flow.packet(sequence, payload, flags, 65530, is_whole=False))
        expected = flow.cut(sequence, payload, gso_size, flags, 65530)
        assert opened(engine, len(expected)) == expected
        assert engine.plane.stats(1).tx_packets == len(expected)

    def test_a_large_packet_without_a_keypair_waits_in_pieces(self, engine: EngineSide) -> None:
        engine.plane.forget_keypairs(1)
        engine.push(TCP.vnet(1000) + TCP.packet(0, bytes(5500), is_whole=False))
        engine.settle()
        install(engine.plane, 1, 2, is_initiator=True)
        assert opened(engine, 6) == TCP.cut(0, bytes(5500), 1000)

    @pytest.mark.parametrize(
        "vnet",
        [
            VNET.pack(0, TCP4, 52, 1000, 20, 16),
            VNET.pack(NEEDS_CSUM, TCP4, 52, 0, 20, 16),
            VNET.pack(NEEDS_CSUM, TCP4, 52, 1000, 0, 16),
            VNET.pack(NEEDS_CSUM, TCP4, 52, 1000, 60000, 16),
            VNET.pack(NEEDS_CSUM, 0, 52, 0, 65535, 65535),
            VNET.pack(NEEDS_CSUM, 0, 52, 0, 3000, 51),
        ],
    )
    def test_a_header_that_contradicts_its_packet_is_dropped_by_name(self, engine: EngineSide, vnet: bytes) -> None:
        engine.push(vnet + TCP.packet(0, bytes(3000)))
        engine.settle()
        assert engine.drops() == {"not_ip": 1}

    def test_pieces_that_fit_no_buffer_are_too_big(self, engine: EngineSide) -> None:
        engine.push(TCP.vnet(9500) + TCP.packet(0, bytes(30_000), is_whole=False))
        engine.settle()
        assert engine.drops() == {"too_big": 1}

    @pytest.mark.parametrize("size", range(11))
    def test_less_than_a_header_is_no_packet(self, engine: EngineSide, size: int) -> None:
        engine.push(bytes(size) or b"\0")
        engine.settle()
        assert engine.drops() == {"not_ip": 1}


class TestForTheDevice:
    @FLOWS
    def test_neighbours_of_one_flow_are_joined(self, engine: EngineSide, flow: Flow) -> None:
        packets = flow.back().cut(100, bytes(range(250)) * 30, 500)
        send(engine, packets)
        got = engine.take(1)
        assert [VNET.unpack_from(item)[1] for item in got] == [flow.vnet(500)[1]]
        assert resplit(got[0], flow.back()) == packets

    @FLOWS
    def test_a_short_packet_ends_a_train(self, engine: EngineSide, flow: Flow) -> None:
        packets = flow.back().cut(100, bytes(1700), 500) + flow.back().cut(1800, bytes(1000), 500, first=4)
        send(engine, packets)
        assert [resplit(item, flow.back()) for item in engine.take(2)] == [packets[:4], packets[4:]]

    def test_a_train_has_a_greatest_length(self, engine: EngineSide) -> None:
        packets = UDP.back().cut(0, bytes(100 * 150), 100)
        messages = [seal(1, 2, counter, item) for counter, item in enumerate(packets)]
        engine.plane.stop()
        for at in range(0, 150, 50):
            engine.inject_joined(*messages[at : at + 50])
        engine.plane.start()
        assert [resplit(item, UDP.back()) for item in engine.take(3)] == [packets[:64], packets[64:128], packets[128:]]

    def test_pushed_data_ends_a_train_and_stays_pushed(self, engine: EngineSide) -> None:
        flow = TCP.back()
        packets = [
            flow.packet(number * 500, bytes(500), ACK | (PSH if number == 2 else 0), number) for number in range(5)
        ]
        send(engine, packets)
        assert [resplit(item, flow) for item in engine.take(2)] == [packets[:3], packets[3:]]

    @pytest.mark.parametrize("position", [0, 1, 2])
    @FLOWS
    def test_a_wrong_checksum_stays_wrong(self, engine: EngineSide, flow: Flow, position: int) -> None:
        packets = flow.back().cut(0, bytes(2000), 500)
        packets[position] = packets[position][:-1] + b"\1"
        send(engine, packets)
        assert take_packets(engine, packets) == packets

    def test_what_is_not_alike_is_not_joined(self, engine: EngineSide) -> None:
        one, other = TCP.back(), Flow(B_HOST, A_HOST, 5061)
        aged = Flow(B_HOST, A_HOST, options=b"\1\1\x08\x0a" + bytes(7) + b"\1")
        packets = [
            one.packet(0, bytes(100), number=0),
            other.packet(100, bytes(100), number=1),
            one.packet(100, bytes(100), number=2),
            one.packet(300, bytes(100), number=3),
            aged.packet(400, bytes(100), number=4),
            aged.packet(500, bytes(101), number=5),
            aged.packet(601, bytes(50), ACK | FIN, number=6),
            aged.packet(652, b"", number=7),
        ]
        send(engine, packets)
        assert engine.take(len(packets)) == [PLAIN + item for item in packets]

    def test_options_and_fragments_travel_alone(self, engine: EngineSide) -> None:
        whole = [UDP.back().packet(0, bytes(100), number=number) for number in range(2)]
        fragments = [item[:6] + b"\x20\0" + item[8:] for item in whole]
        send(engine, fragments)
        assert engine.take(2) == [PLAIN + item for item in fragments]

    def test_a_keepalive_between_two_packets_parts_nothing(self, engine: EngineSide) -> None:
        packets = UDP.back().cut(0, bytes(400), 200)
        engine.inject(seal(1, 2, 0, packets[0]), seal(1, 2, 1, b""), seal(1, 2, 2, packets[1]))
        assert take_packets(engine, packets) == packets

    def test_what_others_sent_arrives_as_it_was_sent(self) -> None:
        flows = st.sampled_from([TCP.back(), UDP.back(), TCP_6.back(), Flow(B_HOST, A_HOST, 5061, None)])
        sizes = st.sampled_from([0, 1, 99, 100, 100, 100, 101])
        steps = st.tuples(flows, sizes, st.sampled_from([0, 0, 0, 0, 1]), st.sampled_from([ACK] * 6 + [ACK | PSH, FIN]))
        counters = iter(range(1_000_000))

        with open_engine() as engine:

            @given(st.lists(steps, min_size=1, max_size=40))
            @settings(max_examples=80, deadline=None, derandomize=True)
            def check(items: list[tuple[Flow, int, int, int]]) -> None:
                packets, sequence = [], 0xFFFFFF00
                for number, (flow, size, gap, flags) in enumerate(items):
                    packets.append(flow.packet(sequence + gap, bytes([number]) * size, flags, number))
                    sequence += size + gap
                engine.inject(*(seal(1, 2, next(counters), item) for item in packets))
                assert take_packets(engine, packets) == packets

            check()


def send(engine: EngineSide, packets: list[bytes]) -> None:
    """So that the engine gets them in one batch: while it is stopped."""
    engine.plane.stop()
    engine.inject(*(seal(1, 2, counter, item) for counter, item in enumerate(packets)))
    engine.plane.start()


def opened(engine: EngineSide, count: int) -> list[bytes]:
    """The packets that went to the far end, without padding."""
    items = [unseal(1, 2, message)[1] for message in engine.sent(count)]
    return [
        item[: int.from_bytes(item[2:4]) if item[0] >> 4 == 4 else 40 + int.from_bytes(item[4:6])] for item in items
    ]
