"""Offers: what two members tell each other of their addresses, through the server and sealed so that it reads none.

    a peer came, our candidates changed ──▶ wanted ──a few a second──▶ Signal
    Signalled ──▶ for us, from the member it says, newer than the last ──▶ candidates worth a probe

A server takes a limited rate of messages from a connection, and a Signal beyond it is lost for good, since nobody
answers one. So offers wait for their turn, and say what is true when it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network

from msgspec import structs

from .candidate import Candidate, CandidateKind, Offer, decode_offer, usable
from .control import Signal, Signalled
from .drops import DropReason
from .errors import MalformedMessage
from .keys import Identity
from .nat import Attempt, NatMapping
from .peer import MeshPeer
from .roster import Roster

OFFER_RATE = 15.0
OFFER_BURST = 150
"""Offers a second, and at once: below what the rendezvous takes (20 and 200), which leaves room for requests."""
HOLD = 0.3
"""Seconds for which offers wait for the servers' view of our address: one then says it all."""


class Offers:
    """Ours on their way out, and the check of theirs."""

    def __init__(
        self, identity: Identity, disco_public: bytes, roster: Roster, *, entropy: Callable[[int], bytes]
    ) -> None:
        self.candidates: tuple[Candidate, ...] = ()
        self.nat = NatMapping()
        self._identity = identity
        self._disco_public = disco_public
        self._roster = roster
        self._entropy = entropy
        self._wanted: dict[bytes, MeshPeer] = {}
        self._attempts: dict[bytes, tuple[Attempt, float]] = {}
        self._held_until = float("-inf")
        self._busy_until = float("-inf")

    def want(self, peer: MeshPeer) -> None:
        """The peer should hear of us; pointless while it is not connected to the server."""
        if peer.is_online:
            self._wanted[peer.member.identity] = peer

    def want_attempt(self, peer: MeshPeer, attempt: Attempt, measured_at: float) -> None:
        """The peer should hear of sockets that were opened for it; said once."""
        if peer.is_online:
            self._attempts[peer.member.identity] = attempt, measured_at
        self.want(peer)

    def forget(self, peer: MeshPeer) -> None:
        """It is no peer any more."""
        self._wanted.pop(peer.member.identity, None)
        self._attempts.pop(peer.member.identity, None)

    def handle_attached(self, *, now: float) -> None:
        """Who is there will be told anew; our candidates will be complete in a moment."""
        self._wanted.clear()
        self.hold(now=now)

    def hold(self, *, now: float) -> None:
        """The servers are being asked where we are."""
        self._held_until = now + HOLD

    def release(self, *, now: float) -> None:
        """The candidates are complete."""
        self._held_until = min(self._held_until, now)

    def next_timeout(self) -> float | None:
        """When the next one may go."""
        return max(self._held_until, self._busy_until - OFFER_BURST / OFFER_RATE) if self._wanted else None

    def take_signals(self, *, now: float) -> list[Signal]:
        """What may go now; call it while attached."""
        signals = []
        while (at := self.next_timeout()) is not None and at <= now:
            peer = self._wanted.pop(next(iter(self._wanted)))
            self._busy_until = max(self._busy_until, now) + 1 / OFFER_RATE
            signals.append(self._seal(peer, now))
        return signals

    def open(self, message: Signalled, peer: MeshPeer | None) -> tuple[Offer, list[Candidate]]:
        """The peer's offer, and those of its candidates that are worth a probe. Raises MalformedMessage."""
        if peer is None:
            raise MalformedMessage(DropReason.UNKNOWN_PEER)
        if (plaintext := self._roster.open_from_members(message.payload)) is None:
            raise MalformedMessage(DropReason.DECRYPT_FAILED)
        offer = decode_offer(plaintext)
        if offer.uid != self._roster.uid or offer.destination != self._identity.public:
            raise MalformedMessage(DropReason.NOT_FOR_US)
        if offer.source != message.source:
            raise MalformedMessage(DropReason.BAD_SIGNATURE)
        if not peer.is_newer_offer(offer):
            raise MalformedMessage(DropReason.STALE)
        peer.last_offer = (offer.disco_key, offer.sequence)
        inside = self._roster.mesh_prefixes
        if offer.attempt is not None and _is_inside(offer.attempt.host, inside):
            offer = structs.replace(offer, attempt=None)
        if _is_inside(offer.nat.host, inside):
            offer = structs.replace(offer, nat=NatMapping())
        return offer, usable(offer.candidates, inside)

    def _seal(self, peer: MeshPeer, now: float) -> Signal:
        peer.offers_sent += 1
        attempt, measured_at = self._attempts.pop(peer.member.identity, (None, 0.0))
        offer = Offer(
            format=1,
            uid=self._roster.uid,
            source=self._identity.public,
            destination=peer.member.identity,
            sequence=peer.offers_sent,
            disco_key=self._disco_public,
            candidates=list(self.candidates),
            nat=self.nat,
            attempt=None if attempt is None else structs.replace(attempt, age=int((now - measured_at) * 1000)),
        )
        sealed = self._roster.seal_for_members(offer.encode(), self._entropy)
        return Signal(to=peer.member.identity, payload=sealed)


def _is_inside(host: str, inside: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Would what is sent there go into the tunnel?"""
    return bool(host) and not usable([Candidate(CandidateKind.SERVER_REFLEXIVE, host, 1)], inside)
