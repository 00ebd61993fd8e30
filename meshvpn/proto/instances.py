"""Which run of each peer's daemon we deal with, when two hosts have its keys (clones.py says why and how). Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import clones
from .clones import Challenges, tag_of
from .constants import REJECT_AFTER_TIME
from .drops import DropReason
from .errors import MalformedMessage
from .events import CloneSeen, CloneSight
from .member import Member
from .peer import MeshPeer
from .transport import Transmit
from .wireguard import OtherInstance, SessionEstablished, WireGuard


@dataclass(slots=True)
class _Run:
    peer: MeshPeer
    tag: int | None = None
    """Of the one that we deal with; None: of whichever comes."""
    session_tag: int | None = None
    doubted_at: float | None = None
    """When the one that its record names did not answer, another one having come."""
    stranger: OtherInstance | None = None
    """What that one sent last."""
    successor: Member | None = None
    """A record of another run, kept until the one that we know is gone."""


class Instances:
    """For all peers of a node, by their numbers."""

    def __init__(self, wireguard: WireGuard, tunnel_secret: bytes, *, entropy: Callable[[int], bytes]) -> None:
        self._wireguard = wireguard
        self._tunnel_secret = tunnel_secret
        self._entropy = entropy
        self._runs: dict[int, _Run] = {}
        self._challenges = Challenges()
        self._transmits: list[Transmit] = []
        self._events: list[CloneSeen] = []

    def add(self, peer: MeshPeer) -> None:
        """A new peer."""
        self._runs[peer.number] = _Run(peer)

    def remove(self, number: int) -> None:
        """It is none any more."""
        del self._runs[number]
        self._challenges.forget(number)

    def review(self, number: int) -> Member | None:
        """Look again after something happened to the peer's paths. As long as it can be reached, no other run takes its
        place unasked. The record to follow, if one waited for that end."""
        run = self._runs[number]
        agent = run.peer.agent
        if run.successor is not None and not agent.is_reachable:
            return run.successor
        probe = agent.table.primary
        if run.doubted_at is not None and probe is not None and (probe.verified_at or 0.0) > run.doubted_at:
            run.doubted_at = None
        if run.doubted_at is None:
            self._expect(run, tag_of(run.peer.member.disco_key) if agent.is_reachable else None)
        return None

    def must_wait(self, number: int, record: Member, *, now: float) -> bool:
        """Members, not the server, say that the peer has a new disco key: must it wait until the old one is gone?"""
        run = self._runs[number]
        if not run.peer.agent.is_reachable or tag_of(record.disco_key) == run.session_tag:
            return False
        run.successor = record
        self._challenge(run, now)
        return True

    def handle_restart(self, number: int) -> bool:
        """We follow the peer's new record. Is the session that we have one of the run before?"""
        run = self._runs[number]
        run.successor = run.doubted_at = None
        self._challenges.forget(number)
        self._expect(run, None)
        return run.session_tag != tag_of(run.peer.member.disco_key)

    def handle_session(self, event: SessionEstablished, *, now: float) -> bool:
        """A session was agreed on. Is the peer one that was not there before?"""
        run = self._runs[event.peer]
        met_at, met = run.peer.session_at, run.session_tag
        run.session_tag = event.tag
        if run.doubted_at is not None:
            self._expect(run, event.tag)
        return event.tag != met or met_at is None or now - met_at > REJECT_AFTER_TIME

    def handle_other(self, event: OtherInstance, *, now: float) -> None:
        """Another run sent a handshake message, which was not used: is the one that we know there?"""
        run = self._runs[event.peer]
        run.stranger = event
        self._challenge(run, now)

    def handle_sign(self, number: int, at: float) -> None:
        """A sign of life of the run that we know, of that instant."""
        if not self._challenges.handle_sign(number, at):
            return
        run = self._runs[number]
        stranger, run.stranger = run.stranger, None
        self._events.append(CloneSeen(CloneSight.MEMBER, run.peer.member))
        if stranger is not None and (dropped := stranger.initiation) is not None:
            to = run.peer.member.tunnel_key
            notice = clones.seal_notice(self._tunnel_secret, to, dropped.sender, dropped.mac1, self._entropy)
            self._transmits.append(Transmit(stranger.path, notice))

    def handle_notice(self, data: bytes, *, now: float) -> DropReason | None:
        """A peer says that we are the second one with our keys."""
        number = self._wireguard.peer_of(clones.notice_sender(data))
        if number is None:
            return DropReason.UNKNOWN_PEER
        try:
            index, mac1 = clones.open_notice(self._tunnel_secret, data)
        except MalformedMessage as error:
            return error.reason
        reason = self._wireguard.handle_refusal(number, index, mac1, clones.RETRY_AFTER, now=now)
        if reason is None:
            self._events.append(CloneSeen(CloneSight.REFUSED, self._runs[number].peer.member))
        return reason

    def next_timeout(self) -> float | None:
        """The next ping or verdict."""
        return self._challenges.next_timeout()

    def handle_timeout(self, *, now: float, wall_ns: int) -> tuple[list[int], list[tuple[int, Member]]]:
        """Peers that are to be pinged, and records that are to be followed: the run before does not answer."""
        pinged, silent = self._challenges.take_due(now=now)
        followed = []
        for number in silent:
            run = self._runs[number]
            stranger, run.stranger = run.stranger, None
            if run.successor is not None:
                followed.append((number, run.successor))
                continue
            run.doubted_at = now
            self._expect(run, None)
            if stranger is not None:
                self._wireguard.handle_accepted(stranger, now=now, wall_ns=wall_ns)
        return pinged, followed

    def take_transmits(self) -> list[Transmit]:
        """Notices to send; clears."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def take_events(self) -> list[CloneSeen]:
        """What was seen; clears."""
        events, self._events = self._events, []
        return events

    def _challenge(self, run: _Run, now: float) -> None:
        probe = run.peer.agent.table.primary
        rtt = None if probe is None else probe.rtt
        self._challenges.start(run.peer.number, rtt or 0.0, now=now)

    def _expect(self, run: _Run, tag: int | None) -> None:
        if run.tag != tag:
            run.tag = tag
            self._wireguard.set_tag(run.peer.number, tag)
