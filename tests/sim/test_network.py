"""The simulated network itself: NATs do what RFC 4787 says of them, links what they were asked for, seeds repeat."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from meshvpn.proto.transport import Address, Path, Transmit

from .nat import REPLIED_TIMEOUT, UNREPLIED_TIMEOUT, Filtering, Firewall, Mapping, Nat, Ports
from .network import Host, Link, Network, Packet, Router, Segment
from .world import KINDS, World, direct_path_possible

INSIDE = Address("192.168.1.10", 5000)
SERVER = Address("20.9.0.1", 80)
SAME_HOST = Address("20.9.0.1", 81)
OTHER_HOST = Address("20.9.0.2", 80)


@pytest.mark.parametrize(
    ("mapping", "is_kept_for_port", "is_kept_for_host"),
    [(Mapping.INDEPENDENT, True, True), (Mapping.ADDRESS, True, False), (Mapping.ADDRESS_AND_PORT, False, False)],
)
def test_a_mapping_is_shared_as_its_kind_says(mapping: Mapping, is_kept_for_port: bool, is_kept_for_host: bool) -> None:
    nat = Nat(mapping, Filtering.INDEPENDENT, ports=Ports.SEQUENTIAL)
    port = nat.translate_outbound(INSIDE, SERVER, 0.0)
    assert nat.translate_outbound(INSIDE, SERVER, 1.0) == port
    assert (nat.translate_outbound(INSIDE, SAME_HOST, 1.0) == port) == is_kept_for_port
    assert (nat.translate_outbound(INSIDE, OTHER_HOST, 1.0) == port) == is_kept_for_host


@pytest.mark.parametrize(
    ("filtering", "admits_port", "admits_host"),
    [(Filtering.INDEPENDENT, True, True), (Filtering.ADDRESS, True, False), (Filtering.ADDRESS_AND_PORT, False, False)],
)
def test_a_filter_admits_whom_its_kind_says(filtering: Filtering, admits_port: bool, admits_host: bool) -> None:
    nat = Nat(Mapping.INDEPENDENT, filtering)
    port = nat.translate_outbound(INSIDE, SERVER, 0.0)
    assert port == INSIDE.port
    assert nat.translate_inbound(port, SERVER, 1.0) == INSIDE
    assert (nat.translate_inbound(port, SAME_HOST, 1.0) == INSIDE) == admits_port
    assert (nat.translate_inbound(port, OTHER_HOST, 1.0) == INSIDE) == admits_host
    assert nat.translate_inbound(port + 1, SERVER, 1.0) is None


@pytest.mark.parametrize(("is_replied", "lifetime"), [(False, UNREPLIED_TIMEOUT), (True, REPLIED_TIMEOUT)])
def test_a_mapping_lives_as_long_as_its_timer(is_replied: bool, lifetime: float) -> None:
    for wait, is_open in ((lifetime - 1, True), (lifetime + 1, False)):
        nat = Nat(Mapping.INDEPENDENT, Filtering.ADDRESS_AND_PORT)
        port = nat.translate_outbound(INSIDE, SERVER, 0.0)
        assert port is not None
        if is_replied:
            nat.translate_inbound(port, SERVER, 0.0)
        assert (nat.translate_inbound(port, SERVER, wait) is not None) == is_open


def test_ports_are_preserved_counted_or_random() -> None:
    preserving = Nat(Mapping.INDEPENDENT, Filtering.INDEPENDENT)
    assert preserving.translate_outbound(INSIDE, SERVER, 0.0) == 5000
    assert preserving.translate_outbound(Address("192.168.1.11", 5000), SERVER, 0.0) == 20_000
    counting = Nat(Mapping.ADDRESS_AND_PORT, Filtering.INDEPENDENT, ports=Ports.SEQUENTIAL)
    assert [counting.translate_outbound(INSIDE, Address("20.9.0.1", n), 0.0) for n in range(3)] == [20000, 20001, 20002]
    dicing = Nat(Mapping.ADDRESS_AND_PORT, Filtering.INDEPENDENT, ports=Ports.RANDOM)
    dice = [dicing.translate_outbound(INSIDE, Address("20.9.0.1", n), 0.0) or 0 for n in range(20)]
    assert len(set(dice)) == 20
    assert dice != sorted(dice)


def test_a_full_nat_has_no_port_left() -> None:
    nat = Nat(Mapping.ADDRESS_AND_PORT, Filtering.INDEPENDENT, ports=Ports.SEQUENTIAL, first_port=65_530)
    ports = [nat.translate_outbound(INSIDE, Address("20.9.0.1", n), 0.0) for n in range(8)]
    assert ports == [65530, 65531, 65532, 65533, 65534, 65535, None, None]


def test_a_firewall_admits_answers_only_and_forgets() -> None:
    firewall = Firewall()
    assert not firewall.admits(SERVER, INSIDE, 0.0)
    firewall.note_outbound(INSIDE, SERVER, 0.0)
    assert firewall.admits(SERVER, INSIDE, 1.0)
    assert not firewall.admits(SAME_HOST, INSIDE, 1.0)
    assert firewall.admits(SERVER, INSIDE, REPLIED_TIMEOUT)
    assert not firewall.admits(SERVER, INSIDE, 2 * REPLIED_TIMEOUT + 2)


@pytest.mark.parametrize("hairpin", [True, False])
def test_hairpinning_shows_the_external_source(hairpin: bool) -> None:
    lab = Lab(hairpin=hairpin)
    left, right = lab.inside_host("left", 10), lab.inside_host("right", 11)
    right.send(SERVER)
    lab.network.run_until(1.0)
    left.send(Address("20.1.0.1", 41011))
    lab.network.run_until(2.0)
    seen = [path.remote for _, path in right.received]
    assert seen == ([Address("20.1.0.1", 41010)] if hairpin else [])


def test_a_links_delay_is_passed_once_each_way() -> None:
    lab = Lab(link=Link(latency=0.03))
    host = lab.inside_host("left", 10)
    host.send(SERVER)
    lab.network.run_until(0.039)
    assert not lab.server.received
    lab.network.run_until(0.041)
    assert [path.remote for _, path in lab.server.received] == [Address("20.1.0.1", 41010)]


@pytest.mark.parametrize(
    ("link", "outcome", "share"),
    [
        (Link(loss=0.1), "lost", 0.1),
        (Link(is_up=False), "down", 1.0),
        (Link(mtu=1000, passes_fragments=False), "too big", 1.0),
        (Link(mtu=1000), "too big", 0.0),
        (Link(mtu=1400, passes_fragments=False), "too big", 0.0),
    ],
)
def test_a_link_drops_what_it_was_asked_to(link: Link, outcome: str, share: float) -> None:
    lab = Lab(link=link)
    host = lab.inside_host("left", 10)
    for _ in range(2000):
        host.send(SERVER, bytes(1372))
    lab.network.run_until(10.0)
    assert lab.network.outcomes[outcome] / 2000 == pytest.approx(share, abs=0.02)
    assert lab.network.outcomes["delivered"] == 2000 - lab.network.outcomes[outcome]


def test_a_link_duplicates_and_reorders() -> None:
    lab = Lab(link=Link(latency=0.01, duplication=0.1, reordering=0.1))
    host = lab.inside_host("left", 10)
    for number in range(1000):
        lab.network.call_at(number * 0.001, lambda number=number: host.send(SERVER, number.to_bytes(4, "big")))  # type: ignore[misc]
    lab.network.run_until(10.0)
    numbers = [int.from_bytes(data, "big") for data, _ in lab.server.received]
    assert 1050 < len(numbers) < 1150
    assert set(numbers) == set(range(1000))
    assert numbers != sorted(numbers)


def test_a_packet_whose_hops_are_used_up_dies_at_the_router() -> None:
    lab = Lab()
    lab.inside_host("left", 10)
    lab.network.send(Packet(INSIDE, SERVER, b"", ttl=1), lab.lan, Link(), via=None)
    lab.network.run_until(1.0)
    assert lab.network.outcomes["expired"] == 1
    assert not lab.server.received


def test_a_private_address_is_not_routed_on_the_internet() -> None:
    lab = Lab()
    lab.inside_host("left", 10).send(Address("10.1.2.3", 9))
    lab.network.run_until(1.0)
    assert lab.network.outcomes["no route"] == 1


def test_what_blocks_udp_blocks_both_ways() -> None:
    lab = Lab()
    lab.router.is_udp_blocked = True
    lab.inside_host("left", 10).send(SERVER)
    lab.server.send(Address("20.1.0.1", 41010))
    lab.network.run_until(1.0)
    assert lab.network.outcomes["blocked"] == 2


def test_equal_seeds_give_equal_runs_and_others_do_not() -> None:
    assert transcript(seed=1) == transcript(seed=1)
    assert transcript(seed=1) != transcript(seed=2)


def test_the_oracle_knows_both_answers() -> None:
    world = World()
    hosts = []
    for name, kind in KINDS.items():
        world.add_site(name, kind)
        hosts.append(world.hosts[name])
    verdicts = [direct_path_possible(left, right) for left in hosts for right in hosts if left is not right]
    assert 60 < verdicts.count(True) < 200
    assert verdicts.count(False) > 30
    assert all(
        direct_path_possible(left, right) == direct_path_possible(right, left) for left in hosts for right in hosts
    )


def test_a_machine_that_never_goes_quiet_is_found_out() -> None:
    lab = Lab()
    host = lab.inside_host("left", 10)
    host.timeout = 1.0
    host.host.drain()
    with pytest.raises(AssertionError, match="never goes quiet"):
        lab.network.run_until(2.0)


def transcript(seed: int) -> str:
    world = World(seed)
    link = Link(latency=0.02, jitter=0.01, loss=0.05, duplication=0.02, reordering=0.02)
    world.add_site("a", KINDS["port-restricted-random"], link=link)
    world.add_site("b", KINDS["symmetric"], link=link)
    world.run(2.0)
    world.node("a").start_traffic("b", 0.02)
    world.run(3.0)
    return world.network.transcript


@dataclass
class Recorder:
    """A machine that writes down what it gets and sends what it is told."""

    host: Host = field(init=False)
    received: list[tuple[bytes, Path]] = field(default_factory=list)
    transmits: list[Transmit] = field(default_factory=list)
    timeout: float | None = None

    def send(self, to: Address, data: bytes = b"hello") -> None:
        self.transmits.append(Transmit(Path(0, to), data))
        self.host.drain()

    def handle_datagram(self, data: bytes, path: Path, *, now: float) -> None:
        self.received.append((data, path))

    def handle_timeout(self, *, now: float) -> None:
        """Nothing, ever: `timeout` stays in the past."""

    def next_timeout(self) -> float | None:
        return self.timeout

    def take_transmits(self) -> list[Transmit]:
        transmits, self.transmits = self.transmits, []
        return transmits


class Lab:
    """A LAN behind a port-restricted NAT, and a server without one, 10 ms away from everything."""

    def __init__(self, *, link: Link | None = None, hairpin: bool = False) -> None:
        self.network = Network(random.Random(1).randrange(100))
        self.internet = Segment("internet")
        self.lan = Segment("lan")
        self.router = Router(
            self.network,
            "router",
            inside=self.lan,
            outside=self.internet,
            address="20.1.0.1",
            nat=Nat(Mapping.INDEPENDENT, Filtering.INDEPENDENT, hairpin=hairpin),
            link=link,
        )
        self.server = Recorder()
        self.server.host = Host(
            self.network,
            "server",
            self.server,
            self.internet,
            (SERVER.host,),
            {0: SERVER.port},
            link=Link(latency=0.01),
        )

    def inside_host(self, name: str, number: int) -> Recorder:
        recorder = Recorder()
        recorder.host = Host(self.network, name, recorder, self.lan, (f"192.168.1.{number}",), {0: 41000 + number})
        return recorder
