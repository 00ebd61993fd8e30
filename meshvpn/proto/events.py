"""What a node tells its shell."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .audit import Entry
from .binding import StreamUnwanted, StreamWanted
from .control_session import ConnectWanted, DisconnectWanted
from .gossip import LinkUnwanted, LinkWanted
from .member import Member
from .peer import PeerState
from .transport import Path


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The roster or our own record changed: it must reach the disk."""


@dataclass(frozen=True, slots=True)
class PeerChanged:
    """A peer's state as users see it changed; with `state` None it is no peer any more, and `reason` says why."""

    member: Member
    state: PeerState | None
    path: Path | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PeerMtuChanged:
    """Packets of at most `mtu` bytes go to a peer whole, None: the interface's MTU holds. Of larger ones that IPv6 asks
    for `fragments_pass`; None: there are none, or it is not known yet."""

    member: Member
    mtu: int | None
    fragments_pass: bool | None = None


@dataclass(frozen=True, slots=True)
class ServerChanged:
    """The control connection: connecting, connected, refused (with the server's words)."""

    state: str
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class ActionFinished:
    """A request that the user made was carried out (`code` None), or refused. A carried out one may have a message:
    the server does not know of it yet."""

    rid: int
    code: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Audited:
    """Something for the audit list. It must reach the disk before the state does, and may come again after a crash."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class PingFinished:
    """The user's ping came back."""

    token: int
    rtt: float
    path: Path


@dataclass(frozen=True, slots=True)
class MembershipChanged:
    """We were evicted, reinstated, or the network was deleted."""

    what: str


class CloneSight(StrEnum):
    """What was seen of two hosts that run with one identity."""

    REFUSED = "refused"
    """We are the copy, say the server (`member` None) or a member."""
    RIVAL = "rival"
    """Another host tried to be us."""
    MEMBER = "member"
    """Two hosts run as this member; we stay with the one that was there first."""


@dataclass(frozen=True, slots=True)
class CloneSeen:
    """Told again while it lasts, not more often than once in clones.TOLD_FOR."""

    sight: CloneSight
    member: Member | None


@dataclass(frozen=True, slots=True)
class SocketsWanted:
    """Open so many IPv4 UDP sockets on random ports and say so by `handle_sockets_opened(tag, …)`, with fewer or none
    if there are no more. Until one is adopted (commands.py) what it receives goes to `handle_datagram`."""

    tag: int
    count: int


@dataclass(frozen=True, slots=True)
class SocketsUnwanted:
    """Close these."""

    numbers: tuple[int, ...]


NodeEvent = (
    SocketsWanted
    | SocketsUnwanted
    | StateChanged
    | PeerChanged
    | PeerMtuChanged
    | ServerChanged
    | ActionFinished
    | Audited
    | PingFinished
    | MembershipChanged
    | CloneSeen
    | LinkWanted
    | LinkUnwanted
    | ConnectWanted
    | DisconnectWanted
    | StreamWanted
    | StreamUnwanted
)
