"""A simulated network in virtual time: one thread, one heap of (time, order, what happens).

    Segment   a link layer with addresses: the internet, a LAN, a carrier's network behind its NAT
    Router    joins an inner segment to an outer one: a NAT for IPv4 (nat.py), a stateful firewall for IPv6
    Host      a machine on one segment; its `machine` has the verbs of meshvpn/proto

Equal seeds give equal runs: `Network.transcript` is a hash over every packet and what became of it.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from meshvpn.proto.dataplane import MAX_SOCKETS
from meshvpn.proto.transport import FIRST_EXTRA_SOCKET, RELAY_HEADER, RELAY_WORD, Address, Path, RelayHop, Transmit

from .nat import Firewall, Nat

MAX_STEPS_AT_ONCE = 10_000
"""Steps at one instant after which a machine is said never to go quiet."""
IP_UDP_HEADERS = {False: 28, True: 48}
DEFAULT_TTL = 64


class Machine(Protocol):
    """What a host runs. Paths are those of meshvpn.proto.transport; the host adds and strips relay headers."""

    def handle_datagram(self, data: bytes, path: Path, *, now: float) -> object: ...

    def handle_timeout(self, *, now: float) -> None: ...

    def next_timeout(self) -> float | None: ...

    def take_transmits(self) -> list[Transmit]: ...


@dataclass(frozen=True, slots=True)
class Packet:
    """A UDP datagram on its way."""

    source: Address
    destination: Address
    data: bytes
    ttl: int = DEFAULT_TTL
    is_whole: bool = False
    """It must not be fragmented."""

    @property
    def size(self) -> int:
        return len(self.data) + IP_UDP_HEADERS[self.destination.is_ipv6]


@dataclass(slots=True)
class Link:
    """How a host or router hangs on its segment. Each direction passes it once; seconds and shares of packets."""

    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    mtu: int = 1500
    passes_fragments: bool = True
    is_up: bool = True


class Segment:
    """Addresses that reach each other directly. `router` is the way out; the internet has none.

    `hops` are routers that are not simulated, between any two members.
    """

    def __init__(self, name: str, *, hops: int = 0) -> None:
        self.name = name
        self.hops = hops
        self.members: dict[str, Host | Router] = {}
        self.routes6: dict[str, Router] = {}
        self.router: Router | None = None


class Router:
    """Joins `inside` to `outside`. Without a NAT it is a firewall for both families, or nothing at all."""

    def __init__(
        self,
        network: Network,
        name: str,
        *,
        inside: Segment,
        outside: Segment,
        address: str,
        nat: Nat,
        firewall6: Firewall | None = None,
        link: Link | None = None,
    ) -> None:
        self.network = network
        self.name = name
        self.inside = inside
        self.outside = outside
        self.address = address
        self.nat = nat
        self.firewall6 = firewall6
        self.link = link or Link()
        self.is_udp_blocked = False
        inside.router = self
        outside.members[address] = self

    def reboot(self, address: str | None = None) -> None:
        """Forget every mapping; come back with another address if one is given."""
        self.nat.reset()
        if self.firewall6 is not None:
            self.firewall6.reset()
        if address is not None:
            del self.outside.members[self.address]
            self.address = address
            self.outside.members[address] = self

    def handle_from_inside(self, packet: Packet, now: float) -> None:
        packet = _aged(packet)
        if packet.ttl <= 0 or self.is_udp_blocked:
            return self.network.note(packet, "expired" if packet.ttl <= 0 else "blocked")
        if packet.destination.is_ipv6:
            if self.firewall6 is not None:
                self.firewall6.note_outbound(packet.source, packet.destination, now)
            return self.network.send(packet, self.outside, self.link, via=self)
        source = self.nat.translate_outbound(packet.source, packet.destination, now)
        if source is None:
            return self.network.note(packet, "no port")
        outward = replace(packet, source=Address(self.address, source))
        if packet.destination.host != self.address:
            return self.network.send(outward, self.outside, self.link, via=self)
        if not self.nat.hairpin:
            return self.network.note(packet, "no hairpin")
        return self.handle_from_outside(outward, now)

    def handle_from_outside(self, packet: Packet, now: float) -> None:
        packet = _aged(packet)
        if packet.ttl <= 0 or self.is_udp_blocked:
            return self.network.note(packet, "expired" if packet.ttl <= 0 else "blocked")
        if packet.destination.is_ipv6:
            if self.firewall6 is not None and not self.firewall6.admits(packet.source, packet.destination, now):
                return self.network.note(packet, "filtered")
            return self.network.send(packet, self.inside, Link(), via=self)
        destination = self.nat.translate_inbound(packet.destination.port, packet.source, now)
        if destination is None:
            return self.network.note(packet, "filtered")
        inward = replace(packet, destination=destination)
        return self.network.send(inward, self.inside, Link(), via=self)


class Host:
    """A machine with one address a family on one segment.

    `ports` are its local ports by socket number: even numbers are IPv4 sockets, odd ones IPv6, but from 4 on all are
    IPv4 (a server has four). A relay itself is not `strips_relay`: it gets and sends frames as they are.
    """

    def __init__(
        self,
        network: Network,
        name: str,
        machine: Machine,
        segment: Segment,
        addresses: tuple[str, ...],
        ports: dict[int, int],
        *,
        link: Link | None = None,
        firewall: Firewall | None = None,
        strips_relay: bool = True,
    ) -> None:
        self.network = network
        self.name = name
        self.machine = machine
        self.strips_relay = strips_relay
        self.ports = ports
        self.link = link or Link()
        self.firewall = firewall
        self.addresses: tuple[str, ...] = ()
        self._last_socket = FIRST_EXTRA_SOCKET
        self._ports = random.Random(f"{network.seed}/{name}/ports")
        self.segment = segment
        self.wakes_at: float | None = None
        self.sent = 0
        self.sent_bytes = 0
        self.received = 0
        self.received_bytes = 0
        self.move(segment, addresses)

    def move(self, segment: Segment, addresses: tuple[str, ...]) -> None:
        """Carry the machine elsewhere. It is not told: that is the shell's part."""
        for address in self.addresses:
            del self.segment.members[address]
            _forget_route6(self.segment, address)
        self.segment, self.addresses = segment, addresses
        for address in addresses:
            assert address not in segment.members, f"{address} is taken on {segment.name}"
            segment.members[address] = self
            if ":" in address:
                _announce_route6(segment, address)

    def open_sockets(self, count: int) -> dict[int, int]:
        """So many IPv4 sockets more; their ports by number."""
        opened: dict[int, int] = {}
        for _ in range(count):
            self._last_socket = self._next_socket()
            port = self._ports.randrange(32768, 61000)
            while port in self.ports.values():
                port = self._ports.randrange(32768, 61000)
            opened[self._last_socket] = self.ports[self._last_socket] = port
        return opened

    def _next_socket(self) -> int:
        number = self._last_socket
        while number in self.ports or number == self._last_socket:
            number = number + 1 if number + 1 < MAX_SOCKETS else FIRST_EXTRA_SOCKET + 1
        return number

    def close_sockets(self, numbers: tuple[int, ...]) -> None:
        """Those are gone."""
        for number in numbers:
            del self.ports[number]

    def handle(self, packet: Packet, now: float) -> None:
        if self.firewall is not None and not self.firewall.admits(packet.source, packet.destination, now):
            return self.network.note(packet, "filtered")
        socket = next((number for number, port in self.ports.items() if self._is_at(packet, number, port)), None)
        if socket is None:
            return self.network.note(packet, "refused")
        self.received += 1
        self.received_bytes += len(packet.data)
        self.network.note(packet, "delivered")
        plain = (packet.data, Path(socket, packet.source))
        data, path = _strip_relay(packet, socket) if self.strips_relay else plain
        self.machine.handle_datagram(data, path, now=now)
        return self.drain()

    def drain(self) -> None:
        """Carry the machine's output away and ask for its next wake-up; call it after every mutation from outside."""
        for transmit in self.machine.take_transmits():
            self._transmit(transmit)
        self.network.wake_later(self)

    def _transmit(self, transmit: Transmit) -> None:
        path = transmit.path
        data = transmit.data if path.relay is None else path.relay.header() + transmit.data
        source = next((host for host in self.addresses if (":" in host) == path.remote.is_ipv6), None)
        self.sent += 1
        self.sent_bytes += len(data)
        if source is None or path.socket not in self.ports:
            return self.network.note(Packet(Address("0.0.0.0", 0), path.remote, data), "unreachable")
        ttl = DEFAULT_TTL if transmit.ttl is None else transmit.ttl
        packet = Packet(Address(source, self.ports[path.socket]), path.remote, data, ttl, transmit.is_whole)
        if self.firewall is not None:
            self.firewall.note_outbound(packet.source, packet.destination, self.network.now)
        return self.network.send(packet, self.segment, self.link, via=None)

    def _is_at(self, packet: Packet, socket: int, port: int) -> bool:
        is_ipv6 = socket % 2 == 1 and socket <= FIRST_EXTRA_SOCKET
        return port == packet.destination.port and is_ipv6 == packet.destination.is_ipv6


