"""The client of the local API: the standard library's HTTP over a Unix socket, which starts faster than aiohttp."""

from __future__ import annotations

import errno
import http.client
import socket
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from .. import ipc

T = TypeVar("T")

TIMEOUT_READ = 10.0
TIMEOUT = 60.0
"""Seconds. A question is answered from memory; what is done may have to wait for a server that does not answer."""
REFUSED, USAGE, NO_DAEMON, NO_SERVER = 1, 2, 3, 4
"""Exit statuses (DESIGN §10)."""


class CliError(Exception):
    """What is told to the user in one line, and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """Asks the daemon behind a socket. Every call may raise CliError."""

    def __init__(self, path: str) -> None:
        self._path = path

    def check(self) -> None:
        """See that the daemon is there."""
        connection = _Connection(self._path, TIMEOUT_READ)
        try:
            connection.connect()
        except OSError as error:
            raise CliError(_no_daemon(self._path, error), NO_DAEMON) from error
        finally:
            connection.close()

    def get(self, route: str, kind: type[T]) -> T:
        """A GET."""
        return self._call("GET", route, None, kind)

    def post(self, route: str, body: msgspec.Struct | None, kind: type[T]) -> T:
        """A POST."""
        return self._call("POST", route, body, kind)

    def events(self) -> Iterator[bytes]:
        """The event stream, open when this returns: line by line, until the daemon ends."""
        response = self._request("GET", "/v1/events", None, timeout=None)
        if response.status != 200:
            raise _refusal(response.status, response.read())
        return iter(response.readline, b"")

    def _call(self, method: str, route: str, body: msgspec.Struct | None, kind: type[T]) -> T:
        response = self._request(method, route, body, timeout=TIMEOUT_READ if method == "GET" else TIMEOUT)
        try:
            data = response.read()
            if response.status != 200:
                raise _refusal(response.status, data)
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, http.client.HTTPException, OSError) as error:
            raise CliError("the daemon's answer cannot be read; are both of one version?", NO_DAEMON) from error

    def _request(
        self, method: str, route: str, body: msgspec.Struct | None, *, timeout: float | None
    ) -> http.client.HTTPResponse:
        connection = _Connection(self._path, timeout)
        try:
            data = None if body is None else msgspec.json.encode(body)
            # Then the connection ends with the answer, and a client that lives on keeps none open.
            connection.request(method, route, data, {"Connection": "close"})
            return connection.getresponse()
        except (http.client.HTTPException, ConnectionResetError, BrokenPipeError) as error:
            raise CliError("the daemon ended while it was asked; see `journalctl -u meshvpnd`", NO_DAEMON) from error
        except OSError as error:
            raise CliError(_no_daemon(self._path, error), NO_DAEMON) from error


def _refusal(status: int, data: bytes) -> CliError:
    try:
        reply = msgspec.json.decode(data, type=ipc.ErrorReply)
    except msgspec.MsgspecError:
        return CliError(f"the daemon answered HTTP status {status}; see `journalctl -u meshvpnd`", REFUSED)
    exit_status = {400: USAGE, 504: NO_SERVER}.get(status, REFUSED)
    return CliError(reply.message, exit_status)


def _no_daemon(path: str, error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return f"no permission for {path}; run as root or as a member of the group meshvpn"
        case errno.ENOENT | errno.ECONNREFUSED:
            return f"the daemon does not run (no answer at {path}); start it: systemctl start meshvpnd"
        case _:
            return f"the daemon at {path} does not answer ({error.strerror or error}); see `journalctl -u meshvpnd`"
