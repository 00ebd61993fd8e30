"""Large packets from and for a TUN device with virtio_net_hdr: cut and joined as the kernel would do it."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .sides import A_HOST, B_HOST, EngineSide, checksum, install, introduce, packet, seal, unseal

ACK, PSH, FIN, CWR = 0x10, 0x08, 0x01, 0x80
NEEDS_CSUM, TCP4, TCP6, UDP_TRAIN = 1, 1, 4, 5
A_HOST6, B_HOST6 = "fd00::1", "fd00::2"
VNET = struct.Struct("<BBHHHH")
PLAIN = bytes(10)


@dataclass(frozen=True, slots=True)
class Flow:
    """TCP if `options` is not None, else UDP."""

    source: str = A_HOST
    destination: str = B_HOST
    port: int = 5060
    options: bytes | None = b"\1\1\x08\x0a" + bytes(8)

    @property
    def header_bytes(self) -> int:
        return (40 if ":" in self.source else 20) + (8 if self.options is None else 20 + len(self.options))

    def packet(
        self, sequence: int, payload: bytes, flags: int = ACK, number: int = 0, *, is_whole: bool = True
    ) -> bytes:
        """`is_whole`: with its checksum; else with the sum of the pseudo-header, as the kernel leaves it."""
        kind = 17 if self.options is None else 6
        if self.options is None:
            body = struct.pack("!HHHH", 4000, self.port, 8 + len(payload), 0) + payload
        else:
            words = (20 + len(self.options)) // 4
            body = struct.pack("!HHIIBBHHH", 4000, self.port, sequence & 0xFFFFFFFF, 77, words << 4, flags, 500, 0, 0)
            body += self.options + payload
        family = socket.AF_INET6 if ":" in self.source else socket.AF_INET
        addresses = socket.inet_pton(family, self.source) + socket.inet_pton(family, self.destination)
        pseudo = checksum(addresses + struct.pack("!II", len(body), kind))
        at = 6 if self.options is None else 16
        total = pseudo if not is_whole else 0xFFFF - checksum(pseudo.to_bytes(2, "big") + body + bytes(len(body) % 2))
        if is_whole and not total and self.options is None:
            total = 0xFFFF
        body = body[:at] + total.to_bytes(2, "big") + body[at + 2 :]
        if family == socket.AF_INET6:
            return struct.pack("!IHBB", 6 << 28, len(body), kind, 64) + addresses + body
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), number, 0x4000, 64, kind, 0) + addresses
        return head[:10] + (0xFFFF - checksum(head)).to_bytes(2, "big") + head[12:] + body

    def vnet(self, gso_size: int = 0) -> bytes:
        start = 40 if ":" in self.source else 20
        gso = 0 if not gso_size else UDP_TRAIN if self.options is None else TCP6 if ":" in self.source else TCP4
        return VNET.pack(NEEDS_CSUM, gso, self.header_bytes, gso_size, start, 6 if self.options is None else 16)

    def cut(self, sequence: int, payload: bytes, gso_size: int, flags: int = ACK, first: int = 0) -> list[bytes]:
        """The packets that a large one stands for."""
        pieces = [payload[at : at + gso_size] for at in range(0, len(payload), gso_size)]
        packets = []
        for number, piece in enumerate(pieces):
            kept = flags & ~(CWR if number else 0) & ~(0 if number == len(pieces) - 1 else PSH | FIN)
            packets.append(self.packet(sequence + number * gso_size, piece, kept, (first + number) & 0xFFFF))
        return packets

    def back(self) -> Flow:
        """The same from B to A."""
        return Flow(self.destination, self.source, self.port, self.options)


TCP, UDP = Flow(), Flow(options=None)
TCP_6, UDP_6 = Flow(A_HOST6, B_HOST6), Flow(A_HOST6, B_HOST6, options=None)
FLOWS = pytest.mark.parametrize("flow", [TCP, UDP, TCP_6, UDP_6], ids=["tcp4", "udp4", "tcp6", "udp6"])


@pytest.fixture
def engine() -> Iterator[EngineSide]:
    with open_engine() as side:
        yield side


@contextlib.contextmanager
def open_engine() -> Iterator[EngineSide]:
    with contextlib.closing(EngineSide(offload=True)) as side:
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


def take_packets(engine: EngineSide, expected: list[bytes]) -> list[bytes]:
    """As many packets as expected, out of single ones and trains."""
    taken: list[bytes] = []
    while len(taken) < len(expected) and (items := engine.take(1)):
        taken += resplit(items[0], flow_of(items[0][10:]))
    return taken


def resplit(item: bytes, flow: Flow) -> list[bytes]:
    """What the kernel makes of a packet that the engine wrote."""
    flags, kind, header_bytes, gso_size, start, offset = VNET.unpack_from(item)
    whole = item[10:]
    if item[:10] == PLAIN:
        return [whole]
    assert (flags, header_bytes) == (NEEDS_CSUM, flow.header_bytes)
    payload = whole[header_bytes:]
    sequence = int.from_bytes(whole[start + 4 : start + 8])
    tcp_flags = whole[start + 13] if kind != UDP_TRAIN else ACK
    number = int.from_bytes(whole[4:6]) if start == 20 else 0
    assert len(payload) > gso_size
    assert whole == flow.packet(sequence, payload, tcp_flags, number, is_whole=False)
    assert offset == (6 if kind == UDP_TRAIN else 16)
    return flow.cut(sequence, payload, gso_size, tcp_flags, number)


def flow_of(item: bytes) -> Flow:
    is_6 = item[0] >> 4 == 6
    start, kind = (40, item[6]) if is_6 else (20, item[9])
    source, destination = (B_HOST6, A_HOST6) if is_6 else (B_HOST, A_HOST)
    options = item[start + 20 : start + (item[start + 12] >> 4) * 4] if kind == 6 else None
    return Flow(source, destination, int.from_bytes(item[start + 2 : start + 4]), options)
