"""No object of ours shows a key: neither in its repr nor in an exception.

Two nodes with a session between them, their data planes, a relay and the API's requests are walked object by object;
whatever was drawn as a key, given as one or derived is looked for in every text.
"""

from __future__ import annotations

import gc
import random
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network
from types import FunctionType, ModuleType

import pytest

from meshvpn import ipc
from meshvpn.proto import admission, keys, owner, primitives
from meshvpn.proto.commands import AddPeer, InstallKeypair, apply
from meshvpn.proto.control import MemberEntry
from meshvpn.proto.control_session import ControlSession, attach_opening
from meshvpn.proto.dataplane import DataPlane
from meshvpn.proto.disco import DiscoBox
from meshvpn.proto.errors import ConfigError
from meshvpn.proto.keys import Identity, NetworkKeys
from meshvpn.proto.membership import MemberKeys, Profile
from meshvpn.proto.node import START_GRACE, Node
from meshvpn.proto.noise import Initiator, Responder
from meshvpn.proto.peer import LastKnown
from meshvpn.proto.roster import Roster
from meshvpn.proto.transport import Address, Path
from meshvpn.proto.wireguard import WireGuard
from rendezvous.limits import Limits
from rendezvous.relay import Relay

WALL = 1_700_000_000
PATHS = [Path(0, Address("192.0.2.1", 1000)), Path(0, Address("192.0.2.2", 1000))]
LOCATOR = bytes(range(32))
"""Stands in the public part of the charter."""
PACKAGES = ("meshvpn", "rendezvous", "tun")


class Drawer:
    """Randomness that remembers what it gave: every 32 bytes of it are somebody's key."""

    def __init__(self, seed: int) -> None:
        self.secrets: list[bytes] = []
        self._random = random.Random(seed)

    def __call__(self, size: int) -> bytes:
        value = self._random.randbytes(size)
        if size == 32:
            self.secrets.append(value)
        return value


@pytest.fixture(scope="module")
def drawer() -> Drawer:
    return Drawer(1)


@pytest.fixture(scope="module")
def live(drawer: Drawer) -> list[object]:
    """Everything there is, in the middle of its life."""
    nodes, planes, install = nodes_with_a_session(drawer)
    for event in install:
        drawer.secrets += [event.send_key, event.receive_key]
    for node in nodes:
        drawer.secrets += node._peering._wireguard._peers[1].preshared_keys
    relay = Relay(Limits(), entropy=drawer)
    grant = relay.grant(bytes(16), bytes(32))
    return [nodes, planes, install, relay, grant, requests(drawer), ends_of_a_handshake(drawer)]


def test_nothing_that_is_alive_shows_a_key_in_its_text(live: list[object], drawer: Drawer) -> None:
    kinds = set()
    for thing in ours(live):
        kinds.add(type(thing).__name__)
        assert not shown(drawer.secrets, [repr(thing), str(thing), f"{thing}"]), type(thing)
    # The walk went where the keys are.
    assert kinds >= {
        *("Node", "Roster", "EpochKey", "MemberKeys", "Identity", "WireGuard", "_Peer", "_Attempt", "Initiator"),
        *("_Symmetric", "CookieChecker", "CookieJar", "InstallKeypair", "_Keypair", "DiscoBox", "_Seat", "RelayGrant"),
        *("CreateRequest", "JoinRequest", "EvictRequest", "PasswordRequest", "Responder", "NetworkKeys"),
    }


def test_the_search_would_find_a_key(drawer: Drawer) -> None:
    secret = drawer.secrets[0]
    for text in (repr(secret), f"x {secret.hex()} y", b64encode(secret).decode(), str([secret, 1])):
        assert shown([secret], [text])


SHORT, LONG = b"SECRET" * 5, b"SECRET" * 6
MISUSES: dict[str, Callable[[], object]] = {
    "a seed that is too short": lambda: Identity(SHORT),
    "a private key that is too short": lambda: primitives.x25519_public(SHORT),
    "a private key that is too long": lambda: primitives.x25519(LONG, bytes(32)),
    "a static key that is too short": lambda: WireGuard(SHORT, entropy=bytes),
    "an ephemeral that is too short": lambda: Initiator(bytes([1]) * 32, bytes([9]) * 32, SHORT).write_message(b""),
    "a responder's key that is too long": lambda: Responder(LONG),
    "an AEAD key that is too short": lambda: primitives.aead_encrypt(SHORT, 0, b"", b""),
    "an AEAD key that is too long": lambda: primitives.aead_encrypt(LONG, 0, b"", b""),
    "an extended AEAD's key that is too short": lambda: primitives.xaead_encrypt(SHORT, bytes(24), b"", b""),
    "a secretbox key that is too short": lambda: keys.seal_secret(SHORT, b"", bytes),
    "a secretbox key that is too long": lambda: keys.seal_secret(LONG, b"", bytes),
    "an epoch key that is too long for BLAKE2b": lambda: keys.pair_psk(b"SECRET" * 11, bytes(32), bytes(32)),
    "a disco key that is too short": lambda: DiscoBox(SHORT, bytes([9]) * 32),
    "a password that is too long": lambda: keys.derive_network_keys("net", "SECRET" * 200),
    "a password that is no text": lambda: keys.derive_network_keys("net", "SECRET\udcff"),
    "keys that are no hexadecimal": lambda: bytes.fromhex("SECRET"),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_an_exception_does_not_carry_the_key_that_caused_it(misuse: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError, ConfigError)) as caught:
        misuse()
    chain: list[BaseException] = [caught.value]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for error in chain:
        assert "SECRET" not in f"{error} {error!r} {error.args}"
        assert "SECRET" not in "".join(traceback.format_exception_only(error))


