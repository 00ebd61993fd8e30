"""Keeps one UDP port of ours open at the router, so that even a symmetric NAT can be reached there.

    router known ──▶ asking: PCP and NAT-PMP at once ──▶ mapping ──▶ mapped ──half the lease──▶ renewed …
                         │ neither answers                  │ refused           │ router lost it ──▶ mapped again
                         ▼                                  ▼                   ▼ lease over
                       UPnP (the shell does it) ──fails──▶ resting ──────────▶ asking

PCP is preferred, then NAT-PMP, then UPnP. A router that refuses (a CGN above it, mappings switched off) is asked again
after a while; nothing waits for the outcome. Sent to our own router alone, and only what comes from there counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from . import pcp
from .drops import DropReason
from .errors import MalformedMessage
from .pcp import Opcode, Response, Version
from .transport import Address

LIFETIME = 7200  # RFC 6886 §3.3
"""Seconds that are asked for."""
MAX_LIFETIME = 86400
"""Seconds that a router is believed."""
TRIES = (0.25, 0.5, 1.0)  # RFC 6886 §3.1
"""Seconds to wait for an answer, each time."""
MIN_RENEWAL = 30.0
"""Seconds between two renewals, whatever lease the router gives."""
CHECK_INTERVAL = 60.0
"""Seconds between two questions whether the router still knows: it does not say so when it was started anew."""
MIN_CHECK = 5.0
"""The same when something happens: whoever claims to be the router gains nothing by it."""
UPNP_INTERVAL = 600.0
"""Seconds between renewals by UPnP, which has no such question."""
PAUSES = (60.0, 300.0, 1800.0)
"""Seconds until a router that gave nothing is asked again."""


class Method(Enum):
    """How the mapping was made."""

    PCP = "pcp"
    NAT_PMP = "nat-pmp"
    UPNP = "upnp"


@dataclass(frozen=True, slots=True)
class Router:
    """The router of our default route, and our own address on the way to it."""

    host: str
    local: str


@dataclass(frozen=True, slots=True)
class PortMapping:
    """Our port from outside. `host` is what the router believes to be its address: wrong if another NAT is above it."""

    method: Method
    port: int
    host: str | None


@dataclass(frozen=True, slots=True)
class MappingChanged:
    """There is another mapping, or none."""

    mapping: PortMapping | None


@dataclass(frozen=True, slots=True)
class UpnpWanted:
    """Map `port` at the router by UPnP, as `external_port` if that is free; answer by `handle_upnp`."""

    router: Router
    port: int
    external_port: int
    lifetime: int


PortMapEvent = MappingChanged | UpnpWanted


class _Phase(Enum):
    IDLE = "idle"
    ASKING = "asking"
    MAPPING = "mapping"
    UPNP = "upnp"
    MAPPED = "mapped"
    RESTING = "resting"


_METHODS = {Version.PCP: Method.PCP, Version.NAT_PMP: Method.NAT_PMP}
_VERSIONS = {method: version for version, method in _METHODS.items()}


class PortMapper:
    """The machine for one port. `nonce` (12 bytes) must be the same after a restart: a router with PCP does not let
    anybody else renew or end a mapping (RFC 6887 §11.3)."""

    def __init__(self, port: int, nonce: bytes) -> None:
        self.mapping: PortMapping | None = None
        self._port = port
        self._nonce = nonce
        self._router: Router | None = None
        self._phase = _Phase.IDLE
        self._method = Method.PCP
        self._has_nat_pmp = False
        self._reported: str | None = None
        self._epochs: dict[Version, tuple[int, float]] = {}
        self._tries = 0
        self._retry_at: float | None = None
        self._check_at: float | None = None
        self._checked_at = float("-inf")
        self._renew_at: float | None = None
        """Of a mapping, or of the whole attempt if it gave none."""
        self._renewed_at = float("-inf")
        self._expires_at = float("-inf")
        self._failures = 0
        self._transmits: list[bytes] = []
        self._events: list[PortMapEvent] = []

    def handle_router(self, router: Router | None, *, now: float) -> None:
        """The router of the default route; another one, or None, ends what we had."""
        if router == self._router:
            return
        self._router = router
        self._failures = 0
        self._reported = None
        self._epochs.clear()
        self._begin(now)

    def handle_doubt(self, *, now: float) -> None:
        """Something happened to the network: does the router still know us?"""
        if now < self._checked_at + MIN_CHECK:
            return
        if self._phase is _Phase.RESTING:
            self._begin(now)
        elif self._phase is _Phase.MAPPED and self._method is Method.UPNP:
            self._renew(now)
        elif self._phase is _Phase.MAPPED:
            self._check(now)

    def handle_datagram(self, data: bytes, source: Address, *, now: float) -> DropReason | None:
        """An answer of the router, or its announcement that it was started anew."""
        if self._router is None or source != Address(self._router.host, pcp.PORT):
            return DropReason.UNEXPECTED
        try:
            response = pcp.parse(data)
        except MalformedMessage as error:
            return error.reason
        if response.opcode is Opcode.MAP:
            return self._handle_mapped(response, now)
        self._handle_announced(response, now)
        return None

    def handle_upnp(self, external_port: int | None, host: str | None, *, now: float) -> None:
        """What came of an UpnpWanted: the port that was mapped, and the router's address; None: nothing."""
        if self._phase is not _Phase.UPNP:
            return  # the router is another one meanwhile
        if external_port is None:
            self._rest(now)
        else:
            self._adopt(Method.UPNP, external_port, host, LIFETIME, now)

    def handle_stop(self, *, now: float) -> None:
        """End the mapping. One that UPnP made is the shell's to end."""
        if self._phase in (_Phase.MAPPING, _Phase.MAPPED) and self._method is not Method.UPNP:
            self._send_map(lifetime=0)
        self._router = None
        self._begin(now)

    def next_timeout(self) -> float | None:
        """The next repetition, question or renewal."""
        return min((at for at in (self._retry_at, self._check_at, self._renew_at) if at is not None), default=None)

    def handle_timeout(self, *, now: float) -> None:
        """Do what is due."""
        if self._retry_at is not None and now >= self._retry_at:
            self._retry(now)
        if self._renew_at is not None and now >= self._renew_at:
            self._renew(now)
        if self._check_at is not None and now >= self._check_at:
            self._check(now)

    def take_transmits(self) -> list[bytes]:
        """Datagrams for the router's port 5351; clears."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def take_events(self) -> list[PortMapEvent]:
        """What changed; clears."""
        events, self._events = self._events, []
        return events

    # Asking.

    def _begin(self, now: float) -> None:
        self._enter(_Phase.IDLE if self._router is None else _Phase.ASKING)
        self._report(None)
        self._has_nat_pmp = False
        if self._router is not None:
            self._checked_at = now
            self._ask(now)

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._tries = 0
        self._retry_at = self._check_at = self._renew_at = None

    def _ask(self, now: float) -> None:
        assert self._router is not None, "there is somebody to ask"
        self._transmits += [pcp.announce_request(version, self._router.local) for version in Version]
        self._await(now)

    def _await(self, now: float) -> None:
        """An answer, for a while."""
        self._retry_at = now + TRIES[min(self._tries, len(TRIES) - 1)]
        self._tries += 1

    def _retry(self, now: float) -> None:
        is_last = self._tries >= len(TRIES)
        if self._phase is _Phase.ASKING and self._has_nat_pmp:
            self._map(Method.NAT_PMP, now)  # PCP had its time to answer
        elif self._phase is _Phase.ASKING and is_last:
            self._want_upnp()
        elif self._phase is _Phase.ASKING:
            self._ask(now)
        elif not is_last:
            self._send_map()
            self._await(now)
        elif self._phase is _Phase.MAPPING:
            self._map_otherwise(now)
        else:
            self._put_off_renewal(now)

    def _handle_announced(self, response: Response, now: float) -> None:
        is_lost = self._note_epoch(response, now)
        if response.external_host is not None and response.result == pcp.SUCCESS:
            self._reported = response.external_host
        if self._phase is _Phase.ASKING and response.result == pcp.SUCCESS:
            if response.version is Version.PCP:
                self._map(Method.PCP, now)
            else:
                self._has_nat_pmp = True
        elif self._phase is _Phase.MAPPED and is_lost:
            self._renew_at = max(now, self._renewed_at + MIN_CHECK)
        elif self._phase is _Phase.RESTING:
            self.handle_doubt(now=now)  # only a router that was started anew speaks unasked

    def _note_epoch(self, response: Response, now: float) -> bool:
        """True if the router lost what it knew since it spoke last (RFC 6886 §3.6, RFC 6887 §8.5)."""
        before = self._epochs.get(response.version)
        self._epochs[response.version] = response.epoch, now
        if before is None:
            return False
        ours, theirs = now - before[1], response.epoch - before[0]
        is_slow = theirs + 2 < ours * 7 / 8
        is_fast = response.version is Version.PCP and ours + 2 < theirs * 15 / 16
        return theirs < -1 or is_slow or is_fast

    # Mapping.

    def _map(self, method: Method, now: float) -> None:
        self._enter(_Phase.MAPPING)
        self._method = method
        self._send_map()
        self._await(now)

    def _map_otherwise(self, now: float) -> None:
        if self._method is Method.PCP and self._has_nat_pmp:
            self._map(Method.NAT_PMP, now)
        else:
            self._want_upnp()

    def _send_map(self, lifetime: int = LIFETIME) -> None:
        assert self._router is not None, "there is somebody to ask"
        wish = self._wish() if lifetime else 0  # RFC 6886 §3.4, RFC 6887 §15.1
        version = _VERSIONS[self._method]
        self._transmits.append(
            pcp.map_request(version, self._router.local, self._port, wish, lifetime, nonce=self._nonce)
        )

    def _handle_mapped(self, response: Response, now: float) -> DropReason | None:
        is_awaited = self._retry_at is not None and self._phase in (_Phase.MAPPING, _Phase.MAPPED)
        if not is_awaited or _METHODS[response.version] is not self._method:
            return DropReason.UNEXPECTED
        if response.version is Version.PCP and response.nonce != self._nonce:
            return DropReason.NOT_FOR_US
        if response.result != pcp.SUCCESS:
            self._note_epoch(response, now)
            self._report(None)
            self._map_otherwise(now)
            return None
        if response.internal_port != self._port:
            return DropReason.NOT_FOR_US
        if not response.external_port or not response.lifetime:
            return DropReason.MALFORMED
        self._note_epoch(response, now)
        host = response.external_host or self._reported
        self._adopt(self._method, response.external_port, host, response.lifetime, now)
        return None

    def _want_upnp(self) -> None:
        assert self._router is not None, "there is somebody to ask"
        self._enter(_Phase.UPNP)
        self._events.append(UpnpWanted(self._router, self._port, self._wish(), LIFETIME))

    def _wish(self) -> int:
        return self._port if self.mapping is None else self.mapping.port

    def _adopt(self, method: Method, port: int, host: str | None, lifetime: int, now: float) -> None:
        self._enter(_Phase.MAPPED)
        self._method = method
        self._failures = 0
        lifetime = min(lifetime, MAX_LIFETIME)
        self._expires_at = now + lifetime
        if method is Method.UPNP:
            self._renew_at = now + UPNP_INTERVAL
        else:
            self._renew_at = now + max(MIN_RENEWAL, lifetime / 2)
            self._check_at = now + CHECK_INTERVAL
        self._report(PortMapping(method, port, host))

    def _check(self, now: float) -> None:
        assert self._router is not None, "there is somebody to ask"
        self._checked_at = now
        self._check_at = now + CHECK_INTERVAL
        self._transmits.append(pcp.announce_request(_VERSIONS[self._method], self._router.local))

    def _renew(self, now: float) -> None:
        self._renew_at = None
        self._checked_at = self._renewed_at = now
        if self._phase is _Phase.RESTING:
            self._begin(now)
        elif self._method is Method.UPNP:
            self._want_upnp()
        else:
            self._tries = 0
            self._send_map()
            self._await(now)

    def _put_off_renewal(self, now: float) -> None:
        """The router does not answer. The mapping is good until its lease is over, and perhaps it answers then."""
        self._retry_at = None
        if now >= self._expires_at:
            self._begin(now)
        else:
            self._renew_at = now + max(MIN_RENEWAL, (self._expires_at - now) / 2)

    def _rest(self, now: float) -> None:
        self._enter(_Phase.RESTING)
        self._report(None)
        self._renew_at = now + PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1

    def _report(self, mapping: PortMapping | None) -> None:
        if mapping != self.mapping:
            self.mapping = mapping
            self._events.append(MappingChanged(mapping))
