"""Everything that reads what a stranger sent, each with valid messages to damage and the outcomes that are allowed.

A target's `run` returns what became of the input, by name; any other name, and any exception, is a crash. Machines are
made anew for each input, so that one line of hexadecimal is all that a failure needs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network
from typing import Any

import msgspec
from msgspec import structs

from meshvpn import ipc
from meshvpn.proto import (
    acts,
    audit,
    candidate,
    clones,
    control,
    disco,
    epochs,
    gossip_messages,
    invites,
    messages,
    owner,
    ownerfile,
    pcp,
    stun,
)
from meshvpn.proto.binding import RelayBinding
from meshvpn.proto.charter import Charter, check_charter, check_genuine
from meshvpn.proto.commands import apply as apply_command
from meshvpn.proto.control import MemberEntry, PresenceEntry, RelayGrant
from meshvpn.proto.control_session import ControlSession, attach_opening
from meshvpn.proto.dataplane import DataPlane
from meshvpn.proto.disco import DiscoBox, Ping, Pong
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import ConfigError, MalformedMessage
from meshvpn.proto.gather import Gatherer
from meshvpn.proto.gossip import Gossip
from meshvpn.proto.gossip_messages import MEMBER_NAME, NAME, Charters, Digest, Done, Kind, News, Summary
from meshvpn.proto.keys import Identity, seal_secret
from meshvpn.proto.member import Noted
from meshvpn.proto.messages import CookieReply, Initiation, Response
from meshvpn.proto.nat import Attempt, Method, NatMapping, PortRule
from meshvpn.proto.node import Node
from meshvpn.proto.pcp import Version
from meshvpn.proto.portmap import PortMapper, Router
from meshvpn.proto.primitives import x25519_public
from meshvpn.proto.record import check_approval, check_envelope, check_leave, check_record, decode_signed
from meshvpn.proto.roster import Roster
from meshvpn.proto.signed import (
    DOMAIN_ACT,
    DOMAIN_APPROVAL,
    DOMAIN_CHARTER,
    DOMAIN_ENVELOPE,
    DOMAIN_INVITATION,
    DOMAIN_LEAVE,
    DOMAIN_RECORD,
    Signed,
)
from meshvpn.proto.transport import Address, Path, RelayHop
from meshvpn.proto.wireguard import WireGuard
from rendezvous import core
from rendezvous.limits import Limits
from rendezvous.relay import Relay
from tests.unit import whitepaper
from tests.unit.test_secrets import PATHS, WALL, Drawer, make_nodes, nodes_with_a_session

PATH = Path(0, Address("192.0.2.1", 1000))
WALL_NS = WALL * 10**9
DROPS = frozenset(reason.value for reason in DropReason)
PARSE_DROPS = frozenset({"too_short", "bad_length", "unknown_type", "malformed", "over_limit"})


@dataclass(frozen=True)
class Target:
    """`seeds` are valid inputs; `run` says what became of one."""

    name: str
    run: Callable[[bytes], str]
    seeds: Callable[[], list[bytes]]
    allowed: frozenset[str]
    is_packed: bool = False
    """The seeds are msgpack: they can be damaged value by value, too."""


def outcome_of(parse: Callable[[], object]) -> str:
    try:
        result = parse()
    except MalformedMessage as error:
        return error.reason.value
    if isinstance(result, DropReason):
        return result.value
    return "none" if result is None else "ok"


# WireGuard.


def make_pair() -> tuple[WireGuard, WireGuard]:
    drawer = Drawer(7)
    pair = WireGuard(bytes([1]) * 32, entropy=drawer), WireGuard(bytes([2]) * 32, entropy=drawer)
    for machine, other in (pair, pair[::-1]):
        machine.add_peer(1, other.public_key, [bytes([3]) * 32, bytes([4]) * 32])
    return pair


def half_way() -> tuple[WireGuard, WireGuard, list[bytes]]:
    """The initiator waits for the response; the messages so far, and a cookie reply."""
    a, b = make_pair()
    a.handle_handshake_wanted(1, now=1.0, wall_ns=WALL_NS)
    first = a.take_transmits()[0].data
    b.handle_datagram(first, PATH, now=1.0, wall_ns=WALL_NS)
    response = b.take_transmits()[0].data
    message = messages.parse(first)
    assert isinstance(message, Initiation)
    cookie = b._checker.make_reply(first, message.sender, b"here", now=1.0)
    return a, b, [first, response, cookie]


def run_wireguard(data: bytes) -> str:
    a, _, _ = half_way()
    _, fresh = make_pair()
    outcomes = {outcome_of(lambda m=machine: feed(m, data)) for machine in (a, fresh)}  # type: ignore[misc]
    for machine in (a, fresh):
        machine.handle_timeout(now=1000.0, wall_ns=WALL_NS)
        assert len(machine.take_transmits()) <= 2
    return max(outcomes)


def run_wireguard_with_macs(data: bytes) -> str:
    """mac1 is no secret: a stranger's messages have a valid one."""
    a, b = make_pair()
    if len(data) < 32:
        return "too_short"
    return run_wireguard(whitepaper.with_macs(data[:-32], a.public_key if data[0] == 2 else b.public_key))


