"""Which way to a peer: probes the candidates, keeps a primary path, notices when it dies. Knows no WireGuard.

    relay known ──▶ primary at once, so that the first packet flows
    offer ──▶ rounds of pings to all candidates (punch.py); a ping of the peer is answered by a pong and a ping of our
              own at once (triggered check, RFC 8445 §7.3.1.4)
    pong  ──▶ the path is proven: a round trip came back on it (probe.py). Nothing less counts.

    primary: trusted ──pings unanswered──▶ doubtful (the relay too) ──▶ dead: another path, or none
                ▲                             │ pong
                └─────────────────────────────┘

path_table.py has the paths, choice.py says which of the proven ones is best, pace.py how often each is pinged,
hearing.py whether data passes where pings do. A path that worked once is pinged for as long as there is payload, so
that it is found again when it heals.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from .candidate import Candidate, Offer
from .choice import MIN_SAMPLES, choose, evidence, is_surely_better
from .copies import Copies
from .disco import PING_BYTES, TRANSACTION_ID_BYTES, DiscoBox, Ping, Pong
from .drops import DropReason
from .hearing import Hearing
from .pace import ACTIVE_FOR, HELPER_TRIES, Pace, Role
from .path_events import (
    KeepaliveChanged,
    MappingDoubted,
    OfferWanted,
    PathEvent,
    PathQuality,
    PingAnswered,
    PrimaryChanged,
)
from .path_table import PathTable
from .probe import SUSPICION, WINDOWS, Probe, Sent
from .punch import HOLD, OPENER_TTL, Punch, needs_opener
from .replay import ReplayWindow
from .reports import Counts
from .score import mos
from .traffic import Traffic
from .transport import Path, Transmit
from .turn import Turn
from .why import trouble, why

TRIGGER_INTERVAL = 0.05
"""Seconds between two triggered pings on one path."""
LAZY_AFTER = 60.0
"""Seconds since the last round after which payload starts another one, if nothing direct is there."""
QUALITY_HOLD = (10.0, 600.0)
"""Seconds for which a path is not chosen that was left for its quality, at first and at most: a machine or a net that
was busy for a moment is forgiven soon, a path that is bad again soon after is not."""
DEAF_HOLD = (600.0, 3600.0)
"""The same for one that passes pings but no data: to find that out costs the listener four seconds each time."""
LOSS_SEARCH = 30.0
"""Seconds from a doubt for which other ways are looked for though there is no payload."""
POOR_R = 70.0
"""R below which many listeners are dissatisfied (G.107 Annex B): another way may be better."""


class PathAgent:
    """All paths to one peer. `entropy` gives transaction ids, nonces and jitter; `duplicate` says which packets go on a
    second path though the first works, None: none."""

    def __init__(self, *, disco: DiscoBox, entropy: Callable[[int], bytes], duplicate: Copies | None = None) -> None:
        self.disco = disco
        self.secondary: Path | None = None
        self._copies = Copies.ALL
        self._duplicate = duplicate
        self._entropy = entropy
        self.table = PathTable()
        self._session: tuple[float, Path] | None = None
        self._has_offer = False
        self._punch = Punch()
        self._pace = Pace()
        self._turn = Turn()
        self._hearing = Hearing()
        self._counts = Counts()
        self._window = ReplayWindow()
        self._sequence = -1
        self._traffic = Traffic()
        self._is_in_doubt = False
        self._searches_until = float("-inf")
        self._wake_at: float | None = None
        self._transmits: list[Transmit] = []
        self._events: list[PathEvent] = []

    @property
    def primary(self) -> Path | None:
        """Where to send."""
        return self.table.in_use

    @property
    def is_reachable(self) -> bool:
        """True while a round trip on the primary is recent enough to be believed."""
        probe = self.table.primary
        return probe is not None and probe.is_proven

    def quality(self, *, now: float) -> PathQuality | None:
        """Of the primary, or None without one."""
        probe = self.table.primary
        if probe is None:
            return None
        r = probe.r
        score = None if r is None else mos(r)
        return PathQuality(probe.path, probe.rtt, probe.jitter, probe.loss, r, score, self.why(now=now))

    def why(self, *, now: float) -> str:
        """Why this path, for people."""
        return why(self.table.probes.values(), self.table.primary, now)

    def wants_helpers(self, now: float) -> bool:
        """Should members be tried as relays? While nothing direct works, or what is in use works badly; never for a
        peer that nobody talks to, unless its path has just broken."""
        primary = self.table.primary
        if now >= max(self._pace.active_until, self._searches_until):
            return False
        if primary is None or not primary.path.is_direct or not primary.is_alive(now, is_primary=True):
            return True
        is_poor = primary.samples >= MIN_SAMPLES and (primary.r or 0.0) < POOR_R
        return is_poor or not any(relay.is_proven for relay in self.table.known_relays())

    def is_useless(self, path: Path, now: float) -> bool:
        """Did a path through a member show that there is none?"""
        probe = self.table.get(path)
        return probe is not None and not probe.is_proven and probe.tries >= HELPER_TRIES and now >= probe.overdue_at

    @property
    def keepalive(self) -> float:
        """Seconds between pings on an idle path."""
        return self._pace.keepalive.interval

    # What those who guess ports need (guess.py).

    @property
    def search_started_at(self) -> float | None:
        """When the newest round of pings began; None before the first."""
        return self._punch.started_at if self._has_offer and self._punch.started_at > float("-inf") else None

    @property
    def payload_at(self) -> float:
        """When payload passed last."""
        return self._pace.active_until - ACTIVE_FOR

    def is_active(self, now: float) -> bool:
        """Does payload pass at the moment?"""
        return now < self._pace.active_until

    def knock(
        self, path: Path, *, now: float, ttl: int | None = None, size: int = PING_BYTES, is_whole: bool = False
    ) -> bytes:
        """A ping that makes no path: it opens a hole, or looks whether there is one. What answers it does. Its
        transaction id, which is in the pong."""
        self._sequence = max(self._sequence + 1, int(now * 1000))
        transaction_id = self._entropy(TRANSACTION_ID_BYTES)
        self._send(path, Ping(transaction_id, self._sequence, size), ttl, is_whole=is_whole)
        return transaction_id

    def handle_hit(self, *, now: float) -> None:
        """The peer was heard where a port was guessed: ping it there until a round trip comes back."""
        self._ask_for_round(now)

    def forget_sockets(self, numbers: Collection[int], *, now: float) -> None:
        """These are closed: there is no path on them any more."""
        self.table.forget_sockets(numbers)
        if self._session is not None and self._session[1].socket in numbers:
            self._session = None
        self._settle(now)

    # What happens.

    def handle_remote_disco(self, disco: DiscoBox, *, now: float) -> None:
        """The peer's daemon was started anew: what we knew of its paths is void."""
        self.disco = disco
        self.table.void()
        self._session, self._has_offer = None, False
        self._punch = Punch()
        self._window = ReplayWindow()
        self._hearing = Hearing()
        self._note_alone(now)
        self._settle(now)

    def handle_offer(self, offer: Offer, candidates: Sequence[Candidate], *, now: float) -> None:
        """The peer's candidates, checked and filtered."""
        before = self.table.candidates()
        unheard = {Path(0, entry.address) for entry in candidates if needs_opener(entry)} - self.table.probes.keys()
        self.table.set_candidates(candidates, now)
        wanted = self.table.candidates()
        for path in unheard & wanted:
            self.table.probes[path].opens_at = now + HOLD
        self._has_offer = True
        if wanted != before:
            self._note_change(now, is_doubtful=self.primary in before - wanted)
        self._ask_for_round(now)

    def handle_relays(self, paths: Sequence[Path], *, now: float) -> None:
        """The ways through the rendezvous, the best first: known, other ones, or gone."""
        if tuple(paths) != self.table.relays:
            for probe in self.table.set_relays(paths):
                self._ping(probe, now)
            self._settle(now)

    def handle_helpers(self, paths: Sequence[Path], *, now: float) -> None:
        """The ways through members that are to be tried, or were and are worth keeping."""
        if tuple(paths) != self.table.helpers:
            for probe in self.table.set_helpers(paths):
                self._ping(probe, now)
            self._settle(now)

    def handle_last_known(self, path: Path, keepalive: float, *, now: float) -> None:
        """A path that worked before the daemon was restarted: the way while there is no better one."""
        self._pace.keepalive.restore(keepalive, now)
        self._session = (float("-inf"), path)
        self._settle(now)

    def handle_session(self, path: Path, *, now: float) -> None:
        """A session was agreed on over this path. While no ping is answered, say because the peer's new disco key has
        not come yet, that is the best that is known."""
        self._session = (now, path) if path.is_direct else None
        self.handle_path_seen(path, now=now)

    def handle_local_change(self, *, now: float, wait: float = 0.0) -> None:
        """Our own candidates changed: the peer must hear it, and old mappings may be gone. `wait`: seconds that the
        search has time without payload."""
        self._take_turn(now, wait, is_doubtful=False)

    def handle_udp_passes(self, *, now: float, wait: float = 0.0) -> None:
        """It did not for a while: what is known of direct paths is of then."""
        self._note_change(now, is_doubtful=False)
        self._take_turn(now, wait, is_doubtful=False)

    def handle_network_change(self, *, now: float, wait: float = 0.0) -> None:
        """Our addresses or routes changed, or the machine slept: no path is trusted before it answers."""
        self._note_change(now, is_doubtful=True)
        self._take_turn(now, wait, is_doubtful=True)

    def handle_server_lost(self, *, now: float) -> None:
        """Our control connection broke. Until the relay says that it is there yet, a call goes both ways."""
        primary = self.table.primary
        if primary is not None and primary.is_rendezvous and primary.is_proven:
            primary.doubt(now)
            self._ping(primary, now)
            self._settle(now)

    def handle_absence(self, *, now: float) -> None:
        """The peer's control connection ended. Is the peer there? A session of before is no sign of it any more."""
        self._session = None
        for probe in self.table.primary_and_relays():
            if now - probe.sent_at >= TRIGGER_INTERVAL:
                self._ping(probe, now)
        self._settle(now)

    def handle_disco(self, message: Ping | Pong, path: Path, *, now: float) -> DropReason | None:
        """An opened message of the peer."""
        if isinstance(message, Pong):
            return self._handle_pong(message, path, now)
        if not self._window.accept(message.sequence):
            return DropReason.REPLAYED
        probe = self.table.obtain(path)
        if probe is None:
            return DropReason.OVER_LIMIT
        self._pace.keepalive.note_ask(probe, now)
        probe.asked_at = now
        probe.arrived += message.size <= PING_BYTES  # longer ones may be too long for the path, which is no loss
        got, lost = self._traffic.rx_packets, self._traffic.lost_packets if message.size >= PING_BYTES else None
        self._send(path, Pong(message.transaction_id, path.remote, got, probe.arrived, lost))
        is_trusted = probe.is_alive(now, is_primary=path == self.primary) and now < probe.overdue_at
        if not is_trusted and now - probe.triggered_at >= TRIGGER_INTERVAL:
            probe.triggered_at = now
            self._ping(probe, now)
        self._settle(now)
        return None

    def handle_path_seen(self, path: Path, *, now: float) -> None:
        """Something authenticated came on another path than the primary: worth a round trip, which decides."""
        probe = self.table.obtain(path)
        if probe is not None and now - probe.sent_at >= TRIGGER_INTERVAL:
            self._ping(probe, now)
        self._settle(now)

    def handle_traffic(self, traffic: Traffic, *, now: float) -> None:
        """The peer's totals: at least once a second, and before a ping of its is answered."""
        before, self._traffic = self._traffic, traffic
        if (traffic.rx_packets, traffic.tx_packets) == (before.rx_packets, before.tx_packets):
            return
        self._hearing.note_sent(traffic.tx_packets, now)
        was_active = now < self._pace.active_until
        self._pace.note_payload(now, traffic.tx_packets)
        if self._turn.at is not None:
            self._have_turn(now)
        if not was_active and now >= self._punch.started_at + LAZY_AFTER and not self.table.has_direct(now):
            self._ask_for_round(now)
        self._settle(now)

    def handle_ping_request(self, token: int, path: Path | None = None, *, now: float) -> bool:
        """The user wants a round trip on a known path, None: the primary; answered by PingAnswered. False: no such."""
        probe = self.table.primary if path is None else self.table.get(path)
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
        if self._turn.is_due(now):
            self._have_turn(now)
        if self._punch.is_due(now):
            self._step(now)
        self._settle(now)  # first: what was lost, and which path is primary, makes others due
        standby = self.table.standby(now)
        for probe in list(self.table.probes.values()):
            if (at := self._ping_at(probe, standby)) is not None and at <= now:
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

    def _take_turn(self, now: float, wait: float, *, is_doubtful: bool) -> None:
        self._turn.take(now + (wait if now >= self._pace.active_until else 0.0), is_doubtful=is_doubtful)
        if self._turn.is_due(now):
            self._have_turn(now)
        self._settle(now)

    def _have_turn(self, now: float) -> None:
        if self._turn.end():
            for probe in self.table.primary_and_relays():
                self._ping(probe, now)
            if self._is_in_doubt:
                self._searches_until = now + LOSS_SEARCH
        self._events.append(OfferWanted())
        self._ask_for_round(now)

    def _ask_for_round(self, now: float) -> None:
        if self._has_offer:
            self._punch.ask(now)
            if self._punch.is_due(now):
                self._step(now)
        self._settle(now)

    def _step(self, now: float) -> None:
        """One step of a round: a ping on every direct path that did not answer since it began, or an opener."""
        is_last = self._punch.step(now)
        for probe in list(self.table.probes.values()):
            is_known = probe.is_candidate or probe.worked_at is not None or probe.is_peer_reflexive(now)
            is_answered = probe.verified_at is not None and probe.verified_at >= self._punch.started_at
            if probe.path.is_direct and is_known and not is_answered:
                self._ping(probe, now, ttl=OPENER_TTL if now < probe.opens_at else None)
        if is_last and not self.table.has_direct(now):
            fraction = int.from_bytes(self._entropy(4), "little") / 2**32
            self._punch.rest(now, is_active=now < self._pace.active_until, fraction=fraction)

    def _ping(self, probe: Probe, now: float, token: int | None = None, ttl: int | None = None) -> None:
        # Milliseconds, so that the sequence goes on where it was when this peer is removed and added again.
        self._sequence = max(self._sequence + 1, int(now * 1000))
        transaction_id = self._entropy(TRANSACTION_ID_BYTES)
        if probe.path == self.primary:
            self._pace.keepalive.note_ping(probe, now)
        probe.note_ping(transaction_id, now, token)
        self._send(probe.path, Ping(transaction_id, self._sequence), ttl)

    def _handle_pong(self, message: Pong, path: Path, now: float) -> DropReason | None:
        probe = self.table.get(path)
        if probe is not None and message.transaction_id in probe.pending:
            self._pace.keepalive.note_pong(probe, now)
        sent = probe.note_pong(message.transaction_id, message.arrived, now) if probe is not None else None
        if probe is None or sent is None:
            return DropReason.UNEXPECTED
        if sent.token is not None:
            self._events.append(PingAnswered(sent.token, now - sent.at, path))
        if path == self.primary:
            self._hearing.note_heard(message.received)
            if self._hearing.is_deaf(sent.at):
                self._leave_deaf(probe, now)
            if message.lost is not None:
                self._note_counts(probe, sent, message.received, message.lost, now)
        self._settle(now)
        return None

    def _leave_deaf(self, probe: Probe, now: float) -> None:
        self._hearing.start_anew()
        if any(other is not probe and other.is_alive(now) for other in self.table.probes.values()):
            probe.hold_back(now, "passed pings but no data", first=DEAF_HOLD[0], limit=DEAF_HOLD[1])

    def _note_counts(self, probe: Probe, sent: Sent, received: int, lost: int, now: float) -> None:
        report = self._counts.note(sent.number, sent.at, received, lost, now)
        if report is not None:
            probe.losses.note(report)
            if probe.losses.is_notable:
                self._pace.note_loss(now, is_bad=True, is_urgent=True)

    def _note_alone(self, now: float) -> None:
        """What carries our data changed. Of one path it tells again when what went on others has arrived."""
        is_alone = self.secondary is None or self._copies is Copies.SIGNALLING
        slowest = max((probe.rtt or 0.0 for probe in self.table.probes.values()), default=0.0)
        self._counts.start_anew(now + slowest + SUSPICION if is_alone else float("inf"))

    def _note_change(self, now: float, *, is_doubtful: bool) -> None:
        """Something changed at either end: what made a path bad may be gone, and what made it good."""
        for probe in self.table.probes.values():
            probe.release()
        primary = self.table.primary
        if is_doubtful and primary is not None:
            primary.doubt(now)

    def _send(self, path: Path, message: Ping | Pong, ttl: int | None = None, *, is_whole: bool = False) -> None:
        self._transmits.append(Transmit(path, self.disco.seal(message, self._entropy), ttl, is_whole))

    # Choosing.

    def _settle(self, now: float) -> None:
        """Count what is lost, give up what is dead, choose, and say when to look again."""
        has_lost_direct = False
        for probe in list(self.table.probes.values()):
            is_primary = probe.path == self.primary
            if probe.count_lost(now) and is_primary:
                self._pace.note_loss(now, is_bad=probe.tally(WINDOWS[0])[0] >= 3)
            if is_primary and now >= probe.doubt_at and self._pace.keepalive.note_silence(probe, now):
                probe.died_at = float("-inf")  # if it dies of that, it is no path that comes and goes
            if probe.is_dead(now):
                probe.give_up(now)
                has_lost_direct |= is_primary and probe.path.is_direct
        self.table.forget(now)
        if self._pace.keepalive.take_change():
            self._events.append(KeepaliveChanged())
        self._choose(now)
        self._note_doubt(now)
        if has_lost_direct:
            # The peer's holes for us are probably closed too: both ends start anew.
            self._events.append(OfferWanted())
            self._ask_for_round(now)
        self._arm(now)

    def _choose(self, now: float) -> None:
        current = self.table.primary
        best = choose(self.table.probes.values(), current, now, is_heavy=self._pace.is_heavy(now))
        if current is not None and best is not None and best is not current:
            is_left = current.path.is_direct and current.is_alive(now, is_primary=True)
            if is_left and is_surely_better(best, current):
                current.hold_back(now, trouble(current), first=QUALITY_HOLD[0], limit=QUALITY_HOLD[1])
        primary = best.path if best is not None else self.table.hope(self._session)
        is_promoted = primary != self.primary
        if is_promoted and best is not None and best.hold:
            best.keep_outcomes(evidence(best))
        secondary, copies = self.table.double(primary, now), Copies.ALL
        if secondary is None and self._duplicate is not None:
            secondary, copies = self.table.beside(primary, self.secondary, now), self._duplicate
        if is_promoted:
            self._hearing.start_anew()
        if (primary, secondary, copies) != (self.primary, self.secondary, self._copies):
            self.table.in_use, self.secondary, self._copies = primary, secondary, copies
            self._note_alone(now)
            self._events.append(PrimaryChanged(primary, secondary, copies))
        if is_promoted and best is not None and now - best.sent_at >= TRIGGER_INTERVAL:
            self._ping(best, now)  # it may be long since it answered

    def _note_doubt(self, now: float) -> None:
        probe = self.table.primary
        is_in_doubt = probe is not None and probe.is_proven and not probe.is_alive(now, is_primary=True)
        if is_in_doubt and not self._is_in_doubt:
            self._events.append(MappingDoubted())
        if is_in_doubt and not self._is_in_doubt and self._turn.at is None:
            self._searches_until = now + LOSS_SEARCH
            for relay in self.table.known_relays():
                if now - relay.sent_at >= TRIGGER_INTERVAL:
                    self._ping(relay, now)  # an idle path had no use for it: does it work?
        self._is_in_doubt = is_in_doubt

    def _ping_at(self, probe: Probe, standby: Probe | None) -> float | None:
        """When this path is due a ping outside the rounds."""
        role = self.table.role(probe.path)
        if probe.path == self.primary or (role is Role.RELAY and not self.is_reachable):
            role = Role.PRIMARY
        at = self._pace.ping_at(probe, role, is_standby=probe is standby)
        return None if at is None else self._turn.earliest(at)

    def _arm(self, now: float) -> None:
        deadlines = [at for at in (self._punch.next_at, self._turn.at) if at is not None]
        standby = self.table.standby(now)
        for probe in self.table.probes.values():
            if (at := self._ping_at(probe, standby)) is not None:
                deadlines.append(at)
            if probe.is_proven and probe.unanswered_since is not None:
                deadlines.append(probe.doubt_at if now < probe.doubt_at else probe.death_at)
        at = min(deadlines, default=float("inf"))
        self._wake_at = None if at == float("inf") else at
