"""Which way to a peer: probes the candidates, keeps a primary path, notices when it dies. Knows no WireGuard.

    relay known ──▶ primary at once, so that the first packet flows
    offer ──▶ rounds of pings to all candidates (punch.py); a ping of the peer is answered by a pong and a ping of our
              own at once (triggered check, RFC 8445 §7.3.1.4)
    pong  ──▶ the path is proven: a round trip came back on it (probe.py). Nothing less counts.

    primary: trusted ──pings unanswered──▶ doubtful (the relay too) ──▶ dead: another path, or none
                ▲                             │ pong
                └─────────────────────────────┘

choice.py says which of the proven paths is best, pace.py how often each is pinged, hearing.py whether data passes where
pings do. A path that worked once is pinged for as long as there is payload, so that it is found again when it heals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .candidate import MAX_CANDIDATES, Candidate, Offer
from .choice import best_direct, choose, is_surely_better
from .disco import TRANSACTION_ID_BYTES, DiscoBox, Ping, Pong
from .drops import DropReason
from .hearing import Hearing
from .pace import Pace
from .probe import Probe
from .punch import Punch
from .replay import ReplayWindow
from .score import mos
from .transport import Path, Transmit

TRIGGER_INTERVAL = 0.05
"""Seconds between two triggered pings on one path."""
MAX_OTHERS = 8
"""Paths that are no candidates: where the peer's pings came from, and what worked but is not offered any more."""
REMEMBERED_FOR = 600.0
"""Seconds for which such a path is remembered after it worked last."""
LAZY_AFTER = 60.0
"""Seconds since the last round after which payload starts another one, if nothing direct is there."""
RELAY_TRIES = 3
"""Unanswered pings after which a relay that is not known to work is no help beside another path."""
QUALITY_HOLD = (30.0, 600.0)
"""Seconds for which a path is not chosen that was left for its quality, at first and at most."""
DEAF_HOLD = (600.0, 3600.0)
"""The same for one that passes pings but no data: to find that out costs the listener four seconds each time."""


@dataclass(frozen=True, slots=True)
class PrimaryChanged:
    """Send there from now on, and to `secondary` too while it is not known whether the primary works."""

    primary: Path | None
    secondary: Path | None


@dataclass(frozen=True, slots=True)
class OfferWanted:
    """The peer should hear our candidates (again)."""


@dataclass(frozen=True, slots=True)
class MappingDoubted:
    """Nothing comes back on the primary: our NAT may have forgotten us, the relay must hear where we are now."""


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """The user's ping came back."""

    token: int
    rtt: float
    path: Path


PathEvent = PrimaryChanged | OfferWanted | MappingDoubted | PingAnswered


@dataclass(frozen=True, slots=True)
class PathQuality:
    """What is known of the primary. Seconds, the share lost one way, E-model R and MOS; None before the first pong."""

    path: Path
    rtt: float | None
    jitter: float | None
    loss: float
    r_factor: float | None
    mos: float | None


