"""Gathering: which addresses we have, and how the NAT maps us.

All STUN requests leave in one burst (asked one by one, neighbours' traffic hides how a counting NAT counts). They
are repeated while unanswered, and again every REFRESH seconds and on every change of network and servers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from . import stun
from .candidate import MAX_CANDIDATES, Candidate, CandidateKind
from .drops import DropReason
from .errors import MalformedMessage
from .nat import Mapping4787, NatMapping, classify, describe
from .portmap import PortMapping
from .transport import Address, Path, Transmit

RETRIES = (0.1, 0.2, 0.4, 0.8)
"""Seconds to the repetitions of a burst; a lost request costs little, so the first come fast."""
SILENCE_INTERVAL = 5.0
"""Seconds between further repetitions while no server at all answers."""
DOUBT_INTERVAL = 1.0
"""Seconds between two bursts that doubts start."""
REFRESH = 25.0
"""Seconds; below the 30 s after which the strictest common NATs forget a mapping."""
REFRESH_JITTER = 0.1
MAX_SERVERS = 8
"""Server addresses that are asked."""
MAX_HOSTS = 20
"""Own addresses that are offered: a machine full of bridges must leave room for what the servers see."""
MAX_ENDPOINTS = 4
"""Configured addresses that are offered, and those that a mapped port is offered at."""


@dataclass(frozen=True, slots=True)
class CandidatesChanged:
    """Our addresses changed, or what we know of how the NAT maps them."""

    candidates: tuple[Candidate, ...]
    mapping: Mapping4787
    nat: NatMapping


@dataclass(slots=True)
class _Mapping:
    """Our address as a server saw it, and in which burst."""

    address: Address
    burst: int


class Gatherer:
    """The machine. `ports` are our local ports by socket number (0 = IPv4, 1 = IPv6); `endpoints` the configured."""

    def __init__(self, entropy: Callable[[int], bytes], endpoints: Sequence[Address] = ()) -> None:
        self.mapping = Mapping4787.UNKNOWN
        self._entropy = entropy
        self._endpoints = tuple(endpoints)[:MAX_ENDPOINTS]
        self._servers: list[Address] = []
        self._hosts: list[str] = []
        self._ports: dict[int, int] = {}
        self._requests: dict[bytes, Address] = {}
        self._waiting: dict[Address, None] = {}
        self._mapped: dict[Address, _Mapping] = {}
        self._port_mapping: PortMapping | None = None
        self._burst = 0
        self._burst_at = float("-inf")
        self._attempt = 0
        self._retry_at: float | None = None
        self._refresh_at: float | None = None
        self._reported: CandidatesChanged | None = None
        self._transmits: list[Transmit] = []
        self._events: list[CandidatesChanged] = []

    @property
    def is_complete(self) -> bool:
        """Has every server answered that can be asked?"""
        return bool(self._mapped) and not self._waiting

    def handle_servers(self, addresses: Sequence[Address], *, now: float) -> None:
        """The rendezvous' UDP addresses, for each host its first port first."""
        usable = list(dict.fromkeys(addresses))[:MAX_SERVERS]
        if usable != self._servers:
            self._servers = usable
            self._mapped = {server: mapped for server, mapped in self._mapped.items() if server in usable}
        self._start(now)

    def handle_local_addresses(self, hosts: Sequence[str], ports: Mapping[int, int], *, now: float) -> None:
        """This host's own addresses."""
        is_change = list(hosts) != self._hosts or dict(ports) != self._ports
        self._hosts, self._ports = list(hosts), dict(ports)
        if is_change:
            self._report()
            self._start(now)

    def handle_port_mapping(self, mapping: PortMapping | None) -> None:
        """The router keeps a port open for our IPv4 socket, another one, or none."""
        self._port_mapping = mapping
        self._report()

    def handle_network_change(self, *, now: float) -> None:
        """Mappings may be other ones now."""
        self._start(now)

    def handle_doubt(self, *, now: float) -> None:
        """A path does not answer: perhaps the NAT has forgotten us."""
        if now >= self._burst_at + DOUBT_INTERVAL:
            self._start(now)

    def handle_datagram(self, data: bytes, path: Path, *, now: float) -> DropReason | None:
        """A STUN message."""
        try:
            message = stun.parse(data)
        except MalformedMessage as error:
            return error.reason
        server = self._requests.get(message.transaction_id)
        if server is None or server != path.remote or path.relay is not None:
            return DropReason.UNEXPECTED
        mapped = message.mapped_address
        if message.type != stun.MessageType.SUCCESS or mapped is None:
            return DropReason.MALFORMED
        self._note_mapped(server, mapped)
        self._classify()
        self._report()
        return None

    def next_timeout(self) -> float | None:
        """The next repetition or refresh."""
        return min((at for at in (self._retry_at, self._refresh_at) if at is not None), default=None)

    def handle_timeout(self, *, now: float) -> None:
        """Repeat what is unanswered, or start the next burst."""
        if self._refresh_at is not None and now >= self._refresh_at:
            self._start(now)
        elif self._retry_at is not None and now >= self._retry_at:
            self._ask(now)

    def take_transmits(self) -> list[Transmit]:
        """STUN requests to send; clears."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def take_events(self) -> list[CandidatesChanged]:
        """What changed; clears."""
        events, self._events = self._events, []
        return events

    def _start(self, now: float) -> None:
        self._burst += 1
        self._burst_at = now
        self._attempt = 0
        self._requests.clear()
        self._retry_at = self._refresh_at = None
        self._waiting = {server: None for server in self._servers if _socket(server) in self._ports}
        if self._waiting:
            self._refresh_at = now + self._refresh_wait()
            self._ask(now)

    def _ask(self, now: float) -> None:
        # Earlier requests stay valid: a late answer is as good as a prompt one.
        for server in self._waiting:
            self._send(server)
        if self._attempt < len(RETRIES):
            self._retry_at = now + RETRIES[self._attempt]
        else:
            is_silent = all(_socket(server) not in self._ports or server in self._waiting for server in self._servers)
            self._retry_at = now + SILENCE_INTERVAL if is_silent else None
        self._attempt += 1

    def _send(self, server: Address) -> None:
        transaction_id = self._entropy(12)
        self._requests[transaction_id] = server
        self._transmits.append(Transmit(Path(_socket(server), server), stun.binding_request(transaction_id)))

    def _refresh_wait(self) -> float:
        fraction = int.from_bytes(self._entropy(4), "little") / 2**32
        return REFRESH * (1 - REFRESH_JITTER * fraction)

    def _note_mapped(self, server: Address, mapped: Address) -> None:
        self._requests = {txid: asked for txid, asked in self._requests.items() if asked != server}
        self._waiting.pop(server, None)
        if not self._waiting:
            self._retry_at = None
        before = self._mapped.get(server)
        if before is not None and before.address != mapped:
            # The NAT forgot us or is another one: what other servers saw before is void too.
            self._mapped = {
                other: seen
                for other, seen in self._mapped.items()
                if seen.burst == self._burst or other.is_ipv6 != server.is_ipv6
            }
        self._mapped[server] = _Mapping(mapped, self._burst)

    def _classify(self) -> None:
        found = [classify(self._seen(is_ipv6=is_ipv6)) for is_ipv6 in (False, True)]
        dependent = next((mapping for mapping in found if mapping.is_dependent), None)
        if dependent is not None:
            self.mapping = dependent
        elif Mapping4787.INDEPENDENT in found:
            self.mapping = Mapping4787.INDEPENDENT

    def _seen(self, *, is_ipv6: bool) -> list[tuple[Address, Address]]:
        """Servers and what they saw, in the order in which they are asked."""
        return [
            (server, self._mapped[server].address)
            for server in self._servers
            if server.is_ipv6 == is_ipv6 and server in self._mapped
        ]

    def _report(self) -> None:
        found = [
            Candidate(CandidateKind.HOST, host, self._ports[socket])
            for host in self._hosts
            if (socket := 1 if ip_address(host).version == 6 else 0) in self._ports
        ][:MAX_HOSTS]
        hosts = {candidate.address for candidate in found}
        seen = dict.fromkeys(mapping.address for mapping in self._mapped.values())
        for mapped in seen:
            if mapped not in hosts:
                found.append(Candidate(CandidateKind.SERVER_REFLEXIVE, mapped.host, mapped.port))
        if self.mapping.is_dependent:
            # A static forward of our own port may exist although the NAT maps each destination differently.
            ports = {mapped.host: self._ports.get(_socket(mapped)) for mapped in seen}
            found += [Candidate(CandidateKind.CONFIGURED, host, port) for host, port in ports.items() if port]
        found += [Candidate(CandidateKind.CONFIGURED, endpoint.host, endpoint.port) for endpoint in self._endpoints]
        found += self._at_router([mapped.host for mapped in seen if not mapped.is_ipv6])
        once: dict[Address, Candidate] = {}
        for candidate in sorted(found):
            once.setdefault(candidate.address, candidate)
        candidates = tuple(once.values())[:MAX_CANDIDATES]
        changed = CandidatesChanged(candidates, self.mapping, describe(self._seen(is_ipv6=False)))
        if changed != self._reported:
            self._reported = changed
            self._events.append(changed)

    def _at_router(self, seen_hosts: Sequence[str]) -> list[Candidate]:
        """The mapped port. A router may be wrong about its own address: where the servers see one, that counts."""
        if self._port_mapping is None:
            return []
        reported = [] if self._port_mapping.host is None else [self._port_mapping.host]
        hosts = list(dict.fromkeys(seen_hosts)) or reported
        return [Candidate(CandidateKind.MAPPED, host, self._port_mapping.port) for host in hosts[:MAX_ENDPOINTS]]


def _socket(server: Address) -> int:
    return 1 if server.is_ipv6 else 0
