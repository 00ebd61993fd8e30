"""What users see of a peer and its paths."""

from __future__ import annotations

import time
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from .. import ipc
from ..proto.audit import Entry, is_proven
from ..proto.candidate import CandidateKind
from ..proto.control import MAX_MEMBERS
from ..proto.keys import address6
from ..proto.member import Member
from ..proto.path_view import PathView
from ..proto.peer import MeshPeer
from ..proto.primitives import x25519_public
from ..proto.score import mos, r_factor
from ..proto.traffic import Traffic
from ..proto.transport import STREAM_SOCKET, Path
from .gossip import PORT as GOSSIP_PORT

if TYPE_CHECKING:
    from .network import Network

RENDEZVOUS = "rendezvous"
_LAST_SECOND = 253402300799
"""Of the year 9999."""


def network_view(network: Network) -> ipc.NetworkView:
    """As `list` shows it."""
    charter, state = network.roster.charter, network.state
    return ipc.NetworkView(
        network=state.name,
        uid=state.uid.hex(),
        state=_state_word(network),
        address=state.address,
        address6=str(address6(state.uid, x25519_public(state.tunnel_key))),
        interface=state.interface or "",
        nick=state.nick,
        access=charter.access,
        role=network.roster.role(network.owner or network.identity),
        is_pending=network.is_pending,
        epoch=charter.epoch,
        owner="This computer" if network.owner is not None else charter.owner.hex()[:8],
        pool=charter.pool,
        capacity=min(MAX_MEMBERS, IPv4Network(charter.pool).num_addresses - 2),
        has_password=charter.locator is not None,
        note=network.note,
        members=peer_views(network),
    )


def _state_word(network: Network) -> str:
    if network.roster.charter.is_deleted:
        return "deleted"
    if network.roster.is_evicted:
        return "evicted"
    if network.runner is None:
        return "offline"
    if network.runner.node.is_copy:
        return "cloned"
    return "online" if network.server_state[0] == "connected" else "connecting"


def gossip_view(network: Network) -> ipc.GossipView | None:
    """As `status` shows it; None while the network is down."""
    if network.runner is None or network.runner.links is None:
        return None
    members = network.roster.members
    silent = [members[identity].nick for identity in network.runner.node.gossip.silent if identity in members]
    return ipc.GossipView(port=GOSSIP_PORT, problem=network.runner.links.problem, silent=silent)


def config_view(network: Network) -> ipc.ConfigView:
    """What is in force of the configuration."""
    options = network.config.options
    return ipc.ConfigView(
        duplicate=options.duplicate.value,
        port_guessing=options.port_guessing,
        port_mapping=options.port_mapping,
        lan_discovery=options.lan_discovery,
        relay=options.relay,
        relay_rate=options.relay_rate,
        endpoints=[str(endpoint) for endpoint in options.endpoints],
        mtu=network.config.mtu,
        engine_without=sorted(network.config.engine_without),
        port=network.state.udp_port,
    )


def peer_views(network: Network) -> list[ipc.PeerView]:
    """One row a member."""
    now = time.monotonic()
    known = {} if network.runner is None else network.runner.node.peers
    return [peer_view(member, known.get(identity), now=now) for identity, member in network.roster.members.items()]


def admin_views(network: Network) -> list[ipc.AdminView]:
    """Who may change the network, the owner first."""
    roster = network.roster
    views = [
        ipc.AdminView(nick="", identity=roster.charter.owner.hex(), role="owner", is_here=network.owner is not None)
    ]
    for identity in roster.admins:
        is_here = identity == network.identity.public
        nick = network.state.nick if is_here else roster.nick_of(identity)
        views.append(ipc.AdminView(nick=nick, identity=identity.hex(), role="admin", is_here=is_here))
    return views


def invite_views(network: Network, *, wall: float) -> list[ipc.InviteView]:
    """Those that are not expired."""
    return [
        ipc.InviteView(invite=invite_name(entry.locator), uses=entry.uses, expires_at=rfc3339(entry.expires_at))
        for entry in network.roster.invites
        if entry.expires_at > wall
    ]


def invite_name(locator: bytes) -> str:
    """What an invite is called: it says nothing of the code."""
    return locator.hex()[:8]


def audit_views(network: Network) -> list[ipc.AuditView]:
    """The audit list, oldest first. Raises AuditError, OSError."""
    entries = network.audit.entries()
    first = network.audit.count - len(entries) + 1
    return [audit_view(number, entry) for number, entry in enumerate(entries, first)]


def audit_view(number: int, entry: Entry) -> ipc.AuditView:
    """One entry of it."""
    return ipc.AuditView(
        number=number,
        at=rfc3339(entry.at),
        seen_at=rfc3339(entry.seen_at),
        kind=entry.kind,
        identity=None if entry.subject is None else entry.subject.hex(),
        nick=entry.nick,
        by=entry.actor_nick,
        by_identity=entry.actor.hex(),
        detail=entry.detail,
        is_proven=is_proven(entry),
    )


def rfc3339(wall: float) -> str:
    """A time as the API tells it. What somebody else's clock said may be far from any date."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(max(wall, 0), _LAST_SECOND)))


def peer_view(member: Member, peer: MeshPeer | None, *, now: float) -> ipc.PeerView:
    """One row of `peers`; `peer` is None for a member that we do not talk to."""
    path = None if peer is None else peer.agent.primary
    quality = None if peer is None else peer.agent.quality(now=now)
    rtt = None if quality is None else quality.rtt
    r = None if quality is None else quality.r_factor
    total, recent = (Traffic(), Traffic()) if peer is None else (peer.traffic, peer.recent.counts)
    rx_loss = _share(recent.lost_packets, recent.received_packets + recent.lost_packets)
    rx_r = None if rtt is None or rx_loss is None else r_factor(rtt, recent.jitter, rx_loss)
    return ipc.PeerView(
        nick=member.nick,
        identity=member.identity.hex(),
        address=member.address,
        address6=member.address6,
        state=("pending" if member.is_pending else "offline") if peer is None else peer.state.value,
        endpoint=str(path.remote) if path is not None and path.is_direct else None,
        relay=None if peer is None or path is None else relay_name(path, peer.via),
        why=None if quality is None else quality.why,
        mtu=None if peer is None else peer.mtu.limit,
        path_mtu=None if peer is None else peer.mtu.path_mtu,
        fragments=None if peer is None else peer.mtu.fragments_pass,
        keepalive_s=None if peer is None else peer.agent.keepalive,
        rtt_ms=_ms(rtt),
        jitter_ms=None if quality is None or rtt is None else _ms(quality.jitter),
        loss=None if quality is None or rtt is None else round(quality.loss, 4),
        r=None if r is None else round(r, 1),
        mos=None if quality is None or quality.mos is None else round(quality.mos, 2),
        rx_r=None if rx_r is None else round(rx_r, 1),
        rx_mos=None if rx_r is None else round(mos(rx_r), 2),
        rx_loss=rx_loss,
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
