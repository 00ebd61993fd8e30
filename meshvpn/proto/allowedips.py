"""Longest-prefix match of addresses to peers, readable: twin of tun/routes.pxd."""

from __future__ import annotations

MAX_ROUTES = 8192
"""Prefixes of all peers: a thousand members with their two addresses and a few subnets each."""


class AllowedIPs:
    """Prefix → peer number. Networks are 4 or 16 bytes; bits behind the length do not count."""

    def __init__(self) -> None:
        self._routes: dict[tuple[int, int, int], int] = {}
        """(bits of the family, prefix length, network bits) → peer."""

    def __len__(self) -> int:
        return len(self._routes)

    def add(self, network: bytes, length: int, peer: int) -> None:
        """Route a prefix to a peer; one that exists moves. Raises ValueError for a bad prefix or a full table."""
        key = _key(network, length)
        if key not in self._routes and len(self._routes) >= MAX_ROUTES:
            raise ValueError("the route table is full")
        self._routes[key] = peer

    def remove(self, network: bytes, length: int) -> None:
        """Forget a prefix; one that is not there is no error."""
        self._routes.pop(_key(network, length), None)

    def remove_peer(self, peer: int) -> None:
        """Forget all prefixes of a peer."""
        self._routes = {key: owner for key, owner in self._routes.items() if owner != peer}

    def lookup(self, address: bytes) -> int | None:
        """The peer of the longest prefix that holds the address."""
        bits, number = len(address) * 8, int.from_bytes(address, "big")
        for length in range(bits, -1, -1):
            if (peer := self._routes.get((bits, length, number >> (bits - length)))) is not None:
                return peer
        return None


def _key(network: bytes, length: int) -> tuple[int, int, int]:
    bits = len(network) * 8
    if bits not in (32, 128) or not 0 <= length <= bits:
        raise ValueError(f"no prefix: {len(network)} bytes, length {length}")
    return bits, length, int.from_bytes(network, "big") >> (bits - length)
