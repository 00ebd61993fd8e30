"""Who counts as one client: the address behind a proxy, and what of it the limits count by. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network


class Places:
    """How many there may be at a time: in total, and of one source."""

    def __init__(self, total: int, per_source: int) -> None:
        self._total = total
        self._per_source = per_source
        self._taken: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, source: str) -> bool:
        """One more; False if there is no place."""
        if self._count >= self._total or self._taken[source] >= self._per_source:
            return False
        self._taken[source] += 1
        self._count += 1
        return True

    def leave(self, source: str) -> None:
        """One less."""
        self._count -= 1
        self._taken[source] -= 1
        if not self._taken[source]:
            del self._taken[source]


def source_key(host: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 of an IPv6 one (a customer has at least that)."""
    address = _parse(host)
    return str(address) if address.version == 4 else str(ip_network(f"{address}/64", strict=False))


def client_host(peer: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """The client's address, given the connection's and its X-Forwarded-For headers in order.

    Each proxy appends whom it saw, so the list is read from its end for as long as a trusted proxy vouches for the
    entry; what stands before that was written by who knows whom.
    """
    chain = [entry.strip() for header in forwarded for entry in header.split(",")]
    host = _parse(peer)
    while chain and any(host in network for network in trusted):
        try:
            host = _parse(chain.pop())
        except ValueError:
            break
    return str(host)


def _parse(host: str) -> IPv4Address | IPv6Address:
    address = ip_address(host.partition("%")[0])
    if address.version == 6 and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
