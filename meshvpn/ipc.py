"""The local API: HTTP on a Unix socket, JSON bodies, typed here for both sides.

    GET    /v1/status                       Status
    GET    /v1/networks                     list[NetworkView]
    POST   /v1/networks                     CreateRequest  → NetworkView
    POST   /v1/networks/join                JoinRequest    → NetworkView
    POST   /v1/networks/join-by-invite      InvitedRequest → NetworkView
    POST   /v1/networks/import              ImportRequest  → NetworkView
    GET    /v1/networks/NET/peers           list[PeerView]
    POST   /v1/networks/NET/leave|delete    LeaveRequest   → Reply
    POST   /v1/networks/NET/up|down                        → Reply
    POST   /v1/networks/NET/evict           EvictRequest   → Reply
    POST   /v1/networks/NET/unban           PeerRequest    → Reply
    POST   /v1/networks/NET/passwd          PasswordRequest→ Reply
    POST   /v1/networks/NET/access          AccessRequest  → Reply
    POST   /v1/networks/NET/approve|reject  PeerRequest    → Reply
    GET    /v1/networks/NET/admins          list[AdminView]
    POST   /v1/networks/NET/admin-add       PeerRequest    → Reply
    POST   /v1/networks/NET/admin-remove    PeerRequest    → Reply
    POST   /v1/networks/NET/export-owner    ExportRequest  → OwnerFile
    POST   /v1/networks/NET/invite          InviteRequest  → InviteReply
    GET    /v1/networks/NET/invites         list[InviteView]
    POST   /v1/networks/NET/revoke          RevokeRequest  → Reply
    POST   /v1/networks/NET/reidentify      ReidentifyRequest → NetworkView
    GET    /v1/networks/NET/audit           list[AuditView], oldest first
    POST   /v1/networks/NET/nick            NickRequest    → Reply
    POST   /v1/networks/NET/ping            PingRequest    → PingReply
    POST   /v1/networks/NET/paths           PingRequest    → PathsReply
    POST   /v1/netcheck                     NetcheckRequest→ NetcheckReply
    GET    /v1/events                       stream of EventView, one JSON object a line

NET is a network's name or uid (hex, or a prefix of at least 4 digits). An error is an `ErrorReply` with HTTP status
400 (usage), 403 (no permission), 404 (no such network or peer), 409 (refused), 502 (the server refused),
504 (server not reachable).
Passwords never cross this socket: the client sends the keys that it derived from them. Invite codes do.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from .proto.netfindings import Findings

T = TypeVar("T")

DEFAULT_SOCKET = "/run/meshvpn/meshvpnd.sock"
SOCKET_ENVIRONMENT = "MESHVPN_SOCKET"
SERVER_ENVIRONMENT = "MESHVPN_SERVER"
SOCKET_GROUP = "meshvpn"
"""Who may command the daemon, besides root."""


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which rendezvous, and how it is recognised."""

    url: str  # https://HOST[:PORT] or http://… (server run with --no-tls)
    pin: str | None = None  # sha256:HEX of the certificate


class _Secret(msgspec.Struct, frozen=True, kw_only=True):
    """A request that carries keys; it is printed without them."""

    def __repr__(self) -> str:
        """Without the keys."""
        return f"{type(self).__name__}(…)"


class CreateRequest(_Secret, frozen=True, kw_only=True):
    """`locator` and `wrap_key` come from name and password; 64 hexadecimal digits each."""

    name: str
    locator: str
    wrap_key: str
    server: ServerOptions
    nick: str | None = None
    pool: str | None = None
    interface: str | None = None


class JoinRequest(_Secret, frozen=True, kw_only=True):
    """As CreateRequest, without a pool."""

    name: str
    locator: str
    wrap_key: str
    server: ServerOptions
    nick: str | None = None
    interface: str | None = None


class InvitedRequest(_Secret, frozen=True, kw_only=True):
    """Join by an invite. `secret` is the code's 16 bytes in hexadecimal, `name` the network's if the user said it."""

    secret: str
    server: ServerOptions
    name: str | None = None
    nick: str | None = None
    interface: str | None = None


class ImportRequest(_Secret, frozen=True, kw_only=True):
    """Become an owner here: `file` as ExportRequest gave it (base64), `key` from its salt and the passphrase.

    What else is said matters only for a host that is not in the network yet; `server` None: those in the file.
    """

    file: str
    key: str
    server: ServerOptions | None = None
    nick: str | None = None
    interface: str | None = None


