"""Sites behind every kind of NAT around one rendezvous, and the oracle: can two of them reach each other directly?

             rendezvous 198.51.100.1 (ports 7770, 7771; IPv6 on request)
                  │
internet ─────────┴──────┬────────────────┬─────────── …      20 ms from each site to the middle
                     router 20.n.0.1   router 20.m.0.1
                         │                │
                   LAN 192.168.n.0    (another NAT)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshvpn.proto.nat import PortRule
from meshvpn.proto.transport import Address, Path

from .nat import Filtering, Firewall, Mapping, Nat, Ports
from .network import Host, Link, Network, Router, Segment
from .nodes import MeshNode, Peer, RelayMachine, Signalling

SERVER = "198.51.100.1"
SERVER6 = "2001:db8:ffff::1"
ONE_WAY = 0.02
"""Seconds from a site to the middle of the internet: 80 ms round trip between sites, 160 ms through the relay."""
INTERNET_HOPS = 7


@dataclass(frozen=True, slots=True)
class Kind:
    """How a site is connected. `nats` from the innermost to the outermost."""

    nats: tuple[tuple[Mapping, Filtering, Ports], ...] = ()
    has_firewall: bool = False
    is_udp_blocked: bool = False
    hairpin: bool = False
    accepts_input: bool = False


def _nat(mapping: Mapping, filtering: Filtering, ports: Ports = Ports.PRESERVED) -> Kind:
    return Kind(((mapping, filtering, ports),))


FULL_CONE = _nat(Mapping.INDEPENDENT, Filtering.INDEPENDENT)
RESTRICTED = _nat(Mapping.INDEPENDENT, Filtering.ADDRESS)
PORT_RESTRICTED = _nat(Mapping.INDEPENDENT, Filtering.ADDRESS_AND_PORT)
SYMMETRIC = _nat(Mapping.ADDRESS_AND_PORT, Filtering.ADDRESS_AND_PORT, Ports.RANDOM)
PUBLIC = Kind()
ACCEPTING = Kind(PORT_RESTRICTED.nats, accepts_input=True)
"""A router without an INPUT rule that drops."""

KINDS: dict[str, Kind] = {
    "public": PUBLIC,
    "firewalled": Kind(has_firewall=True),
    "full-cone": FULL_CONE,
    "restricted": RESTRICTED,
    "port-restricted": PORT_RESTRICTED,
    "port-restricted-random": _nat(Mapping.INDEPENDENT, Filtering.ADDRESS_AND_PORT, Ports.RANDOM),
    "adm-eif": _nat(Mapping.ADDRESS, Filtering.INDEPENDENT, Ports.RANDOM),
    "adm-adf": _nat(Mapping.ADDRESS, Filtering.ADDRESS, Ports.RANDOM),
    "adm-apdf": _nat(Mapping.ADDRESS, Filtering.ADDRESS_AND_PORT, Ports.RANDOM),
    "apdm-eif": _nat(Mapping.ADDRESS_AND_PORT, Filtering.INDEPENDENT, Ports.RANDOM),
    "apdm-adf": _nat(Mapping.ADDRESS_AND_PORT, Filtering.ADDRESS, Ports.RANDOM),
    "symmetric": SYMMETRIC,
    "symmetric-counting": _nat(Mapping.ADDRESS_AND_PORT, Filtering.ADDRESS_AND_PORT, Ports.SEQUENTIAL),
    "carrier": Kind((*PORT_RESTRICTED.nats, (Mapping.INDEPENDENT, Filtering.ADDRESS_AND_PORT, Ports.SEQUENTIAL))),
    "carrier-symmetric": Kind(PORT_RESTRICTED.nats + SYMMETRIC.nats),
    "udp-blocked": Kind(PORT_RESTRICTED.nats, is_udp_blocked=True),
}


class World:
    """A network with a rendezvous; nodes are added by kind."""

    def __init__(self, seed: int = 1, *, server_ipv6: bool = False, signalling_latency: float = 2 * ONE_WAY) -> None:
        self.network = Network(seed)
        self.internet = Segment("internet", hops=INTERNET_HOPS)
        self.relay = RelayMachine(self.network)
        hosts = (SERVER, SERVER6) if server_ipv6 else (SERVER,)
        ports = {0: 7770, 1: 7770, 2: 7771, 3: 7771}
        link = Link(latency=ONE_WAY)
        self.server = Host(
            self.network, "server", self.relay, self.internet, hosts, ports, link=link, strips_relay=False
        )
        self.relay.drain = self.server.drain
        servers = [Address(host, port) for host in hosts for port in (7770, 7771)]
        self.signalling = Signalling(self.network, self.relay, servers, latency=signalling_latency)
        self.hosts: dict[str, Host] = {}
        self.routers: dict[str, Router] = {}
        self._sites = 0

    def add_site(
        self,
        name: str,
        kind: Kind,
        *,
        host: str | None = None,
        outside: Segment | None = None,
        ipv6: str | None = None,
        link: Link | None = None,
        port: int = 41000,
    ) -> MeshNode:
        """A host of that kind, alone behind its NATs. With `ipv6` it has that address, behind a firewall."""
        segment = self._make_routers(name, kind, outside or self.internet, link, ipv6 is not None)
        is_public = not kind.nats
        address = host or (f"20.{self._sites}.0.1" if is_public else f"192.168.{self._sites}.10")
        return self.add_host(
            name,
            segment,
            (address,) if ipv6 is None else (address, ipv6),
            link=(link or Link(latency=ONE_WAY)) if is_public else None,
            firewall=Firewall() if kind.has_firewall else None,
            port=port,
        )

    def add_host(
        self,
        name: str,
        segment: Segment,
        addresses: tuple[str, ...],
        *,
        link: Link | None = None,
        firewall: Firewall | None = None,
        port: int = 41000,
    ) -> MeshNode:
        """A node on a segment that exists."""
        node = MeshNode(self.network, name, self.signalling)
        ports = {0: port, 1: port}
        host = Host(self.network, name, node, segment, addresses, ports, link=link, firewall=firewall)
        self.hosts[name] = host
        self.start(name, node)
        return node

    def start(self, name: str, node: MeshNode) -> None:
        """Run this node on its host, from now on."""
        host = self.hosts[name]
        host.machine = node
        node.drain = host.drain
        node.open_sockets, node.close_sockets = host.open_sockets, host.close_sockets
        node.handle_local_addresses(host.addresses, host.ports, now=self.network.now)
        self.signalling.attach(node)
        host.drain()

    def restart(self, name: str) -> MeshNode:
        """The daemon on this host starts anew."""
        node = MeshNode(self.network, name, self.signalling)
        self.start(name, node)
        return node

    def carry(self, name: str, segment: Segment, addresses: tuple[str, ...]) -> None:
        """Move a host to another segment; its shell notices at once."""
        host = self.hosts[name]
        host.move(segment, addresses)
        self.tell_network_change(name)

    def tell_network_change(self, name: str) -> None:
        """What netlink says after addresses or routes changed."""
        host, now = self.hosts[name], self.network.now
        node = self.node(name)
        node.handle_local_addresses(host.addresses, host.ports, now=now)
        node.handle_network_change(now=now)
        host.drain()

    def node(self, name: str) -> MeshNode:
        node = self.hosts[name].machine
        assert isinstance(node, MeshNode)
        return node

    def peer(self, name: str, other: str) -> Peer:
        """`other` as `name` sees it."""
        return self.node(name).peers[other]

    def primary(self, name: str, other: str) -> Path | None:
        peer = self.node(name).peers.get(other)
        return None if peer is None else peer.agent.primary

    def is_direct(self, name: str, other: str) -> bool:
        """Both ends send to each other without a relay, on paths that were verified."""
        for left, right in ((name, other), (other, name)):
            path = self.primary(left, right)
            if path is None or not path.is_direct or not self.peer(left, right).agent.is_reachable:
                return False
        return True

    def run(self, seconds: float) -> None:
        self.network.run_until(self.network.now + seconds)

    def run_until_direct(self, name: str, other: str, limit: float) -> float | None:
        """Seconds from now until both ends are direct; None if it takes longer than `limit`."""
        started_at = self.network.now
        at = self.network.run_until_true(lambda: self.is_direct(name, other), started_at + limit)
        return None if at is None else at - started_at

    def _make_routers(self, name: str, kind: Kind, outside: Segment, link: Link | None, has_ipv6: bool) -> Segment:
        self._sites += 1
        segment = outside
        for level, (mapping, filtering, ports) in enumerate(reversed(kind.nats)):
            is_outermost = level == 0
            inside = Segment(f"{name}/{level}")
            address = f"20.{self._sites}.0.1" if segment is self.internet else f"100.64.{self._sites}.{level + 1}"
            nat = Nat(
                mapping,
                filtering,
                ports=ports,
                hairpin=kind.hairpin,
                accepts_input=kind.accepts_input,
                seed=f"{self.network.seed}/{name}/{level}",
            )
            router = Router(
                self.network,
                f"{name}/{level}",
                inside=inside,
                outside=segment,
                address=address,
                nat=nat,
                firewall6=Firewall() if has_ipv6 else None,
                link=(link or Link(latency=ONE_WAY)) if is_outermost else Link(latency=0.001),
            )
            router.is_udp_blocked = kind.is_udp_blocked
            self.routers[name] = router if is_outermost else self.routers[name]
            segment = inside
        return segment


@dataclass(frozen=True, slots=True)
class _Side:
    """A site's NATs in sum."""

    mapping: Mapping
    filtering: Filtering

    @property
    def is_independent(self) -> bool:
        return self.mapping is Mapping.INDEPENDENT