class PathAgent:
    """All paths to one peer. `entropy` gives transaction ids, nonces and jitter."""

    def __init__(self, *, disco: DiscoBox, entropy: Callable[[int], bytes]) -> None:
        self.disco = disco
        self.primary: Path | None = None
        self.secondary: Path | None = None
        self._entropy = entropy
        self._probes: dict[Path, Probe] = {}
        self._relay: Path | None = None
        self._session: tuple[float, Path] | None = None
        self._has_offer = False
        self._punch = Punch()
        self._pace = Pace()
        self._hearing = Hearing()
        self._window = ReplayWindow()
        self._sequence = -1
        self._traffic = (0, 0)
        self._is_in_doubt = False
        self._wake_at: float | None = None
        self._transmits: list[Transmit] = []
        self._events: list[PathEvent] = []

    @property
    def is_reachable(self) -> bool:
        """True while a round trip on the primary is recent enough to be believed."""
        probe = self._primary_probe()
        return probe is not None and probe.is_proven

    def quality(self) -> PathQuality | None:
        """Of the primary, or None without one."""
        probe = self._primary_probe()
        if probe is None:
            return None
        r = probe.r
        return PathQuality(probe.path, probe.rtt, probe.jitter, probe.loss, r, None if r is None else mos(r))

    # What happens.

    def handle_remote_disco(self, disco: DiscoBox, *, now: float) -> None:
        """The peer's daemon was started anew: what we knew of its paths is void."""
        self.disco = disco
        self._probes = {} if self._relay is None else {self._relay: Probe(self._relay)}
        self._session, self._has_offer = None, False
        self._punch = Punch()
        self._window = ReplayWindow()
        self._hearing = Hearing()
        self._settle(now)

    def handle_offer(self, offer: Offer, candidates: Sequence[Candidate], *, now: float) -> None:
        """The peer's candidates, checked and filtered."""
        wanted = {Path(1 if entry.address.is_ipv6 else 0, entry.address) for entry in candidates[:MAX_CANDIDATES]}
        before = {path for path, probe in self._probes.items() if probe.is_candidate}
        for path in sorted(wanted):
            self._probes.setdefault(path, Probe(path))
        for path, probe in list(self._probes.items()):
            probe.is_candidate = path in wanted
            if not probe.is_candidate and probe.worked_at is None and path not in (self._relay, self.primary):
                del self._probes[path]
        self._limit_others()
        self._has_offer = True
        if wanted != before:
            self._note_change(now, is_doubtful=self.primary in before - wanted)
        self._ask_for_round(now)

    def handle_relay(self, path: Path | None, *, now: float) -> None:
        """The way through the relay is known, another one, or gone."""
        if path == self._relay:
            return
        if self._relay is not None:
            self._probes.pop(self._relay, None)
        self._relay = path
        if path is not None:
            self._ping(self._probes.setdefault(path, Probe(path)), now)
        self._settle(now)

    def handle_last_known(self, path: Path, *, now: float) -> None:
        """A path that worked before the daemon was restarted: the way while there is no better one."""
        self._session = (float("-inf"), path)
        self._settle(now)

    def handle_session(self, path: Path, *, now: float) -> None:
        """A session was agreed on over this path. While no ping is answered, say because the peer's new disco key has
        not come yet, that is the best that is known."""
        self._session = (now, path) if path.is_direct else None
        self.handle_path_seen(path, now=now)

    def handle_local_change(self, *, now: float) -> None:
        """Our own candidates changed: the peer must hear it, and old mappings may be gone."""
        self._events.append(OfferWanted())
        self._ask_for_round(now)

    def handle_network_change(self, *, now: float) -> None:
        """Our addresses or routes changed, or the machine slept: no path is trusted before it answers."""
        self._note_change(now, is_doubtful=True)
        for path in (self.primary, self._relay):
            if path is not None and (probe := self._probes.get(path)) is not None:
                self._ping(probe, now)
        self.handle_local_change(now=now)

    def handle_server_lost(self, *, now: float) -> None:
        """Our control connection broke. Until the relay says that it is there yet, a call goes both ways."""
        relay = self._relay_probe()
        if relay is not None and relay.path == self.primary and relay.is_proven:
            relay.doubt(now)
            self._ping(relay, now)
            self._settle(now)

    def handle_absence(self, *, now: float) -> None:
        """The peer's control connection ended. Is the peer there? A session of before is no sign of it any more."""
        self._session = None
        for probe in (self._primary_probe(), self._relay_probe()):
            if probe is not None and now - probe.sent_at >= TRIGGER_INTERVAL:
                self._ping(probe, now)
        self._settle(now)

    def handle_disco(self, message: Ping | Pong, path: Path, *, now: float) -> DropReason | None:
        """An opened message of the peer."""
        if isinstance(message, Pong):
            return self._handle_pong(message, path, now)
        if not self._window.accept(message.sequence):
            return DropReason.REPLAYED
        probe = self._probe_for(path)
        if probe is None:
            return DropReason.OVER_LIMIT
        probe.asked_at = now
        self._send(path, Pong(message.transaction_id, path.remote, self._traffic[0]))
        is_trusted = probe.is_alive(now, is_primary=path == self.primary) and now < probe.overdue_at
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
        if (rx_packets, tx_packets) == self._traffic:
            return
        self._traffic = (rx_packets, tx_packets)
        self._hearing.note_sent(tx_packets, now)
        was_active = now < self._pace.active_until
        self._pace.note_payload(now)
        if not was_active and now >= self._punch.started_at + LAZY_AFTER and not self._direct_is_alive(now):
            self._ask_for_round(now)
        self._settle(now)

    def handle_ping_request(self, token: int, *, now: float) -> bool:
        """The user wants a round trip on the primary; answered by PingAnswered. False: there is no path."""
        probe = self._primary_probe()
        if probe is None:
            return False
        self._ping(probe, now, token)
        self._settle(now)
        return True

    def next_timeout(self) -> float | None:
        """The next ping, round or verdict."""
        return self._wake_at

    def handle_timeout(self, *, now: float) -> None:
        """Do what is due."""
        if self._punch.is_due(now):
            self._step(now)
        self._settle(now)  # first: what was lost, and which path is primary, makes others due
        for probe in list(self._probes.values()):
            if (at := self._ping_at(probe)) is not None and at <= now:
                self._ping(probe, now)
        self._arm(now)

    def take_transmits(self) -> list[Transmit]:
        """Datagrams to send; clears."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def take_events(self) -> list[PathEvent]:
        """What changed; clears."""
        events, self._events = self._events, []
        return events

    # Probing.

    def _ask_for_round(self, now: float) -> None:
        if self._has_offer:
            self._punch.ask(now)
            if self._punch.is_due(now):
                self._step(now)
        self._settle(now)

    def _step(self, now: float) -> None:
        """One step of a round: a ping on every direct path that did not answer since it began."""
        is_last = self._punch.step(now)
        for probe in list(self._probes.values()):
            is_known = probe.is_candidate or probe.worked_at is not None
            is_answered = probe.verified_at is not None and probe.verified_at >= self._punch.started_at
            if probe.path.is_direct and is_known and not is_answered:
                self._ping(probe, now)
        if is_last and not self._direct_is_alive(now):
            fraction = int.from_bytes(self._entropy(4), "little") / 2**32
            self._punch.rest(now, is_active=now < self._pace.active_until, fraction=fraction)

    def _ping(self, probe: Probe, now: float, token: int | None = None) -> None:
        # Milliseconds, so that the sequence goes on where it was when this peer is removed and added again.
        self._sequence = max(self._sequence + 1, int(now * 1000))
        transaction_id = self._entropy(TRANSACTION_ID_BYTES)
        probe.note_ping(transaction_id, now, token)
        self._send(probe.path, Ping(transaction_id, self._sequence))

    def _handle_pong(self, message: Pong, path: Path, now: float) -> DropReason | None:
        probe = self._probes.get(path)
        sent = probe.note_pong(message.transaction_id, now) if probe is not None else None
        if probe is None or sent is None:
            return DropReason.UNEXPECTED
        if sent.token is not None:
            self._events.append(PingAnswered(sent.token, now - sent.at, path))
        if path == self.primary:
            self._hearing.note_heard(message.received)
            if self._hearing.is_deaf(sent.at):
                self._leave_deaf(probe, now)
        self._settle(now)
        return None

    def _leave_deaf(self, probe: Probe, now: float) -> None:
        self._hearing.start_anew()
        if any(other is not probe and other.is_alive(now) for other in self._probes.values()):
            probe.hold_back(now, first=DEAF_HOLD[0], limit=DEAF_HOLD[1])

    def _note_change(self, now: float, *, is_doubtful: bool) -> None:
        """Something changed at either end: what made a path bad may be gone, and what made it good."""
        for probe in self._probes.values():
            probe.release()
        primary = self._primary_probe()
        if is_doubtful and primary is not None:
            primary.doubt(now)

    def _probe_for(self, path: Path) -> Probe | None:
        """The path's probe, made if there is room: the message was authenticated, so the peer is really there."""
        if path not in self._probes:
            self._probes[path] = Probe(path)
            self._limit_others(newest=path)
        return self._probes.get(path)

    def _limit_others(self, newest: Path | None = None) -> None:
        others = [probe for probe in self._probes.values() if not probe.is_candidate and probe.path != self._relay]
        # What works is never given away for what may: a source address is easily forged.
        others.sort(key=lambda it: (it.path == self.primary, it.is_proven, it.path == newest, it.worked_at or 0.0))
        for probe in others[: max(0, len(others) - MAX_OTHERS)]:
            del self._probes[probe.path]

    def _send(self, path: Path, message: Ping | Pong) -> None:
        self._transmits.append(Transmit(path, self.disco.seal(message, self._entropy)))

    # Choosing.

    def _settle(self, now: float) -> None:
        """Count what is lost, give up what is dead, choose, and say when to look again."""
        has_lost_direct = False
        for probe in list(self._probes.values()):
            is_primary = probe.path == self.primary
            if probe.count_lost(now) and is_primary:
                self._pace.note_loss(now)
            if probe.is_dead(now):
                probe.give_up(now)
                has_lost_direct |= is_primary and probe.path.is_direct
            if self._is_forgotten(probe, now):
                del self._probes[probe.path]
        self._choose(now)
        self._note_doubt(now)
        if has_lost_direct:
            # The peer's holes for us are probably closed too: both ends start anew.
            self._events.append(OfferWanted())
            self._ask_for_round(now)
        self._arm(now)

    def _is_forgotten(self, probe: Probe, now: float) -> bool:
        if probe.is_candidate or probe.is_proven or probe.path in (self._relay, self.primary):
            return False
        return probe.worked_at is not None and now - probe.worked_at > REMEMBERED_FOR

    def _choose(self, now: float) -> None:
        current = self._primary_probe()
        best = choose(self._probes.values(), current, now)
        if current is not None and best is not None and best is not current:
            is_left = current.path.is_direct and current.is_alive(now, is_primary=True)
            if is_left and is_surely_better(best, current):
                current.hold_back(now, first=QUALITY_HOLD[0], limit=QUALITY_HOLD[1])
        primary = best.path if best is not None else self._hope()
        if primary is not None:
            self._probes.setdefault(primary, Probe(primary))
        is_promoted = primary != self.primary
        if is_promoted:
            self._hearing.start_anew()
        secondary = self._secondary(primary, now)
        if (primary, secondary) != (self.primary, self.secondary):
            self.primary, self.secondary = primary, secondary
            self._events.append(PrimaryChanged(primary, secondary))
        if is_promoted and best is not None and now - best.sent_at >= TRIGGER_INTERVAL:
            self._ping(best, now)  # it may be long since it answered

    def _hope(self) -> Path | None:
        """Where to send while no path is known to work."""
        current, relay = self._primary_probe(), self._relay_probe()
        if current is not None and current.is_proven:
            return current.path  # in doubt, not dead yet
        if self._session is not None:
            agreed_at, path = self._session
            if relay is None or agreed_at > (float("-inf") if relay.worked_at is None else relay.worked_at):
                return path
        return self._relay

    def _secondary(self, primary: Path | None, now: float) -> Path | None:
        """Where to send as well: nowhere while the primary works."""
        if primary is None or self._probes[primary].is_alive(now, is_primary=True):
            return None
        if not primary.is_direct:
            return best_direct(self._probes.values(), now)
        relay = self._relay_probe()
        is_help = relay is not None and (relay.is_proven or relay.tries < RELAY_TRIES)
        return self._relay if is_help else None

    def _note_doubt(self, now: float) -> None:
        probe, relay = self._primary_probe(), self._relay_probe()
        is_in_doubt = probe is not None and probe.is_proven and not probe.is_alive(now, is_primary=True)
        if is_in_doubt and not self._is_in_doubt:
            self._events.append(MappingDoubted())
            if relay is not None and now - relay.sent_at >= TRIGGER_INTERVAL:
                self._ping(relay, now)  # an idle path had no use for it: does it work?
        self._is_in_doubt = is_in_doubt

    def _primary_probe(self) -> Probe | None:
        return self._probes.get(self.primary) if self.primary is not None else None

    def _relay_probe(self) -> Probe | None:
        return self._probes.get(self._relay) if self._relay is not None else None

    def _direct_is_alive(self, now: float) -> bool:
        return any(
            probe.path.is_direct and probe.is_alive(now, is_primary=probe.path == self.primary)
            for probe in self._probes.values()
        )

    def _ping_at(self, probe: Probe) -> float | None:
        """When this path is due a ping outside the rounds."""
        is_relay = probe.path == self._relay
        is_primary = probe.path == self.primary or (is_relay and not self.is_reachable)
        return self._pace.ping_at(probe, is_primary=is_primary, is_relay=is_relay)

    def _arm(self, now: float) -> None:
        deadlines = [] if self._punch.next_at is None else [self._punch.next_at]
        for probe in self._probes.values():
            if (at := self._ping_at(probe)) is not None:
                deadlines.append(at)
            if probe.is_proven and probe.unanswered_since is not None:
                deadlines.append(probe.doubt_at if now < probe.doubt_at else probe.death_at)
        at = min(deadlines, default=float("inf"))
        self._wake_at = None if at == float("inf") else at
