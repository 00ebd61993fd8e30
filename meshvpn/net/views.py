"""What users see of a peer and its paths."""

from __future__ import annotations

from .. import ipc
from ..proto.candidate import CandidateKind
from ..proto.member import Member
from ..proto.path_view import PathView
from ..proto.peer import MeshPeer
from ..proto.score import mos
from ..proto.traffic import Traffic
from ..proto.transport import STREAM_SOCKET, Path

RENDEZVOUS = "rendezvous"


def peer_view(member: Member, peer: MeshPeer | None, *, now: float) -> ipc.PeerView:
    """One row of `peers`; `peer` is None for a member that we do not talk to."""
    path = None if peer is None else peer.agent.primary
    quality = None if peer is None else peer.agent.quality(now=now)
    rtt = None if quality is None else quality.rtt
    r = None if quality is None else quality.r_factor
    total, recent = (Traffic(), Traffic()) if peer is None else (peer.traffic, peer.recent.counts)
    return ipc.PeerView(
        nick=member.nick,
        identity=member.identity.hex(),
        address=member.address,
        address6=member.address6,
        state=("pending" if member.is_pending else "offline") if peer is None else peer.state.value,
        endpoint=str(path.remote) if path is not None and path.is_direct else None,
        relay=None if peer is None or path is None else relay_name(path, peer.via),
        why=None if quality is None else quality.why,
        rtt_ms=_ms(rtt),
        jitter_ms=None if quality is None or rtt is None else _ms(quality.jitter),
        loss=None if quality is None or rtt is None else round(quality.loss, 4),
        r=None if r is None else round(r, 1),
        mos=None if quality is None or quality.mos is None else round(quality.mos, 2),
        rx_loss=_share(recent.lost_packets, recent.received_packets + recent.lost_packets),
        rx_jitter_ms=_ms(recent.jitter) if recent.rx_packets else None,
        rx_bytes=total.rx_bytes,
        tx_bytes=total.tx_bytes,
        rx_packets=total.rx_packets,
        tx_packets=total.tx_packets,
        rx_lost=total.lost_packets,
        rx_reordered=total.reordered_packets,
        rx_duplicates=total.duplicate_packets,
        rx_marked=total.marked_packets,
        rx_kept_marks=total.kept_marks,
        kept_marks=_share(recent.kept_marks, recent.marked_packets),
        last_handshake_s=None if peer is None or peer.session_at is None else round(now - peer.session_at, 1),
        routes=[f"{member.address}/32", f"{member.address6}/128", *member.subnets],
    )


def path_row(seen: PathView, peer: MeshPeer, through: Member | None, rtt: float | None) -> ipc.PathRow:
    """One row of `ping --paths`; `through` is the member that relays, `rtt` what the round that was asked for gave."""
    r = seen.r_factor
    return ipc.PathRow(
        kind=path_kind(seen.path, peer.candidates.get(seen.path.remote)),
        address=str(seen.path.remote),
        relay=relay_name(seen.path, through),
        state=seen.state.value,
        rtt_ms=_ms(rtt),
        usual_rtt_ms=_ms(seen.rtt),
        jitter_ms=_ms(seen.jitter) if seen.rtt is not None else None,
        loss=round(seen.loss, 4) if seen.rtt is not None else None,
        r=None if r is None else round(r, 1),
        mos=None if r is None else round(mos(r), 2),
    )


def path_kind(path: Path, candidate: int | None) -> str:
    """What sort of way it is; `candidate` is the CandidateKind under which the peer offered the address."""
    if not path.is_direct:
        return "relay"
    if candidate == CandidateKind.MAPPED:
        return "mapped"
    if candidate == CandidateKind.HOST and path.remote.is_private:
        return "LAN"
    return "direct v6" if path.remote.is_ipv6 else "direct v4"


def relay_name(path: Path, through: Member | None) -> str | None:
    """Who forwards on that path: a member's nick or the rendezvous; None: nobody."""
    if path.is_direct:
        return None
    if through is not None:
        return through.nick
    return f"{RENDEZVOUS} by TCP" if path.socket == STREAM_SOCKET else RENDEZVOUS


def path_name(path: Path | None, through: Member | None) -> str:
    """In a few words: `direct 203.0.113.9:43667`, `relay via rendezvous`."""
    if path is None:
        return "no path"
    relay = relay_name(path, through)
    return f"direct {path.remote}" if relay is None else f"relay via {relay}"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
