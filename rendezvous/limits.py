"""How much one source may ask for: token buckets in tables of bounded size. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's limits; rates are per second, bursts a number of events."""

    connections: int = 25_000
    """Control connections in total; about 40 kB each."""
    connections_per_source: int = 64
    """Control connections of one source address: an office behind one NAT has a handful."""
    opening_timeout: float = 15.0
    """Seconds from a connection to its Create, Join or Attach."""
    message_rate: float = 20.0
    message_burst: float = 200.0
    """Messages of one connection; a join among a thousand members sends an offer to each, so bursts are long."""
    join_rate: float = 0.2
    join_burst: float = 30.0
    """Joins of one source address that found no network: guesses. One in five seconds after the first thirty."""
    create_rate: float = 0.02
    create_burst: float = 20.0
    """Networks created by one source address."""
    stun_rate: float = 50.0
    stun_burst: float = 200.0
    """STUN requests of one source address."""
    relay_bytes_rate: float = 4_000_000.0
    relay_bytes_burst: float = 8_000_000.0
    """Bytes relayed for one member: 32 Mbit/s, about 350 G.711 calls."""


MAX_TABLE = 65_536
"""Sources that a table remembers (about 150 bytes each)."""


def source_key(host: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 of an IPv6 one (a customer has at least that)."""
    address = ip_address(host.partition("%")[0])
    if address.version == 6:
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network(f"{address}/64", strict=False))
    return str(address)


class Buckets:
    """Token buckets by key. The key that was silent for longest is forgotten first, which gives it a full bucket."""

    def __init__(self, rate: float, burst: float, *, size: int = MAX_TABLE) -> None:
        self._rate = rate
        self._burst = burst
        self._size = size
        self._levels: dict[object, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, key: object, *, now: float, amount: float = 1.0) -> bool:
        """Take tokens; False, and nothing is taken, if there are not enough."""
        tokens, at = self._levels.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        is_enough = tokens >= amount
        self._levels[key] = (tokens - amount if is_enough else tokens, now)
        if len(self._levels) > self._size:
            del self._levels[next(iter(self._levels))]
        return is_enough

    def is_empty(self, key: object, *, now: float) -> bool:
        """True if not even one token is there; takes none."""
        tokens, at = self._levels.get(key, (self._burst, now))
        return min(self._burst, tokens + (now - at) * self._rate) < 1.0

    def forget(self, key: object) -> None:
        """The key will not come again."""
        self._levels.pop(key, None)
