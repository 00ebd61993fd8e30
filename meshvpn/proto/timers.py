"""WireGuard's timers (whitepaper §6), derived from what the engine notes for a peer.

The engine can't call Python for every packet, so no timer is armed by an event. It keeps four stamps instead, and every
deadline follows from them:

    keepalive      first_received_at + KEEPALIVE_TIMEOUT: data came and nothing went back (§6.5)
    new handshake  first_sent_at + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT: data went and nothing came back (§6.4)
    zero keys      the keypair's birth + 3 × REJECT_AFTER_TIME (§6.3)
    persistent     the last packet either way + the peer's interval

(The fifth, the repetition of an initiation, belongs to the handshake itself: wireguard.py.)
`first_…` are the stamps to keep: the newest ones would move with each packet and never become due.
"""

from __future__ import annotations

from dataclasses import dataclass

from .constants import KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_TIMEOUT

NEVER = 0.0


@dataclass(frozen=True, slots=True)
class Stamps:
    """The engine's stamps of one peer; monotonic seconds, 0.0 = never."""

    first_sent_at: float = NEVER
    """Data was first sent since anything authenticated arrived."""
    first_received_at: float = NEVER
    """Data was first received since anything authenticated was sent."""
    more_arrived: bool = False
    """More data came after `first_received_at`: the engine restarts that stamp when it sends the keepalive."""
    last_authenticated_at: float = NEVER
    """Anything authenticated last arrived."""
    last_sent_at: float = NEVER
    """Anything authenticated was last sent."""


def keepalive_at(stamps: Stamps) -> float | None:
    """When an empty packet must answer what was received."""
    return None if stamps.first_received_at == NEVER else stamps.first_received_at + KEEPALIVE_TIMEOUT


def handshake_at(stamps: Stamps) -> float | None:
    """When the session must be doubted: what was sent got no answer of any kind."""
    return None if stamps.first_sent_at == NEVER else stamps.first_sent_at + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT


def zero_at(keypair_created_at: float) -> float:
    """When keys that were not renewed are forgotten."""
    return keypair_created_at + 3 * REJECT_AFTER_TIME


def persistent_keepalive_at(stamps: Stamps, interval: float, since: float) -> float:
    """When an idle peer is due an empty packet; `since` is when its session began."""
    return max(stamps.last_sent_at, stamps.last_authenticated_at, since) + interval
