"""Candidates (RFC 8445 §5.1.1): addresses at which a member may be reached, and the offer that carries them.

An `Offer` is positional msgpack, sealed under the epoch key by the node, so that the server reads no LAN address.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import msgspec

from .codec import decode
from .drops import DropReason
from .errors import MalformedMessage
from .nat import Attempt, NatMapping
from .transport import Address

MAX_CANDIDATES = 32
"""In one offer: a host with ten addresses, two families and every kind has fewer."""
MAX_OFFER = 4096
_BROADCAST = IPv4Address("255.255.255.255")


class CandidateKind(IntEnum):
    """Where it was learnt; declared in the order in which they are tried."""

    HOST = 1
    CONFIGURED = 2
    MAPPED = 3
    SERVER_REFLEXIVE = 4
    PEER_REFLEXIVE = 5
    LAST_KNOWN = 6


class Candidate(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One address. `kind` is a CandidateKind; unknown ones of later versions are tried all the same."""

    kind: int
    host: str
    port: int

    @property
    def address(self) -> Address:
        """As an Address."""
        return Address(self.host, self.port)


class Offer(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a member sends to another through the server. `sequence` grows for one disco key."""

    format: int  # 1
    uid: bytes
    source: bytes
    destination: bytes
    sequence: int
    disco_key: bytes
    candidates: list[Candidate]
    nat: NatMapping = NatMapping()
    """How the member's NAT maps. From here on older versions have nothing."""
    attempt: Attempt | None = None
    """Sockets that were opened for the peer since the last offer."""

    def encode(self) -> bytes:
        """For sealing."""
        return msgspec.msgpack.encode(self)


_decoder = msgspec.msgpack.Decoder(Offer)


def decode_offer(data: bytes) -> Offer:
    """An opened offer. Raises MalformedMessage; candidates that make no sense are dropped by `usable`."""
    offer = decode(_decoder, data, limit=MAX_OFFER)
    if offer.format != 1 or len(offer.source) != 32 or len(offer.destination) != 32 or len(offer.disco_key) != 32:
        raise MalformedMessage(DropReason.MALFORMED)
    if len(offer.candidates) > MAX_CANDIDATES:
        raise MalformedMessage(DropReason.OVER_LIMIT)
    return offer


def usable(
    candidates: Iterable[Candidate], forbidden: Sequence[IPv4Network | IPv6Network], *, allow_loopback: bool = False
) -> list[Candidate]:
    """Those worth a probe: no address that is nobody's, and none inside the tunnel itself.

    Never filtered by "is it global": which addresses can be reached is for the probes to find out.
    """
    kept: dict[Address, Candidate] = {}
    for candidate in sorted(candidates)[:MAX_CANDIDATES]:
        if (host := _parse_host(candidate.host)) is None:
            continue
        is_nobody = host.is_multicast or host.is_unspecified or host.is_link_local or host == _BROADCAST
        if is_nobody or (host.is_loopback and not allow_loopback) or not 0 < candidate.port < 65536:
            continue
        if any(host.version == network.version and host in network for network in forbidden):
            continue
        # Written in one way only, whatever the peer wrote: paths are compared as text.
        kept.setdefault(Address(str(host), candidate.port), Candidate(candidate.kind, str(host), candidate.port))
    return list(kept.values())


def _parse_host(text: str) -> IPv4Address | IPv6Address | None:
    try:
        host = ip_address(text)
    except ValueError:
        return None
    # A scope id means something on its own host only. An IPv4 address in IPv6 form would pass the filters for IPv4.
    if isinstance(host, IPv6Address) and (host.scope_id is not None or host.ipv4_mapped is not None):
        return None
    return host
