"""How much one client may ask for. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from meshvpn.proto.control import MAX_MEMBERS, MAX_MESSAGE


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's limits; rates are per second, bursts a number of events."""

    connections: int = 25_000
    """Control connections in total; about 40 kB each."""
    connections_per_source: int = 64
    """Control connections of one source address: an office behind one NAT has a handful."""
    opening_timeout: float = 15.0
    """Seconds from a connection to its HTTP request, and from that to its Create, Join or Attach."""
    closing_timeout: float = 5.0
    """Seconds that a client has to read its last words and to close; then it is cut."""
    reading_timeout: float = 30.0
    """Seconds that a client may leave unread or unacknowledged what it was sent, on any connection."""
    outgoing_messages: int = 512
    outgoing_bytes: int = 3 * MAX_MESSAGE
    """What may wait for a slow reader: the whole of a full network twice over. Beyond it the reader is cut."""
    message_rate: float = 20.0
    message_burst: float = 200.0
    """Messages of one connection; a join among a thousand members sends an offer to each, so bursts are long."""
    byte_rate: float = 256.0 * 1024
    byte_burst: float = 2.0 * MAX_MESSAGE
    """Bytes of one connection's messages; two evictions from a network full of the largest records pass at once."""
    envelope_rate: float = 200.0
    envelope_burst: float = 4.0 * MAX_MEMBERS
    """Records that come sealed anew with a charter, of one source address. Checking one takes 0.17 ms, during which
    nothing else is served; four evictions from a full network pass at once."""
    join_rate: float = 0.2
    join_burst: float = 30.0
    """Guesses of one source address: joins that found no network, and passwords set (which tell that one is taken).
    One in five seconds after the first thirty."""
    create_rate: float = 0.02
    create_burst: float = 20.0
    """Networks created by one source address."""
    streams: int = 2_000
    """Relay streams by WebSocket in total; three file descriptors and about 100 kB each."""
    streams_per_source: int = 32
    stream_rate: float = 5_000.0
    stream_burst: float = 1_000.0
    """Messages of one stream: 100 calls. What comes faster is read later. One costs about 25 µs, during which nothing
    else is served."""
    stun_rate: float = 50.0
    stun_burst: float = 200.0
    """STUN requests of one source address."""
    relay_bytes_rate: float = 4_000_000.0
    relay_bytes_burst: float = 8_000_000.0
    """Bytes relayed for one member: 32 Mbit/s, about 350 G.711 calls."""