def feed(machine: WireGuard, data: bytes) -> object:
    return machine.handle_datagram(data, PATH, now=1.5, wall_ns=WALL_NS)


def wireguard_seeds() -> list[bytes]:
    return [
        *half_way()[2],
        Initiation(1, bytes(108)).encode(),
        Response(1, 2, bytes(48)).encode(),
        CookieReply(1, bytes(24), bytes(32)).encode(),
    ]


# The data plane and the relay.


def run_dataplane(data: bytes) -> str:
    _, planes, _ = nodes_with_a_session(Drawer(1))
    plane = planes[1]
    plane.handle_datagram(data, PATHS[0], now=2.0)
    assert len(plane.take_packets()) <= 1
    plane.take_events()
    drops = [name for name, count in plane.drops().items() if count]
    return drops[0] if drops else "ok"


def run_inner_packet(data: bytes) -> str:
    """What a member seals: the tunnel's inside."""
    _, planes, install = nodes_with_a_session(Drawer(1))
    sender = next(event for event in install if event.is_initiator)
    body = whitepaper.seal(sender.send_key, 0, data + bytes(-len(data) % 16), b"")
    header = b"\4\0\0\0" + sender.remote_index.to_bytes(4, "little") + bytes(8)
    plane = planes[1]
    plane.handle_datagram(header + body, PATHS[0], now=2.0)
    packets = plane.take_packets()
    assert all(packet == data[: len(packet)] or len(packet) > len(data) for packet in packets)
    return next((name for name, count in plane.drops().items() if count), "ok")


def dataplane_seeds() -> list[bytes]:
    _, _, install = nodes_with_a_session(Drawer(1))
    sender = next(event for event in install if event.is_initiator)
    header = b"\4\0\0\0" + sender.remote_index.to_bytes(4, "little") + bytes(8)
    sealed = header + whitepaper.seal(sender.send_key, 0, inner_seeds()[0], b"")
    return [sealed, RelayHop(5, 6).header() + sealed, header + whitepaper.seal(sender.send_key, 0, b"", b"")]


def inner_seeds() -> list[bytes]:
    v4 = b"\x45\0\0\x20" + bytes(8) + bytes([10, 1, 2, 1, 10, 1, 2, 2]) + bytes(12)
    v6 = b"\x60\0\0\0\0\x08\x11\x40" + bytes(32) + bytes(8)
    return [v4, v6]


def run_relay(data: bytes) -> str:
    relay, _ = make_relay()
    forward = relay.handle_datagram(data, PATH.remote, 0, now=2.0)
    assert forward is None or len(forward.data) <= max(len(data) + 36, 52 + 36)
    relay.handle_timeout(now=3.0)
    return next((reason.value for reason, count in relay.drops.items() if count), "ok" if forward else "none")


def make_relay() -> tuple[Relay, list[RelayGrant]]:
    relay = Relay(Limits(), entropy=Drawer(3))
    grants = [relay.grant(bytes(16), bytes([number]) * 32) for number in range(2)]
    for grant in grants:
        request = stun.binding_request(bytes(12), username=stun.relay_username(grant.id, 1), key=grant.key)
        relay.handle_datagram(request, PATH.remote, 0, now=1.0)
    return relay, grants


def relay_seeds() -> list[bytes]:
    _, (first, second) = make_relay()
    bind = stun.binding_request(bytes(12), username=stun.relay_username(first.id, 2), key=first.key)
    return [RelayHop(first.id, second.id).header() + b"\4\0\0\0sealed", bind, stun.binding_request(bytes(12))]


# STUN and disco.


