"""What is read of the kernel's addresses, by the program's own function in a namespace."""

from __future__ import annotations

import json
import sys

import pytest

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
