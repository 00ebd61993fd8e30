"""What `netcheck` found, and in plain sentences what it means for calls."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from ipaddress import ip_address, ip_network

import msgspec

from .nat import Mapping4787
from .options import DEFAULT_MTU
from .transport import Address

_SHARED = ip_network("100.64.0.0/10")  # RFC 6598: between a provider's NAT and its customers' routers
OVERHEAD = 72
"""Bytes of IPv4, UDP, relay and transport headers around a tunnel's packet."""


class Filtering(StrEnum):
    """Whose packets are let in (RFC 4787 §5), as far as a server with one address can tell."""

    NOT_BY_PORT = "endpoint-independent or address-dependent"
    BY_PORT = "address-and-port-dependent"


class PortChoice(StrEnum):
    """How a NAT chooses ports (RFC 4787 §4.2)."""

    PRESERVED = "preserved"
    SEQUENTIAL = "sequential"
    RANDOM = "random"


class ServerFinding(msgspec.Struct, frozen=True):
    """One UDP address of a rendezvous. `rtt` in seconds; None: no answer."""

    address: str
    rtt: float | None


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """As `netcheck --json` prints it; null is not known."""

    servers: list[ServerFinding]
    local: list[str]  # this host's IPv4 addresses
    public: str | None  # as the servers see it
    is_translated: bool | None  # a NAT is in between
    mapping: str | None  # a Mapping4787
    is_mapping_sure: bool  # False: one server address cannot tell it from address-dependent
    filtering: Filtering | None
    ports: PortChoice | None
    port_step: int  # from one port to the next, if they are sequential
    hairpin: bool | None  # can hosts behind this NAT reach each other by their outer addresses
    mtu: int | None  # largest packet that reached the server unfragmented, IP header included
    local6: list[str]
    public6: str | None
    filtering6: Filtering | None
    tcp_rtt: float | None = None  # seconds, of the control connection's TCP and TLS handshakes together
    relay_by_tcp: bool | None = None
    port_mapping: list[str] = []  # PCP, NAT-PMP, UPnP
    router_host: str | None = None  # what the router believes to be its outer address
    problems: list[str] = []  # why a server was not reached by TCP

    @property
    def has_udp(self) -> bool:
        """Some server answered by UDP."""
        return any(server.rtt is not None for server in self.servers)

    @property
    def is_symmetric(self) -> bool:
        """Another outer port for each destination."""
        return self.mapping in (Mapping4787.ADDRESS.value, Mapping4787.ADDRESS_AND_PORT.value)

    @property
    def is_behind_carrier(self) -> bool:
        """A NAT of the provider's is above this site's own router."""
        routers = [*self.local, *([self.router_host] if self.router_host else [])]
        if self.is_translated is not True:
            return False
        is_shared = any(ip_address(host) in _SHARED for host in routers)
        return is_shared or (self.router_host is not None and Address(self.router_host, 0).is_private)


def meaning(found: Findings) -> list[str]:
    """For the administrator of a PBX: whom calls reach how, and what to change."""
    if not found.has_udp:
        return _without_udp(found)
    told = [_reach(found)]
    if found.public6 is not None:
        told.append("IPv6 works: calls to members that have it too are direct, whatever the NAT does.")
    told += _remedies(found)
    return told


def _without_udp(found: Findings) -> list[str]:
    if found.tcp_rtt is None and not found.relay_by_tcp:
        return ["No rendezvous can be reached, by UDP or TCP: check this host's network, the server and its name."]
    opened = f"UDP to {_either(server.address for server in found.servers)}" if found.servers else "UDP"
    told = (
        "UDP is blocked: calls go through the rendezvous by TCP, later than by UDP and with gaps where the line loses "
        "packets."
        if found.relay_by_tcp
        else "UDP is blocked, and the rendezvous does not relay by TCP: no call gets through, though members are seen."
    )
    return [told, f"Let {opened} out at the firewall; for direct calls, UDP to any address."]


def _reach(found: Findings) -> str:
    if found.port_mapping and found.is_translated and not found.is_behind_carrier:
        by = _either(found.port_mapping)
        return f"Direct calls to everybody whose network lets UDP out: the router opens a port when asked ({by})."
    if found.is_symmetric:
        others = (
            "most others too, as its ports can be foreseen"
            if found.ports is PortChoice.SEQUENTIAL
            else "those behind ordinary NATs after a search of some seconds"
        )
        return (
            "Behind a symmetric NAT, which takes another port for each destination: calls are direct to members with a "
            f"public address or an open port, to {others}, else by relay."
        )
    if found.filtering is Filtering.NOT_BY_PORT:
        return "Direct calls to everybody whose network lets UDP out."
    return (
        "Direct calls to almost everybody; to members behind a symmetric NAT by guessing its port, which takes some "
        "seconds, else by relay."
    )


def _remedies(found: Findings) -> list[str]:
    told = []
    if found.is_behind_carrier:
        told.append(
            "Another NAT is above this site's router (the provider's, or a second router), where nobody opens a port "
            "for it; a public IPv4 address or IPv6 from the provider would mend that."
        )
    elif found.is_symmetric and not found.port_mapping:
        told.append(
            "To mend it, turn on UPnP or NAT-PMP/PCP at the router, or let it keep source ports for this host ('static "
            "port', 'full cone'), or forward a UDP port and name it in meshvpn.toml (port, endpoints)."
        )
    if found.mtu is not None and found.mtu < DEFAULT_MTU + OVERHEAD:
        told.append(
            f"Packets above {found.mtu} bytes do not pass whole; `mtu = {max(1280, found.mtu - OVERHEAD)}` in "
            "meshvpn.toml spares large ones from being fragmented (voice is small)."
        )
    if found.public6 is None and found.local6 and any(server.address.startswith("[") for server in found.servers):
        told.append("This host has an IPv6 address, but no rendezvous answers by IPv6.")
    return told


def _either(words: Iterable[str]) -> str:
    return ", ".join(words)
