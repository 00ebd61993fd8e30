"""A server that lies and a member that attacks: what they say is dropped by name, and the others go on undisturbed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest

from meshvpn.proto import control, disco, owner
from meshvpn.proto.control import (
    Attached,
    CharterChanged,
    Goodbye,
    MemberChanged,
    MemberEntry,
    MemberLeft,
    Presence,
    PresenceEntry,
    Signalled,
)
from meshvpn.proto.control_session import SessionState
from meshvpn.proto.disco import DiscoBox, Ping
from meshvpn.proto.drops import DropReason
from meshvpn.proto.keys import Identity
from meshvpn.proto.owner import PasswordRule
from meshvpn.proto.roster import Roster
from meshvpn.proto.signed import Signed
from meshvpn.proto.transport import Path
from rendezvous.core import NetworkDoc

from .member import Member
from .mesh import NEW_KEYS, Mesh, assert_untouched
from .world import PORT_RESTRICTED

THREE = (PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED)


@pytest.fixture
def mesh() -> Mesh:
    made = Mesh()
    made.found(*THREE)
    return made


def test_a_server_that_plays_back_an_older_charter_brings_nobody_back(mesh: Mesh) -> None:
    a, b, c = mesh.members.values()
    old = mesh.rendezvous.stored(uid(a)).document
    a.act(lambda node, now, wall_ns: node.evict("c", PasswordRule.KEEP, now=now, wall_ns=wall_ns))
    mesh.run(1.0)
    before = b.roster.export()
    mesh.rendezvous.roll_back(uid(a), old)
    say(mesh, b, CharterChanged(charter=old.charter, members=entries(old)))
    assert drops(b)[DropReason.STALE] == 1
    mesh.rendezvous.cut(b.wire)  # type: ignore[arg-type]
    mesh.run(5.0)
    assert b.roster.export() == before
    assert b.peer(c) is None
    assert mesh.reaches(a, b)


def test_a_server_cannot_insert_a_member(mesh: Mesh) -> None:
    a, b, c = mesh.members.values()
    stranger = Identity(bytes(31) + b"s")
    theirs = entry_of(mesh.rendezvous.stored(uid(a)).document, c).envelope
    assert theirs is not None
    envelope = Signed(theirs.body, stranger.public, b"")
    forged = owner.make_record(
        make_foreign_roster(stranger),
        stranger,
        address="10.77.0.9",
        nick="spy",
        tunnel_key=disco.public_key(bytes(31) + b"t"),
        disco_key=disco.public_key(bytes(31) + b"d"),
        joined_at=1,
        sequence=1,
        software="",
        entropy=random.Random(1).randbytes,
    )
    for entry in (
        MemberEntry(stranger.public, "10.77.0.9"),
        MemberEntry(stranger.public, "10.77.0.9", envelope),
        MemberEntry(stranger.public, "10.77.0.9", forged.envelope),
    ):
        say(mesh, b, MemberChanged(entry=entry))
    assert {member.nick for member in b.roster.members.values()} == {"a", "c"}
    assert (drops(b)[DropReason.NOT_FOR_US], drops(b)[DropReason.BAD_SIGNATURE]) == (1, 1)


def test_a_server_cannot_swap_addresses_or_records(mesh: Mesh) -> None:
    a, b, c = mesh.members.values()
    document = mesh.rendezvous.stored(uid(a)).document
    theirs, ours = entry_of(document, c), entry_of(document, a)
    before = b.roster.export()
    for entry in (
        MemberEntry(c.identity.public, a.address, theirs.envelope),
        MemberEntry(c.identity.public, "10.77.0.99", theirs.envelope),
        MemberEntry(c.identity.public, a.address, ours.envelope),
    ):
        say(mesh, b, MemberChanged(entry=entry))
    assert drops(b)[DropReason.NOT_FOR_US] == 3
    assert b.roster.export() == before


def test_a_server_that_gives_us_another_address_is_not_believed(mesh: Mesh) -> None:
    a, b, _ = mesh.members.values()
    address = b.address

    def tamper(message: control.Response) -> list[control.Response]:
        is_ours = isinstance(message, Attached)
        return [msgspec.structs.replace(message, address="10.77.0.200") if is_ours else message]

    mesh.rendezvous.tamper = tamper
    mesh.rendezvous.cut(b.wire)  # type: ignore[arg-type]
    mesh.run(3.0)
    assert b.node is not None
    assert b.node.session.is_attached
    assert b.node.membership.profile.address == b.address == address
    assert mesh.reaches(a, b)


def test_a_server_that_is_silent_about_a_member_removes_nobody(mesh: Mesh) -> None:
    a, b, c = mesh.members.values()
    stream = mesh.stream(b, c)
    document = mesh.rendezvous.stored(uid(a)).document
    say(mesh, b, CharterChanged(charter=document.charter, members=[]))
    say(mesh, b, Presence(entry=PresenceEntry(c.identity.public, 0)))
    mesh.run(10.0)
    mesh.stop_streams()
    assert not stream.lost


def test_a_farewell_counts_only_with_the_signature_of_who_leaves(mesh: Mesh) -> None:
    a, b, c = mesh.members.values()
    leave = owner.make_leave(uid(a), c.identity, wall=2_000_000_000)
    forged = Signed(leave.body, a.identity.public, a.identity.sign(b"meshvpn leave v1\0", leave.body).signature)
    for message in (forged, Signed(leave.body, leave.signer, bytes(64))):
        say(mesh, b, MemberLeft(leave=message))
    assert drops(b)[DropReason.BAD_SIGNATURE] == 2
    assert b.peer(c) is not None


def test_a_server_that_says_we_are_out_ends_no_call(mesh: Mesh) -> None:
    a, b, _ = mesh.members.values()
    streams = [mesh.stream(a, b), mesh.stream(b, a)]
    for code in ("evicted", "deleted", "nonsense"):
        say(mesh, b, Goodbye(code=code, message=""))
    mesh.rendezvous.cut(b.wire)  # type: ignore[arg-type]
    mesh.run(5.0)
    mesh.stop_streams()
    assert_untouched(streams)


def test_messages_out_of_turn_and_rubbish_change_nothing(mesh: Mesh) -> None:
    a, b, c = mesh.members.values()
    before, rng = b.roster.export(), random.Random(1)
    kinds: list[Callable[[], bytes]] = [
        lambda: rng.randbytes(rng.randrange(200)),
        lambda: control.encode(control.Done(rid=rng.randrange(100))),
        lambda: control.encode(control.Refused(rid=rng.randrange(100), code="evicted", message="x")),
        lambda: control.encode(Signalled(source=c.identity.public, payload=rng.randbytes(100))),
        lambda: control.encode(Signalled(source=rng.randbytes(32), payload=rng.randbytes(100))),
        lambda: control.encode(Presence(entry=PresenceEntry(rng.randbytes(rng.randrange(64)), rng.randrange(2**32)))),
        lambda: control.encode(MemberLeft(leave=Signed(rng.randbytes(50), c.identity.public, rng.randbytes(64)))),
        lambda: control.encode(
            CharterChanged(charter=Signed(rng.randbytes(90), a.identity.public, rng.randbytes(64)), members=[])
        ),
    ]
    assert b.node is not None
    for _ in range(3000):
        b.node.handle_control_message(rng.choice(kinds)(), now=mesh.network.now, wall_ns=1)
    b.host.drain()
    mesh.run(1.0)
    assert b.roster.export() == before
    assert b.node.session.state is SessionState.ATTACHED
    assert mesh.reaches(a, b)
    assert mesh.reaches(b, c)


def test_rubbish_and_replays_from_the_network_disturb_no_call(mesh: Mesh) -> None:
    a, b, _ = mesh.members.values()
    seen: list[bytes] = []
    mesh.network.observers.append(lambda packet, _outcome: seen.append(packet.data))
    streams = [mesh.stream(a, b), mesh.stream(b, a)]
    mesh.run(2.0)
    mesh.network.observers.clear()
    rng, path = random.Random(2), b.peer(a).agent.primary  # type: ignore[union-attr]
    assert path is not None
    recorded = seen[-400:]
    for data in recorded:
        damaged = bytearray(data)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        for attack in (data, bytes(damaged), data[: rng.randrange(len(data))], data + b"\0"):
            for way in (path, Path(0, path.remote)):
                b.handle_datagram(attack, way, now=mesh.network.now)
                b.host.drain()
    mesh.run(2.0)
    mesh.stop_streams()
    assert_untouched(streams)
    # By the second name if the peer was heard on another path before.
    assert sum(b.plane.drops().get(name, 0) for name in ("replayed", "second_copy")) > 100


def test_a_member_cannot_take_anothers_place_by_its_address_tunnel_key_or_disco_key(mesh: Mesh) -> None:
    a, b, c = mesh.members.values()
    streams = [mesh.stream(a, b), mesh.stream(b, a)]
    victim = a.roster.members[b.identity.public]
    attacks: list[dict[str, str | bytes]] = [
        {"address": victim.address},
        {"tunnel_key": victim.tunnel_key},
        {"disco_key": victim.disco_key},
    ]
    for number, attack in enumerate(attacks):
        say(mesh, a, MemberChanged(entry=hostile_record(c, number, attack)))
    assert drops(a)[DropReason.UNEXPECTED] + drops(a)[DropReason.NOT_FOR_US] >= len(attacks)
    mesh.run(10.0)
    mesh.stop_streams()
    assert_untouched(streams)
    assert a.is_direct(b)


def test_a_member_that_floods_another_with_valid_probes_and_offers_disturbs_no_call(mesh: Mesh) -> None:
    a, b, c = mesh.members.values()
    streams = [mesh.stream(a, b), mesh.stream(b, a)]
    assert c.node is not None
    box = DiscoBox(c.node._keys.disco, a_disco_key(c, b))
    rng, path = random.Random(3), b.peer(a).agent.primary  # type: ignore[union-attr]
    assert path is not None
    for number in range(1000):
        elsewhere = Path(0, type(path.remote)("203.0.113.9", 1024 + number))
        b.handle_datagram(box.seal(Ping(rng.randbytes(12), number), rng.randbytes), elsewhere, now=mesh.network.now)
        b.host.drain()
    mesh.run(5.0)
    mesh.stop_streams()
    assert_untouched(streams)
    assert len(b.peer(c).agent.table.probes) < 20  # type: ignore[union-attr]


def uid(member: Member) -> bytes:
    assert member.saved is not None
    return member.saved.uid


def say(mesh: Mesh, member: Member, message: control.Response) -> None:
    """The server says it of its own accord."""
    assert member.wire is not None
    member.wire.send(control.encode(message))
    mesh.run(0.1)


def entries(document: NetworkDoc) -> list[MemberEntry]:
    """The members as the server hands them out."""
    return [MemberEntry(it.identity, it.address, it.envelope, it.approval) for it in document.members]


def entry_of(document: NetworkDoc, member: Member) -> MemberEntry:
    return next(entry for entry in entries(document) if entry.identity == member.identity.public)


def drops(member: Member) -> Counter[DropReason]:
    assert member.node is not None
    return member.node.drops


def make_foreign_roster(stranger: Identity) -> Roster:
    """Of a network that the stranger founded for itself."""
    mesh = Mesh(99)
    other = mesh.add_member("other")
    other.identity = stranger
    other.create(NEW_KEYS)
    mesh.run(1.0)
    return other.roster


def hostile_record(member: Member, number: int, claims: dict[str, str | bytes]) -> MemberEntry:
    """What a member that obeys no rule signs of itself."""
    own: dict[str, str | bytes] = {
        "address": member.address,
        "tunnel_key": disco.public_key(bytes(31) + b"t"),
        "disco_key": disco.public_key(bytes(31) + b"d"),
    }
    facts = {**own, **claims}
    made = owner.make_record(
        member.roster,
        member.identity,
        address=str(facts["address"]),
        nick="c",
        tunnel_key=bytes(facts["tunnel_key"]),  # type: ignore[arg-type]
        disco_key=bytes(facts["disco_key"]),  # type: ignore[arg-type]
        joined_at=2_000_000_000,
        sequence=2_000_000_000 + number,
        software="",
        entropy=random.Random(number).randbytes,
    )
    return MemberEntry(member.identity.public, str(facts["address"]), made.envelope)


def a_disco_key(member: Member, other: Member) -> bytes:
    return member.roster.members[other.identity.public].disco_key
