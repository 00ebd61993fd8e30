"""Which way to a peer: probes the candidates, chooses the primary path, notices when it dies. Knows no WireGuard.

    relay known ──▶ primary at once, so that the first packet flows
    offer ──▶ pings to all candidates: 0, 50, 150, 350, 750 ms, then each second; a ping of the peer is answered by
              a pong and a ping of our own at once (triggered check, RFC 8445 §7.3.1.4)
    pong  ──▶ the path is verified: a round trip came back on it. Nothing less counts.

    primary: trusted ──pings unanswered──▶ doubtful (the relay too) ──DEATH_AFTER──▶ dead: another path, or none
                ▲                             │ pong
                └─────────────────────────────┘

A path that carries payload is probed each second, an idle one often enough to keep its NAT mapping. When all probing
failed it is repeated after a growing pause, and at once when something changes at either end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .candidate import MAX_CANDIDATES, Candidate, Offer
from .disco import DiscoBox, Ping, Pong
from .drops import DropReason
from .score import DIRECT_BONUS, SWITCH_MARGIN, mos, r_factor
from .transport import Path, Transmit

PUNCH = (0.0, 0.05, 0.15, 0.35, 0.75, 1.75, 2.75, 3.75, 4.75)
"""Seconds from the start of a round to its pings: fast while both ends have just begun, then patient."""
ROUND_PAUSES = (2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 120.0, 300.0)
"""Seconds between rounds that found nothing direct (with 20 % jitter)."""
ACTIVE_INTERVAL = 1.0
"""Seconds between pings on a path that carries payload."""
BACKUP_INTERVAL = 5.0
"""Seconds between pings on the relay while a direct path carries payload: it must be known to work when needed."""
IDLE_INTERVAL = 25.0
"""Seconds (less up to 10 %) between pings on an idle primary; below the 30 s of the strictest common NATs."""
ACTIVE_FOR = 5.0
"""Seconds for which a path counts as active after the last payload."""
SUSPICION = 0.3
"""Seconds, plus two round trips, after which an unanswered ping is repeated fast."""
SUSPECT_INTERVAL = 0.25
DOUBT_AFTER = 1.0
"""Seconds, plus two round trips, without a pong: about four pings in a row were lost."""
DEATH_AFTER = 3.0
"""Seconds more until the path is given up."""
TRIGGER_INTERVAL = 0.05
"""Seconds between two triggered pings on one path."""
OFFER_INTERVAL = 1.0
"""Seconds between two rounds that offers start."""
MAX_REFLEXIVE = 8
"""Peer-reflexive paths that are remembered: a peer behind several NATs shows a handful."""
MAX_PENDING = 16
"""Pings of one path whose answer is waited for."""
FRESH_FOR = 30.0
"""Seconds for which a round trip on a path that is not in use is believed: NATs forget after as much."""
HISTORY = 32
"""Pings over which loss and jitter are counted."""


@dataclass(frozen=True, slots=True)
class PrimaryChanged:
    """Send there from now on, and to `secondary` too while the primary is in doubt."""

    primary: Path | None
    secondary: Path | None


@dataclass(frozen=True, slots=True)
class OfferWanted:
    """The peer should hear our candidates (again)."""


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """The user's ping came back."""

    token: int
    rtt: float
    path: Path


PathEvent = PrimaryChanged | OfferWanted | PingAnswered


@dataclass(frozen=True, slots=True)
class PathQuality:
    """What is known of the primary. Seconds, a share from 0 to 1, E-model R and MOS; None before the first pong."""

    path: Path
    rtt: float | None
    jitter: float | None
    loss: float
    r_factor: float | None
    mos: float | None


@dataclass(slots=True)
class _Probe:
    """A path that is or was tried."""

    path: Path
    is_candidate: bool
    rtt: float | None = None
    jitter: float = 0.0
    verified_at: float | None = None
    sent_at: float = float("-inf")
    triggered_at: float = float("-inf")
    unanswered_since: float | None = None
    received: int = 0
    pending: dict[bytes, tuple[float, int | None]] = field(default_factory=dict)
    outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=HISTORY))

    @property
    def loss(self) -> float:
        return self.outcomes.count(False) / len(self.outcomes) if self.outcomes else 0.0

    @property
    def r(self) -> float | None:
        return None if self.rtt is None else r_factor(self.rtt, self.jitter, self.loss)

    def slack(self) -> float:
        return 2 * (self.rtt or 0.0) + 4 * self.jitter

    def is_alive(self, now: float, *, is_primary: bool = False) -> bool:
        if self.verified_at is None or (not is_primary and now - self.verified_at > FRESH_FOR):
            return False
        # Compared in the very form in which `_arm` computes the deadline: rounding must not leave it in the past.
        return self.unanswered_since is None or now < self.unanswered_since + DOUBT_AFTER + self.slack()

    def is_dead(self, now: float) -> bool:
        since = self.unanswered_since
        return since is not None and now >= since + DOUBT_AFTER + self.slack() + DEATH_AFTER


