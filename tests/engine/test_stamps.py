"""The stamps behind the timers, as the engine keeps them."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tun.engine import Engine

WAIT = 5.0
"""Seconds after which a packet has not been sent."""


def test_a_handshake_is_an_answer_to_what_was_sent(tun: socket.socket, engine: Engine) -> None:
    install(engine, 1)
    tun.send(PACKET)
    until_sent(engine)
    assert engine.stats(1).first_sent_at > 0
    install(engine, 2)
    assert engine.stats(1).first_sent_at == 0


HOST = socket.inet_aton("10.0.0.2")
PACKET = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0) + socket.inet_aton("10.0.0.1") + HOST + bytes(8)


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    with ExitStack() as stack:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        inner, tun = (stack.enter_context(sock) for sock in pair)
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        inner.setblocking(False)
        udp.setblocking(False)
        yield inner, tun, udp


@pytest.fixture
def tun(sockets: tuple[socket.socket, socket.socket, socket.socket]) -> socket.socket:
    return sockets[1]


@pytest.fixture
def engine(sockets: tuple[socket.socket, socket.socket, socket.socket]) -> Iterator[Engine]:
    inner, _, udp = sockets
    engine = Engine(inner.fileno(), [udp.fileno()])
    engine.start()
    engine.add_peer(1)
    engine.add_route(HOST, 32, 1)
    engine.set_endpoint(1, 0, *udp.getsockname())  # to itself: nobody answers
    yield engine
    engine.stop()


def install(engine: Engine, index: int) -> None:
    keys = {"send_key": bytes([index]) * 32, "receive_key": bytes(32)}
    now = time.monotonic()
    engine.install_keypair(1, local_index=index, remote_index=9, is_initiator=True, created_at=now, **keys)


def until_sent(engine: Engine) -> None:
    deadline = time.monotonic() + WAIT
    while engine.stats(1).tx_packets == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
