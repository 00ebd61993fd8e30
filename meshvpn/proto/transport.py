"""Where a datagram comes from and goes to."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

RELAY_WORD = 5
"""First 32-bit word (little-endian) of a relay frame; 1 to 4 are WireGuard's message types."""

FIRST_EXTRA_SOCKET = 3
"""From this number on sockets are those opened to guess ports, all IPv4."""

RELAY_HEADER = struct.Struct("<III")
"""Relay frame: word 5 ‖ source id ‖ destination id, then the sealed packet unchanged. 12 bytes, little-endian."""
_FRAME_START = RELAY_WORD.to_bytes(4, "little")

STREAM_SOCKET = 2
"""Number of the socket whose datagrams go to the relay by a WebSocket."""


def is_frame(data: bytes) -> bool:
    """True for a relay frame, whatever is in it."""
    return len(data) >= RELAY_HEADER.size and data[:4] == _FRAME_START


_PRIVATE = tuple(ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A UDP address: numeric host (no scope id) and port."""

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        """True for IPv6; an IPv4 address never appears in its mapped form."""
        return ":" in self.host

    @property
    def is_private(self) -> bool:
        """True inside somebody's own network (RFC 1918, RFC 4193): one that another host may have as well."""
        host = ip_address(self.host)
        return any(host in network for network in _PRIVATE if network.version == host.version)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_ipv6 else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, order=True)
class RelayHop:
    """A relay between us and the peer: our id and the peer's at that relay (32 bits each)."""

    local_id: int
    remote_id: int

    def header(self) -> bytes:
        """The 12 bytes in front of every packet sent through the relay."""
        return RELAY_HEADER.pack(RELAY_WORD, self.local_id, self.remote_id)


@dataclass(frozen=True, slots=True, order=True)
class Path:
    """One way to a peer: a local socket and the remote address.

    Sockets: 0 = IPv4, 1 = IPv6, 2 = the relay by TCP where UDP is blocked, from 3 on those opened to guess ports.
    With `relay` the remote address is the relay's. A datagram received through a relay has the path on which the
    answer goes back: `relay.remote_id` is the frame's source id and `relay.local_id` its destination id.
    """

    socket: int
    remote: Address
    relay: RelayHop | None = None

    @property
    def is_direct(self) -> bool:
        """True if no relay is in between."""
        return self.relay is None

    def __str__(self) -> str:
        if self.socket == STREAM_SOCKET:
            return "relay by TCP"
        return f"{self.remote}" if self.relay is None else f"relay {self.remote}"


@dataclass(frozen=True, slots=True)
class Transmit:
    """A datagram to send. `data` is without the relay header: the driver prepends `path.relay.header()`.

    `ttl`: hops after which it dies, None: as usual. `is_whole`: lost rather than fragmented where it does not fit.
    """

    path: Path
    data: bytes
    ttl: int | None = None
    is_whole: bool = False
