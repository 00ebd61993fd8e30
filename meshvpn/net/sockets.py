"""The UDP sockets of one network: one a family, on a random port that is kept."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from dataclasses import dataclass

from ..proto.transport import STREAM_SOCKET, Transmit

log = logging.getLogger(__name__)

IPV4_SOCKET = 0
IPV6_SOCKET = 1

RECEIVE_BUFFER = 4 << 20
"""Bytes. 100 ms of 100,000 voice packets a second with the kernel's own overhead of about 400 bytes each."""
SEND_BUFFER = 1 << 20

# asm-generic/socket.h, linux/in.h, linux/in6.h; Python does not name them.
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_IPV6_DONTFRAG = 62
_PMTUDISC_DONT = 0
_PMTUDISC_PROBE = 3
_YES = (1).to_bytes(4, sys.byteorder)
_SOCKET_OPTIONS = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TTL, _IP_MTU_DISCOVER),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT, _IPV6_MTU_DISCOVER),
}
"""By family: the level, and the names of the hop limit (as ancillary data) and of path MTU discovery."""


@dataclass(slots=True)
class NetworkSockets:
    """The two sockets; `v6` is None on a host without IPv6. `stream` leads to the relay's stream, if one was wanted."""

    v4: socket.socket
    v6: socket.socket | None
    stream: socket.socket | None = None

    @property
    def ports(self) -> dict[int, int]:
        """Local ports by socket number, of those that others may reach."""
        return {number: sock.getsockname()[1] for number, sock in self.numbered().items() if number != STREAM_SOCKET}

    def numbered(self) -> dict[int, socket.socket]:
        """Sockets by the number that `Path.socket` uses."""
        numbers = {IPV4_SOCKET: self.v4, IPV6_SOCKET: self.v6, STREAM_SOCKET: self.stream}
        return {number: sock for number, sock in numbers.items() if sock is not None}

    def close(self) -> None:
        """Close all."""
        for sock in self.numbered().values():
            sock.close()


def open_sockets(port: int) -> NetworkSockets:
    """Bind `port` (0: a random one) on IPv4 and the same on IPv6 if it is free there.

    A kept port that somebody else took meanwhile is given up for a random one. Raises OSError.
    """
    try:
        v4 = _open(socket.AF_INET, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or port == 0:
            raise
        log.warning("udp port taken, using another port=%d", port)
        v4 = _open(socket.AF_INET, 0)
    return NetworkSockets(v4, _open_ipv6(v4.getsockname()[1]))


def open_ipv4(port: int) -> socket.socket:
    """One IPv4 socket at this port (0: a random one). Raises OSError."""
    return _open(socket.AF_INET, port)


def _open_ipv6(port: int) -> socket.socket | None:
    for candidate in (port, 0):
        try:
            return _open(socket.AF_INET6, candidate)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                log.info("no ipv6 socket reason=%s", error.strerror)
                return None
    return None


def _open(family: socket.AddressFamily, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        _enlarge(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
        else:
            # Fragments beat a black hole while the path's MTU is unknown; voice packets never reach that size.
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    except OSError:
        sock.close()
        raise
    return sock


def _enlarge(sock: socket.socket) -> None:
    for forced, plain, size in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER),
    ):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, size)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, size)


def send(sockets: NetworkSockets, transmit: Transmit, *, extra: socket.socket | None = None) -> bool:
    """Send one control datagram, from `extra` if there is one; False if the kernel would not take it (full buffer, no
    route): it is then lost."""
    sock = extra or sockets.numbered().get(transmit.path.socket)
    return sock is not None and send_from(sock, transmit)


def open_fresh(*, is_ipv6: bool) -> socket.socket | None:
    """One more socket on a random port, for a while; None on a host without that family."""
    try:
        return _open(socket.AF_INET6 if is_ipv6 else socket.AF_INET, 0)
    except OSError as error:
        log.debug("no socket error=%s", error)
        return None


def send_from(sock: socket.socket, transmit: Transmit) -> bool:
    """The same on this socket, whatever number it has."""
    path = transmit.path
    payload = transmit.data if path.relay is None else path.relay.header() + transmit.data
    level, hops, discover = _SOCKET_OPTIONS[sock.family]
    marks = [] if transmit.ttl is None else [(level, hops, transmit.ttl.to_bytes(4, sys.byteorder))]
    if transmit.is_whole and sock.family == socket.AF_INET6:
        # By itself path MTU discovery only keeps routers from it there: the kernel would fragment for our own link.
        marks.append((level, _IPV6_DONTFRAG, _YES))
    try:
        if transmit.is_whole:
            # Of the socket, not of the datagram: what the engine sends meanwhile goes unfragmented too, which it fits.
            sock.setsockopt(level, discover, _PMTUDISC_PROBE)
        sock.sendmsg([payload], marks, 0, (path.remote.host, path.remote.port))
    except OSError as error:
        log.debug("send failed to=%s error=%s", path, error)
        return False
    finally:
        if transmit.is_whole:
            sock.setsockopt(level, discover, _PMTUDISC_DONT)
    return True
