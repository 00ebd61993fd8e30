"""Echoes through the tunnel (ICMP, RFC 792): what a call's packets meet, from this host's interface to the other's."""

from __future__ import annotations

import os
import select
import socket
import struct
import time

ECHO_REPLY, ECHO_REQUEST = 0, 8
_HEADER = struct.Struct("!BBHHH")
PACKET_BYTES = 200
"""With the IP header: as large as a packet of a G.711 call, 20 ms each."""
_EXPEDITED = 0xB8
"""DSCP EF (RFC 3246), as audio is marked."""
_IP_HEADER = 20

# linux/socket.h, linux/icmp.h; Python does not name them. A raw socket would fill with what is not for it.
_SOL_RAW = 255
_ICMP_FILTER = 1


class Echo:
    """Echo requests to one IPv4 address. Raises PermissionError where this user may send none."""

    def __init__(self, host: str) -> None:
        try:
            # By net.ipv4.ping_group_range; else it takes CAP_NET_RAW.
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
            self._is_raw = False
        except PermissionError:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            self._is_raw = True
            self._socket.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("@I", ~(1 << ECHO_REPLY) & 0xFFFFFFFF))
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _EXPEDITED)
        self._socket.connect((host, 0))
        self._secret = os.urandom(PACKET_BYTES - _IP_HEADER - _HEADER.size)
        self._sequence = 0

    def round_trip(self, patience: float) -> float | None:
        """Seconds until the echo, None if there is none in time."""
        self._sequence = (self._sequence + 1) % 65536
        started = time.monotonic()
        try:
            self._socket.send(request(os.getpid() % 65536, self._sequence, self._secret))
        except OSError:
            return None  # no route: the interface is gone, or the mesh's addresses are
        while (left := started + patience - time.monotonic()) > 0 and select.select([self._socket], [], [], left)[0]:
            try:
                data = self._socket.recv(2048)
            except OSError:
                continue  # an ICMP error, which is no echo
            if is_reply(data[_IP_HEADER:] if self._is_raw else data, self._sequence, self._secret):
                return time.monotonic() - started
        return None

    def close(self) -> None:
        """No more echoes."""
        self._socket.close()


def request(identifier: int, sequence: int, payload: bytes) -> bytes:
    """An echo request with its checksum (RFC 1071)."""
    blank = _HEADER.pack(ECHO_REQUEST, 0, 0, identifier, sequence) + payload
    total = sum(struct.unpack(f"!{len(blank) // 2}H", blank))
    total = (total >> 16) + (total & 0xFFFF)
    total += total >> 16
    return _HEADER.pack(ECHO_REQUEST, 0, ~total & 0xFFFF, identifier, sequence) + payload


def is_reply(data: bytes, sequence: int, payload: bytes) -> bool:
    """True for the reply to that request; the kernel may have given it another identifier."""
    if len(data) < _HEADER.size:
        return False
    kind, code, _, _, found = _HEADER.unpack_from(data)
    return (kind, code, found) == (ECHO_REPLY, 0, sequence) and data[_HEADER.size :] == payload