def run_stun(data: bytes) -> str:
    def parse() -> object:
        message = stun.parse(data)
        assert not message.wants_other_port or stun.AttributeType.CHANGE_REQUEST in message.attributes
        message.is_authentic(b"key")
        stun.parse_relay_username(message.username or "")
        return message.mapped_address or message

    gatherer = Gatherer(Drawer(4))
    gatherer.handle_servers([PATH.remote], now=1.0)
    gatherer.handle_local_addresses(["192.0.2.9"], {0: 1000}, now=1.0)
    gatherer.take_transmits()
    assert outcome_of(lambda: gatherer.handle_datagram(data, PATH, now=1.1)) in DROPS | {"none", "ok"}
    binding = RelayBinding(Drawer(4))
    binding.handle_local_addresses({0: 1000}, now=1.0)
    binding.handle_servers([PATH.remote], now=1.0)
    binding.handle_grant(control.RelayGrant(1, bytes(32)), now=1.0)
    assert outcome_of(lambda: binding.handle_datagram(data, PATH, now=1.1)) in DROPS | {"none", "ok"}
    return outcome_of(parse)


def stun_seeds() -> list[bytes]:
    key = bytes(32)
    return [
        stun.binding_request(bytes(12)),
        stun.binding_request(bytes(12), other_port=True, size=200),
        stun.binding_request(bytes(12), username="00000001:1", key=key),
        stun.binding_success(bytes(12), PATH.remote, key=key),
        stun.binding_success(bytes(12), Address("2001:db8::1", 5)),
        stun.binding_error(bytes(12), 401),
    ]


BOX_SECRETS = bytes([5]) * 32, bytes([6]) * 32


def boxes() -> tuple[DiscoBox, DiscoBox]:
    mine, theirs = BOX_SECRETS
    return DiscoBox(mine, disco.public_key(theirs)), DiscoBox(theirs, disco.public_key(mine))


def disco_seeds() -> list[bytes]:
    drawer = Drawer(5)
    sender = boxes()[1]
    return [sender.seal(Ping(bytes(12), 1), drawer), sender.seal(Pong(bytes(12), PATH.remote, 1, 1), drawer)]


def run_disco_message(data: bytes) -> str:
    """What a member seals."""
    return outcome_of(lambda: disco._decode(data))


def disco_message_seeds() -> list[bytes]:
    return [disco._encode(Ping(bytes(12), 1)), disco._encode(Pong(bytes(12), Address("2001:db8::1", 5), 1, 1, 1))]


# The router's answers.


def run_port_map(data: bytes) -> str:
    """In each phase of a mapper; whatever a router says, it asks no more than once for each answer."""
    outcomes = []
    for answers in ([], port_map_seeds()[:1], port_map_seeds()[:2]):
        mapper = PortMapper(41000, bytes(12))
        mapper.handle_router(Router("192.0.2.254", "192.0.2.9"), now=1.0)
        for answer in answers:
            mapper.handle_datagram(answer, Address("192.0.2.254", pcp.PORT), now=1.1)
        mapper.take_transmits()
        outcomes.append(
            outcome_of(lambda m=mapper: m.handle_datagram(data, Address("192.0.2.254", pcp.PORT), now=1.2))  # type: ignore[misc]
        )
        assert len(mapper.take_transmits()) <= 1
        mapper.handle_timeout(now=100_000.0)
        assert len(mapper.take_transmits()) <= 2
    return max(outcomes)


def port_map_seeds() -> list[bytes]:
    def answer(request: bytes, epoch: int = 9) -> bytes:
        head = struct.pack(">BBxBII12x", 2, 0x80 | request[1], 0, 3600, epoch)
        return head + request[24:]

    return [
        answer(pcp.announce_request(Version.PCP, "192.0.2.9")),
        answer(pcp.map_request(Version.PCP, "192.0.2.9", 41000, 41000, 7200)),
        struct.pack(">BBHI4s", 0, 128, 0, 9, bytes([203, 0, 113, 5])),
        struct.pack(">BBHIHHI", 0, 129, 0, 9, 41000, 41000, 3600),
        struct.pack(">BBHI", 0, 129, 2, 9),
        answer(pcp.announce_request(Version.PCP, "192.0.2.9"), 0),
    ]


# Control messages.


@cache
def network() -> dict[str, Any]:
    """A network's signed things, as its members made them."""
    nodes = make_nodes(Drawer(6))
    first, second = nodes
    membership = second.membership
    record = membership.own_record
    assert record is not None
    identity = membership._keys.identity
    uid = first.roster.uid
    envelope = _envelope_of(nodes)
    leave = identity.sign(DOMAIN_LEAVE, msgspec.msgpack.encode([uid, identity.public, WALL]))
    founder = first.membership._signer
    act = acts.make_act(founder, uid, acts.Kind.EVICT, bytes(32), wall=WALL, subject=identity.public, nick="pbx")
    approval = founder.sign(DOMAIN_APPROVAL, msgspec.msgpack.encode([uid, identity.public, WALL]))
    return {
        "charter": first.roster.signed_charter,
        "record": record,
        "envelope": envelope,
        "leave": leave,
        "approval": approval,
        "act": act,
        "uid": uid,
        "identity": identity,
        "founder": founder,
        "us": first.membership._keys.identity,
        "state": first.roster.export(),
    }


