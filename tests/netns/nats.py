"""NATs of every sort, each a set of rules for nftables.

Words are those of RFC 4787: a NAT maps independently of the endpoint, by its address, or by address and port; it
filters by nothing, by address, or by address and port. Linux' own NAT maps independently as long as one inside port has
the outside one to itself, and filters by address and port. The others are made of maps that packets on their way out
write, by rules after the translation, and that packets on their way in are looked up in.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum


class Mapping(Enum):
    """Which outside port a flow gets."""

    INDEPENDENT = "endpoint-independent"
    PER_ADDRESS = "address-dependent"
    RANDOM = "address-and-port-dependent"
    COUNTING = "address-and-port-dependent, counting"


class Filtering(Enum):
    """Who may answer."""

    NONE = "endpoint-independent"
    ADDRESS = "address-dependent"
    PORT = "address-and-port-dependent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nat:
    """A NAT's behaviour. Seconds."""

    mapping: Mapping = Mapping.INDEPENDENT
    filtering: Filtering = Filtering.PORT
    keeps_ports: bool = True
    """Otherwise they come from a range that inside ports are not in. For independent mapping only."""
    has_hairpin: bool = False
    """Inside hosts reach each other by outside addresses, and see outside addresses. It filters nothing of that."""
    drops: bool = True
    """False: what nobody asked for reaches the router itself, which then takes its port for taken."""
    blocks_udp: bool = False
    """Only TCP to ports 80 and 443 passes."""
    timeout: int = 30
    """Until a mapping without an answer is forgotten."""
    timeout_replied: int = 120

    def rules(self, wan: str) -> str:
        """For `nft -f -`; `wan` is the outside address. They replace what was there."""
        table = "\n".join([*self._maps(), *self._prerouting(wan), *self._postrouting(wan), *self._filters()])
        return f"table ip nat\ndelete table ip nat\ntable ip nat {{\n{table}\n}}\n"

    def sysctls(self) -> list[str]:
        """The timers, and forwarding."""
        return [
            "net.ipv4.ip_forward=1",
            "net.bridge.bridge-nf-call-iptables=0",
            f"net.netfilter.nf_conntrack_udp_timeout={self.timeout}",
            f"net.netfilter.nf_conntrack_udp_timeout_stream={self.timeout_replied}",
        ]

    def _maps(self) -> list[str]:
        dynamic = f"flags dynamic, timeout; timeout {self.timeout_replied}s; size 65535;"
        inside = "ipv4_addr . inet_service"
        found = []
        if self.filtering is Filtering.NONE or self.has_hairpin:
            found.append(f"map inside {{ type inet_service : {inside}; {dynamic} }}")
        if self.filtering is Filtering.ADDRESS:
            found.append(f"map inside_of {{ type inet_service . ipv4_addr : {inside}; {dynamic} }}")
        if self.mapping is Mapping.PER_ADDRESS:
            found.append(f"map outside_of {{ type {inside} . ipv4_addr : {inside}; {dynamic} }}")
        if self.has_hairpin:
            found.append(f"map outside {{ type {inside} : {inside}; {dynamic} }}")
        return found

    def _prerouting(self, wan: str) -> list[str]:
        rules = []
        if self.filtering is Filtering.NONE:
            rules.append('iifname "wan" meta l4proto udp dnat ip to udp dport map @inside')
        if self.filtering is Filtering.ADDRESS:
            rules.append('iifname "wan" meta l4proto udp dnat ip to udp dport . ip saddr map @inside_of')
        if self.has_hairpin:
            rules.append(f'iifname "lan" ip daddr {wan} meta l4proto udp dnat ip to udp dport map @inside')
        return _chain("prerouting", "nat hook prerouting priority -100", rules)

    def _postrouting(self, wan: str) -> list[str]:
        rules = []
        if self.has_hairpin:
            rules.append('iifname "lan" oifname "lan" meta l4proto udp snat ip to ip saddr . udp sport map @outside')
        rules += [f'oifname "wan" meta l4proto udp {rule}' for rule in self._translations(wan)]
        rules.append(f'oifname "wan" snat to {wan}')
        return _chain("postrouting", "nat hook postrouting priority 100", rules)

    def _translations(self, wan: str) -> list[str]:
        if self.mapping is Mapping.COUNTING:
            first = random.randrange(20000, 50000)
            ports = ", ".join(f"{step} : {first + step}" for step in range(4096))
            return [f"snat to {wan} : numgen inc mod 4096 map {{ {ports} }}"]
        if self.mapping is Mapping.PER_ADDRESS:
            return [
                "snat ip to ip saddr . udp sport . ip daddr map @outside_of",
                f"snat to {wan} random,fully-random",
            ]
        if self.mapping is Mapping.RANDOM:
            return [f"snat to {wan} random,fully-random"]
        # `random` would make it dependent.
        return [f"snat to {wan}" if self.keeps_ports else f"snat to {wan}:10000-32000"]

    def _filters(self) -> list[str]:
        learned = []
        for direction in ("original", "reply"):
            inside = f"ct {direction} ip saddr . ct {direction} proto-src"
            when = f'oifname "wan" ct direction {direction} meta l4proto udp update'
            if self.filtering is Filtering.NONE or self.has_hairpin:
                learned.append(f"{when} @inside {{ udp sport : {inside} }}")
            if self.filtering is Filtering.ADDRESS:
                learned.append(f"{when} @inside_of {{ udp sport . ip daddr : {inside} }}")
            if self.mapping is Mapping.PER_ADDRESS:
                learned.append(f"{when} @outside_of {{ {inside} . ip daddr : ip saddr . udp sport }}")
            if self.has_hairpin:
                learned.append(f"{when} @outside {{ {inside} : ip saddr . udp sport }}")
        chains = _chain("learn", "filter hook postrouting priority 110", learned)
        if self.drops:
            chains += _chain(
                "input",
                "filter hook input priority 0",
                ['iifname "wan" ct state established,related accept', 'iifname "wan" drop'],
            )
        if self.blocks_udp:
            passing = ["ct state established meta l4proto tcp accept", "tcp dport { 80, 443 } accept", "drop"]
            chains += _chain("forward", "filter hook forward priority 0", passing)
        return chains


def _chain(name: str, hook: str, rules: list[str]) -> list[str]:
    return [f"chain {name} {{ type {hook};", *rules, "}"] if rules else []


FULL_CONE = Nat(filtering=Filtering.NONE)
RESTRICTED = Nat(filtering=Filtering.ADDRESS)
PORT_RESTRICTED = Nat()
SYMMETRIC = Nat(mapping=Mapping.RANDOM)
SYMMETRIC_COUNTING = Nat(mapping=Mapping.COUNTING)
SYMMETRIC_PER_ADDRESS = Nat(mapping=Mapping.PER_ADDRESS)
CARRIER_GRADE = Nat(keeps_ports=False)
UDP_BLOCKED = Nat(blocks_udp=True)

HOST_FIREWALL = """
table inet firewall
delete table inet firewall
table inet firewall {
    chain input {
        type filter hook input priority 0;
        iifname "lo" accept
        ct state established,related accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        iifname "mesh*" accept
        drop
    }
}
"""
"""A host that lets nothing in that it did not ask for."""

ROUTER_FIREWALL6 = """
table ip6 firewall
delete table ip6 firewall
table ip6 firewall {
    chain forward {
        type filter hook forward priority 0;
        ct state established,related accept
        iifname "wan" drop
    }
}
"""
"""The same of a router, for the IPv6 hosts behind it."""
