"""A member's record: signed by the member, sealed under the epoch key, wrapped in a signed envelope.

`Signed(Record, DOMAIN_RECORD)` by the member is the proof that survives a change of epoch: whoever rotates the epoch
seals that same signed blob anew. `Signed(Envelope, DOMAIN_ENVELOPE)` by the member, or by the owner or an admin who
resealed it, is what the server stores and checks without reading the record.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_network
from math import isfinite
from typing import Any

import msgspec

from .charter import Charter, may_sign_for_network
from .codec import decode
from .control import MAX_APPROVAL, MAX_ENVELOPE, MAX_RECORD
from .drops import DropReason
from .errors import ConfigError, MalformedMessage
from .keys import check_nick, is_exchange_key, is_identity, network_uid, verify
from .signed import DOMAIN_APPROVAL, DOMAIN_ENVELOPE, DOMAIN_LEAVE, DOMAIN_RECORD, Signed

_KEY = 32
MAX_SOFTWARE = 64
MAX_SUBNETS = 32
MAX_FACTS_DEPTH = 4
"""Levels of lists and maps in the facts: more would only serve to exhaust somebody's stack."""


class Record(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Who I am. Positional msgpack; fields may be added at the end."""

    format: int  # 1
    uid: bytes
    identity: bytes
    address: str  # my IPv4 address in the pool
    nick: str
    tunnel_key: bytes  # X25519 public key, WireGuard static
    disco_key: bytes  # X25519 public key, new at each start of the daemon
    joined_at: int  # Unix seconds
    sequence: int  # grows with each record of this identity
    software: str
    subnets: list[str] = []
    facts: dict[str, Any] = {}  # PBX facts: extension ranges, trunk kind
    relays: bool = True  # I forward sealed packets between members that I reach and that do not reach each other


class Envelope(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What the server sees of a record."""

    uid: bytes
    identity: bytes
    address: str
    epoch: int
    sealed: bytes  # secretbox under the epoch key of the msgpack Signed(Record)


class Leave(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Body of a Signed (DOMAIN_LEAVE) by the member itself."""

    uid: bytes
    identity: bytes
    left_at: int


class Approval(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Body of a Signed (DOMAIN_APPROVAL) by the owner or an admin, for networks with access `approve`."""

    uid: bytes
    identity: bytes
    approved_at: int
    via: bytes = b""  # the locator of the invite for which it was approved


_record_decoder = msgspec.msgpack.Decoder(Record)
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_leave_decoder = msgspec.msgpack.Decoder(Leave)
_approval_decoder = msgspec.msgpack.Decoder(Approval)
_signed_decoder = msgspec.msgpack.Decoder(Signed)


def check_envelope(signed: Signed, charter: Charter) -> Envelope:
    """The envelope, if the member itself or an admin signed it. Raises MalformedMessage; needs no epoch key."""
    envelope = decode(_envelope_decoder, signed.body, limit=MAX_ENVELOPE)
    if envelope.uid != network_uid(charter.owner) or len(envelope.identity) != _KEY:
        raise MalformedMessage(DropReason.NOT_FOR_US)
    if signed.signer != envelope.identity and not may_sign_for_network(charter, signed.signer):
        raise MalformedMessage(DropReason.BAD_SIGNATURE)
    if not verify(signed, DOMAIN_ENVELOPE) or not is_identity(envelope.identity):
        raise MalformedMessage(DropReason.BAD_SIGNATURE)
    check_address(envelope.address, charter)
    return envelope


def check_record(signed: Signed, charter: Charter) -> Record:
    """The record, if the member signed it and it makes sense. Raises MalformedMessage."""
    record = decode(_record_decoder, signed.body, limit=MAX_RECORD)
    is_genuine = signed.signer == record.identity and verify(signed, DOMAIN_RECORD) and is_identity(record.identity)
    if not is_genuine:
        raise MalformedMessage(DropReason.BAD_SIGNATURE)
    if record.format != 1 or record.uid != network_uid(charter.owner):
        raise MalformedMessage(DropReason.NOT_FOR_US)
    if not is_exchange_key(record.tunnel_key) or not is_exchange_key(record.disco_key) or record.sequence < 1:
        raise MalformedMessage(DropReason.MALFORMED)
    if len(record.software) > MAX_SOFTWARE or len(record.subnets) > MAX_SUBNETS:
        raise MalformedMessage(DropReason.OVER_LIMIT)
    # What is printed to terminals and rendered into files must not carry control sequences.
    if not record.software.isprintable() or not _is_plain(record.facts, MAX_FACTS_DEPTH):
        raise MalformedMessage(DropReason.MALFORMED)
    try:
        check_nick(record.nick)
        # A scope id (after %) is kept by ipaddress as it came, whatever characters it has.
        is_canonical = all(str(ip_network(subnet)) == subnet and "%" not in subnet for subnet in record.subnets)
    except (ConfigError, ValueError) as error:
        raise MalformedMessage(DropReason.MALFORMED) from error
    if not is_canonical:
        raise MalformedMessage(DropReason.MALFORMED)
    check_address(record.address, charter)
    return record


def check_leave(signed: Signed, uid: bytes) -> Leave:
    """The leave, if the member itself signed it. Raises MalformedMessage."""
    leave = decode(_leave_decoder, signed.body, limit=MAX_APPROVAL)
    if leave.uid != uid or len(leave.identity) != _KEY:
        raise MalformedMessage(DropReason.NOT_FOR_US)
    if signed.signer != leave.identity or not verify(signed, DOMAIN_LEAVE):
        raise MalformedMessage(DropReason.BAD_SIGNATURE)
    return leave


def check_approval(signed: Signed, charter: Charter) -> Approval:
    """The approval, if its signature holds; who signed may be nobody who may. Raises MalformedMessage."""
    if len(signed.body) + len(signed.signer) + len(signed.signature) > MAX_APPROVAL:
        raise MalformedMessage(DropReason.OVER_LIMIT)
    approval = decode(_approval_decoder, signed.body, limit=MAX_APPROVAL)
    if approval.uid != network_uid(charter.owner) or len(approval.identity) != _KEY or len(approval.via) > _KEY:
        raise MalformedMessage(DropReason.NOT_FOR_US)
    if not verify(signed, DOMAIN_APPROVAL):
        raise MalformedMessage(DropReason.BAD_SIGNATURE)
    return approval


def record_of(signed: Signed) -> Record:
    """A record that was checked before, or is our own."""
    return msgspec.msgpack.decode(signed.body, type=Record)


def decode_signed(data: bytes) -> Signed:
    """A Signed from its bytes. Raises MalformedMessage."""
    return decode(_signed_decoder, data, limit=MAX_ENVELOPE)


def _is_plain(value: Any, depth: int) -> bool:
    """True for what JSON can say, printable and at most `depth` levels deep."""
    match value:
        case dict():
            return depth > 0 and all(
                isinstance(key, str) and key.isprintable() and _is_plain(item, depth - 1) for key, item in value.items()
            )
        case list():
            return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
        case str():
            return value.isprintable()
        case float():
            return isfinite(value)
        case _:
            return value is None or isinstance(value, int)


def check_address(address: str, charter: Charter) -> None:
    """Raise MalformedMessage unless it is a host's address in the network's pool, written in the one way."""
    pool = IPv4Network(charter.pool)
    try:
        host = IPv4Address(address)
    except ValueError as error:
        raise MalformedMessage(DropReason.MALFORMED) from error
    if host not in pool or host in (pool.network_address, pool.broadcast_address) or str(host) != address:
        raise MalformedMessage(DropReason.MALFORMED)
