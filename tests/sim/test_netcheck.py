"""netcheck against the simulated NATs: what it says is what they are, as far as the servers' addresses can tell."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from meshvpn.proto.drops import DropReason
from meshvpn.proto.netcheck import DURATION, SOCKETS, Netcheck
from meshvpn.proto.netfindings import Filtering, Findings, PortChoice, meaning
from meshvpn.proto.transport import Address, Path

from .nat import Filtering as NatFiltering
from .nat import Firewall, Mapping, Ports
from .network import Host, Link, Packet
from .nodes import RelayMachine
from .world import KINDS, ONE_WAY, SERVER, SERVER6, Kind, World

SECOND_SERVER = "198.51.100.2"
MAPPINGS = {
    Mapping.INDEPENDENT: "endpoint-independent",
    Mapping.ADDRESS: "address-dependent",
    Mapping.ADDRESS_AND_PORT: "address-and-port-dependent",
}
ORDER = list(Mapping)
PORTS = {
    Ports.PRESERVED: PortChoice.PRESERVED,
    Ports.SEQUENTIAL: PortChoice.SEQUENTIAL,
    Ports.RANDOM: PortChoice.RANDOM,
}


def check(
    world: World, kind: Kind, *servers: str, ipv6: str | None = None, link: Link | None = None
) -> tuple[Findings, Netcheck]:
    """Run it on a site of that kind until it ends."""
    world.add_site("pbx", kind, ipv6=ipv6, link=link)
    host = world.hosts["pbx"]
    addresses = [Address(server, port) for server in servers or (SERVER,) for port in (7770, 7771)]
    machine = Netcheck(addresses, host.addresses, world.network.entropy("netcheck"))
    host.machine = machine
    host.ports = {socket: 42000 + socket for socket in SOCKETS}
    machine.handle_start(host.ports, now=world.network.now)
    host.drain()
    took = world.network.run_until_true(lambda: machine.is_done, world.network.now + DURATION)
    assert took is not None, "it does not end"
    assert machine.next_timeout() is None
    return machine.findings(), machine


def add_second_server(world: World) -> None:
    ports = {0: 7770, 1: 7770, 2: 7771, 3: 7771}
    link = Link(latency=ONE_WAY)
    machine = RelayMachine(world.network)
    Host(world.network, "second", machine, world.internet, (SECOND_SERVER,), ports, link=link, strips_relay=False)


def strictest(kind: Kind) -> Mapping | None:
    return max((mapping for mapping, _, _ in kind.nats), key=ORDER.index, default=None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.is_udp_blocked])
def test_it_says_of_a_nat_what_it_is(name: str, seed: int) -> None:
    kind, world = KINDS[name], World(seed)
    add_second_server(world)
    found, _ = check(world, kind, SERVER, SECOND_SERVER)
    mapping = strictest(kind)
    is_port_filtered = kind.has_firewall or any(it is NatFiltering.ADDRESS_AND_PORT for _, it, _ in kind.nats)
    assert found.mapping == (None if mapping is None else MAPPINGS[mapping])
    assert found.is_translated is (mapping is not None)
    assert found.filtering is (Filtering.BY_PORT if is_port_filtered else Filtering.NOT_BY_PORT)
    outermost = kind.nats[-1][2] if kind.nats else None
    assert found.ports is (None if outermost is None else PORTS[outermost])
    assert found.hairpin is (None if mapping is None else False)
    assert found.is_mapping_sure
    assert all(server.rtt == pytest.approx(4 * ONE_WAY, abs=0.01) for server in found.servers)
    assert len(found.servers) == 4
    assert found.mtu == 1500
    assert meaning(found)


def test_one_server_address_cannot_tell_a_mapping_by_address_and_it_says_so() -> None:
    for name in ("adm-apdf", "port-restricted"):
        found, _ = check(World(), KINDS[name])
        assert (found.mapping, found.is_mapping_sure) == ("endpoint-independent", False)
    found, _ = check(World(), KINDS["symmetric"])
    assert (found.mapping, found.is_mapping_sure) == ("address-and-port-dependent", True)


@pytest.mark.parametrize("filtering", list(NatFiltering))
@pytest.mark.parametrize("hairpin", [True, False])
def test_hairpinning_is_found_behind_every_filter(filtering: NatFiltering, hairpin: bool) -> None:
    kind = Kind(((Mapping.INDEPENDENT, filtering, Ports.PRESERVED),), hairpin=hairpin)
    assert check(World(), kind)[0].hairpin is hairpin


def test_blocked_udp_is_told_from_a_network_that_is_down() -> None:
    found, _ = check(World(), KINDS["udp-blocked"])
    assert not found.has_udp
    assert (found.public, found.mapping, found.filtering, found.mtu) == (None, None, None, None)


@pytest.mark.parametrize("mtu", [1500, 1492, 1400, 1280])
def test_the_largest_packet_that_passes_is_found(mtu: int) -> None:
    found, _ = check(World(), KINDS["port-restricted"], link=Link(latency=ONE_WAY, mtu=mtu))
    assert found.mtu == mtu


def test_it_bears_loss() -> None:
    for seed in range(10):
        world = World(seed)
        found, _ = check(world, KINDS["symmetric-counting"], link=Link(latency=ONE_WAY, jitter=0.01, loss=0.05))
        assert (found.mapping, found.filtering) == ("address-and-port-dependent", Filtering.BY_PORT), seed
        assert found.ports in (PortChoice.SEQUENTIAL, PortChoice.RANDOM)


def test_ipv6_is_checked_beside_ipv4() -> None:
    found, _ = check(World(server_ipv6=True), KINDS["symmetric"], SERVER, SERVER6, ipv6="2001:db8:1::5")
    assert (found.public6, found.filtering6) == ("2001:db8:1::5", Filtering.BY_PORT)
    assert found.mapping == "address-and-port-dependent"
    found, _ = check(World(), KINDS["public"], SERVER, SERVER6, ipv6="2001:db8:1::5")
    assert (found.public6, found.filtering6, found.has_udp) == (None, None, True)


def test_it_ends_at_once_when_everything_is_answered() -> None:
    world = World()
    check(world, KINDS["public"])
    assert world.network.now < 0.2
    world = World()
    check(world, KINDS["port-restricted"])  # what is filtered is known by silence alone
    assert world.network.now == DURATION


def test_a_host_without_ipv6_and_servers_is_no_trouble() -> None:
    machine = Netcheck([Address(SERVER6, 7770)], ["192.168.1.1"], bytes)
    machine.handle_start({0: 42000}, now=1.0)
    assert machine.is_done
    assert machine.take_transmits() == []
    assert not machine.findings().has_udp


def test_what_strangers_send_counts_for_nothing() -> None:
    world = World()
    captured: list[tuple[Packet, str]] = []
    world.network.observers.append(lambda packet, outcome: captured.append((packet, outcome)))
    before, machine = check(world, KINDS["public"])
    answers = [packet for packet, outcome in captured if outcome == "delivered" and packet.source.host == SERVER]
    machine = Netcheck([Address(SERVER, 7770)], ["192.168.1.1"], world.network.entropy("again"))
    machine.handle_start({socket: 42000 + socket for socket in SOCKETS}, now=9.0)
    (request, *_) = machine.take_transmits()
    stranger = Path(0, Address("203.0.113.66", 7770))
    assert machine.handle_datagram(answers[0].data, Path(0, Address(SERVER, 7770)), now=9.1) is DropReason.UNEXPECTED
    assert machine.handle_datagram(request.data, stranger, now=9.1) is DropReason.UNEXPECTED
    assert machine.handle_datagram(b"", stranger, now=9.1) is DropReason.TOO_SHORT
    assert before.has_udp
    assert not machine.findings().has_udp


def test_a_server_that_knows_no_other_port_leaves_the_filter_unknown() -> None:
    world = World()
    world.relay.relay._twins = {}
    found, _ = check(world, KINDS["port-restricted"])
    assert found.filtering is None


@pytest.mark.parametrize(
    ("router_host", "is_behind"), [("203.0.113.9", False), ("100.64.3.1", True), ("192.168.0.2", True), (None, False)]
)
def test_a_nat_above_the_router_is_known_by_what_the_router_believes(router_host: str | None, is_behind: bool) -> None:
    found, _ = check(World(), KINDS["carrier-symmetric"])
    found = replace(found, router_host=router_host, port_mapping=["UPnP"])
    assert found.is_behind_carrier is is_behind
    assert ("Another NAT is above" in " ".join(meaning(found))) is is_behind
    assert ("the router opens a port when asked (UPnP)" in meaning(found)[0]) is not is_behind


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("public", "Direct calls to everybody"),
        ("full-cone", "Direct calls to everybody"),
        ("port-restricted", "Direct calls to almost everybody"),
        ("symmetric", "Behind a symmetric NAT, which takes another port for each destination: calls are direct"),
        ("udp-blocked", "No rendezvous can be reached"),
    ],
)
def test_it_says_what_it_means_for_calls(name: str, words: str) -> None:
    told = meaning(check(World(), KINDS[name])[0])
    assert told[0].startswith(words)
    assert all(sentence.endswith(".") for sentence in told)
    remedies = {"symmetric": "turn on UPnP", "udp-blocked": "check this"}
    if name in remedies:
        assert remedies[name] in " ".join(told)


def test_firewalls_on_this_host_are_no_nat() -> None:
    world = World()
    found, _ = check(world, Kind(has_firewall=True))
    assert isinstance(world.hosts["pbx"].firewall, Firewall)
    assert (found.is_translated, found.mapping, found.hairpin, found.ports) == (False, None, None, None)
    assert meaning(found)[0].startswith("Direct calls to almost everybody")
