"""One path to a peer: the pings sent on it, what became of them, and what follows for the path.

    unproven ──pong──▶ trusted ──pings unanswered for DOUBT_AFTER──▶ doubtful ──DEATH_AFTER──▶ unproven again
                          ▲                                             │ pong
                          └─────────────────────────────────────────────┘

A ping is overdue after SUSPICION and twice the round trip that is usual here, and then counts as lost, even if its pong
comes later: a voice packet would have been as late. The late pong still proves that the path works.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from .reports import Losses
from .score import loss_bounds, r_factor
from .transport import Path

SUSPICION = 0.1
"""Seconds, plus two round trips and four times the jitter, after which a ping is overdue."""
DOUBT_AFTER = 0.8
"""Seconds, plus the same, without any pong: four pings in a row were lost."""
OUTAGE = 4
"""Pings in a row whose loss, if it lasted that long, was an outage and not the path's way of losing packets."""
DEATH_AFTER = 3.0
"""Seconds more until the path is given up."""
FRESH_FOR = 30.0
"""Seconds for which a round trip on a path that is not in use is believed: NATs forget after as much."""
MAX_PENDING = 64
"""Pings whose pong is waited for."""
MAX_WAIT = 5.0
"""Seconds for which a pong is waited for; no network that can carry a call is as slow."""
PEER_REFLEXIVE_FOR = 5.0
"""Seconds from a ping of the peer for which rounds ping where it came from."""
HISTORY = 128
"""Outcomes of pings that are remembered."""
QUALITY_SPAN = 120.0
"""Seconds for which they are: what a path was like before says little of a call on it now."""
WINDOWS = (10, HISTORY)
"""Newest outcomes over which loss is judged: the short one finds a path that broke down, the long one slight loss."""
CLEAN_WINDOW = 25
"""Outcomes over which a path without loss is judged: as many as two seconds of scrutiny bring."""
DEATH_MEMORY = 120.0
"""Seconds within which a second death makes a path one that comes and goes."""
DEATH_HOLD = (15.0, 600.0)
"""Seconds for which such a path is not chosen when it is back, at first and at most."""
HOLD_GROWTH = 4
"""By how much the next hold is longer."""
HOLD_MEMORY = 600.0
"""Seconds of good conduct after which a path that was left is treated like any other."""


@dataclass(slots=True)
class Sent:
    """A ping on its way, the `number`th on its path. `token` is the user's, who wants to hear of the pong."""

    at: float
    token: int | None
    number: int = 0
    is_counted: bool = False
    has_arrived: bool = False
    is_known: bool = False
    """See Outcome."""


@dataclass(slots=True)
class Outcome:
    """What became of a ping: whether it arrived. One that was not answered is taken to be lost, until the count in a
    later pong says that it was the answer."""

    at: float
    number: int
    has_arrived: bool
    is_known: bool


