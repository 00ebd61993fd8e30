"""The lab's NATs and lines are what they say they are; nothing of meshvpn runs here."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from . import nats
from .natlab import SERVER_HOSTS, NatLab
from .nats import Filtering, Mapping, Nat
from .reflector import Finding
from .stream import tell

pytestmark = pytest.mark.netns

SERVERS = (*SERVER_HOSTS, "3478", "3479")
KINDS = {
    "full-cone": nats.FULL_CONE,
    "full-cone, other ports": Nat(filtering=Filtering.NONE, keeps_ports=False),
    "full-cone, hairpin": Nat(filtering=Filtering.NONE, has_hairpin=True),
    "restricted": nats.RESTRICTED,
    "restricted, hairpin": Nat(filtering=Filtering.ADDRESS, has_hairpin=True),
    "port-restricted": nats.PORT_RESTRICTED,
    "port-restricted, other ports": nats.CARRIER_GRADE,
    "port-restricted, hairpin": Nat(has_hairpin=True),
    "symmetric": nats.SYMMETRIC,
    "symmetric, counting": nats.SYMMETRIC_COUNTING,
    "symmetric, per address": nats.SYMMETRIC_PER_ADDRESS,
    "udp blocked": nats.UDP_BLOCKED,
}
HAIRPIN = {"full-cone, hairpin", "restricted, hairpin", "port-restricted, hairpin"}


@pytest.fixture
def lab() -> Iterator[NatLab]:
    with NatLab() as made:
        yield made


def _ask(lab: NatLab, host: str) -> Finding:
    command = [sys.executable, "-m", "tests.netns.reflector", "ask", *SERVERS]
    return Finding(**json.loads(lab.run(host, command)))


def _expected(kind: str) -> Finding:
    nat = KINDS[kind]
    if nat.blocks_udp:
        return Finding(None)
    keeps_ports = nat.keeps_ports and nat.mapping is Mapping.INDEPENDENT
    return Finding(nat.mapping.value, nat.filtering.value, keeps_ports, kind in HAIRPIN)


def test_a_prober_finds_what_each_nat_was_asked_to_be(lab: NatLab) -> None:
    hosts = {kind: lab.add_site(number, nat) for number, (kind, nat) in enumerate(KINDS.items(), 1)}
    hosts["public"] = lab.add_public(20)
    hosts["host firewall"] = lab.add_public(21, has_firewall=True)
    hosts["carrier"] = lab.add_site(23, nats.PORT_RESTRICTED, behind=lab.add_carrier(22, nats.CARRIER_GRADE))
    expected = {kind: _expected(kind) for kind in KINDS}
    independent = Mapping.INDEPENDENT.value
    expected["public"] = Finding(independent, Filtering.NONE.value, keeps_ports=True, has_hairpin=True)
    expected["host firewall"] = Finding(independent, Filtering.PORT.value, keeps_ports=True, has_hairpin=True)
    expected["carrier"] = Finding(independent, Filtering.PORT.value)
    tell(lab.open("net", [sys.executable, "-m", "tests.netns.reflector", "serve", *SERVERS]))
    with ThreadPoolExecutor(len(hosts)) as pool:
        found = dict(zip(hosts, pool.map(lambda host: _ask(lab, host), hosts.values()), strict=True))
    assert found == expected


def test_lines_do_to_packets_what_they_are_told(lab: NatLab) -> None:
    a, b, c = (lab.add_public(number) for number in (1, 2, 3))
    lab.line(a, delay=20)
    lab.line(b, delay=20)
    with ThreadPoolExecutor() as pool:
        clean = pool.submit(_ping, lab, a, "20.1.0.12", 5)
        others = pool.submit(_ping, lab, c, "20.1.0.1", 5)
        assert 80 <= clean.result()["rtt"] <= 90
        assert others.result()["rtt"] < 10
    lab.line(a, loss=0.2, copies=0.3)
    lossy = _ping(lab, a, "20.1.0.12", 500)
    assert 25 <= lossy["lost"] <= 47, "1 - 0.8²: 36 %"
    assert 90 <= lossy["copies"] <= 260, "0.64 × (1.3² - 1) × 500: 220, of those that were not lost the second time"
    lab.line(a, loss=0, copies=0)
    lab.between(a, b, cut=True)
    assert _ping(lab, a, "20.1.0.12", 2)["lost"] == 100
    assert _ping(lab, a, "20.1.0.1", 2)["lost"] == 0
    lab.between(a, b, cut=False)
    lab.line(b, mtu=1280)
    assert "mtu = 1280" in lab.attempt(a, ["ping", "-c1", "-W1", "-M", "do", "-s", "1400", "20.1.0.12"]).stdout
    assert _ping(lab, a, "20.1.0.12", 2, "-M", "dont", "-s", "1400")["lost"] == 0, "in fragments"
    assert "exceeded" in lab.attempt(a, ["ping", "-c1", "-W1", "-t", "4", "20.1.0.12"]).stdout
    lab.line(b, carrier=False)
    assert "NO-CARRIER" in lab.run(b, ["ip", "link", "show", "wan"])


def test_an_address_changes_and_a_nat_forgets(lab: NatLab) -> None:
    host = lab.add_site(1, nats.PORT_RESTRICTED)
    router = lab.routers["r1"]
    assert _ping(lab, host, "20.1.0.1", 2)["lost"] == 0
    lab.renumber(router, "20.2.0.77")
    assert _ping(lab, host, "20.1.0.1", 2)["lost"] == 0
    assert lab.run("r1", ["conntrack", "-L", "-p", "icmp"]).count("dst=20.2.0.77") == 1
    lab.reboot(router)
    assert "dst=" not in lab.run("r1", ["conntrack", "-L", "-p", "icmp"])


def _ping(lab: NatLab, where: str, target: str, count: int, *options: str) -> dict[str, float]:
    """Milliseconds on average, percent lost, and copies."""
    command = ["ping", "-c", str(count), "-i", "0.002" if count > 5 else "0.05", "-W", "1", *options, target]
    printed = lab.attempt(where, command).stdout
    rtt = re.search(r"= [\d.]+/([\d.]+)/", printed)
    lost = re.search(r"([\d.]+)% packet loss", printed)
    copies = re.search(r"\+(\d+) duplicates", printed)
    assert lost is not None, printed
    return {
        "rtt": float(rtt[1]) if rtt else 0.0,
        "lost": float(lost[1]),
        "copies": float(copies[1]) if copies else 0.0,
    }
