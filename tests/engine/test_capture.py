"""The marks as a capture on the wire shows them: outer headers of both families, and where a batch is cut."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator

import pytest

from tun.engine import Engine

from .network import own_network
from .sides import A_HOST, B_HOST, SO_RCVBUFFORCE, WITHOUT, install, packet

EF, AF41, ECT0, CE = 46 << 2, 34 << 2, 2, 3
ETHERNET, UDP = 14, 8
ETH_P_ALL, PACKET_OUTGOING = 3, 4
MESSAGE = 16 + 208 + 16
"""A sealed packet of 200 bytes."""


@pytest.mark.netns
@pytest.mark.parametrize("kind", WITHOUT)
@pytest.mark.parametrize(("source", "destination"), [(A_HOST, B_HOST), ("fd00::1", "fd00::2")], ids=["in4", "in6"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"], ids=["out4", "out6"])
def test_outer_marks_are_the_inner_ones_and_a_batch_is_cut_where_they_change(
    kind: str, source: str, destination: str, host: str
) -> None:
    marks = [EF, EF, EF, 0, 0, EF | ECT0, EF | CE, AF41, AF41, 0xFF, EF] * 5
    with open_capture(kind, host) as (engine, tun, wire, port):
        for number, tos in enumerate(marks):
            tun.send(packet(source, destination, number, tos=tos))
        engine.start()
        seen: list[tuple[int, int]] = []
        while sum(count for _, count in seen) < len(marks):
            seen += frames(wire, port)
    assert [tos for tos, count in seen for _ in range(count)] == marks
    runs = [(tos, len(list(run))) for tos, run in itertools.groupby(marks)]
    if "udp_gso" not in WITHOUT[kind]:
        # All were there before the engine looked: each run of one mark is one message.
        assert seen == runs
    else:
        assert seen == [(tos, 1) for tos in marks]


@contextlib.contextmanager
def open_capture(kind: str, host: str) -> Iterator[tuple[Engine, socket.socket, socket.socket, int]]:
    """An engine with a peer at `host`, what is written to its TUN device, and a capture of its network."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        inner, tun = map(stack.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        inner.setblocking(False)
        tun.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        with own_network():
            near, far = (stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(2))
            wire = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
            wire.bind(("lo", ETH_P_ALL))
            wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        wire.settimeout(5.0)
        for sock in (near, far):
            sock.bind((host, 0))
        engine = Engine(inner.fileno(), [near.fileno()], without=WITHOUT[kind])
        stack.callback(engine.stop)
        engine.add_peer(1)
        engine.add_route(socket.inet_aton(B_HOST), 32, 1)
        engine.add_route(socket.inet_pton(socket.AF_INET6, "fd00::2"), 128, 1)
        engine.set_endpoint(1, 0, host, far.getsockname()[1])
        install(engine, 1, 2, is_initiator=True)
        yield engine, tun, wire, far.getsockname()[1]


def frames(wire: socket.socket, port: int) -> list[tuple[int, int]]:
    """The next frame's outer traffic class and its number of sealed packets, if it goes to `port`."""
    frame, address = wire.recvfrom(65536 + ETHERNET)
    outer = frame[ETHERNET:]
    start = 20 if outer[0] >> 4 == 4 else 40
    if address[2] != PACKET_OUTGOING or int.from_bytes(outer[start + 2 : start + 4]) != port:
        return []
    payload = outer[start + UDP :]
    assert len(payload) % MESSAGE == 0
    tos = outer[1] if start == 20 else int.from_bytes(outer[:2]) >> 4 & 0xFF
    return [(tos, len(payload) // MESSAGE)]
