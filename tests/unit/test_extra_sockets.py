"""Sockets for guessing ports: read by the loop until the engine has them."""

from __future__ import annotations

import asyncio
import socket

import pytest

from meshvpn.net import extra_sockets, sockets
from meshvpn.net.extra_sockets import ExtraSockets
from meshvpn.proto.transport import FIRST_EXTRA_SOCKET
from tun.engine import Engine


class Loopback:
    """Extra sockets, and somebody who sends to them."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[tuple[int, bytes, str, int]] = asyncio.Queue()
        self.sockets = ExtraSockets(asyncio.get_running_loop(), lambda *datagram: self.got.put_nowait(datagram))
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender.bind(("127.0.0.1", 0))

    def send(self, port: int, data: bytes) -> None:
        self.sender.sendto(data, ("127.0.0.1", port))

    async def receive(self) -> tuple[int, bytes, str, int]:
        return await asyncio.wait_for(self.got.get(), 10.0)


async def test_what_comes_on_an_extra_socket_is_told_with_its_number() -> None:
    loopback = Loopback()
    ports = loopback.sockets.open(3)
    assert list(ports) == [FIRST_EXTRA_SOCKET, FIRST_EXTRA_SOCKET + 1, FIRST_EXTRA_SOCKET + 2]
    for number, port in ports.items():
        loopback.send(port, b"%d" % number)
        assert await loopback.receive() == (number, b"%d" % number, *loopback.sender.getsockname())
    loopback.sockets.close_all()
    loopback.sender.close()


async def test_an_adopted_socket_is_left_to_the_engine_and_numbers_return_late() -> None:
    loopback = Loopback()
    first, second = loopback.sockets.open(2).items()
    reader, writer = socket.socketpair()
    engine = Engine(writer.fileno(), [loopback.sender.fileno()])
    engine.add_socket(first[0], loopback.sockets.adopt(first[0]))
    loopback.send(first[1], b"for the engine")
    loopback.send(second[1], b"for the loop")
    assert (await loopback.receive())[:2] == (second[0], b"for the loop")
    loopback.sockets.close((first[0], second[0]), engine)
    assert loopback.sockets.get(first[0]) is None
    assert list(loopback.sockets.open(1)) == [second[0] + 1]
    loopback.sockets.close_all()
    for sock in (reader, writer, loopback.sender):
        sock.close()


async def test_when_there_are_no_more_descriptors_there_are_fewer_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    loopback = Loopback()
    real, left = sockets.open_ipv4, [2]

    def limited(port: int) -> socket.socket:
        if not left[0]:
            raise OSError(24, "too many open files")
        left[0] -= 1
        return real(port)

    monkeypatch.setattr(extra_sockets, "open_ipv4", limited)
    assert len(loopback.sockets.open(5)) == 2
    assert loopback.sockets.open(5) == {}
    loopback.sockets.close_all()
    loopback.sender.close()