@dataclass(slots=True)
class Probe:
    """The path and its figures. `is_candidate`: it is in the peer's newest offer."""

    path: Path
    is_candidate: bool = False
    is_rendezvous: bool = False
    """The relay in between is the rendezvous, not a member."""
    opens_at: float = float("-inf")
    """Until then pings are openers, which do not reach the peer (punch.py)."""
    rtt: float | None = None
    jitter: float = 0.0
    samples: int = 0
    verified_at: float | None = None
    """The last pong, until the path is given up."""
    worked_at: float | None = None
    """The last pong, ever."""
    sent_at: float = float("-inf")
    spread: float = 0.0
    """A share from 0 to 1, by which the next ping on an idle path comes early: the two ends must not ping in step."""
    asked_at: float = float("-inf")
    """The last ping of the peer."""
    died_at: float = float("-inf")
    doubted_at: float = float("-inf")
    """The last change that the path may not have survived."""
    triggered_at: float = float("-inf")
    """Our last ping that was sent because of one."""
    unanswered_since: float | None = None
    """The oldest ping since the last pong."""
    tries: int = 0
    """Pings since the last pong."""
    held_until: float = float("-inf")
    """The path was left although it answers: not to be chosen before."""
    hold: float = 0.0
    left_because: str = ""
    """What was wrong with it, for people: "lost 31 %"."""
    pending: dict[bytes, Sent] = field(default_factory=dict)
    outcomes: deque[Outcome] = field(default_factory=lambda: deque(maxlen=HISTORY))
    arrived: int = 0
    """Pings of the peer that came on this path."""
    number: int = 0
    """Pings of ours that were sent on it."""
    mark: tuple[int, int] | None = None
    """The newest ping that was answered, and how many had arrived by then."""
    losses: Losses = field(default_factory=Losses)
    """Of our data, while it went here alone."""

    @property
    def loss(self) -> float:
        """The share of our packets lost on the way to the peer, pings and data."""
        lost, total = self.tally(HISTORY)
        total += self.losses.total
        return max(0, lost + self.losses.lost) / total if total else 0.0

    @property
    def r(self) -> float | None:
        """The E-model's R by the figures as they are, None before the first pong."""
        return None if self.rtt is None else r_factor(self.rtt, self.jitter, self.loss)

    @property
    def r_of_delay(self) -> float:
        """R as if nothing were lost, 0 before the first pong."""
        return 0.0 if self.rtt is None else r_factor(self.rtt, self.jitter, 0.0)

    def tally(self, window: int) -> tuple[int, int]:
        """Lost ones of the newest `window` outcomes, and how many outcomes there are."""
        newest = [outcome.has_arrived for outcome in islice(reversed(self.outcomes), window)]
        return newest.count(False), len(newest)

    def r_bounds(self, window: int) -> tuple[float, float]:
        """R if loss is as bad, and as good, as so few pings allow."""
        if self.rtt is None:
            return 0.0, 0.0
        low, high = loss_bounds(*self.tally(window))
        return (
            r_factor(self.rtt, self.jitter, high),
            r_factor(self.rtt, self.jitter, low),
        )

    @property
    def best_r_by_data(self) -> float:
        """R if no more is lost than the data that was sent here surely shows, 0 before the first pong."""
        return 0.0 if self.rtt is None else r_factor(self.rtt, self.jitter, self.losses.at_least)

    # Deadlines. Verdicts compare with the very sums that deadlines are: rounding must not leave one in the past.

    @property
    def slack(self) -> float:
        """Seconds that a pong may take here without anybody wondering, less SUSPICION."""
        return 2 * (self.rtt or 0.0) + 4 * self.jitter

    @property
    def overdue_at(self) -> float:
        """When the oldest unanswered ping counts as lost."""
        return float("inf") if self.unanswered_since is None else self.unanswered_since + SUSPICION + self.slack

    @property
    def doubt_at(self) -> float:
        """When the path is not trusted any more."""
        return float("inf") if self.unanswered_since is None else self.unanswered_since + DOUBT_AFTER + self.slack

    @property
    def death_at(self) -> float:
        """When it is given up: never for a ping or two, however long ago, if nobody asked again."""
        return self.doubt_at + DEATH_AFTER if self.tries >= OUTAGE else float("inf")

    @property
    def is_proven(self) -> bool:
        """A round trip came back, and the path was not given up since."""
        return self.verified_at is not None

    def is_peer_reflexive(self, now: float) -> bool:
        """The peer's pings come from there: worth pings of ours, whether it is offered or not (RFC 8445 §7.3.1.3)."""
        return now - self.asked_at < PEER_REFLEXIVE_FOR

    def is_alive(self, now: float, *, is_primary: bool = False) -> bool:
        """Proven, not in doubt, and recently enough: the primary is looked after, the others may have gone unseen."""
        if self.verified_at is None or (not is_primary and now - self.verified_at > FRESH_FOR):
            return False
        return now < self.doubt_at

    def is_dead(self, now: float) -> bool:
        """To be given up."""
        return self.is_proven and now >= self.death_at

    # What happens.

    def note_ping(self, transaction_id: bytes, now: float, token: int | None = None) -> None:
        """A ping was sent."""
        if len(self.pending) >= MAX_PENDING:
            self._note_outcome(self.pending.pop(next(iter(self.pending))), now, is_answered=False)
        self.number += 1
        self.pending[transaction_id] = Sent(now, token, self.number)
        self.sent_at, self.spread = now, transaction_id[0] / 255
        self.tries += 1
        if self.unanswered_since is None:
            self.unanswered_since = now

    def note_pong(self, transaction_id: bytes, arrived: int, now: float) -> Sent | None:
        """A pong came, with the peer's count of pings; the ping that it answers, or None if none does."""
        sent = self.pending.pop(transaction_id, None)
        if sent is None:
            return None
        if not self.is_proven or (now >= self.doubt_at and self.tries >= OUTAGE):
            self._forget_losses()  # an outage, or an end that was not ready: over, and no measure of what comes
        self._note_outcome(sent, now, is_answered=True)
        self._note_arrived(sent.number, arrived)
        self._note_rtt(now - sent.at)
        self.verified_at = self.worked_at = now
        if sent.at >= self.doubted_at:  # else the pong may have been on its way already
            self.unanswered_since, self.tries = None, 0
        return sent

    def count_lost(self, now: float) -> int:
        """Count the overdue pings that were not counted yet, and forget what is too old."""
        lost = 0
        for transaction_id, sent in list(self.pending.items()):
            if now < sent.at + SUSPICION + self.slack:
                break
            if not sent.is_counted and self.is_proven:
                self._note_outcome(sent, now, is_answered=False)
                lost += 1
            if now >= sent.at + MAX_WAIT:
                del self.pending[transaction_id]
        while self.outcomes and now - self.outcomes[0].at > QUALITY_SPAN:
            self.outcomes.popleft()
        self.losses.forget(now - QUALITY_SPAN)
        return lost

    def doubt(self, now: float) -> None:
        """Something changed that the path may not have survived: if it does not answer, it is dead in DEATH_AFTER."""
        self._forget_losses()
        self.losses.clear()
        self.doubted_at, since = now, now - DOUBT_AFTER - self.slack
        self.unanswered_since = since if self.unanswered_since is None else min(since, self.unanswered_since)

    def give_up(self, now: float) -> None:
        """Nothing came back for too long: what is known of the path is void."""
        if now < self.died_at + DEATH_MEMORY:
            self.hold_back(now, "came and went", first=DEATH_HOLD[0], limit=DEATH_HOLD[1])
        self.died_at = now
        self.verified_at, self.unanswered_since, self.rtt = None, None, None
        self.jitter, self.samples, self.tries = 0.0, 0, 0
        self.pending.clear()
        self.outcomes.clear()
        self.losses.clear()
        self.mark = None

    def hold_back(self, now: float, because: str, *, first: float, limit: float) -> None:
        """Do not choose the path for a while, each time longer. It must show anew what it is worth."""
        self.left_because = because
        was_good = now - self.held_until > HOLD_MEMORY
        self.hold = first if was_good else min(max(HOLD_GROWTH * self.hold, first), limit)
        self.held_until = now + self.hold
        self.outcomes.clear()
        self.losses.clear()

    def keep_outcomes(self, newest: int) -> None:
        """What came before is what the path was left for, and no measure of it any more."""
        while len(self.outcomes) > newest:
            self.outcomes.popleft()

    def release(self) -> None:
        """What made the path bad may be gone."""
        self.held_until = self.died_at = float("-inf")
        self.hold = 0.0

    def _forget_losses(self) -> None:
        self.outcomes.clear()
        for earlier in self.pending.values():
            earlier.is_counted = True

    def _note_outcome(self, sent: Sent, now: float, *, is_answered: bool) -> None:
        if not sent.is_counted:
            sent.is_counted = True
            has_arrived, is_known = is_answered or sent.has_arrived, is_answered or sent.is_known
            self.outcomes.append(Outcome(now, sent.number, has_arrived, is_known))

    def _note_arrived(self, number: int, arrived: int) -> None:
        """Of the pings between two that were answered, tell the lost ones from those whose pong was lost."""
        if self.mark is not None:
            before, arrived_before = self.mark
            if number <= before:
                return  # overtaken
            lost = number - before - ((arrived - arrived_before) & 0xFFFFFFFF)
            unclear: list[Outcome | Sent] = [it for it in self.outcomes if not it.is_known]
            unclear += [it for it in self.pending.values() if not it.is_counted]
            for entry in unclear:
                if before < entry.number < number:
                    entry.is_known, entry.has_arrived = True, lost <= 0
                    lost -= 1
        self.mark = number, arrived

    def _note_rtt(self, sample: float) -> None:
        # RFC 6298 §2's smoothing; the deviation serves as jitter.
        if self.rtt is None:
            self.rtt = sample
        else:
            self.jitter += (abs(sample - self.rtt) - self.jitter) / 8
            self.rtt += (sample - self.rtt) / 8
        self.samples += 1
