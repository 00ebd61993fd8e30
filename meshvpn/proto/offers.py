"""Offers: what two members tell each other of their addresses, through the server and sealed so that it reads none.

    a peer came, our candidates changed ──▶ wanted ──a few a second──▶ Signal
    Signalled ──▶ for us, from the member it says, newer than the last ──▶ candidates worth a probe

A server takes a limited rate of messages from a connection, and a Signal beyond it is lost for good, since nobody
answers one. So offers wait for their turn, and say what is true when it comes. Peers with payload come first. Those of
a large mesh without any follow one by one, in any order: all its members may have to say something at the same time.
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
from .turn import SMALL

OFFER_RATE = 15.0
OFFER_BURST = 150
"""Offers a second, and at once: below what the rendezvous takes (20 and 200), which leaves room for requests."""
MESH_RATE = 2000.0
"""Offers a second that all members of a mesh together have for peers without payload: the server takes more."""
LEAST_RATE = 5.0
"""Of those, what one member has in a very large mesh: seldom do all speak at once."""
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
        self._urgent: dict[bytes, MeshPeer] = {}
        self._silent: dict[bytes, MeshPeer] = {}
        self._attempts: dict[bytes, tuple[Attempt, float]] = {}
        self._held_until = float("-inf")
        self._busy_until = float("-inf")
        self._silent_at = float("-inf")

    def want(self, peer: MeshPeer, *, is_urgent: bool) -> None:
        """The peer should hear of us, soon if there is payload; pointless while it is not connected to the server."""
        identity = peer.member.identity
        if peer.is_online and identity not in self._urgent:
            self._silent[identity] = peer
            if is_urgent:
                self.hurry(peer)

    def will_tell(self, peer: MeshPeer) -> bool:
        """Is an offer on its way out that will say what is true then?"""
        return peer.member.identity in self._urgent or peer.member.identity in self._silent

    def hurry(self, peer: MeshPeer) -> None:
        """There is payload for it now: if it is to hear of us at all, then soon."""
        if self._silent.pop(peer.member.identity, None) is not None:
            self._urgent[peer.member.identity] = peer

    def want_attempt(self, peer: MeshPeer, attempt: Attempt, measured_at: float) -> None:
        """The peer should hear of sockets that were opened for it; said once."""
        if peer.is_online:
            self._attempts[peer.member.identity] = attempt, measured_at
        self.want(peer, is_urgent=True)

    def forget(self, peer: MeshPeer) -> None:
        """It is no peer any more."""
        for wanted in (self._urgent, self._silent):
            wanted.pop(peer.member.identity, None)
        self._attempts.pop(peer.member.identity, None)

    def handle_attached(self, *, now: float) -> None:
        """Who is there will be told anew; our candidates will be complete in a moment."""
        self._urgent.clear()
        self._silent.clear()
        self.hold(now=now)

    def hold(self, *, now: float) -> None:
        """The servers are being asked where we are."""
        self._held_until = now + HOLD

    def release(self, *, now: float) -> None:
        """The candidates are complete."""
        self._held_until = min(self._held_until, now)

    def next_timeout(self) -> float | None:
        """When the next one may go."""
        at = max(self._held_until, self._busy_until - OFFER_BURST / OFFER_RATE)
        if self._urgent:
            return at
        return max(at, self._silent_at) if self._silent else None

    def take_signals(self, *, now: float) -> list[Signal]:
        """What may go now; call it while attached."""
        signals = []
        while (at := self.next_timeout()) is not None and at <= now:
            peer = self._urgent.pop(next(iter(self._urgent))) if self._urgent else self._take_silent(now)
            self._busy_until = max(self._busy_until, now) + 1 / OFFER_RATE
            signals.append(self._seal(peer, now))
        return signals

    def _take_silent(self, now: float) -> MeshPeer:
        members = len(self._roster.members)
        if members > SMALL:
            rate = max(LEAST_RATE, min(OFFER_RATE, MESH_RATE / members))
            self._silent_at = now + 2 / rate * self._fraction()
        # Not all members begin with the same one.
        return self._silent.pop(list(self._silent)[int(self._fraction() * len(self._silent))])

    def _fraction(self) -> float:
        return int.from_bytes(self._entropy(4), "little") / 2**32

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
