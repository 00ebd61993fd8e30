"""STUN and the relay of last resort: who may send what to whom, and what it costs a victim of forged addresses."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import stun
from meshvpn.proto.control import RELAY_BINDING_LIFETIME, RelayGrant
from meshvpn.proto.drops import DropReason
from meshvpn.proto.transport import Address, RelayHop
from rendezvous import relay as relay_module
from rendezvous.limits import Limits
from rendezvous.relay import MAX_SEATS_PER_MEMBER, Forward, Relay, SeatMoved

HERE, THERE, ELSEWHERE = Address("192.0.2.1", 1), Address("192.0.2.2", 2), Address("192.0.2.3", 3)
NETWORK, OTHER_NETWORK = b"n" * 16, b"o" * 16


def test_bound_members_of_one_network_reach_each_other() -> None:
    relay, ours, theirs = bound_pair()
    data = frame(ours, theirs)
    assert relay.handle_datagram(data, HERE, 0, now=1.0) == Forward(0, THERE, data)


def test_a_frame_from_another_address_is_not_relayed() -> None:
    relay, ours, theirs = bound_pair()
    assert relay.handle_datagram(frame(ours, theirs), ELSEWHERE, 0, now=1.0) is None
    assert relay.drops == {DropReason.DISALLOWED_SOURCE: 1}


def test_nothing_crosses_from_one_network_to_another() -> None:
    relay, ours, _ = bound_pair()
    stranger = relay.grant(OTHER_NETWORK, b"s" * 32)
    bind(relay, stranger, ELSEWHERE)
    assert relay.handle_datagram(frame(ours, stranger), HERE, 0, now=1.0) is None


def test_a_binding_request_played_back_from_elsewhere_moves_nothing() -> None:
    relay, ours, theirs = bound_pair()
    replayed = request(ours, 1)
    relay.handle_datagram(replayed, ELSEWHERE, 0, now=1.0)
    assert relay.drops == {DropReason.REPLAYED: 1}
    forward = relay.handle_datagram(frame(theirs, ours), THERE, 0, now=1.0)
    assert forward is not None
    assert forward.to == HERE


def test_who_asks_for_it_is_answered_from_the_other_port() -> None:
    relay = Relay(Limits(), entropy=random.Random(1).randbytes, twins={0: 1, 1: 0})
    plain, other = stun.binding_request(bytes(12)), stun.binding_request(bytes(12), other_port=True)
    answers = [relay.handle_datagram(data, HERE, socket, now=0.0) for data in (plain, other) for socket in (0, 1, 2)]
    assert [answer.socket for answer in answers if answer is not None] == [0, 1, 2, 1, 0, 2]
    assert {answer.data for answer in answers if answer is not None} == {stun.binding_success(bytes(12), HERE)}


def test_who_forwards_elsewhere_is_told_each_move_once() -> None:
    relay, ours, theirs = bound_pair()
    here, there = SeatMoved(ours.id, ours.id, NETWORK, 0, HERE), SeatMoved(theirs.id, theirs.id, NETWORK, 0, THERE)
    assert relay.take_moves() == [here, there]
    relay.handle_datagram(request(ours, 2), HERE, 0, now=1.0)
    assert relay.take_moves() == []
    relay.handle_datagram(request(ours, 3), ELSEWHERE, 1, now=2.0)
    assert relay.take_moves() == [replace(here, socket=1, address=ELSEWHERE)]
    relay.evict(NETWORK, b"a" * 32)
    assert relay.take_moves() == [replace(here, socket=-1, address=None)]
    relay.handle_timeout(now=RELAY_BINDING_LIFETIME + 1)
    assert relay.take_moves() == [replace(there, socket=-1, address=None)]
    relay.handle_timeout(now=RELAY_BINDING_LIFETIME + 2)
    assert relay.take_moves() == []


def test_a_members_later_seats_are_told_with_its_oldest() -> None:
    relay, ours, _ = bound_pair()
    again = relay.grant(NETWORK, b"a" * 32)
    bind(relay, again, ELSEWHERE)
    assert relay.take_moves()[-1] == SeatMoved(again.id, ours.id, NETWORK, 0, ELSEWHERE)


def test_an_evicted_member_loses_its_seat_even_if_its_connection_is_gone() -> None:
    relay, ours, theirs = bound_pair()
    relay.release(ours.id, now=0.5)
    relay.evict(NETWORK, b"a" * 32)
    assert relay.handle_datagram(frame(ours, theirs), HERE, 0, now=1.0) is None
    assert len(relay) == 1


def test_a_released_seat_outlives_its_connection_only_for_a_while() -> None:
    relay, ours, _ = bound_pair()
    relay.release(ours.id, now=1.0)
    relay.handle_timeout(now=100.0)
    assert len(relay) == 2
    relay.handle_timeout(now=200.0)
    assert len(relay) == 1


def test_a_member_that_is_not_bound_yet_is_not_relayed_to() -> None:
    relay, ours, _ = bound_pair()
    unbound = relay.grant(NETWORK, b"c" * 32)
    assert relay.handle_datagram(frame(ours, unbound), HERE, 0, now=1.0) is None
    assert relay.drops == {DropReason.UNKNOWN_PEER: 1}


def test_a_binding_ends_when_it_is_not_refreshed() -> None:
    relay, ours, theirs = bound_pair()
    later = RELAY_BINDING_LIFETIME + 1
    assert relay.handle_datagram(frame(ours, theirs), HERE, 0, now=later) is None
    bind(relay, ours, HERE, counter=2, now=later)
    assert relay.handle_datagram(frame(ours, theirs), HERE, 0, now=later) is None
    bind(relay, theirs, THERE, counter=2, now=later)
    assert relay.handle_datagram(frame(ours, theirs), HERE, 0, now=later) is not None
    assert relay.drops == {DropReason.DISALLOWED_SOURCE: 1, DropReason.UNKNOWN_PEER: 1}


def test_a_member_whose_address_changed_is_reached_at_the_new_one_through_the_socket_it_used() -> None:
    relay, ours, theirs = bound_pair()
    relay.handle_datagram(request(theirs, 2), ELSEWHERE, 1, now=1.0)
    assert relay.handle_datagram(frame(ours, theirs), HERE, 0, now=1.0) == Forward(1, ELSEWHERE, frame(ours, theirs))
    assert relay.handle_datagram(frame(theirs, ours), THERE, 0, now=1.0) is None


def test_a_member_may_send_its_burst_and_then_its_rate() -> None:
    limits = replace(Limits(), relay_bytes_rate=100.0, relay_bytes_burst=250.0)
    relay, ours, theirs = bound_pair(limits)
    data = frame(ours, theirs, size=100)
    passed = [relay.handle_datagram(data, HERE, 0, now=now) is not None for now in (0.0, 0.0, 0.0, 0.4, 0.5)]
    assert passed == [True, True, False, False, True]
    assert relay.drops == {DropReason.OVER_LIMIT: 2}
    assert (relay.forwarded_packets, relay.forwarded_bytes) == (3, 300)


def test_a_member_does_not_get_more_by_connecting_again() -> None:
    limits = replace(Limits(), relay_bytes_rate=0.0, relay_bytes_burst=100.0)
    relay, ours, theirs = bound_pair(limits)
    assert relay.handle_datagram(frame(ours, theirs, size=100), HERE, 0, now=0.0) is not None
    again = relay.grant(NETWORK, b"a" * 32)
    bind(relay, again, HERE)
    assert relay.handle_datagram(frame(again, theirs, size=100), HERE, 0, now=0.0) is None


def test_a_member_that_connects_again_and_again_keeps_its_newest_seats_only() -> None:
    relay = Relay(Limits(), entropy=random.Random(1).randbytes)
    grants = [relay.grant(NETWORK, b"a" * 32) for _ in range(10)]
    assert len(relay) == MAX_SEATS_PER_MEMBER
    bound = [relay.handle_datagram(request(grant, 1), HERE, 0, now=0.0) for grant in grants]
    assert [stun.parse(sent.data).type for sent in bound if sent is not None] == [stun.MessageType.ERROR] * 6 + [
        stun.MessageType.SUCCESS
    ] * MAX_SEATS_PER_MEMBER


def test_the_table_of_seats_is_bounded_and_the_living_are_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MAX_SEATS", 3)
    relay = Relay(Limits(), entropy=random.Random(1).randbytes)
    alive = relay.grant(NETWORK, b"alive")
    for number in range(10):
        relay.release(relay.grant(NETWORK, bytes([number])).id, now=0.0)
    assert len(relay) == 3
    bind(relay, alive, HERE)


def test_an_id_that_is_taken_or_zero_is_not_given_out() -> None:
    numbers = iter([b"\1\0\0\0", b"k" * 32, b"\0\0\0\0", b"\1\0\0\0", b"\2\0\0\0", b"k" * 32])
    relay = Relay(Limits(), entropy=lambda size: next(numbers))
    assert [relay.grant(NETWORK, who).id for who in (b"a", b"b")] == [1, 2]


def test_what_is_unknown_is_released_and_evicted_without_harm() -> None:
    relay, _, _ = bound_pair()
    relay.release(12345, now=0.0)
    relay.evict(OTHER_NETWORK, b"a" * 32)
    assert len(relay) == 2


def test_a_stun_request_is_answered_with_the_address_it_came_from() -> None:
    relay = Relay(Limits(), entropy=random.Random(1).randbytes)
    forward = relay.handle_datagram(stun.binding_request(b"t" * 12), HERE, 3, now=0.0)
    assert forward is not None
    assert (forward.socket, forward.to) == (3, HERE)
    assert stun.parse(forward.data).mapped_address == HERE
    assert relay.stun_answers == 1


def test_stun_requests_of_one_source_are_limited_and_others_are_served() -> None:
    relay = Relay(replace(Limits(), stun_rate=0.0, stun_burst=2.0), entropy=random.Random(1).randbytes)
    plain = stun.binding_request(b"t" * 12)
    sources = [HERE, Address(HERE.host, 99), HERE, THERE]
    answered = [relay.handle_datagram(plain, source, 0, now=0.0) is not None for source in sources]
    assert answered == [True, True, False, True]
    assert relay.drops == {DropReason.FLOOD: 1}


def test_a_binding_with_a_wrong_key_or_an_unknown_id_moves_nothing() -> None:
    relay, ours, theirs = bound_pair()
    for wrong in (RelayGrant(ours.id, b"x" * 32), RelayGrant(ours.id ^ 1, ours.key)):
        answer = relay.handle_datagram(request(wrong, 2), ELSEWHERE, 0, now=1.0)
        assert answer is not None
        assert stun.parse(answer.data).type == stun.MessageType.ERROR
    assert relay.drops == {DropReason.BAD_SIGNATURE: 1, DropReason.UNKNOWN_PEER: 1}
    forward = relay.handle_datagram(frame(theirs, ours), THERE, 0, now=1.0)
    assert forward is not None
    assert forward.to == HERE


@pytest.mark.parametrize(
    "data",
    [
        b"\0\1\0\0\x21\x12\xa4\x42" + b"t" * 12,  # a request without anything: 20 bytes for 40
        stun.binding_request(b"t" * 12, username="")[:24],
    ],
)
def test_a_request_shorter_than_its_answer_is_not_answered(data: bytes) -> None:
    relay = Relay(Limits(), entropy=random.Random(1).randbytes)
    assert relay.handle_datagram(data, HERE, 0, now=0.0) is None
    assert sum(relay.drops.values()) == 1


def test_what_is_neither_stun_nor_a_frame_is_dropped() -> None:
    relay, ours, theirs = bound_pair()
    response = stun.binding_success(b"t" * 12, HERE)
    for data in (b"", b"x" * 100, frame(ours, theirs)[:11], b"\5\0\0\1" + frame(ours, theirs)[4:], response):
        assert relay.handle_datagram(data, HERE, 0, now=1.0) is None
    assert relay.drops == {DropReason.UNKNOWN_TYPE: 5}


any_datagram = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda body: b"\5\0\0\0" + body, st.binary(max_size=60)),
    st.builds(
        lambda kind, body: kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + body,
        st.sampled_from([0x0001, 0x0011, 0x0101, 0x0111]),
        st.binary(max_size=120),
    ),
    st.builds(stun.binding_request, st.binary(min_size=12, max_size=12), username=st.text(max_size=30)),
    st.sampled_from(["ours", "theirs"]),
)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(any_datagram, st.sampled_from([HERE, THERE, Address("2001:db8::7", 9)]), st.binary(max_size=4)),
        max_size=20,
    )
)
def test_whatever_arrives_nothing_is_raised_amplified_or_sent_to_a_third_party(
    datagrams: list[tuple[bytes | str, Address, bytes]],
) -> None:
    relay, ours, theirs = bound_pair()
    counter = 1
    for data, source, noise in datagrams:
        counter += 1
        if isinstance(data, str):
            genuine = bytearray(request(ours if data == "ours" else theirs, counter))
            if noise:
                genuine[noise[0] % len(genuine)] ^= noise[-1]
            data = bytes(genuine)
        dropped = sum(relay.drops.values())
        forward = relay.handle_datagram(data, source, 0, now=1.0)
        if forward is None:
            assert sum(relay.drops.values()) == dropped + 1
        else:
            assert len(forward.data) <= len(data)
            assert forward.to == source or forward.data == data
    assert len(relay) == 2


def bound_pair(limits: Limits | None = None) -> tuple[Relay, RelayGrant, RelayGrant]:
    relay = Relay(limits or Limits(), entropy=random.Random(1).randbytes)
    ours, theirs = relay.grant(NETWORK, b"a" * 32), relay.grant(NETWORK, b"b" * 32)
    bind(relay, ours, HERE)
    bind(relay, theirs, THERE)
    return relay, ours, theirs


def bind(relay: Relay, grant: RelayGrant, address: Address, *, counter: int = 1, now: float = 0.0) -> None:
    answer = relay.handle_datagram(request(grant, counter), address, 0, now=now)
    assert answer is not None
    assert stun.parse(answer.data).type == stun.MessageType.SUCCESS


def request(grant: RelayGrant, counter: int) -> bytes:
    username = stun.relay_username(grant.id, counter)
    return stun.binding_request(b"t" * 12, username=username, key=grant.key)


def frame(source: RelayGrant, destination: RelayGrant, *, size: int = 60) -> bytes:
    return RelayHop(source.id, destination.id).header().ljust(size, b"s")
