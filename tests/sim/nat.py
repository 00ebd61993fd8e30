"""NATs in the words of RFC 4787: mapping (§4.1), filtering (§5), port choice (§4.2), timers (§4.3), hairpinning (§6).

Filters belong to a mapping: what a mapping has not sent to, it does not admit.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum

from meshvpn.proto.transport import Address

UNREPLIED_TIMEOUT = 30.0
REPLIED_TIMEOUT = 120.0
"""Linux' timers for UDP, the strictest that are common."""


class Mapping(Enum):
    """Which outbound packets share an external port."""

    INDEPENDENT = "EIM"
    ADDRESS = "ADM"
    ADDRESS_AND_PORT = "APDM"


class Filtering(Enum):
    """Whose packets a mapping admits."""

    INDEPENDENT = "EIF"
    ADDRESS = "ADF"
    ADDRESS_AND_PORT = "APDF"


class Ports(Enum):
    """How the external port is chosen."""

    PRESERVED = "preserved"
    SEQUENTIAL = "sequential"
    RANDOM = "random"


@dataclass(slots=True)
class _Binding:
    internal: Address
    port: int
    key: tuple[object, ...]
    used_at: float
    is_replied: bool = False
    sent_to: dict[tuple[object, ...], float] = field(default_factory=dict)

    def admits(self, remote: tuple[object, ...], now: float, lifetime: float) -> bool:
        """Was it sent to, not long ago? Only what goes out is sure to renew that (RFC 4787 §4.3)."""
        return now - self.sent_to.get(remote, float("-inf")) <= lifetime