def _envelope_of(nodes: list[Node]) -> Signed:
    second = nodes[1]
    record = second.membership.own_record
    assert record is not None
    return owner.seal_record(second.roster, second.membership._keys.identity, record, entropy=Drawer(8))


def entry() -> MemberEntry:
    parts = network()
    return MemberEntry(parts["identity"].public, "10.1.2.2", parts["envelope"], parts["approval"])


def request_seeds() -> list[bytes]:
    parts = network()
    public = parts["identity"].public
    requests: list[control.Request] = [
        control.Create(rid=1, charter=parts["charter"], identity=public, proof=bytes(64)),
        control.Join(rid=2, locator=bytes(range(32)), identity=public, proof=bytes(64)),
        control.Attach(rid=3, uid=parts["uid"], identity=public, proof=bytes(64)),
        control.PutRecord(rid=4, envelope=parts["envelope"]),
        control.PutCharter(rid=5, charter=parts["charter"], envelopes=[parts["envelope"]]),
        control.PutLeave(rid=6, leave=parts["leave"]),
        control.PutApproval(rid=7, approval=parts["approval"]),
        control.Join(rid=8, locator=parts["uid"], identity=public, proof=bytes(64), approval=parts["approval"]),
        control.Signal(to=public, payload=b"sealed"),
        control.Here(token=1),
    ]
    return [control.encode(request) for request in requests]


def run_request(data: bytes) -> str:
    """The server reads a request and decides it, for a network that exists and for one that does not."""
    try:
        request = control.decode_request(data)
    except MalformedMessage as error:
        return error.reason.value
    if isinstance(request, control.Create | control.Join | control.Attach):
        core.is_proof_valid(request, bytes(32))
    if not isinstance(request, control.Signal | control.Here):
        decide(request)
    return "ok"


def decide(request: core.Answered) -> None:
    parts = network()
    stored = core.StoredEntry(parts["identity"].public, "10.1.2.2", WALL, parts["envelope"])
    document = core.NetworkDoc(parts["charter"], parts["identity"].public, [stored], [])
    for known in (document, None):
        outcome = core.apply(known, request, parts["identity"].public, wall=WALL)
        assert isinstance(outcome.reply, core.Admission) or control.encode(outcome.reply)


def response_seeds() -> list[bytes]:
    parts = network()
    public = parts["identity"].public
    presence = PresenceEntry(public, 5)
    responses: list[control.Response] = [
        welcome(),
        attached(1),
        control.Done(rid=2),
        control.Refused(rid=1, code="evicted", message="no"),
        control.CharterChanged(charter=parts["charter"], members=[entry()]),
        control.MemberChanged(entry=entry()),
        control.MemberLeft(leave=parts["leave"]),
        control.Presence(entry=presence),
        control.Signalled(source=public, payload=bytes(60)),
        control.Ask(token=1),
        control.Goodbye(code="deleted", message="bye"),
    ]
    return [control.encode(response) for response in responses]


def welcome() -> control.Welcome:
    return control.Welcome(
        version=1, nonce=bytes(32), observed_host="192.0.2.9", udp_port=7770, udp_port2=7771, software="test"
    )


def attached(rid: int) -> control.Attached:
    parts = network()
    return control.Attached(
        rid=rid,
        address="10.1.2.1",
        charter=parts["charter"],
        members=[entry()],
        online=[PresenceEntry(parts["identity"].public, 5)],
        relay=RelayGrant(9, bytes(32)),
    )


def run_response(data: bytes) -> str:
    """A node whose server lies, in three states of the connection."""
    opening: list[control.Response] = [welcome(), attached(1)]
    for count in range(3):
        node = node_that_heard(opening[:count])
        before = node.roster.export()
        for message in (data, data):
            node.handle_control_message(message, now=1.1, wall_ns=WALL_NS)
        node.handle_timeout(now=2.0, wall_ns=WALL_NS)
        assert node.roster.export() == before or is_about_members(data)
        plane = DataPlane()
        for command in node.take_commands():
            apply_command(command, plane)
        node.take_transmits()
    session = ControlSession(attach_opening(Identity(bytes(32)), bytes(16)), entropy=Drawer(9))
    return outcome_of(lambda: session.handle_message(data, now=1.0))