# The living.


def nodes_with_a_session(drawer: Drawer) -> tuple[list[Node], list[DataPlane], list[InstallKeypair]]:
    nodes = make_nodes(drawer)
    planes = [DataPlane(), DataPlane()]
    install: list[InstallKeypair] = []
    for node, other, path in zip(nodes, reversed(nodes), reversed(PATHS), strict=True):
        identity = other.membership._keys.identity.public
        node.handle_start({identity: LastKnown(path)}, now=1.0 - START_GRACE, wall_ns=WALL * 10**9)
    # The server does not answer; the first to come up finds the other.
    nodes[1].handle_timeout(now=1.0, wall_ns=WALL * 10**9)
    nodes[1].take_transmits()
    nodes[0].handle_timeout(now=1.0, wall_ns=WALL * 10**9)
    for sender, receiver, path in ((0, 1, PATHS[0]), (1, 0, PATHS[1])):
        for transmit in nodes[sender].take_transmits():
            nodes[receiver].handle_datagram(transmit.data, path, now=1.1, wall_ns=WALL * 10**9)
    for node, plane in zip(nodes, planes, strict=True):
        for command in node.take_commands():
            apply(command, plane)
            install += [command] if isinstance(command, InstallKeypair) else []
            assert not isinstance(command, AddPeer) or command.peer == 1
    answer = next(event for event in install if not event.is_initiator)
    nodes[1].handle_keypair_confirmed(1, answer.local_index, now=1.2, wall_ns=WALL * 10**9)
    nodes[0].handle_rekey_wanted(1, now=120.0, wall_ns=(WALL + 120) * 10**9)
    assert len(install) == 2
    return nodes, planes, install


def make_nodes(drawer: Drawer) -> list[Node]:
    network = NetworkKeys(LOCATOR, drawer(32))
    founder = Identity(drawer(32))
    members = [MemberKeys(Identity(drawer(32)), drawer(32), drawer(32), who) for who in (founder, None)]
    state = owner.found_network(
        "net", network, IPv4Network("10.1.2.0/24"), founder, members[0].identity, entropy=drawer, wall=WALL
    )
    states = [state, admission.by_password(state.charter, network)]
    uid = keys.network_uid(founder.public)
    rosters = [Roster(uid, who.identity, at) for who, at in zip(members, states, strict=True)]
    profiles = [Profile(f"10.1.2.{number}", f"pbx{number}", "test", WALL) for number in (1, 2)]
    records = [
        owner.make_record(
            roster,
            who.identity,
            address=profile.address,
            nick=profile.nick,
            tunnel_key=primitives.x25519_public(who.tunnel),
            disco_key=primitives.x25519_public(who.disco),
            joined_at=WALL,
            sequence=1,
            software="test",
            entropy=drawer,
        )
        for roster, who, profile in zip(rosters, members, profiles, strict=True)
    ]
    entries = [
        MemberEntry(who.identity.public, profile.address, record.envelope)
        for who, profile, record in zip(members, profiles, records, strict=True)
    ]
    nodes = []
    for who, profile, roster, record in zip(members, profiles, rosters, records, strict=True):
        roster.handle_charter(state.charter, entries, wall=WALL)
        session = ControlSession(attach_opening(who.identity, uid), entropy=drawer)
        nodes.append(
            Node(keys=who, profile=profile, roster=roster, session=session, own_record=record.record, entropy=drawer)
        )
    return nodes


def requests(drawer: Drawer) -> list[object]:
    network = NetworkKeys(drawer(32), drawer(32))
    locator, wrap_key = network.locator.hex(), network.wrap_key.hex()
    server = ipc.ServerOptions(url="https://192.0.2.1")
    return [
        network,
        ipc.CreateRequest(name="net", locator=locator, wrap_key=wrap_key, server=server),
        ipc.JoinRequest(name="net", locator=locator, wrap_key=wrap_key, server=server),
        ipc.EvictRequest(peer="pbx2", password="new", locator=locator, wrap_key=wrap_key),
        ipc.PasswordRequest(name="net", locator=locator, wrap_key=wrap_key),
    ]


def ends_of_a_handshake(drawer: Drawer) -> list[object]:
    static = drawer(32)
    initiator = Initiator(drawer(32), primitives.x25519_public(static), drawer(32))
    responder = Responder(static)
    responder.read_message(initiator.write_message(b""))
    message, theirs = responder.write_message(b"", drawer(32), psk := drawer(32))
    _, ours_ = initiator.read_message(message, psk)
    for state in (initiator._state, responder._state):
        drawer.secrets += [state.chaining_key, state.key]
    drawer.secrets += [theirs.send, theirs.receive]
    return [initiator, responder, theirs, ours_]


# The search.


def ours(roots: object) -> Iterator[object]:
    """Every object of our own classes that can be reached."""
    seen: set[int] = set()
    waiting = [roots]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType, str, bytes)):
            continue
        seen.add(id(thing))
        if type(thing).__module__.partition(".")[0] in PACKAGES:
            yield thing
        waiting += gc.get_referents(thing)


def shown(secrets: Iterable[bytes], texts: list[str]) -> list[str]:
    return [
        text
        for secret in secrets
        for form in (repr(secret)[2:-1], secret.hex(), b64encode(secret).decode())
        for text in texts
        if form in text
    ]
