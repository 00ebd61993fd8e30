"""The system's side of a mesh interface: addresses, routes, what else is configured on this host.

Blocking netlink calls by pyroute2, a few milliseconds each: call them in a worker thread (its asynchronous flavour
opens netlink sockets through the event loop, which uvloop does not do).
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ..proto.errors import ConfigError

Network = IPv4Network | IPv6Network

UNREACHABLE_METRIC = 0xFFFFFFF0
"""Above any metric that a person or a routing daemon gives: the route counts only while the interface's is gone."""

# linux/if.h
_IFF_LOOPBACK = 0x8
_IFF_POINTOPOINT = 0x10
_IFF_MULTICAST = 0x1000

# linux/if_addr.h
_IFA_F_OPTIMISTIC = 0x04
_IFA_F_DADFAILED = 0x08
_IFA_F_DEPRECATED = 0x20
_IFA_F_TENTATIVE = 0x40

_UNICAST = 1
_MAIN_TABLE = 254
_SCOPE_LINK = 253
HOST_ROUTE_PROTOCOL = 109
"""By which `ip route show proto 109` tells our routes to members; nobody else's, by /etc/iproute2/rt_protos."""
_LINKDOWN = 16  # RTNH_F_LINKDOWN of linux/rtnetlink.h: the cable is out, though the route stays

