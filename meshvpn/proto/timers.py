"""WireGuard's timers (whitepaper §6), derived from what the engine notes for a peer.

The engine can't call Python for every packet, so no timer is armed by an event. It keeps four stamps instead, and every
deadline follows from them:

    keepalive      first_received_at + KEEPALIVE_TIMEOUT: data came and nothing went back (§6.5)
    new handshake  first_sent_at + SILENCE_TIMEOUT: data went and nothing came back (§6.4)
    zero keys      the keypair's birth + 3 × REJECT_AFTER_TIME (§6.3)
    persistent     the last packet either way + the peer's interval

(The fifth, the repetition of an initiation, belongs to the handshake itself: wireguard.py.)
`first_…` are the stamps to keep: the newest ones would move with each packet and never become due.
"""

from __future__ import annotations

from dataclasses import dataclass

from .constants import KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_TIMEOUT

NEVER = 0.0
SILENCE_TIMEOUT = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
"""Seconds without an answer after which a session is doubted (§6.4)."""


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


def zero_at(keypair_created_at: float) -> float:
    """When keys that were not renewed are forgotten."""
    return keypair_created_at + 3 * REJECT_AFTER_TIME


def persistent_keepalive_at(stamps: Stamps, interval: float, since: float) -> float:
    """When an idle peer is due an empty packet; `since` is when its session began."""
    return max(stamps.last_sent_at, stamps.last_authenticated_at, since) + interval


class SilenceTimer:
    """When a peer's session must be doubted: what was sent got no answer of any kind, for SILENCE_TIMEOUT.

    The silence may go on after that. Then it is what was first sent since the last doubt that counts, as in the kernel
    driver, where only a packet arms the timer: who sends nothing more does not knock at a dead peer's door for ever.
    """

    def __init__(self) -> None:
        self._fired_at = NEVER
        self._sent_again_at = NEVER

    def due_at(self, stamps: Stamps) -> float | None:
        """The deadline. Look at least once a second: the engine tells only the newest packet of a silence."""
        since = stamps.first_sent_at
        if since != NEVER and since <= self._fired_at:
            if self._sent_again_at == NEVER and stamps.last_sent_at > self._fired_at:
                self._sent_again_at = stamps.last_sent_at
            since = self._sent_again_at
        return None if since == NEVER else since + SILENCE_TIMEOUT

    def handle_fired(self, *, now: float) -> None:
        """The session was doubted: a handshake is under way."""
        self._fired_at, self._sent_again_at = now, NEVER