def node_that_heard(messages: Sequence[control.Response]) -> Node:
    """A node with peers, connected to its server."""
    node = make_nodes(Drawer(6))[0]
    node.session.handle_start(now=1.0)
    node.handle_connected(["198.51.100.1"], now=1.0, wall_ns=WALL_NS)
    for message in messages:
        node.handle_control_message(control.encode(message), now=1.1, wall_ns=WALL_NS)
    return node


def is_about_members(data: bytes) -> bool:
    """May the message change a roster?"""
    members = control.Attached | control.CharterChanged | control.MemberChanged | control.MemberLeft
    return isinstance(control.decode_response(data), members)


def run_offer(data: bytes) -> str:
    """Candidates as a member seals them, for a node that is attached."""
    node = node_that_heard([welcome(), attached(1)])
    node.handle_start({}, now=1.1, wall_ns=WALL_NS)
    assert node.peers
    before, dropped = node.roster.export(), sum(node.drops.values())
    sealed = fresh_roster().seal_for_members(data, Drawer(8))
    signalled = control.Signalled(source=network()["identity"].public, payload=sealed)
    node.handle_control_message(control.encode(signalled), now=1.2, wall_ns=WALL_NS)
    node.handle_timeout(now=2.0, wall_ns=WALL_NS)
    assert node.roster.export() == before
    return "dropped" if sum(node.drops.values()) > dropped else "ok"


def offer_seeds() -> list[bytes]:
    parts = network()
    offer = candidate.Offer(
        format=1,
        uid=parts["uid"],
        source=parts["identity"].public,
        destination=parts["us"].public,
        sequence=5,
        disco_key=fresh_roster().members[parts["identity"].public].disco_key,
        candidates=[candidate.Candidate(1, "192.0.2.7", 7), candidate.Candidate(4, "2001:db8::1", 8)],
    )
    mapping = NatMapping(PortRule.COUNTED, "192.0.2.7", 40000, 1)
    attempts = [Attempt(9, method, "192.0.2.7", 40001, 1, 20, 30) for method in Method]
    told = [msgspec.structs.replace(offer, nat=mapping, attempt=attempt) for attempt in attempts]
    return [offer.encode(), *(it.encode() for it in told)]


def node_datagram_seeds() -> list[bytes]:
    """What the other node sends it: a handshake, its probes, and what any server does."""
    other = nodes_with_a_session(Drawer(1))[0][1]
    other.handle_rekey_wanted(1, now=121.0, wall_ns=WALL_NS + 2 * 10**9)
    agent = next(iter(other.peers.values())).agent
    probes = (Ping(bytes(12), 1), Pong(bytes(12), PATH.remote, 1, 1, 1))
    sealed = [agent.disco.seal(message, Drawer(2)) for message in probes]
    return [item.data for item in other.take_transmits()] + sealed + stun_seeds()


def run_node_datagram(data: bytes) -> str:
    """Anything on the UDP socket of a node in the middle of its life."""
    nodes, _, _ = nodes_with_a_session(Drawer(1))
    before, dropped = nodes[0].roster.export(), sum(nodes[0].drops.values())
    nodes[0].handle_datagram(data, PATHS[1], now=121.0, wall_ns=WALL_NS)
    nodes[0].handle_timeout(now=122.0, wall_ns=WALL_NS)
    assert nodes[0].roster.export() == before
    return "dropped" if sum(nodes[0].drops.values()) > dropped else "ok"


# Signed things: the bodies are damaged and then signed again, as a member can.


def signed_target(
    name: str,
    domain: bytes,
    check: Callable[[Signed], object],
    use: Callable[[Signed], None],
    signer: str = "identity",
) -> Target:
    """`use` gives it to the machines that take it from who may sign it."""

    def run(data: bytes) -> str:
        identity: Identity = network()[signer]
        resigned = identity.sign(domain, data)
        use(resigned)
        stolen = outcome_of(lambda: check(Signed(data, network()[name].signer, network()[name].signature)))
        assert stolen in DROPS | {"ok"}
        return outcome_of(lambda: check(resigned))

    allowed = PARSE_DROPS | {"bad_signature", "not_for_us", "stale", "ok"}
    return Target(name, run, lambda: [network()[name].body], allowed, is_packed=True)


def use_charter(signed: Signed) -> None:
    for check in (check_genuine, lambda given: check_charter(given, network()["charter"])):
        assert outcome_of(lambda check=check: check(signed)) in DROPS | {"ok"}  # type: ignore[misc]
    change(lambda members: members.handle_charter(signed, [], wall=WALL))
    decide(control.PutCharter(rid=1, charter=signed, envelopes=[]))