@dataclass(order=True, slots=True)
class _Entry:
    at: float
    order: int
    action: Callable[[], None] = field(compare=False)


class Network:
    """The heap, the clock and the transcript."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.seed = seed
        self.hosts: list[Host] = []
        self.outcomes: Counter[str] = Counter()
        self.spoilt: dict[tuple[str, str], float] = {}
        self.detours: dict[tuple[str, str], float] = {}
        self.filters: list[Callable[[Packet], bool]] = []
        self.observers: list[Callable[[Packet, str], None]] = []
        self._random = random.Random(f"{seed}/network")
        self._heap: list[_Entry] = []
        self._order = 0
        self._transcript = hashlib.blake2b(digest_size=16)

    @property
    def transcript(self) -> str:
        """A hash over all packets so far: time, addresses, bytes, outcome."""
        return self._transcript.hexdigest()

    def entropy(self, name: str) -> Callable[[int], bytes]:
        """The randomness of one machine."""
        return random.Random(f"{self.seed}/{name}").randbytes

    def add(self, host: Host) -> Host:
        self.hosts.append(host)
        return host

    def call_at(self, at: float, action: Callable[[], None]) -> None:
        """Do something at an instant (not before now)."""
        heapq.heappush(self._heap, _Entry(max(at, self.now), self._order, action))
        self._order += 1

    def cut(self, left: str, right: str) -> None:
        """Drop everything between two addresses as the outer segment sees them, both ways."""
        self.spoil(left, right, 1.0)

    def spoil(self, left: str, right: str, loss: float) -> None:
        """Lose a share of everything between two addresses as the outer segment sees them, both ways."""
        self.spoilt[left, right] = self.spoilt[right, left] = loss

    def detour(self, left: str, right: str, seconds: float) -> None:
        """Delay everything between two addresses as the outer segment sees them, both ways."""
        self.detours[left, right] = self.detours[right, left] = seconds

    def heal(self) -> None:
        """No path is spoilt or long, and nothing is filtered."""
        self.spoilt.clear()
        self.detours.clear()
        self.filters.clear()

    def run_until(self, until: float) -> None:
        """Let everything happen up to and including that instant."""
        steps, at = 0, self.now
        while self._heap and self._heap[0].at <= until:
            entry = heapq.heappop(self._heap)
            steps, at = (steps + 1, at) if entry.at == at else (0, entry.at)
            assert steps < MAX_STEPS_AT_ONCE, f"something never goes quiet at {at}"
            self.now = entry.at
            entry.action()
        self.now = until

    def run_until_true(self, condition: Callable[[], bool], limit: float) -> float | None:
        """Advance until the condition holds; the instant, or None if it does not hold by `limit`."""
        while not condition():
            if not self._heap or self._heap[0].at > limit:
                self.run_until(limit)
                return self.now if condition() else None
            self.run_until(self._heap[0].at)
        return self.now

    def wake_later(self, host: Host) -> None:
        """Arm the host's one timer."""
        at = host.machine.next_timeout()
        if at is None:
            host.wakes_at = None
            return
        at = max(at, self.now)
        if host.wakes_at is None or at != host.wakes_at:
            host.wakes_at = at
            self.call_at(at, lambda: self._wake(host, at))

    def send(self, packet: Packet, segment: Segment, link: Link, *, via: Router | None) -> None:
        """Put a packet on a segment through the sender's link; it arrives through the receiver's."""
        receiver = segment.members.get(packet.destination.host)
        if receiver is None and packet.destination.is_ipv6:
            receiver = segment.routes6.get(packet.destination.host)
        if receiver is None and segment.router is not via:
            receiver = segment.router
        if receiver is None:
            return self.note(packet, "no route")
        loss = self.spoilt.get((packet.source.host, packet.destination.host), 0.0)
        if loss and self._random.random() < loss:
            return self.note(packet, "cut")
        if any(is_dropped(packet) for is_dropped in self.filters):
            return self.note(packet, "filtered")
        if segment.hops:
            packet = _aged(packet, segment.hops)
            if packet.ttl <= 0:
                return self.note(packet, "expired")
        passes = link if receiver is segment.router else _joined(link, receiver.link)
        return self._carry(packet, segment, receiver, passes)

    def note(self, packet: Packet, outcome: str) -> None:
        """Write down what became of a packet."""
        self.outcomes[outcome] += 1
        head = f"{self.now:.9f} {packet.source} {packet.destination} {outcome} "
        self._transcript.update(head.encode() + packet.data)
        for observer in self.observers:
            observer(packet, outcome)

    def _carry(self, packet: Packet, segment: Segment, receiver: Host | Router, link: Link) -> None:
        if not link.is_up:
            return self.note(packet, "down")
        if packet.size > link.mtu and (packet.is_whole or not link.passes_fragments):
            return self.note(packet, "too big")
        if link.loss and self._random.random() < link.loss:
            return self.note(packet, "lost")
        detour = self.detours.get((packet.source.host, packet.destination.host), 0.0)
        copies = 2 if link.duplication and self._random.random() < link.duplication else 1
        for _ in range(copies):
            delay = detour + link.latency + (self._random.uniform(0, link.jitter) if link.jitter else 0.0)
            if link.reordering and self._random.random() < link.reordering:
                delay += link.latency + link.jitter
            self.call_at(self.now + delay, lambda: self._arrive(packet, segment, receiver))
        return None

    def _arrive(self, packet: Packet, segment: Segment, receiver: Host | Router) -> None:
        if isinstance(receiver, Host):
            receiver.handle(packet, self.now)
        elif receiver.inside is segment:
            receiver.handle_from_inside(packet, self.now)
        else:
            receiver.handle_from_outside(packet, self.now)

    def _wake(self, host: Host, at: float) -> None:
        if host.wakes_at != at:
            return  # the timer was moved
        host.wakes_at = None
        host.machine.handle_timeout(now=self.now)
        host.drain()


