"""A home router's port mapping: Debian's miniupnpd on a router of the lab, whose NAT is made symmetric."""

from __future__ import annotations

import signal
import subprocess
import time

from .lab import Lab

SYMMETRIC_NAT = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority 100;
        oifname "wan" masquerade fully-random;
    }
    chain input {
        type filter hook input priority 0;
        iifname "wan" ct state established,related accept;
        iifname "wan" drop;
    }
}
"""

_TABLES = """
table inet filter {
    chain forward {
        type filter hook forward priority 0; policy accept;
        jump miniupnpd
    }
    chain prerouting {
        type nat hook prerouting priority -100;
        jump prerouting_miniupnpd
    }
    chain postrouting {
        type nat hook postrouting priority 100;
        jump postrouting_miniupnpd
    }
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
}
"""

_CONFIG = """
ext_ifname=wan
listening_ip=lan
http_port=0
enable_upnp={upnp}
enable_natpmp={natpmp}
secure_mode=yes
system_uptime=no
notify_interval=60
uuid=00000000-0000-0000-0000-00000000000{number}
upnp_table_name=filter
upnp_nat_table_name=filter
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""

EPOCH_DOUBT = 4.0
_FIRST_BYTE = {"pcp": 2, "nat-pmp": 0}


class Igd:
    """At the router of one site. `methods` are those of "pcp", "nat-pmp" and "upnp" that it speaks."""

    def __init__(self, lab: Lab, number: int, *methods: str, ext_ip: str | None = None) -> None:
        self._lab = lab
        self._number = number
        self._router = f"r{number}"
        self._config = lab.directory / f"miniupnpd{number}.conf"
        has_pmp = "pcp" in methods or "nat-pmp" in methods
        config = _CONFIG.format(
            upnp="yes" if "upnp" in methods else "no", natpmp="yes" if has_pmp else "no", number=number
        )
        self._config.write_text(config + ("" if ext_ip is None else f"ext_ip={ext_ip}\n"))
        lab.run(self._router, ["nft", "-f", "-"], text=_TABLES)
        for method in set(_FIRST_BYTE) - set(methods):
            self._silence(_FIRST_BYTE[method])
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    def start(self) -> None:
        pid = self._lab.directory / f"miniupnpd{self._number}.pid"
        command = ["/usr/sbin/miniupnpd", "-d", "-f", str(self._config), "-P", str(pid)]
        self._process = self._lab.start(self._router, f"miniupnpd{self._number}", command)
        self._started_at = time.monotonic()
        self._lab.wait("miniupnpd listens", self._is_listening)

    def restart(self) -> None:
        """As after a power cut: nothing is remembered.

        A router that counts from 0 again within two seconds cannot be told from one that went on (RFC 6887 §8.5).
        """
        assert self._process is not None, "it was started"
        self._lab.wait("an age that an epoch tells", lambda: time.monotonic() > self._started_at + EPOCH_DOUBT)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for chain in ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"):
            self._lab.run(self._router, ["nft", "flush", "chain", "inet", "filter", chain])
        assert not self.mappings()
        self.start()

    def mappings(self) -> list[str]:
        """The rules that let packets from outside in."""
        rules = self._lab.run(self._router, ["nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd"])
        return [line.strip() for line in rules.splitlines() if "dnat" in line]

    def _is_listening(self) -> bool:
        sockets = self._lab.run(self._router, ["ss", "-Hlun"])
        return ":5351" in sockets or ":1900" in sockets

    def _silence(self, version: int) -> None:
        """miniupnpd speaks PCP and NAT-PMP or neither; a router that speaks one drops what begins like the other."""
        table = f"drop{version}"
        rule = f"""
table ip {table} {{
    chain input {{
        type filter hook input priority -10;
        udp dport 5351 @th,64,8 {version} drop;
    }}
}}
"""
        self._lab.run(self._router, ["nft", "-f", "-"], text=rule)


def make_symmetric(lab: Lab, number: int) -> None:
    """Another port for each destination, at random (RFC 4787 §4.1)."""
    lab.run(f"r{number}", ["nft", "delete", "table", "ip", "nat"])
    lab.run(f"r{number}", ["nft", "-f", "-"], text=SYMMETRIC_NAT)