def use_record(signed: Signed) -> None:
    """In an envelope that is in order."""
    identity, members = network()["identity"], fresh_roster()
    fields = msgspec.msgpack.decode(network()["envelope"].body)
    fields[-1] = members.seal_for_members(msgspec.msgpack.encode(signed), Drawer(8))
    use_envelope(identity.sign(DOMAIN_ENVELOPE, msgspec.msgpack.encode(fields)))


def use_envelope(signed: Signed) -> None:
    public = network()["identity"].public
    change(lambda members: members.handle_entry(MemberEntry(public, "10.1.2.2", signed), wall=WALL))
    decide(control.PutRecord(rid=1, envelope=signed))


def use_leave(signed: Signed) -> None:
    change(lambda members: members.handle_leave(signed, wall=WALL))
    decide(control.PutLeave(rid=1, leave=signed))


def change(handle: Callable[[Roster], DropReason | None]) -> None:
    """A roster takes it, or is as before."""
    members = fresh_roster()
    before = members.export()
    assert handle(members) is None or members.export() == before


def fresh_roster() -> Roster:
    parts = network()
    return Roster(parts["uid"], parts["us"], parts["state"])


def charter_of() -> Charter:
    return check_genuine(network()["charter"])


def run_signed(data: bytes) -> str:
    return outcome_of(lambda: decode_signed(data))


def use_approval(signed: Signed) -> None:
    change(lambda members: members.handle_approval(signed, wall=WALL))
    decide(control.PutApproval(rid=1, approval=signed))
    join = control.Join(rid=1, locator=network()["uid"], identity=bytes(32), proof=bytes(64), approval=signed)
    decide(join)


def run_act(data: bytes) -> str:
    """An act that an owner signed, in a charter that it signed."""
    parts = network()
    signed = parts["founder"].sign(DOMAIN_ACT, data)
    later = structs.replace(charter_of(), version=99, acts=[signed])
    use_charter(parts["founder"].sign(DOMAIN_CHARTER, msgspec.msgpack.encode(later)))
    return outcome_of(lambda: acts.words_of(acts.decode_act(signed), fresh_roster().open_from_members))


def invited_charter() -> Charter:
    made = invites.make_invite(invites.invite_keys(bytes(16)), b"grant", Drawer(4), uses=1, expires_at=WALL + 9)
    return structs.replace(charter_of(), invites=[made])


def run_invitation(data: bytes) -> str:
    signed = invites.invite_keys(bytes(16)).signer.sign(DOMAIN_INVITATION, data)
    parts, locator = network(), invites.invite_keys(bytes(16)).locator
    join = control.Join(rid=1, locator=locator, identity=bytes(32), proof=bytes(64), invitation=signed)
    charter = parts["founder"].sign(DOMAIN_CHARTER, msgspec.msgpack.encode(invited_charter()))
    core.apply(core.NetworkDoc(charter, bytes(32), [], []), join, bytes(32), wall=WALL)
    return outcome_of(lambda: invites.check_invitation(signed, bytes(32), invited_charter()))


def invitation_seeds() -> list[bytes]:
    return [invites.make_invitation(invites.invite_keys(bytes(16)), bytes(32)).body]


def run_audit(data: bytes) -> str:
    try:
        entries, _, size = audit.read(data)
    except audit.AuditError:
        return "broken"
    for found in entries:
        audit.is_proven(found)
    return "ok" if size == len(data) else "torn"


def audit_seeds() -> list[bytes]:
    events = Roster(network()["uid"], network()["us"], network()["state"])
    events.handle_leave(network()["leave"], wall=WALL)
    chain = audit.Chain()
    return [b"".join(chain.link(event.entry) for event in events.take_events() if isinstance(event, Noted))]


def run_owner_file(data: bytes) -> str:
    """The file, and what is sealed in it."""
    sealed = ownerfile.MAGIC + bytes(16) + seal_secret(bytes(32), data, Drawer(2))
    for file in (data, sealed):
        try:
            ownerfile.open_file(file, bytes(32))
        except ConfigError:
            continue
        return "ok"
    return "refused"


def owner_file_seeds() -> list[bytes]:
    owned = ownerfile.OwnerKey(
        version=1, uid=network()["uid"], name="net", servers=["https://h"], pin=None, seed=network()["founder"].seed
    )
    return [ownerfile.seal(owned, bytes(16), bytes(32), Drawer(1)), msgspec.msgpack.encode(owned)]


# Members among themselves.

FIRST_KEY, SECOND_KEY = b"1" * 32, b"2" * 32
GREETING = gossip_messages.encode(Summary(bytes(NAME), bytes(NAME)))


