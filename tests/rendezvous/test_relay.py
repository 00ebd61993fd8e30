from __future__ import annotations

import os

from meshvpn.proto import stun
from meshvpn.proto.control import RelayGrant
from meshvpn.proto.drops import DropReason
from meshvpn.proto.transport import Address, RelayHop
from rendezvous.limits import Limits
from rendezvous.relay import Relay

HERE, THERE, ELSEWHERE = Address("192.0.2.1", 1), Address("192.0.2.2", 2), Address("192.0.2.3", 3)
NETWORK, OTHER_NETWORK = b"n" * 16, b"o" * 16


def test_bound_members_of_one_network_reach_each_other() -> None:
    relay, ours, theirs = bound_pair()
    frame = RelayHop(ours.id, theirs.id).header() + b"sealed"
    forward = relay.handle_datagram(frame, HERE, 0, now=1.0)
    assert forward is not None
    assert (forward.to, forward.data) == (THERE, frame)


def test_a_frame_from_another_address_is_not_relayed() -> None:
    relay, ours, theirs = bound_pair()
    frame = RelayHop(ours.id, theirs.id).header() + b"sealed"
    assert relay.handle_datagram(frame, ELSEWHERE, 0, now=1.0) is None
    assert relay.drops == {DropReason.DISALLOWED_SOURCE: 1}


def test_nothing_crosses_from_one_network_to_another() -> None:
    relay, ours, _ = bound_pair()
    stranger = relay.grant(OTHER_NETWORK, b"s" * 32)
    bind(relay, stranger, ELSEWHERE)
    frame = RelayHop(ours.id, stranger.id).header() + b"sealed"
    assert relay.handle_datagram(frame, HERE, 0, now=1.0) is None


def test_a_binding_request_played_back_from_elsewhere_moves_nothing() -> None:
    relay, ours, theirs = bound_pair()
    replayed = request(ours, 1)
    relay.handle_datagram(replayed, ELSEWHERE, 0, now=1.0)
    assert relay.drops == {DropReason.REPLAYED: 1}
    frame = RelayHop(theirs.id, ours.id).header() + b"sealed"
    forward = relay.handle_datagram(frame, THERE, 0, now=1.0)
    assert forward is not None
    assert forward.to == HERE


def test_an_evicted_member_loses_its_seat_even_if_its_connection_is_gone() -> None:
    relay, ours, theirs = bound_pair()
    relay.release(ours.id, now=0.5)
    relay.evict(NETWORK, b"a" * 32)
    frame = RelayHop(ours.id, theirs.id).header() + b"sealed"
    assert relay.handle_datagram(frame, HERE, 0, now=1.0) is None
    assert len(relay) == 1


def test_a_released_seat_outlives_its_connection_only_for_a_while() -> None:
    relay, ours, _ = bound_pair()
    relay.release(ours.id, now=1.0)
    relay.handle_timeout(now=100.0)
    assert len(relay) == 2
    relay.handle_timeout(now=200.0)
    assert len(relay) == 1


def bound_pair() -> tuple[Relay, RelayGrant, RelayGrant]:
    relay = Relay(Limits(), entropy=os.urandom)
    ours, theirs = relay.grant(NETWORK, b"a" * 32), relay.grant(NETWORK, b"b" * 32)
    bind(relay, ours, HERE)
    bind(relay, theirs, THERE)
    return relay, ours, theirs


def bind(relay: Relay, grant: RelayGrant, address: Address) -> None:
    assert relay.handle_datagram(request(grant, 1), address, 0, now=0.0) is not None


def request(grant: RelayGrant, counter: int) -> bytes:
    username = stun.relay_username(grant.id, counter)
    return stun.binding_request(b"t" * 12, username=username, key=grant.key)