def _aged(packet: Packet, hops: int = 1) -> Packet:
    return replace(packet, ttl=packet.ttl - hops)


def _joined(first: Link, second: Link) -> Link:
    """Two links one after the other."""
    return Link(
        latency=first.latency + second.latency,
        jitter=first.jitter + second.jitter,
        loss=1 - (1 - first.loss) * (1 - second.loss),
        duplication=1 - (1 - first.duplication) * (1 - second.duplication),
        reordering=1 - (1 - first.reordering) * (1 - second.reordering),
        mtu=min(first.mtu, second.mtu),
        passes_fragments=first.passes_fragments and second.passes_fragments,
        is_up=first.is_up and second.is_up,
    )


def _announce_route6(segment: Segment, address: str) -> None:
    while (router := segment.router) is not None:
        router.outside.routes6[address] = router
        segment = router.outside


def _forget_route6(segment: Segment, address: str) -> None:
    while (router := segment.router) is not None:
        router.outside.routes6.pop(address, None)
        segment = router.outside


def _strip_relay(packet: Packet, socket: int) -> tuple[bytes, Path]:
    if len(packet.data) >= RELAY_HEADER.size and packet.data[:4] == RELAY_WORD.to_bytes(4, "little"):
        _, source, destination = RELAY_HEADER.unpack_from(packet.data)
        return packet.data[RELAY_HEADER.size :], Path(socket, packet.source, RelayHop(destination, source))
    return packet.data, Path(socket, packet.source)