class Nat:
    """One NAT. `first_port` and up is where it takes ports from that it does not preserve.

    One that `accepts_input` (Linux without an INPUT rule that drops) takes what it does not translate for connections
    to itself, and keeps them apart from those that it translates. `lifetime`: seconds for which it remembers anything,
    replied or not.
    """

    def __init__(
        self,
        mapping: Mapping,
        filtering: Filtering,
        *,
        ports: Ports = Ports.PRESERVED,
        hairpin: bool = False,
        accepts_input: bool = False,
        lifetime: float | None = None,
        seed: object = 0,
        first_port: int = 20_000,
    ) -> None:
        self.mapping = mapping
        self.filtering = filtering
        self.ports = ports
        self.hairpin = hairpin
        self.accepts_input = accepts_input
        self.lifetime = lifetime
        self._random = random.Random(f"nat/{seed}")
        self._first_port = first_port
        self._next_port = first_port
        self._by_key: dict[tuple[object, ...], _Binding] = {}
        self._by_port: dict[int, _Binding] = {}
        self._own_flows: dict[tuple[int, Address], float] = {}
        """When a packet last came to the router itself, by its own port and the other end."""

    def reset(self) -> None:
        """Forget everything; counted ports go on where they were."""
        self._by_key.clear()
        self._by_port.clear()
        self._own_flows.clear()

    def translate_outbound(self, source: Address, destination: Address, now: float) -> int | None:
        """The external port for a packet from inside, None if there is none left."""
        key = self._mapping_key(source, destination)
        binding = self._by_key.get(key)
        if binding is not None and self._is_over(binding, now):
            self._remove(binding)
            binding = None
        if binding is None:
            binding = self._bind(source, key, now)
        if binding is not None and self._is_own_flow(binding.port, destination, now):
            # The router has that pair of addresses for a connection of its own: this packet leaves from another port.
            binding = self._binding_aside(source, destination, now)
        if binding is None:
            return None
        binding.used_at = now
        binding.sent_to[self._filter_key(destination)] = now
        return binding.port

    def translate_inbound(self, port: int, source: Address, now: float) -> Address | None:
        """The internal address for a packet from outside, None if it is not admitted."""
        binding = self._by_port.get(port)
        if binding is not None and self._is_over(binding, now):
            self._remove(binding)
            binding = None
        is_admitted = binding is not None and binding.admits(self._filter_key(source), now, self._life(binding))
        if self.accepts_input and (not is_admitted or self._is_own_flow(port, source, now)):
            self._own_flows[port, source] = now
            return None
        if binding is None or not is_admitted:
            return None
        binding.is_replied = True
        binding.used_at = now
        return binding.internal

    def _life(self, binding: _Binding) -> float:
        return self.lifetime or (REPLIED_TIMEOUT if binding.is_replied else UNREPLIED_TIMEOUT)

    def _is_over(self, binding: _Binding, now: float) -> bool:
        return now - binding.used_at > self._life(binding)

    def _is_own_flow(self, port: int, remote: Address, now: float) -> bool:
        return now - self._own_flows.get((port, remote), float("-inf")) <= UNREPLIED_TIMEOUT

    def _binding_aside(self, source: Address, destination: Address, now: float) -> _Binding | None:
        key = (source, destination, "aside")
        binding = self._by_key.get(key)
        if binding is not None and self._is_over(binding, now):
            self._remove(binding)
            binding = None
        if binding is None and (port := self._take_port(now, is_random=True)) is not None:
            binding = self._add(source, port, key, now)
        return binding

    def _mapping_key(self, source: Address, destination: Address) -> tuple[object, ...]:
        match self.mapping:
            case Mapping.INDEPENDENT:
                return (source,)
            case Mapping.ADDRESS:
                return (source, destination.host)
            case Mapping.ADDRESS_AND_PORT:
                return (source, destination)

    def _filter_key(self, remote: Address) -> tuple[object, ...]:
        match self.filtering:
            case Filtering.INDEPENDENT:
                return ()
            case Filtering.ADDRESS:
                return (remote.host,)
            case Filtering.ADDRESS_AND_PORT:
                return (remote,)

    def _bind(self, source: Address, key: tuple[object, ...], now: float) -> _Binding | None:
        if self.ports is Ports.PRESERVED and self._is_free(source.port, now):
            return self._add(source, source.port, key, now)
        port = self._take_port(now, is_random=self.ports is Ports.RANDOM)
        return None if port is None else self._add(source, port, key, now)

    def _add(self, source: Address, port: int, key: tuple[object, ...], now: float) -> _Binding:
        binding = self._by_key[key] = self._by_port[port] = _Binding(source, port, key, now)
        return binding

    def _take_port(self, now: float, *, is_random: bool) -> int | None:
        for _ in range(1000):
            if is_random:
                port = self._random.randrange(1024, 65536)
            else:
                port = self._next_port
                self._next_port = self._next_port + 1 if self._next_port < 65535 else self._first_port
            if self._is_free(port, now):
                return port
        return None

    def _is_free(self, port: int, now: float) -> bool:
        binding = self._by_port.get(port)
        if binding is not None and self._is_over(binding, now):
            self._remove(binding)
            return True
        return binding is None

    def _remove(self, binding: _Binding) -> None:
        del self._by_key[binding.key]
        del self._by_port[binding.port]


class Firewall:
    """Stateful, without translation: admits what was sent to from the same address (APDF)."""

    def __init__(self) -> None:
        self._flows: dict[tuple[Address, Address], tuple[float, bool]] = {}

    def reset(self) -> None:
        """Forget every flow."""
        self._flows.clear()

    def note_outbound(self, inside: Address, outside: Address, now: float) -> None:
        """A packet went out."""
        _, is_replied = self._flows.get((inside, outside), (now, False))
        self._flows[inside, outside] = (now, is_replied)

    def admits(self, outside: Address, inside: Address, now: float) -> bool:
        """May this packet come in?"""
        flow = self._flows.get((inside, outside))
        if flow is None:
            return False
        used_at, is_replied = flow
        if now - used_at > (REPLIED_TIMEOUT if is_replied else UNREPLIED_TIMEOUT):
            del self._flows[inside, outside]
            return False
        self._flows[inside, outside] = (now, True)
        return True
