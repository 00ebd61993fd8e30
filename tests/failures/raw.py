"""Requests to a daemon's socket that the command line would not send, and connections by other users."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec


class Connection(http.client.HTTPConnection):
    """HTTP on a Unix socket, connected at once."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise


def ask(connection: Connection, method: str, route: str, body: msgspec.Struct | bytes | None = None) -> tuple[int, str]:
    """One request; status and body of the answer."""
    data = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
    with contextlib.closing(connection):
        connection.request(method, route, data)
        response = connection.getresponse()
        return response.status, response.read().decode()


@contextlib.contextmanager
def acting_as(user: int, groups: Sequence[int]) -> Iterator[None]:
    """Be another user for a moment, as the kernel tells the other end of a connection made meanwhile."""
    before = os.getgroups()
    os.setgroups(list(groups))
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)
