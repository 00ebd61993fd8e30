"""How often a path is pinged between rounds: what carries payload often, what is idle so that its NAT mapping lives."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .keepalive import INTERVALS, Keepalive
from .probe import Probe

ACTIVE_INTERVAL = 0.5
"""Seconds between pings on the primary while there is payload: a cut is known, and doubled, after 1.5 s."""
BACKUP_INTERVAL = 5.0
"""Seconds between pings, while there is payload, on each other path that ever worked: the relay must be known to work
when it is needed, and a direct path that broke is found again when it heals."""
HELD_INTERVAL = 0.5
"""Seconds between pings, while there is payload, on a path that was left: what is it worth now?"""
TRIAL = 60.0
"""Seconds for which that goes on when the payload ended: the next call should find the better path."""
RELAYABLE_RATE = 4000.0
"""Packets a second, of 80 calls: a member relays 1 MB a second by default."""
MIN_COUNTING = 0.5
"""Seconds between two countings, at least, for a rate."""
ACTIVE_FOR = 5.0
"""Seconds for which payload counts after the last of it."""
SUSPECT_INTERVAL = 0.25
"""Seconds between pings on a primary or relay whose last one is overdue."""
SCRUTINY_INTERVAL = 0.08
URGENT_INTERVAL = 0.05
"""The same where data shows that the path is bad: how good the other one is must be known within two seconds."""
SCRUTINY = 2.0
"""Seconds for which primary and relay are compared, ping by ping, after one of the primary's was lost."""
SCRUTINY_LIMIT = 3
"""Such spans while much is lost, until there was a pause: a third of it that is lost is seen to be so."""
SCRUTINY_PAUSE = 10.0
"""Seconds from one such comparison to the next: a little loss must not cost more packets than it is worth."""
HELPER_TRIES = 3
HELPER_INTERVAL = 0.5
"""Pings, and seconds between them, on a path through a member that has not answered yet: there may be none."""


class Role(Enum):
    """What a path is for."""

    PRIMARY = "primary"
    RELAY = "relay"
    """Through the rendezvous."""
    HELPER = "helper"
    """Through a member that we chose."""
    OTHER = "other"


@dataclass(slots=True)
class Pace:
    """What decides it for all paths to one peer."""

    keepalive: Keepalive = field(default_factory=Keepalive)
    active_until: float = float("-inf")
    trial_until: float = float("-inf")
    scrutiny_until: float = float("-inf")
    scrutinies: int = 0
    is_urgent: bool = False
    sent: int = 0
    counted_at: float = float("-inf")
    rate: float = 0.0
    """Packets a second that we sent between the last two countings; payload is noted more often than that."""

    def note_payload(self, now: float, sent: int) -> None:
        """Payload passed; `sent` is our total of packets."""
        if now >= self.counted_at + MIN_COUNTING:
            self.rate = max(0, sent - self.sent) / (now - self.counted_at)
            self.sent, self.counted_at = sent, now
        self.active_until = now + ACTIVE_FOR
        self.trial_until = now + TRIAL

    def is_heavy(self, now: float) -> bool:
        """Do we send more than a relay carries?"""
        return now < self.active_until and self.rate > RELAYABLE_RATE

    def note_loss(self, now: float, *, is_bad: bool, is_urgent: bool = False) -> None:
        """A ping was lost on the primary, one of many if it `is_bad`; or so much data that it `is_urgent`."""
        if now >= self.active_until:
            return
        is_on = now < self.scrutiny_until
        is_near_end = now >= self.scrutiny_until - SCRUTINY / 2
        if now >= self.scrutiny_until + SCRUTINY_PAUSE:
            self.scrutiny_until, self.scrutinies = now + SCRUTINY, 1
        elif is_near_end and (is_urgent or (is_bad and is_on)) and self.scrutinies < SCRUTINY_LIMIT:
            self.scrutiny_until, self.scrutinies = now + SCRUTINY, self.scrutinies + 1
        self.is_urgent = is_urgent or (self.is_urgent and is_on)

    def ping_at(self, probe: Probe, role: Role, *, is_standby: bool = False) -> float | None:
        """When the path is due a ping, None if not at all. `is_standby`: the primary would be left for it."""
        is_primary = role is Role.PRIMARY
        if probe.is_proven and (is_primary or is_standby):
            if self.scrutiny_until > probe.sent_at:
                return probe.sent_at + (URGENT_INTERVAL if self.is_urgent else SCRUTINY_INTERVAL)
            if probe.unanswered_since is not None:
                return max(probe.sent_at + SUSPECT_INTERVAL, probe.overdue_at)
        is_active = self.active_until > probe.sent_at
        if is_primary:
            return self._primary_ping_at(probe, is_active=is_active)
        if role is Role.HELPER and not probe.is_proven:
            return None if probe.tries >= HELPER_TRIES else probe.sent_at + HELPER_INTERVAL
        if probe.worked_at is None and role is not Role.RELAY:
            return None
        is_tried = self.trial_until > probe.sent_at
        if probe.hold and is_tried:
            return probe.sent_at + HELD_INTERVAL
        return probe.sent_at + BACKUP_INTERVAL if is_active or (is_tried and not probe.is_proven) else None

    def _primary_ping_at(self, probe: Probe, *, is_active: bool) -> float:
        if not probe.is_proven:
            return probe.sent_at + (1.0 if is_active else min(2.0 ** min(probe.tries, 5), INTERVALS[0]))
        if is_active:
            return probe.sent_at + ACTIVE_INTERVAL
        return self.keepalive.ping_at(probe)