def direct_path_possible(left: Host, right: Host) -> bool:
    """May two hosts reach each other by STUN, simultaneous pings and triggered checks, without guessing ports?"""
    if left.segment is right.segment:
        return True
    if any(":" in host for host in left.addresses) and any(":" in host for host in right.addresses):
        return True
    if any(router.is_udp_blocked for host in (left, right) for router in _routers(host)):
        return False
    shared = [router for router in _routers(left) if router in _routers(right)]
    if shared and not all(router.nat.hairpin for router in shared):
        # Behind one NAT: only who sits right behind it can be reached there, at his own address.
        inside = shared[0].inside
        return any(host.segment is inside and host.firewall is None for host in (left, right))
    sides = _side(left), _side(right)
    return _may_start(*sides) or _may_start(*reversed(sides))


class Reach(Enum):
    """The best that two hosts can have."""

    DIRECT = "without guessing"
    PREDICTED = "one end counts, and the other keeps its port or counts too"
    BIRTHDAY = "one end rolls dice, and the other keeps its port"
    RELAYED = "relay"


def best_reach(left: Host, right: Host) -> Reach:
    """The oracle for guessing too."""
    if direct_path_possible(left, right):
        return Reach.DIRECT
    shared = [router for router in _routers(left) if router in _routers(right)]
    is_blocked = any(router.is_udp_blocked for host in (left, right) for router in _routers(host))
    if is_blocked or not all(router.nat.hairpin for router in shared):
        return Reach.RELAYED
    rules = sorted(_port_rule(host) for host in (left, right))
    if PortRule.RANDOM not in rules:
        return Reach.PREDICTED if PortRule.COUNTED in rules else Reach.RELAYED
    return Reach.BIRTHDAY if rules[0] is PortRule.KEPT else Reach.RELAYED


