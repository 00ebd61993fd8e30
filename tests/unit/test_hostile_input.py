"""Whatever arrives: every parser and machine that server or members feed says why it drops, and raises nothing else.

Inputs are rubbish, valid messages with damaged bytes, and valid structures with fields exchanged for others, signed by
somebody who may sign: what a member can send that obeys no rule.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshvpn.proto import control, disco, owner
from meshvpn.proto.candidate import Candidate, Offer, decode_offer, usable
from meshvpn.proto.charter import check_charter, check_genuine, decode_charter
from meshvpn.proto.control import MemberEntry
from meshvpn.proto.control_session import ControlSession, attach_opening
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.keys import Identity, NetworkKeys, network_uid
from meshvpn.proto.membership import MemberKeys, Profile
from meshvpn.proto.messages import parse
from meshvpn.proto.node import Node
from meshvpn.proto.record import check_envelope, check_leave, check_record, decode_signed, is_approved
from meshvpn.proto.roster import Roster, RosterState
from meshvpn.proto.signed import (
    DOMAIN_APPROVAL,
    DOMAIN_CHARTER,
    DOMAIN_ENVELOPE,
    DOMAIN_LEAVE,
    DOMAIN_RECORD,
    Signed,
)
from meshvpn.proto.transport import Address, Path
from meshvpn.proto.wireguard import WireGuard
from rendezvous.core import NetworkDoc, StoredEntry, apply

PATH = Path(0, Address("192.0.2.1", 1000))
KEYS = NetworkKeys(b"L" * 32, b"W" * 32)
many = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=40)
objects = st.recursive(
    plain | st.binary(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9) | st.binary(max_size=32), inner),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """Bytes near to a valid message, or far from any."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(valid)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@st.composite
