"""Kernel features: each can be missing, or left out, alone; packets pass all the same, both ways and in order."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Collection, Iterator

import pytest

from tun.device import open_device
from tun.engine import FEATURES, Engine
from tun.relay import FEATURES as RELAY_FEATURES
from tun.relay import RelayPump

from .flows import PLAIN, TCP, TCP_6, UDP, UDP_6, VNET, Flow, flow_of, resplit
from .network import own_network
from .refusals import REFUSALS, refused
from .sides import A_HOST, B_HOST, EngineSide, handshake, introduce, loopback, own_processor, packet

EF, AF41 = 46 << 2, 34 << 2
SIZES = (200, 200, 200, 60, 1400, 200, 24, 1399, 60, 60)
MARKS = (EF, EF, EF, EF, 0, 0, AF41)
EACH = pytest.mark.parametrize("without", [{name} for name in FEATURES] + [set(FEATURES)], ids=[*FEATURES, "all"])
EACH_MISSING = pytest.mark.parametrize(
    "missing", [{name} for name in REFUSALS] + [set(REFUSALS)], ids=[*REFUSALS, "all"]
)
SIOCETHTOOL, ETHTOOL_GTSO = 0x8946, 0x1E


def test_without_is_for_names_that_there_are() -> None:
    with loopback() as sock:
        with pytest.raises(ValueError, match="no such feature: gso, tso"):
            Engine(sock.fileno(), [sock.fileno()], without={"tso", "udp_gro", "gso"})
        with pytest.raises(ValueError, match="no such feature: tun_tso"):
            RelayPump([sock.fileno()], byte_rate=1, byte_burst=1, without={"tun_tso"})


@EACH
def test_what_is_left_out_is_off_and_nothing_else(without: set[str]) -> None:
    gone = without | ({"tun_tso", "tun_uso"} if "vnet_hdr" in without else set())
    with (
        contextlib.closing(EngineSide(vnet_hdr=True)) as full,
        contextlib.closing(EngineSide(without=frozenset(without), vnet_hdr=True)) as side,
    ):
        assert side.plane.features == {name: is_on and name not in gone for name, is_on in full.plane.features.items()}
        assert tuple(full.plane.features) == FEATURES
        assert tuple(full.plane.features)[: len(RELAY_FEATURES)] == RELAY_FEATURES


@EACH
def test_packets_pass_without_it_at_one_end(without: set[str]) -> None:
    check_both_ways(without, set())


def test_packets_pass_without_all_at_both_ends() -> None:
    check_both_ways(set(FEATURES), set(FEATURES))


@EACH_MISSING
def test_packets_pass_where_the_kernel_lacks_it(missing: set[str]) -> None:
    def check() -> None:
        expected = {name: name not in missing or name.startswith("tun_") for name in FEATURES}
        assert check_both_ways(set(), set()) == expected  # the device is no real one: nothing is asked of it

    refused(missing, check)


@pytest.mark.netns
@EACH_MISSING
def test_a_real_device_is_asked_for_each(missing: set[str]) -> None:
    with own_network():
        device = open_device("mesh7", persist=False)
        with contextlib.closing(device), loopback() as sock:
            had = Engine(device.fd, [sock.fileno()]).features
            assert had["vnet_hdr"]
            assert had["tun_tso"]

            def check() -> None:
                found = Engine(device.fd, [sock.fileno()]).features
                assert found == {name: is_on and name not in missing for name, is_on in had.items()}

            refused(missing, check)


@pytest.mark.netns
def test_a_device_that_stays_forgets_what_an_earlier_engine_had() -> None:
    with own_network(), loopback() as sock:
        for without, is_on in ((set(), True), ({"tun_tso"}, False), (set(), True), ({"vnet_hdr"}, False)):
            device = open_device("mesh7", vnet_hdr="vnet_hdr" not in without)
            with contextlib.closing(device):
                features = Engine(device.fd, [sock.fileno()], without=without).features
                assert features["tun_tso"] is is_on
                assert features["vnet_hdr"] is ("vnet_hdr" not in without)
                assert sends_large_segments(device.name) is is_on


@pytest.mark.parametrize("flow", [TCP, UDP, TCP_6, UDP_6], ids=["tcp4", "udp4", "tcp6", "udp6"])
@pytest.mark.parametrize("name", ["tun_tso", "tun_uso"])
def test_only_what_the_device_takes_is_joined_for_it(flow: Flow, name: str) -> None:
    is_left_out = (name == "tun_tso") == (flow.options is not None)
    with pair(set(), {name}) as (a, b):
        packets = flow.cut(100, bytes(2000), 500)
        b.plane.stop()
        for item in packets:
            a.push(PLAIN + item)
        a.settle()
        b.plane.start()
        first = b.take(1)[0]
        assert resplit(first, flow) == (packets[:1] if is_left_out else packets)
        assert VNET.unpack_from(first)[1] == (0 if is_left_out else flow.vnet(500)[1])


def check_both_ways(without_a: Collection[str], without_b: Collection[str]) -> dict[str, bool]:
    """Mixed sizes, marks and flows. Returns what A uses."""
    with pair(without_a, without_b) as (a, b):
        there = [packet(A_HOST, B_HOST, number, size, tos=tos) for number, (size, tos) in enumerate(mix())]
        back = [packet(B_HOST, A_HOST, number, size, tos=tos) for number, (size, tos) in enumerate(mix())]
        for near, far, items, flows in (
            (a, b, there, (TCP, UDP, TCP_6, UDP_6)),
            (b, a, back, (TCP.back(), UDP.back(), TCP_6.back(), UDP_6.back())),
        ):
            assert sent(near, far, items, flows) == [*items, *(item for flow in flows for item in pieces(flow))]
            assert near.drops() == far.drops() == {}
            stats = far.stats()
            marked = sum(tos != 0 for _, tos in mix())
            is_read, is_told = far.plane.features["recv_tos"], near.plane.features["send_tos"]
            assert stats.marked_packets == (marked if is_read else 0)
            assert stats.kept_marks == (marked if is_read and is_told else 0)
        return dict(a.plane.features)


def sent(near: EngineSide, far: EngineSide, items: list[bytes], flows: Collection[Flow]) -> list[bytes]:
    """What the far device gets of single packets, and of flows that are large ones where the near device has them."""
    for item in items:
        near.push(near.vnet + item)
    for flow in flows:
        if near.plane.features["tun_tso" if flow.options is not None else "tun_uso"]:
            near.push(flow.vnet(PIECE) + flow.packet(0, bytes(PAYLOAD), is_whole=False))
        else:
            for item in pieces(flow):
                near.push(near.vnet + item)
    expected = len(items) + sum(len(pieces(flow)) for flow in flows)
    taken: list[bytes] = []
    while len(taken) < expected and (got := far.take(1)):
        taken += resplit(got[0], flow_of(got[0][10:])) if far.vnet else got
    return taken


PIECE, PAYLOAD = 500, 3300


def pieces(flow: Flow) -> list[bytes]:
    return flow.cut(0, bytes(PAYLOAD), PIECE)


def mix() -> list[tuple[int, int]]:
    """Sizes and marks: runs that can share a message, and what ends them."""
    return [(SIZES[number % len(SIZES)], MARKS[number // 3 % len(MARKS)]) for number in range(120)]


@contextlib.contextmanager
def pair(without_a: Collection[str], without_b: Collection[str]) -> Iterator[tuple[EngineSide, EngineSide]]:
    """Two engines that share one processor: on loopback nothing overtakes then."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, own_processor())
    try:
        with (
            contextlib.closing(EngineSide(without=frozenset(without_a), vnet_hdr=True)) as a,
            contextlib.closing(EngineSide(without=frozenset(without_b), vnet_hdr=True)) as b,
        ):
            introduce(a, b.address, B_HOST)
            introduce(b, a.address, A_HOST)
            for side, last in ((a, "2"), (b, "1")):
                side.plane.add_route(socket.inet_pton(socket.AF_INET6, f"fd00::{last}"), 128, 1)
            handshake(a.plane, b.plane, 1)
            yield a, b
    finally:
        os.sched_setaffinity(0, before)


def sends_large_segments(interface: str) -> bool:
    """Whether the kernel hands the device TCP segments to cut (ethtool -k)."""
    value = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_GTSO, 0))
    request = struct.pack("@16sP16x", interface.encode(), ctypes.addressof(value))
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if libc.ioctl(sock.fileno(), SIOCETHTOOL, ctypes.create_string_buffer(request)) != 0:
            raise OSError(ctypes.get_errno(), "SIOCETHTOOL")
    return bool(struct.unpack("=II", value.raw[:8])[1])