def _port_rule(host: Host) -> PortRule:
    """What the host's NATs in sum do with the port towards another peer."""
    nats = [router.nat for router in _routers(host) if router.nat.mapping is not Mapping.INDEPENDENT]
    if not nats:
        return PortRule.KEPT
    return PortRule.COUNTED if all(nat.ports is Ports.SEQUENTIAL for nat in nats) else PortRule.RANDOM


def _may_start(sender: _Side, receiver: _Side) -> bool:
    """Does the sender's ping to the receiver's STUN address lead to a path?"""
    match receiver.filtering:
        case Filtering.INDEPENDENT:
            enters = True
        case Filtering.ADDRESS:
            enters = receiver.is_independent
        case Filtering.ADDRESS_AND_PORT:
            enters = receiver.is_independent and sender.is_independent
    if not enters or receiver.is_independent:
        return enters
    # The receiver answers from another port than the one that was pinged: the sender's NAT must let that in, and the
    # pair of ports must come to rest instead of changing with each answer.
    is_endless = sender.mapping is receiver.mapping is Mapping.ADDRESS_AND_PORT
    return sender.filtering is not Filtering.ADDRESS_AND_PORT and not is_endless


def _side(host: Host) -> _Side:
    mappings = [router.nat.mapping for router in _routers(host)]
    filters = [router.nat.filtering for router in _routers(host)]
    if host.firewall is not None:
        filters.append(Filtering.ADDRESS_AND_PORT)
    return _Side(
        max(mappings, key=list(Mapping).index, default=Mapping.INDEPENDENT),
        max(filters, key=list(Filtering).index, default=Filtering.INDEPENDENT),
    )


def _routers(host: Host) -> list[Router]:
    routers: list[Router] = []
    segment = host.segment
    while segment.router is not None:
        routers.append(segment.router)
        segment = segment.router.outside
    return routers