class ExportRequest(_Secret, frozen=True, kw_only=True):
    """`key` comes from the passphrase and the salt; 64 and 32 hexadecimal digits."""

    salt: str
    key: str


class OwnerFile(msgspec.Struct, frozen=True, kw_only=True):
    """The network's own key, sealed; base64."""

    file: str


class AccessRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Who may join: open, approve or locked."""

    access: str


class InviteRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A code that lets in so many hosts, for so many seconds."""

    uses: int
    ttl: int


class InviteReply(_Secret, frozen=True, kw_only=True):
    """`code` is said this once; `invite` is by what it is called from now on."""

    code: str
    invite: str
    expires_at: str  # RFC 3339, UTC
    server: ServerOptions
    note: str | None = None


class InviteView(msgspec.Struct, frozen=True, kw_only=True):
    """An invite that may still be used."""

    invite: str
    uses: int  # for how many hosts it was made
    expires_at: str  # RFC 3339, UTC


class RevokeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`invite` is the beginning of its name, at least 4 digits."""

    invite: str


class ReidentifyRequest(_Secret, frozen=True, kw_only=True):
    """`secret` of an invite, where the network has no password at the moment."""

    secret: str | None = None


class AdminView(msgspec.Struct, frozen=True, kw_only=True):
    """Who may change the network. `nick` is empty for one that is no member any more."""

    nick: str
    identity: str
    role: str  # owner | admin
    is_here: bool  # this host


class AuditView(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the audit list. Times are RFC 3339, UTC: by the clock of who did it, and by ours."""

    number: int  # grows
    at: str
    seen_at: str
    kind: str  # joined left evict unban passwd access approve reject admin_add admin_remove invite revoke delete
    identity: str | None  # of whom it was done to
    nick: str
    by: str  # nick
    by_identity: str
    detail: str
    is_proven: bool  # the signature of who did it holds


class PeerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`peer` is a nick, an address or an identity prefix (hex, at least 4 digits)."""

    peer: str


class LeaveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """With `force` the network goes from here even if the server cannot be told; the others keep listing this host."""

    force: bool = False


class EvictRequest(_Secret, frozen=True, kw_only=True):
    """`password` is retire, keep or new; new carries the keys derived from `name` and the new password."""

    peer: str
    password: str = "retire"
    name: str | None = None
    locator: str | None = None
    wrap_key: str | None = None


class PasswordRequest(_Secret, frozen=True, kw_only=True):
    """The keys derived from the network's name, which must be its own and not its uid, and the new password."""

    name: str
    locator: str
    wrap_key: str


class NickRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A new nickname for this host in the network."""

    nick: str


class PingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A probe (docs/formats.md) on the path in use, or on each path. It does not pass the tunnel itself."""

    peer: str
    timeout_s: float = 2.0


class PingReply(msgspec.Struct, frozen=True, kw_only=True):
    """`rtt_ms` is None if nothing came back in time."""

    nick: str
    address: str
    path: str  # "direct 203.0.113.9:43667" or "relay via rendezvous"
    rtt_ms: float | None


class NetcheckRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`server`: ask this one; None: those of this host's networks."""

    server: ServerOptions | None = None


class NetcheckReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the network around this host lets through, and sentences for people that say what it means for calls."""

    findings: Findings
    meaning: list[str]


class PathRow(msgspec.Struct, frozen=True, kw_only=True):
    """One path to a peer. What is usual comes from all pings of late, in use or not."""

    kind: str  # direct v4 | direct v6 | LAN | mapped | relay
    address: str  # the peer's or the relay's
    relay: str | None  # nick of a member, rendezvous, or rendezvous by TCP
    state: str  # in use | doubles | standby | held | doubtful | dead | silent
    rtt_ms: float | None  # of this round; None if nothing came back in time
    usual_rtt_ms: float | None
    jitter_ms: float | None
    loss: float | None  # 0 … 1, one way
    r: float | None  # the E-model's, 0 … 93.2
    mos: float | None


class PathsReply(msgspec.Struct, frozen=True, kw_only=True):
    """One round of pings, one on each path that is known, what is used first."""

    nick: str
    address: str
    paths: list[PathRow]


class PeerView(msgspec.Struct, frozen=True, kw_only=True):
    """One member, as `peers --json` prints it."""

    nick: str
    identity: str
    address: str
    address6: str
    state: str  # direct | relay | connecting | offline | pending
    endpoint: str | None
    relay: str | None
    why: str | None  # this path and no other, for people
    mtu: int | None = None  # bytes of the largest packet inside that goes to it whole, as far as is known
    path_mtu: int | None = None  # of the largest outside that went there unfragmented; None: not known yet
    fragments: bool | None = None  # where 1,280 bytes do not go whole: do they in fragments? None: not known, no need
    keepalive_s: float | None = None  # between pings on an idle path, as the NATs on it need it
    rtt_ms: float | None
    jitter_ms: float | None  # how much round trips differ
    loss: float | None  # 0 … 1, of pings on the way to the peer
    r: float | None  # the E-model's, 0 … 93.2, of what is sent to the peer: by it paths are chosen
    mos: float | None
    rx_r: float | None = None  # the same of what came from the peer in the last minute
    rx_mos: float | None = None
    rx_loss: float | None  # 0 … 1, of the peer's packets in the last minute; None: none came
    rx_jitter_ms: float | None  # of the peer's packets
    rx_bytes: int  # this and the following are totals since the peer was added
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    rx_lost: int
    rx_reordered: int
    rx_duplicates: int
    rx_marked: int  # came with a DSCP inside the tunnel
    rx_kept_marks: int  # of these, the network had kept it outside
    kept_marks: float | None  # 0 … 1, the share in the last minute; None: no marked packet came
    last_handshake_s: float | None  # seconds ago
    routes: list[str]


class NetworkView(msgspec.Struct, frozen=True, kw_only=True):
    """One network, as `list --json` prints it."""

    network: str
    uid: str
    state: str  # online | connecting | offline (down) | cloned (another host has its identity) | evicted | deleted
    address: str
    address6: str
    interface: str
    nick: str
    access: str  # open | approve | locked
    role: str  # owner | admin | member
    is_pending: bool  # an owner or admin has to approve this host first
    epoch: int
    owner: str  # nick of the owner, or its identity prefix
    pool: str
    capacity: int
    has_password: bool  # False while the password is retired: nobody can join
    note: str | None  # one sentence if something needs the user's attention
    members: list[PeerView]  # without this host


class ServerView(msgspec.Struct, frozen=True, kw_only=True):
    """A network's rendezvous connection."""

    network: str
    url: str
    state: str  # connected | connecting | unreachable | refused
    detail: str | None
    pin: str | None


class ConfigView(msgspec.Struct, frozen=True, kw_only=True):
    """The settings in force of one network: its table in the configuration file, else the top, else the default."""

    duplicate: str  # off | signalling | voice
    port_guessing: bool
    port_mapping: bool
    lan_discovery: bool
    relay: bool
    relay_rate: int  # bytes a second
    endpoints: list[str]
    mtu: int
    engine_without: list[str]  # kernel features that are left out
    port: int  # UDP port in use; 0 while the network never was up


class GossipView(msgspec.Struct, frozen=True, kw_only=True):
    """How members tell each other what the server keeps back, by TCP inside the tunnel."""

    port: int
    problem: str | None  # why nobody can reach this host's; None: they can
    silent: list[str]  # nicks of members that are reached, but whose gossip does not answer: a firewall there?


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon."""

    version: str
    pid: int
    uptime_s: float
    state_dir: str
    networks: list[str]
    servers: list[ServerView]
    engine: dict[str, dict[str, bool]]  # interface → kernel features: whether in use
    drops: dict[str, dict[str, int]]  # interface → dropped packets by reason
    relayed: dict[str, int]  # interface → bytes forwarded for other members
    gossip: dict[str, GossipView]  # by network, of those that are up
    config_file: str | None  # None: there is none, defaults hold
    config: dict[str, ConfigView]  # by network
    problems: list[str]  # e.g. state files that were kept aside


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """It was done; `note` is what people have to know besides."""

    message: str
    note: str | None = None


class ErrorReply(msgspec.Struct, frozen=True, kw_only=True):
    """It was not done. `code` is for programs, `message` one line for people: what, why, what to do."""

    code: str
    message: str


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the event stream."""

    at: str  # RFC 3339, UTC
    network: str
    kind: str  # peer_direct, peer_relay, peer_mtu, member_joined, member_left, member_evicted, server_up, …
    peer: str | None
    detail: dict[str, str]
    audit: AuditView | None = None  # with kind `audit`: what was added to the network's list


def decode(data: bytes, kind: type[T]) -> T:
    """Parse a body. Raises ValueError, nothing else."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error
