"""What is read of the kernel's addresses, by the program's own function in a namespace."""

from __future__ import annotations

import json
import sys

import pytest

from meshvpn.net.interface import QUEUE

from .lab import Lab, public_address, public_address6

pytestmark = pytest.mark.netns

_READ = "import json; from meshvpn.net import interface; print(json.dumps(interface.local_hosts()))"


def test_addresses_that_are_not_ours_yet_or_soon_no_more_are_left_out_and_ulas_kept() -> None:
    with Lab() as lab:
        host = lab.add_host(1)
        for address in ("2001:db8::7/64 nodad preferred_lft 0", "fd00:1::7/64 nodad", "fe80::7/64 nodad"):
            lab.run(host, ["ip", "addr", "add", *address.split(), "dev", "eth0"])
        # Nobody confirms an address on a link that is down.
        lab.run(host, ["ip", "link", "add", "dark", "type", "veth", "peer", "name", "other"])
        lab.run(host, ["ip", "addr", "add", "2001:db8:1::7/64", "dev", "dark"])
        hosts = json.loads(lab.run(host, [sys.executable, "-c", _READ]))
        assert set(hosts) == {public_address(1), public_address6(1), "fd00:1::7"}


def test_routes_to_members_come_and_go_with_their_mtu_and_leave_others_alone() -> None:
    program = "import json, sys; from meshvpn.net import interface; interface.{}"
    with Lab() as lab:
        host = lab.add_host(1)

        def do(call: str) -> None:
            lab.run(host, [sys.executable, "-c", program.format(call)])

        def routes() -> list[str]:
            found = lab.run(host, ["ip", "route"]) + lab.run(host, ["ip", "-6", "route"])
            return [line for line in found.splitlines() if " mtu " in line]

        lab.run(host, ["ip", "route", "add", "20.1.0.7", "dev", "eth0", "mtu", "1200"])
        do("set_host_mtus('eth0', {'20.1.0.5': 1328, '2001:db8::5': 1328, '20.1.0.6': 1216})")
        do("set_host_mtus('eth0', {'20.1.0.5': 1216, '20.1.0.6': None, '20.1.0.9': None})")
        mine = [line.split()[0] for line in routes() if "proto 109" in line]
        assert mine == ["20.1.0.5", "2001:db8::5"]
        assert "mtu 1216" in lab.run(host, ["ip", "route", "get", "20.1.0.5"])
        do("clear_host_mtus('eth0')")
        assert [line.split()[0] for line in routes()] == ["20.1.0.7"]


def test_an_interface_has_its_addresses_and_no_others_its_mtu_and_a_queue_that_bears_a_pause() -> None:
    call = "from ipaddress import ip_interface; from meshvpn.net import interface; "
    call += "interface.configure('mesh7', [ip_interface('10.9.0.1/24'), ip_interface('fd00:9::1/64')], 1380)"
    with Lab() as lab:
        host = lab.add_host(1)
        lab.run(host, ["ip", "tuntap", "add", "mesh7", "mode", "tun"])
        lab.run(host, ["ip", "addr", "add", "10.8.0.1/24", "dev", "mesh7"])
        lab.run(host, [sys.executable, "-c", call])
        (shown,) = json.loads(lab.run(host, ["ip", "-j", "addr", "show", "dev", "mesh7"]))
        addresses = {f"{it['local']}/{it['prefixlen']}" for it in shown["addr_info"] if it["scope"] == "global"}
        assert addresses == {"10.9.0.1/24", "fd00:9::1/64"}
        assert (shown["mtu"], shown["txqlen"]) == (1380, QUEUE)
