"""Sites behind NATs of every sort, on an internet that delays and loses, and all that can go wrong there.

    server 20.1.0.1, 20.1.0.2 ───────── ┐
    s1 20.1.0.11  a public host ─────── ┤  internet.c: one port each, by which it can be told what
    r2 20.1.0.12 ── s2 192.168.2.2 ──── ┤  to do to packets
    c3 20.1.0.13 ── r3 100.64.0.3 ───── ┘
                     └ s3 192.168.3.2      a carrier's NAT before the site's own

A router's outside is `wan`, its inside the bridge `lan`, so that several hosts may be there. Lines, hosts and routers
are named by their namespace. IPv6: hosts behind router N have 2001:db8:N::/64, public host N has 2001:db8:N::2.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .lab import SERVER_HOST, Lab, LabError
from .native import compiled
from .nats import HOST_FIREWALL, PORT_RESTRICTED, ROUTER_FIREWALL6, Nat
from .stream import tell

HERE = Path(__file__).resolve().parent
SERVER_HOSTS = (SERVER_HOST, "20.1.0.2")
SERVER_HOST6 = "2001:db8::1"
CARRIER_NET = "100.64.0"
MICROSECONDS = 1000
MILLION = 1_000_000


@dataclass(slots=True)
class Router:
    """A NAT, and what it is joined to. `inside` is the first three octets of its LAN."""

    name: str
    nat: Nat
    address: str
    inside: str
    behind: Router | None = None


class NatLab(Lab):
    """The lab. `delay` is that of each site's line in milliseconds one way: a quarter of the round trip between two."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__()
        self.delay = delay
        self.routers: dict[str, Router] = {}
        self._ports: dict[str, int] = {}
        self._internet: subprocess.Popen[str] | None = None

    def _make_internet(self) -> None:
        self._internet = self.open("net", [compiled(HERE / "internet.c")])
        self._attach("net", SERVER_HOSTS)

    # Building.

    def add_public(self, number: int, *, has_firewall: bool = False, has_ipv6: bool = False) -> str:
        """A host with a public address; returns its name."""
        host = f"s{number}"
        self._namespace(host)
        self._attach(host, [outside(number)])
        self.line(host, delay=self.delay)
        if has_ipv6:
            self._attach6(host, number, f"{inside6(number)}2")
        if has_firewall:
            self.run(host, ["nft", "-f", "-"], text=HOST_FIREWALL)
        return host

    def add_site(
        self, number: int, nat: Nat = PORT_RESTRICTED, *, behind: Router | None = None, inside: str = ""
    ) -> str:
        """A router and a host behind it; returns the host's name."""
        return self.add_inside(number, self.add_router(number, nat, behind=behind, inside=inside))

    def add_router(self, number: int, nat: Nat, *, behind: Router | None = None, inside: str = "") -> Router:
        """A router, on the internet or behind a carrier's."""
        name = f"r{number}"
        address = outside(number) if behind is None else f"{CARRIER_NET}.{number + 1}"
        return self._add_router(Router(name, nat, address, inside or f"192.168.{number}", behind))

    def add_carrier(self, number: int, nat: Nat) -> Router:
        """A carrier's NAT, with room for routers behind it."""
        return self._add_router(Router(f"c{number}", nat, outside(number), CARRIER_NET))

    def add_inside(self, number: int, router: Router, octet: int = 2) -> str:
        """A host in a router's LAN; returns its name."""
        host = f"s{number}"
        self._namespace(host)
        self.plug(host, router, octet)
        return host

    def plug(self, host: str, router: Router, octet: int = 2) -> None:
        """Put a host into a router's LAN; it is taken out of the one that it is in."""
        script = f"ip link del eth0 2>/dev/null || true\nip link add eth0 type veth peer name {host} netns "
        script += f"{self.prefix}{router.name}\nip addr add {router.inside}.{octet}/24 dev eth0\nip link set eth0 up"
        self.sh(host, script)
        self.sh(router.name, f"ip link set {host} master lan up")
        self.sh(host, f"ip route add default via {router.inside}.1")

    def add_ipv6(self, number: int, router: Router, host: str, *, has_ipv4: bool = True) -> None:
        """Addresses for a router on the internet and the host behind it, and a firewall between."""
        inside = inside6(number)
        self._attach6(router.name, number, f"{inside}1", "lan")
        self.sh(router.name, "sysctl -qw net.ipv6.conf.all.forwarding=1")
        self.run(router.name, ["nft", "-f", "-"], text=ROUTER_FIREWALL6)
        self.sh(host, f"ip addr add {inside}2/64 dev eth0 nodad\nip -6 route add default via {inside}1")
        if not has_ipv4:
            self.sh(host, "ip -4 addr flush dev eth0")

    # Faults.

    def line(
        self,
        where: str,
        *,
        delay: float | None = None,
        jitter: float | None = None,
        loss: float | None = None,
        copies: float | None = None,
        late: float | None = None,
        mtu: int | None = None,
        cut: bool | None = None,
        carrier: bool | None = None,
    ) -> None:
        """What befalls packets on the line of a router or public host. Milliseconds, shares, bytes; None: as it was."""
        scaled = {
            "delay": _scaled(delay, MICROSECONDS),
            "jitter": _scaled(jitter, MICROSECONDS),
            "loss": _scaled(loss, MILLION),
            "copies": _scaled(copies, MILLION),
            "late": _scaled(late, MILLION),
            "mtu": mtu,
            "cut": _scaled(cut, 1),
            "carrier": _scaled(carrier, 1),
        }
        words = [f"{key}={value}" for key, value in scaled.items() if value is not None]
        self._tell(f"set {self._ports[where]} {' '.join(words)}")

    def between(
        self,
        a: str,
        b: str,
        *,
        delay: float | None = None,
        loss: float | None = None,
        cut: bool | None = None,
        hole: int | None = None,
    ) -> None:
        """What befalls packets between two routers or public hosts, both ways; their other paths are as they were.

        A `hole` swallows those of more bytes.
        """
        self.towards(a, b, delay=delay, loss=loss, cut=cut, hole=hole)
        self.towards(b, a, delay=delay, loss=loss, cut=cut, hole=hole)

    def towards(
        self,
        target: str,
        source: str,
        *,
        delay: float | None = None,
        loss: float | None = None,
        cut: bool | None = None,
        hole: int | None = None,
    ) -> None:
        """The same in one direction."""
        scaled = {
            "delay": _scaled(delay, MICROSECONDS),
            "loss": _scaled(loss, MILLION),
            "cut": _scaled(cut, 1),
            "hole": hole,
        }
        words = " ".join(f"{key}={value}" for key, value in scaled.items() if value is not None)
        self._tell(f"pair {self._ports[source]} {self._ports[target]} {words}")

    def passed(self, source: str, target: str) -> int:
        """Packets that one router or public host has sent to another's addresses so far."""
        return int(self._tell(f"count {self._ports[source]} {self._ports[target]}"))

    def reboot(self, router: Router) -> None:
        """The NAT forgets all mappings."""
        self._load(router)
        self.run(router.name, ["conntrack", "-F"])

    def change_nat(self, router: Router, nat: Nat) -> None:
        """It is another one from now on; known flows go on as long as its rules let them."""
        router.nat = nat
        self._load(router)

    def renumber(self, router: Router, address: str) -> None:
        """A new address from the provider; the old one leads nowhere, and what went by it is forgotten."""
        old, router.address = router.address, address
        if router.behind is None:
            self._tell(f"route {address}/32 {self._ports[router.name]}")
            self._tell(f"route {old}/32 -1")
            length, then = 32, "ip route replace default dev wan"
        else:
            length, then = 10, f"ip route replace default via {router.behind.inside}.1"
        self.sh(router.name, f"ip addr add {address}/{length} dev wan\nip addr del {old}/{length} dev wan\n{then}")
        self.reboot(router)

    def sh(self, where: str, script: str) -> str:
        """Run shell commands in a namespace. Raises LabError if one fails."""
        return self.run(where, ["sh", "-e"], text=script)

    # Inside.

    def _add_router(self, router: Router) -> Router:
        name, upper = router.name, router.behind
        self._namespace(name)
        if upper is None:
            self._attach(name, [router.address])
            self.line(name, delay=self.delay)
        else:
            self.sh(name, f"ip link add wan type veth peer name {name} netns {self.prefix}{upper.name}")
            self.sh(upper.name, f"ip link set {name} master lan up")
            script = f"ip addr add {router.address}/10 dev wan\nip link set wan up\n"
            self.sh(name, f"{script}ip route add default via {upper.inside}.1")
        length = 10 if router.inside == CARRIER_NET else 24
        script = f"ip link add lan type bridge\nip addr add {router.inside}.1/{length} dev lan\nip link set lan up\n"
        self.sh(name, script)
        self._load(router)
        self.routers[name] = router
        return router

    def _load(self, router: Router) -> None:
        self.run(router.name, ["nft", "-f", "-"], text=router.nat.rules(router.address))
        self.sh(router.name, f"sysctl -qw {' '.join(router.nat.sysctls())}")

    def _attach(self, where: str, addresses: Sequence[str]) -> None:
        """A line to the internet: the interface `wan`."""
        device = f"p{len(self._ports)}"
        self._ports[where] = number = int(self._tell(f"port {device}"))
        self._ip("net", f"link set {device} name wan netns {self.prefix}{where}")
        lines = [f"ip addr add {address}/32 dev wan" for address in addresses]
        self.sh(where, "\n".join([*lines, "ip link set wan up", "ip route add default dev wan"]))
        for address in addresses:
            self._tell(f"route {address}/32 {number}")

    def _attach6(self, where: str, number: int, address: str, device: str = "wan") -> None:
        self._tell(f"route {inside6(number)}/64 {self._ports[where]}")
        length = 128 if device == "wan" else 64
        self.sh(where, f"ip addr add {address}/{length} dev {device} nodad\nip -6 route add default dev wan")

    def add_server_ipv6(self) -> None:
        """The server is reachable by IPv6 too."""
        self._tell(f"route {SERVER_HOST6}/128 {self._ports['net']}")
        self.sh("net", f"ip addr add {SERVER_HOST6}/128 dev wan nodad\nip -6 route add default dev wan")

    def _tell(self, command: str) -> str:
        assert self._internet is not None, "it is there as long as the lab is"
        answer = tell(self._internet, f"{command}\n").split()
        if answer[0] != "ok":
            raise LabError(f"internet: {command}: {' '.join(answer)}")
        return answer[-1]


def outside(number: int) -> str:
    """The public address of a site at first."""
    return f"20.1.0.{10 + number}"


def elsewhere(number: int) -> str:
    """Another one, of another subnet."""
    return f"20.2.0.{10 + number}"


def inside6(number: int) -> str:
    """The site's IPv6 network, up to the interface's part."""
    return f"2001:db8:{number}::"


def _scaled(value: float | None, factor: float) -> int | None:
    return None if value is None else round(value * factor)