_NO_IPV6 = (errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
"""What the kernel answers where IPv6 is missing or turned off."""

QUEUE = 2000
"""Packets that may wait in the device (txqueuelen). The kernel's own choice is 500, 5 ms at 100,000 packets/s: a thread
that does not get its processor for so long lost some. It is empty but for such moments."""


class TakenError(ConfigError):
    """A value that would do, but something on this host has it already."""


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """A prefix that this host has an address or a route in, and the interface it belongs to."""

    network: Network
    interface: str


def configure(name: str, addresses: Sequence[IPv4Interface | IPv6Interface], mtu: int) -> None:
    """Give the interface its addresses (and no others), its MTU, and bring it up."""
    with _netlink() as ip:
        index = _index(ip, name)
        ip.link("set", index=index, mtu=mtu, txqlen=QUEUE, state="up")
        wanted = {str(address) for address in addresses}
        for message in ip.get_addr(index=index):
            host = message.get("IFA_ADDRESS")
            if f"{host}/{message['prefixlen']}" not in wanted and not ip_address(host).is_link_local:
                ip.addr("del", index=index, address=host, prefixlen=message["prefixlen"])
        for address in addresses:
            _add_address(ip, index, address)


def hold_prefixes(prefixes: Iterable[Network]) -> None:
    """Make the mesh's prefixes unreachable but through its interface: no packet for them leaves in the clear.

    Seen with another VPN: while its device was gone for a second, packets of a running call left by the default route.
    """
    with _netlink() as ip:
        for prefix in prefixes:
            _change_hold(ip, "replace", prefix)


def release_prefixes(prefixes: Iterable[Network]) -> None:
    """Take the unreachable routes away."""
    with _netlink() as ip:
        for prefix in prefixes:
            try:
                _change_hold(ip, "del", prefix)
            except NetlinkError as error:
                if error.code not in (errno.ESRCH, errno.ENOENT):
                    raise


def set_host_mtus(name: str, mtus: Mapping[str, int | None]) -> None:
    """Give hosts on an interface routes with an MTU, or take theirs away (None)."""
    with _netlink() as ip:
        index = _index(ip, name)
        for host, mtu in mtus.items():
            _set_host_mtu(ip, index, ip_network(host), mtu)


def clear_host_mtus(name: str) -> None:
    """Take away all that `set_host_mtus` made, before this start or ever."""
    with _netlink() as ip:
        index = _index(ip, name)
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in ip.get_routes(family=family, oif=index, proto=HOST_ROUTE_PROTOCOL):
                _set_host_mtu(ip, index, ip_network(message.get("RTA_DST")), None)


def interface_names() -> list[str]:
    """The interfaces of this network namespace."""
    with _netlink() as ip:
        return [message.get("IFLA_IFNAME") for message in ip.get_links()]


def local_networks(*, ignore: frozenset[str] = frozenset()) -> list[LocalNetwork]:
    """Every prefix that is in use here, default routes and the interfaces in `ignore` left out."""
    found: dict[LocalNetwork, None] = {}
    with _netlink() as ip:
        names = _names(ip)
        for message in ip.get_addr():
            network = ip_network(f"{message.get('IFA_ADDRESS')}/{message['prefixlen']}", strict=False)
            found[LocalNetwork(network, names.get(message["index"], "?"))] = None
        for message in ip.get_routes(table=_MAIN_TABLE):
            destination = message.get("RTA_DST")
            if destination is None or message["type"] != _UNICAST:
                continue
            network = ip_network(f"{destination}/{message['dst_len']}", strict=False)
            found[LocalNetwork(network, names.get(message.get("RTA_OIF"), "?"))] = None
    return [entry for entry in found if entry.interface not in ignore and entry.interface != "lo"]


def local_hosts(*, ignore: frozenset[str] = frozenset()) -> list[str]:
    """Addresses of this host that another host may be able to reach, sorted; link-local ones are left out."""
    hosts: set[str] = set()
    with _netlink() as ip:
        names = _names(ip)
        for message in ip.get_addr():
            if names.get(message["index"]) in ignore or not _is_in_use(message):
                continue
            address = ip_address(message.get("IFA_LOCAL") or message.get("IFA_ADDRESS"))
            if not (address.is_loopback or address.is_link_local or address.is_multicast):
                hosts.add(str(address))
    return sorted(hosts)


def lan_addresses(*, ignore: frozenset[str] = frozenset()) -> list[IPv4Interface | IPv6Interface]:
    """Addresses of this host with their prefixes, on interfaces that have neighbours, sorted."""
    found: dict[IPv4Interface | IPv6Interface, None] = {}
    with _netlink() as ip:
        names = {
            message["index"]: message.get("IFLA_IFNAME")
            for message in ip.get_links()
            if message["flags"] & _IFF_MULTICAST and not message["flags"] & (_IFF_LOOPBACK | _IFF_POINTOPOINT)
        }
        for message in ip.get_addr():
            address = ip_interface(f"{message.get('IFA_ADDRESS')}/{message['prefixlen']}")
            is_near = message["index"] in names and names[message["index"]] not in ignore
            if is_near and _is_in_use(message) and not address.is_link_local:
                found[address] = None
    return sorted(found, key=str)


def default_routes() -> list[str]:
    """By which router and interface this host reaches the rest of the world, and whether that has a carrier, sorted."""
    with IPRoute() as ip:
        names = _names(ip)
        routes = [
            f"{message.get('RTA_GATEWAY')} {names.get(message.get('RTA_OIF'), '?')} {message.get('RTA_PRIORITY', 0)}"
            + (" down" if message["flags"] & _LINKDOWN else "")
            for message in ip.get_routes(table=_MAIN_TABLE)
            if message.get("RTA_DST") is None and message["type"] == _UNICAST
        ]
    return sorted(routes)


def default_gateway(*, ignore: frozenset[str] = frozenset()) -> str | None:
    """The IPv4 router of the default route that the kernel prefers; None: there is no router."""
    with _netlink() as ip:
        names = _names(ip)
        routes = [
            (message.get("RTA_PRIORITY", 0), gateway)
            for message in ip.get_routes(family=socket.AF_INET, table=_MAIN_TABLE)
            if message.get("RTA_DST") is None
            and message["type"] == _UNICAST
            and (gateway := message.get("RTA_GATEWAY")) is not None
            and names.get(message.get("RTA_OIF")) not in ignore
        ]
    return str(min(routes)[1]) if routes else None


def check_collision(pool: IPv4Network, *, ignore: frozenset[str] = frozenset()) -> None:
    """Raise TakenError, naming the interface, if the pool overlaps a prefix that this host uses."""
    for entry in local_networks(ignore=ignore):
        if entry.network.version == 4 and pool.overlaps(entry.network):
            raise TakenError(
                f"address pool {pool}",
                f"it collides with {entry.network} on interface {entry.interface} of this host",
                "create the network with another --subnet, or renumber that interface",
            )


@contextlib.contextmanager
def _netlink() -> Iterator[IPRoute]:
    """A netlink socket whose refusals are OSErrors like any other system call's."""
    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        raise OSError(error.code, f"the kernel refused a change of interfaces or routes ({error})") from error


def _is_in_use(message: Mapping[str, Any]) -> bool:
    """False for an IPv6 address that is not ours yet or soon no more (RFC 4862 §5.4, §5.5.4).

    Temporary ones (RFC 8981) count: the kernel sends from them, so firewalls are open for them and no other.
    """
    flags = message.get("IFA_FLAGS") or message["flags"]
    return not flags & (_IFA_F_DADFAILED | _IFA_F_DEPRECATED) and (
        not flags & _IFA_F_TENTATIVE or bool(flags & _IFA_F_OPTIMISTIC)
    )


def _index(ip: IPRoute, name: str) -> int:
    found = ip.link_lookup(ifname=name)
    if not found:
        raise ConfigError(f"interface {name}", "it does not exist", "restart meshvpnd")
    return int(found[0])


def _names(ip: IPRoute) -> dict[int, str]:
    return {message["index"]: message.get("IFLA_IFNAME") for message in ip.get_links()}


def _add_address(ip: IPRoute, index: int, address: IPv4Interface | IPv6Interface) -> None:
    try:
        ip.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
    except NetlinkError as error:
        # A host without IPv6 refuses the IPv6 address; the network works without it.
        is_missing_ipv6 = address.version == 6 and error.code in (errno.EPERM, *_NO_IPV6)
        if error.code != errno.EEXIST and not is_missing_ipv6:
            raise


def _set_host_mtu(ip: IPRoute, index: int, host: Network, mtu: int | None) -> None:
    is_ipv4 = host.version == 4
    route: dict[str, Any] = {
        "dst": str(host),
        "oif": index,
        "proto": HOST_ROUTE_PROTOCOL,
        "family": socket.AF_INET if is_ipv4 else socket.AF_INET6,
        "scope": _SCOPE_LINK if is_ipv4 else 0,
    }
    try:
        if mtu is None:
            ip.route("del", **route)
        else:
            ip.route("replace", **route, metrics={"mtu": mtu})
    except NetlinkError as error:
        is_gone = mtu is None and error.code in (errno.ESRCH, errno.ENOENT)
        if not is_gone and (is_ipv4 or error.code not in _NO_IPV6):
            raise


def _change_hold(ip: IPRoute, action: str, prefix: Network) -> None:
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    try:
        ip.route(action, dst=str(prefix), type="unreachable", priority=UNREACHABLE_METRIC, family=family)
    except NetlinkError as error:
        if prefix.version == 4 or error.code not in _NO_IPV6:
            raise
