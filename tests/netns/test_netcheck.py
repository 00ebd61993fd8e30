"""netcheck at hosts behind real NATs that are in no network yet: it finds what the NATs were asked to be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from . import nats
from .igd import Igd
from .lab import SERVER_HOST
from .natlab import NatLab
from .natmesh import HTTPS, NatMesh
from .nats import Mapping, Nat

pytestmark = pytest.mark.netns

LINE_DELAY = 10.0
KINDS: dict[str, Nat] = {
    "full-cone": nats.FULL_CONE,
    "restricted": nats.RESTRICTED,
    "port-restricted": nats.PORT_RESTRICTED,
    "hairpin": Nat(has_hairpin=True),
    "symmetric": nats.SYMMETRIC,
    "counting": nats.SYMMETRIC_COUNTING,
    "mapping": nats.PORT_RESTRICTED,
    "blocked": nats.UDP_BLOCKED,
}
NARROW = "port-restricted"
"""Whose line takes no packets above NARROW_MTU."""
NARROW_MTU = 1400
WORDS = {
    "public": "Direct calls to everybody",
    "full-cone": "Direct calls to everybody",
    "restricted": "Direct calls to everybody",
    "port-restricted": "Direct calls to almost everybody",
    "hairpin": "Direct calls to almost everybody",
    "symmetric": "Behind a symmetric NAT",
    "counting": "Behind a symmetric NAT",
    "mapping": "the router opens a port when asked",
    "blocked": "UDP is blocked: calls go through the rendezvous by TCP",
}


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Any]]:
    """By kind, what `netcheck --json` prints at a host of that kind."""
    with NatLab(delay=LINE_DELAY) as lab:
        numbers = {kind: number for number, kind in enumerate(KINDS, 1)}
        hosts = {numbers[kind]: lab.add_site(numbers[kind], nat) for kind, nat in KINDS.items()}
        numbers["public"] = len(numbers) + 1
        hosts[numbers["public"]] = lab.add_public(numbers["public"], has_ipv6=False)
        lab.line(f"r{numbers[NARROW]}", mtu=NARROW_MTU)
        Igd(lab, numbers["mapping"], "pcp", "nat-pmp", "upnp").start()
        mesh = NatMesh(lab, hosts)
        mesh.start_server()
        mesh.start_daemons(list(hosts))
        server = f"{SERVER_HOST}:{HTTPS}"
        with ThreadPoolExecutor(2) as pool:
            printed = pool.map(
                lambda kind: mesh.meshvpn(numbers[kind], "netcheck", "--json", "--server", server), numbers
            )
            yield {kind: json.loads(text) for kind, text in zip(numbers, printed, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_what_the_nat_was_asked_to_be(found: dict[str, Any], kind: str) -> None:
    seen, nat = found[kind]["findings"], KINDS[kind]
    if nat.blocks_udp:
        assert [server["rtt"] for server in seen["servers"]] == [None, None]
        assert (seen["relay_by_tcp"], seen["tcp_rtt"] > 0) == (True, True)
        return
    is_symmetric = nat.mapping in (Mapping.RANDOM, Mapping.COUNTING)
    assert seen["is_translated"] is True
    assert seen["mapping"] == ("address-and-port-dependent" if is_symmetric else "endpoint-independent")
    assert seen["is_mapping_sure"] is is_symmetric
    by_port = nat.filtering is nats.Filtering.PORT
    assert seen["filtering"] == (
        "address-and-port-dependent" if by_port else "endpoint-independent or address-dependent"
    )
    ports = {Mapping.INDEPENDENT: "preserved", Mapping.RANDOM: "random", Mapping.COUNTING: "sequential"}
    assert seen["ports"] == ports[nat.mapping]
    assert seen["hairpin"] is nat.has_hairpin
    assert seen["mtu"] == (NARROW_MTU if kind == NARROW else 1500)
    assert seen["port_mapping"] == (["PCP", "NAT-PMP", "UPnP"] if kind == "mapping" else [])
    assert all(0.02 < server["rtt"] < 1.0 for server in seen["servers"])
    assert seen["relay_by_tcp"] is True


def test_a_public_host_is_behind_no_nat(found: dict[str, Any]) -> None:
    seen = found["public"]["findings"]
    assert (seen["is_translated"], seen["mapping"], seen["ports"], seen["hairpin"]) == (False, None, None, None)
    assert seen["filtering"] == "endpoint-independent or address-dependent"
    assert seen["public"] in seen["local"]


@pytest.mark.parametrize("kind", WORDS)
def test_it_says_what_it_means_for_calls(found: dict[str, Any], kind: str) -> None:
    assert WORDS[kind] in found[kind]["meaning"][0]