def exchanged(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid msgpack array with some of its fields exchanged for anything."""
    fields = msgspec.msgpack.decode(valid)
    for _ in range(draw(st.integers(1, 3))):
        fields[draw(st.integers(0, len(fields) - 1))] = draw(objects)
    return msgspec.msgpack.encode(fields)


def hostile(valid: bytes) -> st.SearchStrategy[bytes]:
    return damaged(valid) | exchanged(valid)


@many
@given(st.data())
def test_charters(data: st.DataObject) -> None:
    world = network()
    body = data.draw(hostile(world.state.charter.body))
    signed = world.owner.sign(DOMAIN_CHARTER, body)
    for check in (decode_charter, check_genuine, lambda given: check_charter(given, world.state.charter)):
        drops_only(check, signed)
    before = world.roster().export()
    roster = world.roster()
    if roster.handle_charter(signed, [], wall=5) is not None:
        assert roster.export() == before


@many
@given(st.data())
def test_records_envelopes_leaves_and_approvals(data: st.DataObject) -> None:
    world = network()
    roster, charter, who = world.roster(), decode_charter(world.state.charter), world.member
    record = who.sign(DOMAIN_RECORD, data.draw(hostile(world.record.body)))
    drops_only(lambda signed: check_record(signed, charter), record)
    sealed = roster.seal_for_members(data.draw(damaged(msgspec.msgpack.encode(record))), world.entropy)
    fields = msgspec.msgpack.decode(world.entry.envelope.body)  # type: ignore[union-attr]
    fields[-1] = sealed
    body = data.draw(st.just(msgspec.msgpack.encode(fields)) | hostile(world.entry.envelope.body))  # type: ignore[union-attr]
    envelope = who.sign(DOMAIN_ENVELOPE, body)
    drops_only(lambda signed: check_envelope(signed, charter), envelope)
    roster.handle_entry(MemberEntry(who.public, world.entry.address, envelope), wall=5)
    leave = who.sign(DOMAIN_LEAVE, data.draw(hostile(owner.make_leave(world.uid, who, wall=3).body)))
    drops_only(lambda signed: check_leave(signed, world.uid), leave)
    roster.handle_leave(leave, wall=5)
    approval = owner.approve(world.roster(), world.owner, who.public, wall=3)
    is_approved(world.owner.sign(DOMAIN_APPROVAL, data.draw(hostile(approval.body))), who.public, charter)


@many
@given(st.data())
def test_signed_blobs_and_offers(data: st.DataObject) -> None:
    world = network()
    drops_only(decode_signed, data.draw(hostile(msgspec.msgpack.encode(world.record))))
    body = data.draw(hostile(world.offer()))
    try:
        offer = decode_offer(body)
    except MalformedMessage:
        return
    kept = usable(offer.candidates, [IPv4Network("10.1.2.0/24")])
    assert all(0 < candidate.port < 65536 for candidate in kept)


@many
@given(st.data())
def test_a_node_gets_any_control_message(data: st.DataObject) -> None:
    node = attached_node()
    before = node.roster.export()
    world = network()
    messages: dict[str, control.Response] = {
        "charter": control.CharterChanged(charter=world.state.charter, members=[world.entry]),
        "member": control.MemberChanged(entry=world.entry),
        "left": control.MemberLeft(leave=owner.make_leave(world.uid, Identity(bytes(32)), wall=3)),
        "presence": control.Presence(entry=control.PresenceEntry(world.member.public, 7)),
        "signalled": control.Signalled(source=world.member.public, payload=world.sealed_offer()),
        "refused": control.Refused(rid=1, code="evicted", message=""),
        "done": control.Done(rid=2),
    }
    kind = data.draw(st.sampled_from(sorted(messages)))
    node.handle_control_message(data.draw(damaged(control.encode(messages[kind]))), now=2.0, wall_ns=10**18)
    payload = data.draw(hostile(world.offer()))
    sealed = world.roster().seal_for_members(payload, world.entropy)
    signalled = control.Signalled(source=world.member.public, payload=sealed)
    node.handle_control_message(control.encode(signalled), now=2.0, wall_ns=10**18)
    if kind not in ("charter", "member"):
        assert node.roster.export() == before
    for name in node.drops:
        assert isinstance(name, DropReason)


@many
@given(st.data())
def test_a_node_gets_any_datagram(data: st.DataObject) -> None:
    node = attached_node()
    before = node.roster.export()
    for _ in range(3):
        datagram = data.draw(st.one_of([damaged(valid) for valid in datagrams().values()]))
        node.handle_datagram(datagram, PATH, now=2.0, wall_ns=10**18)
    node.handle_timeout(now=3.0, wall_ns=10**18)
    assert node.roster.export() == before


@many
@given(st.data())
def test_wireguard_messages(data: st.DataObject) -> None:
    valid = datagrams()
    name = data.draw(st.sampled_from(["initiation", "response", "cookie"]))
    datagram = data.draw(damaged(valid[name]))
    drops_only(parse, datagram)
    machine = WireGuard(bytes(31) + b"r", entropy=random.Random(1).randbytes)
    machine.add_peer(1, disco.public_key(bytes(31) + b"i"))
    reason = machine.handle_datagram(datagram, PATH, now=1.0, wall_ns=1)
    assert reason is None or isinstance(reason, DropReason)


@many
@given(st.data())
def test_the_server_gets_any_request(data: st.DataObject) -> None:
    world = network()
    document = NetworkDoc(
        world.state.charter,
        world.member.public,
        [StoredEntry(world.member.public, world.entry.address, 1, world.entry.envelope)],
        [],
    )
    envelope = world.entry.envelope
    assert envelope is not None
    requests: list[control.Request] = [
        control.PutRecord(rid=1, envelope=world.member.sign(DOMAIN_ENVELOPE, data.draw(hostile(envelope.body)))),
        control.PutCharter(
            rid=1, charter=world.owner.sign(DOMAIN_CHARTER, data.draw(hostile(world.state.charter.body))), envelopes=[]
        ),
        control.PutLeave(rid=1, leave=world.member.sign(DOMAIN_LEAVE, data.draw(st.binary(max_size=90)))),
    ]
    for request in requests:
        outcome = apply(document, request, world.member.public, wall=10)
        assert outcome.reply is not None


@dataclass
class World:
    """A network of two: us, and a member who knows all that members know."""

    owner: Identity
    us: Identity
    member: Identity
    state: RosterState
    record: Signed
    entry: MemberEntry
    entropy: Callable[[int], bytes]

    @property
    def uid(self) -> bytes:
        return network_uid(self.owner.public)

    def roster(self) -> Roster:
        return Roster(self.uid, self.us, self.state)

    def offer(self) -> bytes:
        return Offer(
            format=1,
            uid=self.uid,
            source=self.member.public,
            destination=self.us.public,
            sequence=5,
            disco_key=disco.public_key(bytes(31) + b"d"),
            candidates=[Candidate(1, "192.0.2.7", 7), Candidate(4, "2001:db8::1", 8)],
        ).encode()

    def sealed_offer(self) -> bytes:
        return self.roster().seal_for_members(self.offer(), self.entropy)


@cache
def network() -> World:
    entropy = random.Random("hostile").randbytes
    network_owner, us, member = (Identity(entropy(32)) for _ in range(3))
    pool = IPv4Network("10.1.2.0/24")
    state = owner.found_network("net", KEYS, pool, network_owner, us, entropy=entropy, wall=1)
    roster = Roster(network_uid(network_owner.public), us, state)
    made = owner.make_record(
        roster,
        member,
        address="10.1.2.2",
        nick="m",
        tunnel_key=disco.public_key(bytes(31) + b"i"),
        disco_key=disco.public_key(bytes(31) + b"d"),
        joined_at=2,
        sequence=2,
        software="x",
        facts={"extensions": ["100-199"]},
        subnets=("192.168.7.0/24",),
        entropy=entropy,
    )
    entry = MemberEntry(member.public, "10.1.2.2", made.envelope)
    roster.handle_charter(state.charter, [entry], wall=2)
    return World(network_owner, us, member, roster.export(), made.record, entry, entropy)


def attached_node() -> Node:
    """A node of ours whose session is attached."""
    world, entropy = network(), random.Random("node").randbytes
    session = ControlSession(attach_opening(world.us, world.uid), entropy=entropy)
    node = Node(
        keys=MemberKeys(world.us, bytes(31) + b"r", bytes(31) + b"o"),
        profile=Profile("10.1.2.1", "us", "x", 1),
        roster=world.roster(),
        session=session,
        own_record=None,
        entropy=entropy,
    )
    stamps = {"now": 1.0, "wall_ns": 10**18}
    node.handle_local_addresses(["192.168.1.10"], {0: 41000}, now=1.0, wall_ns=10**18)
    node.handle_start({}, now=1.0, wall_ns=10**18)
    node.handle_connected(["198.51.100.1"], now=1.0, wall_ns=10**18)
    welcome = control.Welcome(version=1, nonce=bytes(32), observed_host="", udp_port=1, udp_port2=2, software="")
    attached = control.Attached(
        rid=1,
        address="10.1.2.1",
        charter=world.state.charter,
        members=[world.entry],
        online=[control.PresenceEntry(world.member.public, 9)],
        relay=control.RelayGrant(5, bytes(32)),
    )
    for message in (welcome, attached):
        node.handle_control_message(control.encode(message), now=stamps["now"], wall_ns=10**18)
    assert node.session.is_attached
    assert node.peers
    return node


@cache
def datagrams() -> Mapping[str, bytes]:
    """One valid datagram of each kind."""
    entropy = random.Random("datagrams").randbytes
    left, right = WireGuard(bytes(31) + b"i", entropy=entropy), WireGuard(bytes(31) + b"r", entropy=entropy)
    left.add_peer(1, right.public_key)
    right.add_peer(1, left.public_key)
    left.handle_handshake_wanted(1, now=0.0, wall_ns=10**18)
    initiation = left.take_transmits()[0].data
    right.handle_datagram(initiation, PATH, now=0.1, wall_ns=10**18)
    box = disco.DiscoBox(bytes(31) + b"d", disco.public_key(bytes(31) + b"o"))
    return {
        "initiation": initiation,
        "response": right.take_transmits()[0].data,
        "cookie": b"\3\0\0\0" + entropy(60),
        "ping": box.seal(disco.Ping(bytes(12), 1), entropy),
        "pong": box.seal(disco.Pong(bytes(12), PATH.remote, 1), entropy),
        "stun": b"\x01\x01\0\x0c\x21\x12\xa4\x42" + bytes(12) + b"\0\x20\0\x08\0\1" + bytes(6),
    }


def drops_only(parser: Callable[[Any], object], given: Any) -> None:
    with contextlib.suppress(MalformedMessage):
        parser(given)