class PathAgent:
    """All paths to one peer. `entropy` gives transaction ids, nonces and jitter."""

    def __init__(self, *, disco: DiscoBox, entropy: Callable[[int], bytes]) -> None:
        self.disco = disco
        self.primary: Path | None = None
        self.secondary: Path | None = None
        self._entropy = entropy
        self._probes: dict[Path, _Probe] = {}
        self._relay: Path | None = None
        self._has_offer = False
        self._round_at: float | None = None
        self._step = 0
        self._failed_rounds = 0
        self._active_until = float("-inf")
        self._traffic = (0, 0)
        self._probe_at: float | None = None
        self._transmits: list[Transmit] = []
        self._events: list[PathEvent] = []

    @property
    def is_reachable(self) -> bool:
        """True while a round trip on the primary is recent enough to be believed."""
        probe = self._probes.get(self.primary) if self.primary is not None else None
        return probe is not None and probe.verified_at is not None

    def quality(self) -> PathQuality | None:
        """Of the primary, or None without one."""
        probe = self._probes.get(self.primary) if self.primary is not None else None
        if probe is None:
            return None
        r = probe.r
        return PathQuality(probe.path, probe.rtt, probe.jitter, probe.loss, r, None if r is None else mos(r))

    # What happens.

    def handle_remote_disco(self, disco: DiscoBox, *, now: float) -> None:
        """The peer's daemon was started anew: what we knew of its paths is void."""
        self.disco = disco
        self._probes = {path: _Probe(path, is_candidate=False) for path in self._probes if path == self._relay}
        self._has_offer, self._round_at = False, None
        self._settle(now)

    def handle_offer(self, offer: Offer, candidates: Sequence[Candidate], *, now: float) -> None:
        """The peer's candidates, checked and filtered."""
        wanted = {Path(1 if entry.address.is_ipv6 else 0, entry.address) for entry in candidates[:MAX_CANDIDATES]}
        for path, probe in list(self._probes.items()):
            probe.is_candidate = path in wanted
            if not probe.is_candidate and probe.verified_at is None and path not in (self._relay, self.primary):
                del self._probes[path]
        for path in sorted(wanted):
            self._probes.setdefault(path, _Probe(path, is_candidate=True))
        self._has_offer = True
        if self._round_at is None or self._step or now - self._round_at >= OFFER_INTERVAL:
            self._start_round(now)

    def handle_relay(self, path: Path | None, *, now: float) -> None:
        """The way through the relay is known, another one, or gone."""
        if path == self._relay:
            return
        if self._relay is not None:
            self._probes.pop(self._relay, None)
        self._relay = path
        if path is not None:
            self._ping(self._probes.setdefault(path, _Probe(path, is_candidate=False)), now)
        self._settle(now)

    def handle_local_change(self, *, now: float) -> None:
        """Our own candidates changed: the peer must hear it, and old mappings may be gone."""
        self._events.append(OfferWanted())
        if self._has_offer:
            self._start_round(now)

    def handle_network_change(self, *, now: float) -> None:
        """Our addresses or routes changed, or the machine slept: look at every path at once."""
        self._failed_rounds = 0
        for probe in list(self._probes.values()):
            if probe.path in (self.primary, self._relay):
                self._ping(probe, now)
        self.handle_local_change(now=now)

    def handle_disco(self, message: Ping | Pong, path: Path, *, now: float) -> DropReason | None:
        """An opened message of the peer."""
        if isinstance(message, Pong):
            return self._handle_pong(message, path, now)
        probe = self._probe_for(path)
        if probe is None:
            return DropReason.OVER_LIMIT
        probe.received += 1
        self._send(path, Pong(message.transaction_id, path.remote, probe.received))
        is_trusted = probe.verified_at is not None and probe.unanswered_since is None
        if not is_trusted and now - probe.triggered_at >= TRIGGER_INTERVAL:
            probe.triggered_at = now
            self._ping(probe, now)
        self._settle(now)
        return None

    def handle_path_seen(self, path: Path, *, now: float) -> None:
        """Something authenticated came on another path than the primary: worth a round trip, which decides."""
        probe = self._probe_for(path)
        if probe is not None and now - probe.sent_at >= TRIGGER_INTERVAL:
            self._ping(probe, now)
        self._settle(now)

    def handle_traffic(self, rx_packets: int, tx_packets: int, *, now: float) -> None:
        """The peer's packet totals, read about once a second."""
        if (rx_packets, tx_packets) != self._traffic:
            self._traffic = (rx_packets, tx_packets)
            self._active_until = now + ACTIVE_FOR
            self._settle(now)

    def handle_ping_request(self, token: int, *, now: float) -> bool:
        """The user wants a round trip on the primary; answered by PingAnswered. False: there is no path."""
        probe = self._probes.get(self.primary) if self.primary is not None else None
        if probe is None:
            return False
        self._ping(probe, now, token)
        return True

    def next_timeout(self) -> float | None:
        """The next ping, round or verdict."""
        return self._probe_at

    def handle_timeout(self, *, now: float) -> None:
        """Do what is due."""
        if self._round_at is not None and self._step < len(PUNCH) and now >= self._round_at + PUNCH[self._step]:
            self._punch(now)
        elif (self._round_at is None and self._has_offer) or (
            self._round_at is not None and self._step >= len(PUNCH) and now >= self._round_at
        ):
            self._start_round(now)
        for probe in list(self._probes.values()):
            if (at := self._ping_at(probe)) is not None and at <= now:
                self._ping(probe, now)
        self._settle(now)

    def take_transmits(self) -> list[Transmit]:
        """Datagrams to send; clears."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def take_events(self) -> list[PathEvent]:
        """What changed; clears."""
        events, self._events = self._events, []
        return events

    # Probing.

    def _start_round(self, now: float) -> None:
        self._round_at, self._step = now, 0
        self._punch(now)
        self._settle(now)

    def _punch(self, now: float) -> None:
        """One step of the round: a ping to every candidate that was not verified yet."""
        assert self._round_at is not None, "a round is under way"
        self._step += 1
        for probe in list(self._probes.values()):
            if probe.is_candidate and probe.verified_at is None:
                self._ping(probe, now)
        if self._step < len(PUNCH):
            return
        if self._direct_is_alive(now):
            self._failed_rounds = 0
            self._round_at = float("inf")
        else:
            pause = ROUND_PAUSES[min(self._failed_rounds, len(ROUND_PAUSES) - 1)]
            self._failed_rounds += 1
            self._round_at = now + pause * (0.9 + 0.2 * self._fraction())

    def _ping(self, probe: _Probe, now: float, token: int | None = None) -> None:
        transaction_id = self._entropy(12)
        while len(probe.pending) >= MAX_PENDING:
            del probe.pending[next(iter(probe.pending))]
            probe.outcomes.append(False)
        probe.pending[transaction_id] = (now, token)
        probe.sent_at = now
        if probe.unanswered_since is None:
            probe.unanswered_since = now
        self._send(probe.path, Ping(transaction_id))

    def _handle_pong(self, message: Pong, path: Path, now: float) -> DropReason | None:
        probe = self._probes.get(path)
        sent = probe.pending.pop(message.transaction_id, None) if probe is not None else None
        if probe is None or sent is None:
            return DropReason.UNEXPECTED
        sent_at, token = sent
        for older in [txid for txid, (at, _) in probe.pending.items() if at < sent_at]:
            del probe.pending[older]
            probe.outcomes.append(False)
        if probe.verified_at is None:
            probe.outcomes.clear()  # what was lost before both ends were ready says nothing of the path
        probe.outcomes.append(True)
        self._note_rtt(probe, now - sent_at)
        probe.verified_at, probe.unanswered_since = now, None
        if token is not None:
            self._events.append(PingAnswered(token, now - sent_at, path))
        self._settle(now)
        return None

    def _note_rtt(self, probe: _Probe, sample: float) -> None:
        # RFC 6298 §2's smoothing; the deviation serves as jitter.
        if probe.rtt is None:
            probe.rtt = sample
        else:
            probe.jitter += (abs(sample - probe.rtt) - probe.jitter) / 8
            probe.rtt += (sample - probe.rtt) / 8

    def _probe_for(self, path: Path) -> _Probe | None:
        """The path's probe, made if there is room: the message was authenticated, so the peer is really there."""
        if (probe := self._probes.get(path)) is not None:
            return probe
        reflexive = [entry for entry in self._probes.values() if not entry.is_candidate and entry.path != self._relay]
        if len(reflexive) >= MAX_REFLEXIVE:
            stale = min(reflexive, key=lambda entry: (entry.path == self.primary, entry.verified_at or 0.0))
            if stale.path == self.primary:
                return None
            del self._probes[stale.path]
        probe = self._probes[path] = _Probe(path, is_candidate=False)
        return probe

    def _send(self, path: Path, message: Ping | Pong) -> None:
        self._transmits.append(Transmit(path, self.disco.seal(message, self._entropy)))

    # Choosing.

    def _settle(self, now: float) -> None:
        """Give up what is dead, choose, and say when to look again."""
        dead = [probe for probe in self._probes.values() if probe.verified_at is not None and probe.is_dead(now)]
        lost_direct = any(probe.path == self.primary and probe.path.is_direct for probe in dead)
        for probe in dead:
            self._give_up(probe)
        self._choose(now)
        if lost_direct:
            # The peer's holes for us are probably closed too: both ends start anew.
            self._failed_rounds = 0
            self._events.append(OfferWanted())
            if self._has_offer:
                self._round_at, self._step = now, 0
                self._punch(now)
        self._arm(now)

    def _give_up(self, probe: _Probe) -> None:
        probe.verified_at, probe.unanswered_since, probe.rtt = None, None, None
        probe.pending.clear()
        probe.outcomes.clear()
        if not probe.is_candidate and probe.path != self._relay:
            del self._probes[probe.path]

    def _choose(self, now: float) -> None:
        primary = self._best(now)
        current = self._probes.get(self.primary) if self.primary is not None else None
        if primary is None and current is not None and current.verified_at is not None:
            primary = current  # in doubt, and nothing better: hope
        secondary = None
        if primary is not None and primary.path.is_direct and not primary.is_alive(now, is_primary=True):
            secondary = self._relay
        chosen = (primary.path if primary is not None else None, secondary)
        if chosen != (self.primary, self.secondary):
            self.primary, self.secondary = chosen
            self._events.append(PrimaryChanged(*chosen))

    def _best(self, now: float) -> _Probe | None:
        current = self._probes.get(self.primary) if self.primary is not None else None
        alive = [probe for probe in self._probes.values() if probe.is_alive(now, is_primary=probe is current)]
        if not alive:
            relay = self._probes.get(self._relay) if self._relay is not None else None
            if current is not None and current.path.is_direct and current.verified_at is not None:
                return current  # doubtful: dual sending covers it until it is dead
            return relay
        best = max(alive, key=_rank)
        if current is None or current not in alive:
            keeps_doubtful = current is not None and current.verified_at is not None and current.path.is_direct
            return current if keeps_doubtful and not best.path.is_direct else best
        if not current.path.is_direct and best.path.is_direct and _r(best) + SWITCH_MARGIN >= _r(current):
            return best
        return best if _rank(best) > _rank(current) + SWITCH_MARGIN else current

    def _direct_is_alive(self, now: float) -> bool:
        return any(
            probe.path.is_direct and probe.is_alive(now, is_primary=probe.path == self.primary)
            for probe in self._probes.values()
        )

    def _ping_at(self, probe: _Probe) -> float | None:
        """When this path is due a ping outside the punch schedule."""
        is_active = self._active_until > probe.sent_at
        if probe.unanswered_since is not None and probe.verified_at is not None:
            return max(probe.sent_at + SUSPECT_INTERVAL, probe.unanswered_since + SUSPICION + probe.slack())
        if probe.path == self.primary:
            if probe.verified_at is None:
                return probe.sent_at + ACTIVE_INTERVAL * min(2.0**self._failed_rounds, IDLE_INTERVAL)
            return probe.sent_at + (ACTIVE_INTERVAL if is_active else self._idle_interval(probe))
        if probe.path == self._relay and is_active and probe.verified_at is not None:
            return probe.sent_at + BACKUP_INTERVAL
        return None

    def _idle_interval(self, probe: _Probe) -> float:
        # Jitter from the path's own history, so that asking twice gives the same answer.
        return IDLE_INTERVAL * (1 - 0.1 * ((probe.sent_at * 7919) % 1.0))

    def _arm(self, now: float) -> None:
        deadlines: list[float] = []
        if self._round_at is not None:
            deadlines.append(self._round_at + (PUNCH[self._step] if self._step < len(PUNCH) else 0.0))
        for probe in self._probes.values():
            if (at := self._ping_at(probe)) is not None:
                deadlines.append(at)
            if probe.unanswered_since is not None and probe.verified_at is not None:
                doubt_at = probe.unanswered_since + DOUBT_AFTER + probe.slack()
                deadlines.append(doubt_at if doubt_at > now else doubt_at + DEATH_AFTER)
        at = min(deadlines, default=None)
        self._probe_at = None if at is None or at == float("inf") else at

    def _fraction(self) -> float:
        return int.from_bytes(self._entropy(4), "little") / 2**32


def _r(probe: _Probe) -> float:
    r = probe.r
    return 0.0 if r is None else r


def _rank(probe: _Probe) -> float:
    return _r(probe) + (DIRECT_BONUS if probe.path.is_direct else 0.0)