def run_gossip(data: bytes) -> str:
    """A member says it: as the first thing on a link, after a greeting, and sealed as news."""
    roster = fresh_roster()
    member = next(iter(roster.members.values()))
    gossip = Gossip(roster, [network()["us"].public], lambda: None, entropy=Drawer(3))
    news = gossip_messages.encode(News(seal_secret(roster.epoch_key, data, Drawer(4))))
    reason = None
    for frames in ((data,), (GREETING, data), (GREETING, news)):
        link = gossip.handle_incoming(member.address, now=0.0)
        if link is None:
            return "barred" if reason is None else reason.value
        for frame in frames:
            reason = gossip.handle_frame(link, frame, now=0.0, wall=WALL)
        gossip.take_frames()
    return "none" if reason is None else reason.value


def gossip_seeds() -> list[bytes]:
    parts = network()
    items = [(Kind.RECORD, parts["record"]), (Kind.APPROVAL, parts["approval"]), (Kind.LEAVE, parts["leave"])]
    said = (
        Summary(bytes(NAME), bytes(NAME), bytes(MEMBER_NAME), bytes(2 * MEMBER_NAME)),
        Digest(bytes(3 * NAME), bytes(MEMBER_NAME)),
        Charters([parts["charter"]]),
        Done(),
    )
    return [*(gossip_messages.encode(message) for message in said), gossip_messages.encode_items(items)]


def run_notice(data: bytes) -> str:
    """That another host has our identity, as anybody may claim, and as a peer sealed it."""
    (notice,) = notice_seeds()
    head = notice[: len(clones.NOTICE_MAGIC) + 32]
    claimed = outcome_of(lambda: clones.open_notice(SECOND_KEY, data))
    damaged = outcome_of(lambda: clones.open_notice(SECOND_KEY, head + data))
    return claimed if damaged == "decrypt_failed" else damaged


def notice_seeds() -> list[bytes]:
    return [clones.seal_notice(FIRST_KEY, x25519_public(SECOND_KEY), 1, bytes(16), Drawer(5))]


def run_invite_code(data: bytes) -> str:
    try:
        invites.secret_of(data.decode("utf-8", "replace"))
    except ConfigError:
        return "refused"
    return "ok"


def run_sealed(data: bytes) -> str:
    """What stands sealed in a charter or an offer, opened: grants and candidates."""
    grant = epochs.open_grant(data, bytes(16), 1)
    assert grant is None or len(grant) == 32
    try:
        offer = candidate.decode_offer(data)
    except MalformedMessage as error:
        return error.reason.value
    kept = candidate.usable(offer.candidates, [IPv4Network("10.1.2.0/24")])
    assert all(0 < entry.address.port < 65536 for entry in kept)
    return "ok"


def sealed_seeds() -> list[bytes]:
    offer = candidate.Offer(
        format=1,
        uid=bytes(16),
        source=bytes(32),
        destination=bytes(32),
        sequence=1,
        disco_key=bytes(32),
        candidates=[candidate.Candidate(1, "192.0.2.1", 5), candidate.Candidate(4, "2001:db8::1", 6)],
    )
    return [offer.encode(), msgspec.msgpack.encode([bytes(16), 1, bytes(32)])]


# The local API.

BODIES: list[type[Any]] = [
    ipc.CreateRequest,
    ipc.JoinRequest,
    ipc.LeaveRequest,
    ipc.NetcheckRequest,
    ipc.PeerRequest,
    ipc.EvictRequest,
    ipc.PasswordRequest,
    ipc.InvitedRequest,
    ipc.ImportRequest,
    ipc.ExportRequest,
    ipc.AccessRequest,
    ipc.InviteRequest,
    ipc.RevokeRequest,
    ipc.ReidentifyRequest,
    ipc.AuditView,
    ipc.NickRequest,
    ipc.PingRequest,
    ipc.EventView,
    ipc.Status,
    ipc.ErrorReply,
]


def run_ipc(data: bytes) -> str:
    for kind in BODIES:
        try:
            assert repr(ipc.decode(data, kind))
        except ValueError:
            continue
        return "ok"
    return "malformed"


