"""One member as this node deals with it: its number in the engine, its paths, what was last counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address

from .candidate import Offer
from .copies import Copies
from .disco import DiscoBox
from .keepalive import INTERVALS
from .member import Member
from .path import PathAgent
from .path_mtu import PeerMtu
from .traffic import RecentTraffic, Traffic
from .transport import FIRST_EXTRA_SOCKET, Address, Path


class PeerState(StrEnum):
    """What a user sees of a peer."""

    DIRECT = "direct"
    RELAY = "relay"
    CONNECTING = "connecting"
    OFFLINE = "offline"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class LastKnown:
    """What is worth keeping of a peer for the next start: a direct path that works, and every how many seconds it must
    be used to be remembered on the way."""

    path: Path
    keepalive: float = INTERVALS[0]


@dataclass(slots=True)
class MeshPeer:
    """A member and the machines that serve it."""

    number: int
    member: Member
    agent: PathAgent
    mtu: PeerMtu
    member_relay_id: int
    """Means this member in frames that other members relay."""
    relay_id: int = 0
    """Means it at the rendezvous."""
    is_online: bool = False
    traffic: Traffic = field(default_factory=Traffic)
    recent: RecentTraffic = field(default_factory=RecentTraffic)
    via: Member | None = None
    """The member that relays, while the primary leads through one."""
    relayed: tuple[Path, ...] = ()
    """Where the engine was told to send what others send through us."""
    lan: tuple[Path, ...] = ()
    """Where somebody in our LAN claims to be it: as far as one handshake and one ping believe."""
    session_at: float | None = None
    """When the last WireGuard session was agreed on, monotonic seconds."""
    offers_sent: int = 0
    last_offer: tuple[bytes, int] | None = None
    """Disco key and sequence of the newest offer that was accepted."""
    candidates: Mapping[Address, int] = field(default_factory=dict)
    """That offer's addresses with their CandidateKind."""
    reported: PeerState | None = None

    @property
    def state(self) -> PeerState:
        """Direct and relay mean that a round trip came back on that path, never just hope."""
        if self.member.is_pending:
            return PeerState.PENDING
        primary = self.agent.primary
        if primary is not None and self.agent.is_reachable:
            return PeerState.DIRECT if primary.is_direct else PeerState.RELAY
        return (
            PeerState.CONNECTING if self.is_online or (primary is not None and primary.is_direct) else PeerState.OFFLINE
        )

    @property
    def relays(self) -> bool:
        """It says that it relays for others."""
        return self.member.relays

    @property
    def routes(self) -> tuple[tuple[bytes, int], ...]:
        """The prefixes whose packets go to this peer and may come from it."""
        hosts = [ip_address(self.member.address), ip_address(self.member.address6)]
        return tuple((host.packed, host.max_prefixlen) for host in hosts)

    def is_newer_offer(self, offer: Offer) -> bool:
        """False for an offer that was played back, or that is for a daemon run that has ended."""
        if offer.disco_key != self.member.disco_key:
            return False
        return self.last_offer is None or self.last_offer[0] != offer.disco_key or offer.sequence > self.last_offer[1]


def last_known(peers: Mapping[bytes, MeshPeer]) -> dict[bytes, LastKnown]:
    """Of those that are reached directly, by identity."""
    return {
        identity: LastKnown(path, peer.agent.keepalive)
        for identity, peer in peers.items()
        if (path := peer.agent.primary) is not None and path.is_direct and path.socket < FIRST_EXTRA_SOCKET
    }


def make_peer(
    number: int,
    member: Member,
    disco_secret: bytes,
    relay_id: int,
    *,
    entropy: Callable[[int], bytes],
    mtu: int,
    duplicate: Copies | None = None,
) -> MeshPeer:
    """A peer without any path yet; `relay_id` is its number at members that relay, `mtu` the interface's."""
    agent = PathAgent(disco=DiscoBox(disco_secret, member.disco_key), entropy=entropy, duplicate=duplicate)
    return MeshPeer(number, member, agent, PeerMtu(mtu), relay_id)
