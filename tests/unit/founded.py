"""A network of a few members, as each has it on its disk: what tests of rosters, owners and nodes start from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network

from meshvpn.proto import control, disco, owner
from meshvpn.proto.control import Attached, MemberEntry, PresenceEntry, RelayGrant, Welcome
from meshvpn.proto.control_session import ControlSession, attach_opening
from meshvpn.proto.keys import Identity, NetworkKeys, network_uid
from meshvpn.proto.membership import MemberKeys, Profile
from meshvpn.proto.node import Node
from meshvpn.proto.primitives import x25519_public
from meshvpn.proto.roster import Roster, RosterState
from meshvpn.proto.signed import Signed

KEYS = NetworkKeys(b"L" * 32, b"W" * 32)
OTHER_KEYS = NetworkKeys(b"M" * 32, b"X" * 32)
POOL = IPv4Network("10.1.0.0/16")
WALL = 1_700_000_000
WALL_NS = WALL * 10**9


@dataclass
class Founded:
    """Member 0 founded it and has the owner key."""

    owner: Identity
    identities: list[Identity]
    tunnel_keys: list[bytes]
    disco_keys: list[bytes]
    addresses: list[str]
    records: list[Signed]
    entries: list[MemberEntry]
    state: RosterState
    """Of who has just joined and knows nobody yet."""
    charter: Signed
    entropy: Callable[[int], bytes]

    @property
    def uid(self) -> bytes:
        return network_uid(self.owner.public)

    def roster(self, number: int) -> Roster:
        roster = Roster(self.uid, self.identities[number], self.state)
        roster.handle_charter(self.charter, self.entries, wall=WALL)
        roster.take_events()
        return roster

    def node(self, number: int) -> Node:
        """A node that has not been started."""
        identity = self.identities[number]
        return Node(
            keys=MemberKeys(
                identity, self.tunnel_keys[number], self.disco_keys[number], self.owner if number == 0 else None
            ),
            profile=Profile(self.addresses[number], f"pbx{number}", "test", WALL),
            roster=self.roster(number),
            session=ControlSession(attach_opening(identity, self.uid), entropy=self.entropy),
            own_record=self.records[number],
            entropy=self.entropy,
        )

    def attach(self, node: Node, *, now: float, online: bool = True) -> None:
        """The server lets it in; the others are online or not."""
        own = node.membership.profile.address
        others = [entry for entry in self.entries if entry.address != own]
        presences = [PresenceEntry(entry.identity, number + 1) for number, entry in enumerate(others)] if online else []
        node.handle_connected(["198.51.100.1"], now=now, wall_ns=WALL_NS)
        welcome = Welcome(version=1, nonce=bytes(32), observed_host="", udp_port=1, udp_port2=2, software="")
        hear(node, welcome, now=now)
        attached = Attached(
            rid=node.session._opening_rid,
            address=own,
            charter=self.charter,
            members=self.entries,
            online=presences,
            relay=RelayGrant(5, bytes(32)),
        )
        hear(node, attached, now=now)


def found(count: int, *, access: str = "open") -> Founded:
    """A network of `count` members who all know each other."""
    entropy = random.Random(f"founded {count}").randbytes
    network_owner, identities = Identity(entropy(32)), [Identity(entropy(32)) for _ in range(count)]
    state = owner.found_network("net", KEYS, POOL, network_owner, identities[0], entropy=entropy, wall=WALL)
    made = Founded(
        network_owner,
        identities,
        [entropy(32) for _ in identities],
        [entropy(32) for _ in identities],
        [f"10.1.{number // 250}.{number % 250 + 1}" for number in range(count)],
        [],
        [],
        state,
        state.charter,
        entropy,
    )
    signer = Roster(made.uid, identities[0], state)
    for number, identity in enumerate(identities):
        own = owner.make_record(
            signer,
            identity,
            address=made.addresses[number],
            nick=f"pbx{number}",
            tunnel_key=x25519_public(made.tunnel_keys[number]),
            disco_key=disco.public_key(made.disco_keys[number]),
            joined_at=WALL,
            sequence=WALL,
            software="test",
            entropy=entropy,
        )
        made.records.append(own.record)
        made.entries.append(MemberEntry(identity.public, made.addresses[number], own.envelope))
    if access != "open":
        made.charter = owner.set_access(signer, network_owner, access, wall=WALL).charter
    return made


def hear(node: Node, message: control.Response, *, now: float) -> None:
    """The server says something."""
    node.handle_control_message(control.encode(message), now=now, wall_ns=WALL_NS)