def ipc_seeds() -> list[bytes]:
    server = ipc.ServerOptions(url="https://192.0.2.1", pin="sha256:00")
    values: list[object] = [
        ipc.CreateRequest(name="net", locator="00" * 32, wrap_key="00" * 32, server=server, pool="10.1.2.0/24"),
        ipc.JoinRequest(name="net", locator="00" * 32, wrap_key="00" * 32, server=server),
        ipc.EvictRequest(peer="pbx", password="new", locator="00" * 32, wrap_key="00" * 32),
        ipc.InvitedRequest(secret="00" * 16, server=server),
        ipc.ImportRequest(file="AAAA", key="00" * 32),
        ipc.ExportRequest(salt="00" * 16, key="00" * 32),
        ipc.InviteRequest(uses=1, ttl=60),
        ipc.PingRequest(peer="pbx", timeout_s=1.5),
        ipc.EventView(at="2026-01-01T00:00:00Z", network="net", kind="server_up", peer=None, detail={"a": "b"}),
        ipc.ErrorReply(code="usage", message="no"),
    ]
    return [msgspec.json.encode(value) for value in values]


HANDSHAKE_DROPS = frozenset(
    {"bad_mac1", "unknown_index", "unknown_peer", "decrypt_failed", "stale_timestamp", "flood", "none"}
)

TARGETS = [
    Target("message", lambda data: outcome_of(lambda: messages.parse(data)), wireguard_seeds, PARSE_DROPS | {"ok"}),
    Target("wireguard", run_wireguard, wireguard_seeds, PARSE_DROPS | HANDSHAKE_DROPS),
    Target("wireguard-macs", run_wireguard_with_macs, wireguard_seeds, PARSE_DROPS | HANDSHAKE_DROPS),
    Target("dataplane", run_dataplane, dataplane_seeds, DROPS | {"ok"}),
    Target("inner-packet", run_inner_packet, inner_seeds, frozenset({"not_ip", "disallowed_source", "ok"})),
    Target("relay", run_relay, relay_seeds, DROPS | {"ok", "none"}),
    Target("stun", run_stun, stun_seeds, PARSE_DROPS | {"ok"}),
    Target(
        "disco",
        lambda data: outcome_of(lambda: boxes()[0].open(data)),
        disco_seeds,
        PARSE_DROPS | {"unknown_peer", "not_for_us", "decrypt_failed", "ok"},
    ),
    Target(
        "port-map",
        run_port_map,
        port_map_seeds,
        PARSE_DROPS | {"unexpected", "not_for_us", "malformed", "none"},
    ),
    Target("disco-message", run_disco_message, disco_message_seeds, PARSE_DROPS | {"ok"}),
    Target("request", run_request, request_seeds, PARSE_DROPS | {"ok"}, is_packed=True),
    Target("response", run_response, response_seeds, PARSE_DROPS | {"unexpected", "none", "ok"}, is_packed=True),
    Target(
        "node-datagram",
        run_node_datagram,
        node_datagram_seeds,
        frozenset({"dropped", "ok"}),
    ),
    Target("offer", run_offer, offer_seeds, frozenset({"dropped", "ok"}), is_packed=True),
    signed_target("charter", DOMAIN_CHARTER, lambda signed: check_charter(signed, None), use_charter, "founder"),
    signed_target("record", DOMAIN_RECORD, lambda signed: check_record(signed, charter_of()), use_record),
    signed_target("envelope", DOMAIN_ENVELOPE, lambda signed: check_envelope(signed, charter_of()), use_envelope),
    signed_target("leave", DOMAIN_LEAVE, lambda signed: check_leave(signed, network()["uid"]), use_leave),
    signed_target(
        "approval", DOMAIN_APPROVAL, lambda signed: check_approval(signed, charter_of()), use_approval, "founder"
    ),
    Target("act", run_act, lambda: [network()["act"].body], PARSE_DROPS | {"ok"}, is_packed=True),
    Target("invitation", run_invitation, invitation_seeds, DROPS | {"ok"}, is_packed=True),
    Target("audit", run_audit, audit_seeds, frozenset({"ok", "torn", "broken"})),
    Target("owner-file", run_owner_file, owner_file_seeds, frozenset({"ok", "refused"})),
    Target("invite-code", run_invite_code, lambda: [invites.code_of(bytes(16)).encode()], frozenset({"ok", "refused"})),
    Target("gossip", run_gossip, gossip_seeds, DROPS | {"none"}, is_packed=True),
    Target("notice", run_notice, notice_seeds, frozenset({"decrypt_failed", "malformed", "ok"})),
    Target(
        "signed",
        run_signed,
        lambda: [msgspec.msgpack.encode(network()["record"])],
        PARSE_DROPS | {"ok"},
        is_packed=True,
    ),
    Target("sealed", run_sealed, sealed_seeds, PARSE_DROPS | {"ok"}, is_packed=True),
    Target("ipc", run_ipc, ipc_seeds, frozenset({"malformed", "ok"})),
]
