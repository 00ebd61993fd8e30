"""Two machines joined by functions; loss is not calling one. Whole sessions over time are in test_sessions.py."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import messages, primitives
from meshvpn.proto.clones import tag_in
from meshvpn.proto.commands import ForgetKeypairs, InstallKeypair, SendKeepalive
from meshvpn.proto.constants import (
    HANDSHAKES_BURSTABLE,
    MIN_RESEND,
    REKEY_ATTEMPT_TIME,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER,
    UNDER_LOAD_RATE,
)
from meshvpn.proto.drops import DropReason
from meshvpn.proto.messages import CookieReply, Initiation, Response
from meshvpn.proto.timers import Stamps
from meshvpn.proto.transport import Address, Path, RelayHop
from meshvpn.proto.wireguard import HandshakeGaveUp, SessionEstablished, WireGuard

from . import whitepaper

PATH = Path(0, Address("192.0.2.1", 1000))
WALL = 1_700_000_000_000_000_000
NANO = 10**9
OLD_PSK, NEW_PSK = bytes([2]) * 32, bytes([1]) * 32
Pair = tuple[WireGuard, WireGuard]


# The protocol.


def test_a_handshake_gives_both_ends_the_same_keys(pair: Pair) -> None:
    initiator, responder = pair
    ours, theirs = shake_hands(initiator, responder, 0.0)
    assert (ours.send_key, ours.receive_key) == (theirs.receive_key, theirs.send_key)
    assert (ours.local_index, ours.remote_index) == (theirs.remote_index, theirs.local_index)
    assert ours.is_initiator
    assert not theirs.is_initiator
    assert repr(ours) == f"InstallKeypair(peer=1, local_index={ours.local_index:#x}, …)"


@pytest.mark.parametrize("psk", [bytes(32), b"\x77" * 32], ids=["none", "preshared"])
def test_an_initiators_messages_and_keys_are_those_of_the_whitepaper(psk: bytes) -> None:
    static, ephemeral, index = b"\x11" * 32, b"\x12" * 32, b"\xaa\xbb\xcc\xdd"
    paper = whitepaper.Transcript(
        initiator_static=static,
        initiator_ephemeral=ephemeral,
        responder_static=b"\x21" * 32,
        responder_ephemeral=b"\x22" * 32,
        preshared_key=psk,
    )
    machine = WireGuard(static, entropy=scripted(ephemeral, index))
    machine.add_peer(1, whitepaper.dh_public(b"\x21" * 32), [psk] if any(psk) else [])
    want(machine, 0.0)
    (sent,) = machine.take_transmits()
    assert sent.data == paper.initiation(0xDDCCBBAA, primitives.tai64n(WALL))

    assert deliver(machine, paper.response(0x01020304, 0xDDCCBBAA), 0.1) is None
    session, keypair = paper.session(), installed(machine)
    assert (keypair.send_key, keypair.receive_key) == (session.initiator_send, session.initiator_receive)
    assert (keypair.local_index, keypair.remote_index) == (0xDDCCBBAA, 0x01020304)


@pytest.mark.parametrize("psk", [bytes(32), b"\x77" * 32], ids=["none", "preshared"])
def test_a_responders_message_and_keys_are_those_of_the_whitepaper(psk: bytes) -> None:
    static, ephemeral, index = b"\x21" * 32, b"\x22" * 32, b"\x04\x03\x02\x01"
    paper = whitepaper.Transcript(
        initiator_static=b"\x11" * 32,
        initiator_ephemeral=b"\x12" * 32,
        responder_static=static,
        responder_ephemeral=ephemeral,
        preshared_key=psk,
    )
    machine = WireGuard(static, entropy=scripted(ephemeral, index))
    machine.add_peer(1, whitepaper.dh_public(b"\x11" * 32), [psk] if any(psk) else [])
    assert deliver(machine, paper.initiation(5, primitives.tai64n(WALL)), 0.0) is None
    (sent,) = machine.take_transmits()
    assert sent.data == paper.response(0x01020304, 5)
    assert sent.path == PATH
    session, keypair = paper.session(), installed(machine)
    assert (keypair.send_key, keypair.receive_key) == (session.initiator_receive, session.initiator_send)


# Preshared keys.


def test_an_old_epochs_key_is_accepted_from_either_end(entropy: Callable[[int], bytes]) -> None:
    initiator, responder = make_pair(entropy, [NEW_PSK, OLD_PSK], [OLD_PSK])
    ours, theirs = shake_hands(initiator, responder, 0.0)
    assert ours.send_key == theirs.receive_key


def test_the_responder_tries_its_older_key_on_a_retry(entropy: Callable[[int], bytes]) -> None:
    initiator, responder = make_pair(entropy, [OLD_PSK], [NEW_PSK, OLD_PSK])
    want(initiator, 0.0)
    transfer(initiator, responder, 0.1)
    assert transfer(responder, initiator, 0.2) == [DropReason.DECRYPT_FAILED]
    timeout(initiator, 1.1)
    transfer(initiator, responder, 1.2)
    assert transfer(responder, initiator, 1.3) == [None]


def test_the_responder_goes_through_all_its_keys_in_turn_until_one_is_used(entropy: Callable[[int], bytes]) -> None:
    initiator, responder = make_pair(entropy, [OLD_PSK], [NEW_PSK, OLD_PSK])
    outcomes = []
    for number in range(4):
        want(initiator, number * 10.0)
        timeout(initiator, number * 10.0)
        transfer(initiator, responder, number * 10.0)
        outcomes += transfer(responder, initiator, number * 10.0)
    assert outcomes == [DropReason.DECRYPT_FAILED, None, DropReason.DECRYPT_FAILED, None]


def test_once_its_answer_was_used_the_responder_begins_with_the_newest_key_again(
    entropy: Callable[[int], bytes],
) -> None:
    initiator, responder = make_pair(entropy, [NEW_PSK], [NEW_PSK, OLD_PSK])
    for number in range(3):
        _, theirs = shake_hands(initiator, responder, number * 10.0)
        responder.handle_keypair_confirmed(1, theirs.local_index, now=number * 10.0)


def test_another_preshared_key_counts_from_the_next_handshake_on(pair: Pair) -> None:
    initiator, responder = pair
    for machine in pair:
        machine.set_preshared_keys(1, [NEW_PSK])
    shake_hands(initiator, responder, 0.0)
    responder.set_preshared_keys(1, [OLD_PSK])
    want(initiator, 10.0)
    transfer(initiator, responder, 10.0)
    assert transfer(responder, initiator, 10.0) == [DropReason.DECRYPT_FAILED]
    responder.set_preshared_keys(1, [NEW_PSK])
    timeout(initiator, 20.0)
    transfer(initiator, responder, 20.0)
    assert transfer(responder, initiator, 20.0) == [None]


def test_a_wrong_preshared_key_never_establishes(entropy: Callable[[int], bytes]) -> None:
    initiator, responder = make_pair(entropy, [bytes([1]) * 32], [bytes([2]) * 32])
    want(initiator, 0.0)
    now, events = 0.0, []
    while (at := initiator.next_timeout()) is not None and now < 200:
        now = at
        transfer(initiator, responder, now)
        assert set(transfer(responder, initiator, now)) <= {DropReason.DECRYPT_FAILED}
        timeout(initiator, now)
        events += initiator.take_events()
    assert events == [HandshakeGaveUp(1)]


# Retries.


def test_the_first_repetitions_come_after_one_and_two_seconds_and_then_as_the_paper_says(pair: Pair) -> None:
    sent_at, gave_up_at = initiations_until_giving_up(pair[0])
    waits = [later - earlier for earlier, later in itertools.pairwise(sent_at)]
    assert waits[:2] == [1.0, 2.0]
    assert all(REKEY_TIMEOUT <= wait <= REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER for wait in waits[2:])
    assert len(set(waits[2:])) > 1, "the jitter is drawn anew each time"
    assert REKEY_ATTEMPT_TIME <= gave_up_at < REKEY_ATTEMPT_TIME + REKEY_TIMEOUT + 1
    assert sent_at[-1] < REKEY_ATTEMPT_TIME


def test_while_a_session_lives_the_first_repetition_keeps_to_the_paper_too(pair: Pair) -> None:
    shake_hands(*pair, 0.0)
    pair[0].handle_rekey_wanted(1, now=120.0, wall_ns=at(120.0))
    assert pair[0].next_timeout() == pytest.approx(125.0, abs=REKEY_TIMEOUT_JITTER)


def test_who_calls_after_the_session_died_does_not_wait_five_seconds_for_a_lost_datagram(pair: Pair) -> None:
    shake_hands(*pair, 0.0)
    want(pair[0], 300.0)
    assert pair[0].next_timeout() == 301.0


def test_each_repetition_has_its_own_ephemeral_index_and_later_stamp(pair: Pair) -> None:
    initiator, responder = pair
    want(initiator, 0.0)
    timeout(initiator, 1.0)
    first, second = (messages.parse(sent.data) for sent in initiator.take_transmits())
    assert isinstance(first, Initiation)
    assert isinstance(second, Initiation)
    assert first.sender != second.sender
    assert first.noise[:32] != second.noise[:32]
    for number, message in enumerate((first, second)):
        data = initiator._peers[1].jar.sign(message.encode(), now=0.0)
        assert deliver(responder, data, float(number)) is None


def test_an_answer_to_an_initiation_that_was_repeated_since_is_too_late(pair: Pair) -> None:
    initiator, responder = pair
    want(initiator, 0.0)
    transfer(initiator, responder, 0.9)
    timeout(initiator, 1.0)
    assert transfer(responder, initiator, 1.1) == [DropReason.UNKNOWN_INDEX]
    transfer(initiator, responder, 1.2)
    assert transfer(responder, initiator, 1.3) == [None]


def test_wanting_a_handshake_that_is_under_way_sends_nothing_more(pair: Pair) -> None:
    for _ in range(50):
        want(pair[0], 0.0)
        pair[0].handle_rekey_wanted(1, now=0.0, wall_ns=WALL)
    assert len(pair[0].take_transmits()) == 1


def test_after_giving_up_new_data_starts_over(pair: Pair) -> None:
    _, gave_up_at = initiations_until_giving_up(pair[0])
    assert pair[0].next_timeout() is None
    want(pair[0], gave_up_at + 1)
    assert len(pair[0].take_transmits()) == 1
    assert pair[0].next_timeout() == gave_up_at + 2


def test_a_new_path_repeats_the_initiation_at_once_but_not_for_every_candidate(pair: Pair) -> None:
    initiator, _ = pair
    initiator.handle_path_available(1, now=0.0, wall_ns=WALL)
    assert initiator.take_transmits() == []
    want(initiator, 0.0)
    for hundredths in range(40):
        initiator.handle_path_available(1, now=hundredths / 100, wall_ns=at(hundredths / 100))
    assert len(initiator.take_transmits()) == 2


def test_a_path_that_appears_soon_after_an_initiation_brings_its_repetition_forward(pair: Pair) -> None:
    initiator, _ = pair
    initiator.handle_handshake_wanted(1, now=0.0, wall_ns=WALL)
    initiator.take_transmits()
    initiator.handle_path_available(1, now=0.05, wall_ns=WALL)
    assert initiator.take_transmits() == [], "paths come in bursts"
    assert initiator.next_timeout() == MIN_RESEND
    initiator.handle_timeout(now=MIN_RESEND, wall_ns=WALL + 1)
    assert len(initiator.take_transmits()) == 1


def test_a_peer_whose_key_is_of_low_order_is_never_spoken_to(entropy: Callable[[int], bytes]) -> None:
    machine = WireGuard(entropy(32), entropy=entropy)
    machine.add_peer(1, bytes(32))
    want(machine, 0.0)
    assert machine.take_transmits() == []
    assert machine.next_timeout() is None
    assert machine.drops == {DropReason.DECRYPT_FAILED: 1}


# Replays, clocks, floods.


def test_a_replayed_initiation_is_refused(pair: Pair) -> None:
    initiator, responder = pair
    data = initiation(initiator, 0.0)
    assert deliver(responder, data, 0.1) is None
    assert deliver(responder, data, 5.0) is DropReason.STALE_TIMESTAMP


def test_a_replayed_response_is_refused(pair: Pair) -> None:
    initiator, responder = pair
    want(initiator, 0.0)
    transfer(initiator, responder, 0.1)
    (response,) = responder.take_transmits()
    assert deliver(initiator, response.data, 0.2) is None
    initiator.take_events()
    assert deliver(initiator, response.data, 0.3) is DropReason.UNKNOWN_INDEX
    assert initiator.take_events() == []


def test_a_clock_that_is_set_back_while_we_run_does_not_silence_us(pair: Pair) -> None:
    initiator, responder = pair
    shake_hands(initiator, responder, 0.0)
    initiator.handle_rekey_wanted(1, now=120.0, wall_ns=WALL - 10**18)
    assert transfer(initiator, responder, 120.1) == [None]


def test_initiations_within_one_grain_of_the_stamp_are_told_apart(pair: Pair) -> None:
    initiator, responder = pair
    first = initiation(initiator, 0.0)
    initiator.handle_path_available(1, now=0.2, wall_ns=WALL)
    (second,) = initiator.take_transmits()
    assert deliver(responder, first, 0.2) is None
    assert deliver(responder, second.data, 0.3) is None


def test_who_comes_back_with_an_earlier_clock_is_refused_until_it_has_caught_up(pair: Pair) -> None:
    initiator, responder = pair
    shake_hands(initiator, responder, 0.0)
    restarted = WireGuard(initiator._private_key, entropy=counting_entropy(b"restarted"))
    restarted.add_peer(1, responder.public_key)
    restarted.handle_handshake_wanted(1, now=10.0, wall_ns=WALL - 3600 * NANO)
    assert transfer(restarted, responder, 10.0) == [DropReason.STALE_TIMESTAMP]
    restarted.handle_timeout(now=11.0, wall_ns=WALL + NANO)
    assert transfer(restarted, responder, 11.0) == [None]


def test_initiations_that_come_too_fast_are_dropped_and_change_nothing(entropy: Callable[[int], bytes]) -> None:
    initiator, responder = make_pair(entropy, [NEW_PSK], [NEW_PSK, OLD_PSK])
    want(initiator, 0.0)
    transfer(initiator, responder, 0.0)
    initiator.handle_path_available(1, now=0.2, wall_ns=at(0.2))
    (second,) = initiator.take_transmits()
    responder.take_transmits()
    responder.take_events()
    assert deliver(responder, second.data, 0.019) is DropReason.FLOOD
    assert responder.take_transmits() == []
    assert responder.take_events() == []
    # Its stamp was not used up either.
    assert deliver(responder, second.data, 0.021) is None


def test_every_flipped_byte_of_an_initiation_is_refused(pair: Pair) -> None:
    initiator, responder = pair
    data = initiation(initiator, 0.0)
    for position in range(len(data) - 16):  # mac2 counts under load only
        reason = deliver(responder, flip(data, position), position * 0.1)
        assert reason in (DropReason.BAD_MAC1, DropReason.UNKNOWN_TYPE), position
    assert responder.take_events() == []
    assert deliver(responder, data, 100.0) is None


def test_every_flipped_byte_of_a_response_is_refused_and_the_genuine_one_still_counts(pair: Pair) -> None:
    initiator, responder = pair
    want(initiator, 0.0)
    transfer(initiator, responder, 0.1)
    (response,) = responder.take_transmits()
    for position in range(len(response.data) - 16):
        reason = deliver(initiator, flip(response.data, position), position * 0.1)
        assert reason in (DropReason.BAD_MAC1, DropReason.UNKNOWN_TYPE, DropReason.BAD_LENGTH), position
    assert initiator.take_events() == []
    assert deliver(initiator, response.data, 100.0) is None


def test_a_forged_message_with_the_right_mac1_is_refused_and_the_genuine_one_still_counts(pair: Pair) -> None:
    # mac1 is keyed with a public key: whoever knows that can make one.
    initiator, responder = pair
    data = initiation(initiator, 0.0)
    for position in range(8, 116):
        forged = whitepaper.with_macs(flip(data, position)[:-32], responder.public_key)
        assert deliver(responder, forged, position * 0.1) is DropReason.DECRYPT_FAILED
    assert deliver(responder, data, 20.0) is None
    (response,) = responder.take_transmits()
    for position in range(12, 60):
        forged = whitepaper.with_macs(flip(response.data, position)[:-32], initiator.public_key)
        assert deliver(initiator, forged, position * 0.1) is DropReason.DECRYPT_FAILED
    assert deliver(initiator, response.data, 20.1) is None


def test_a_stranger_who_knows_our_public_key_is_no_peer(pair: Pair) -> None:
    stranger = WireGuard(bytes([9]) * 32, entropy=counting_entropy(b"stranger"))
    stranger.add_peer(1, pair[1].public_key)
    assert deliver(pair[1], initiation(stranger, 0.0), 0.0) is DropReason.UNKNOWN_PEER
    assert pair[1].take_transmits() == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", DropReason.TOO_SHORT),
        (b"\x01\0\0", DropReason.TOO_SHORT),
        (b"\x01\0\0\0" + bytes(143), DropReason.BAD_LENGTH),
        (b"\x02\0\0\0" + bytes(89), DropReason.BAD_LENGTH),
        (b"\x03\0\0\0" + bytes(61), DropReason.BAD_LENGTH),
        (b"\x01\0\0\x01" + bytes(144), DropReason.UNKNOWN_TYPE),
        (b"\x04\0\0\0" + bytes(28), DropReason.UNKNOWN_TYPE),
        (b"\x01\0\0\0" + bytes(144), DropReason.BAD_MAC1),
        (b"\x03\0\0\0" + bytes(60), DropReason.UNKNOWN_INDEX),
    ],
)
def test_what_is_no_handshake_message_is_dropped_by_name_and_counted(
    pair: Pair, data: bytes, reason: DropReason
) -> None:
    assert deliver(pair[0], data, 0.0) is reason
    assert pair[0].drops == {reason: 1}
    assert pair[0].take_transmits() == []


def test_a_response_to_an_index_that_is_a_sessions_is_refused(pair: Pair) -> None:
    initiator, responder = pair
    ours, _ = shake_hands(initiator, responder, 0.0)
    data = whitepaper.with_macs(Response(1, ours.local_index, bytes(48)).encode()[:-32], initiator.public_key)
    assert deliver(initiator, data, 1.0) is DropReason.UNKNOWN_INDEX


# Both ends.


def test_of_two_handshakes_begun_at_once_the_one_of_the_greater_key_stands(pair: Pair) -> None:
    lesser, greater = sorted(pair, key=lambda machine: machine.public_key)
    cross_hands(lesser, greater)
    keypairs = [
        {keypair.is_initiator: keypair for keypair in machine.take_events() if isinstance(keypair, InstallKeypair)}
        for machine in (lesser, greater)
    ]
    assert [sorted(keypairs[0]), sorted(keypairs[1])] == [[False], [False, True]]
    assert keypairs[0][False].send_key == keypairs[1][True].receive_key
    assert keypairs[0][False].receive_key == keypairs[1][True].send_key
    lesser.handle_keypair_confirmed(1, keypairs[0][False].local_index, now=0.3)
    for machine, agreed_at in ((lesser, 0.1), (greater, 0.2)):
        timeout(machine, 100.0)
        assert machine.take_transmits() == []
        assert machine.next_timeout() == pytest.approx(agreed_at + 540)


def test_if_the_peer_does_not_use_the_session_that_stands_our_own_is_tried_again(pair: Pair) -> None:
    lesser, greater = sorted(pair, key=lambda machine: machine.public_key)
    for machine in pair:
        want(machine, 0.0)
    from_lesser, from_greater = lesser.take_transmits(), greater.take_transmits()
    assert [deliver(lesser, item.data, 0.1) for item in from_greater] == [None]
    assert [deliver(greater, item.data, 0.1) for item in from_lesser] == [None]
    lesser.take_transmits()  # the response, lost
    assert transfer(greater, lesser, 0.2) == [None]
    timeout(lesser, 1.0)
    greater.take_events()
    lesser.take_events()
    assert transfer(lesser, greater, 1.1) == [None]
    assert transfer(greater, lesser, 1.2) == [None]
    assert [event.is_initiator for event in lesser.take_events() if isinstance(event, InstallKeypair)] == [True]


def test_a_session_that_the_peer_began_and_uses_ends_our_own_attempt(pair: Pair) -> None:
    a, b = pair
    want(a, 0.0)
    a.take_transmits()  # lost
    want(b, 0.5)
    transfer(b, a, 0.5)
    answered = installed(a)
    transfer(a, b, 0.6)
    a.handle_keypair_confirmed(1, answered.local_index, now=0.7)
    timeout(a, 1.0)
    assert a.take_transmits() == []
    assert a.next_timeout() == 540.5


# Indices, peers.


def test_an_index_in_use_is_not_given_out_again_nor_is_zero() -> None:
    taken, free = b"\1\0\0\0", b"\2\0\0\0"
    jitter = bytes(4)
    machine = WireGuard(bytes([5]) * 32, entropy=scripted(bytes(32), taken, bytes(32), bytes(4), taken, free, jitter))
    for number in (1, 2):
        machine.add_peer(number, primitives.x25519_public(bytes([number]) * 32))
        machine.handle_handshake_wanted(number, now=0.0, wall_ns=WALL)
    sent = [messages.parse(item.data) for item in machine.take_transmits()]
    assert [message.sender for message in sent if isinstance(message, Initiation)] == [1, 2]


def test_a_peer_that_asks_again_and_again_does_not_fill_the_table_of_indices(pair: Pair) -> None:
    initiator, responder = pair
    for number in range(500):
        now = number * 0.25
        initiator.handle_path_available(1, now=now, wall_ns=at(now))
        want(initiator, now)
        transfer(initiator, responder, now)
        responder.take_events()
        responder.take_transmits()
    assert len(responder._by_index) == 3
    assert len(initiator._by_index) == 1
    assert len(responder._deadlines._heap) < 100


def test_a_removed_peer_leaves_nothing_behind(pair: Pair) -> None:
    initiator, responder = pair
    shake_hands(initiator, responder, 0.0)
    initiator.handle_rekey_wanted(1, now=120.0, wall_ns=at(120.0))
    transfer(initiator, responder, 120.0)
    initiator.remove_peer(1)
    assert transfer(responder, initiator, 120.1) == [DropReason.UNKNOWN_INDEX]
    assert initiator.next_timeout() is None
    assert initiator._by_index == {}
    initiator.add_peer(1, responder.public_key)
    want(initiator, 130.0)
    transfer(initiator, responder, 130.0)
    assert transfer(responder, initiator, 130.0) == [None]


def test_what_was_meant_for_a_removed_peer_does_not_reach_the_next_one_with_its_number(pair: Pair) -> None:
    initiator, responder = pair
    want(initiator, 0.0)
    transfer(initiator, responder, 0.1)
    responder.remove_peer(1)
    responder.add_peer(1, primitives.x25519_public(bytes([7]) * 32))
    assert responder.take_events() == []
    assert responder.take_transmits() == []


def test_a_number_or_key_that_is_there_already_cannot_be_added(pair: Pair) -> None:
    for number, key in ((1, bytes([9]) * 32), (2, pair[1].public_key)):
        with pytest.raises(ValueError, match="there already"):
            pair[0].add_peer(number, key)


# Under load.


def test_under_load_a_cookie_round_trip_lets_the_handshake_through(pair: Pair) -> None:
    initiator, responder = pair
    first = initiation(initiator, 0.0)
    flood(responder, 0.0)
    timeout(initiator, 1.0)
    assert transfer(initiator, responder, 0.9) == [DropReason.BAD_MAC2]
    assert transfer(responder, initiator, 0.9) == [None]  # the cookie
    initiator.handle_path_available(1, now=1.3, wall_ns=at(2.0))
    assert transfer(initiator, responder, 0.95) == [None]
    assert deliver(responder, first, 0.96) is DropReason.BAD_MAC2


@pytest.mark.parametrize(
    "path",
    [
        Path(0, Address("192.0.2.1", 1001)),
        Path(0, Address("192.0.2.2", 1000)),
        Path(0, Address("192.0.2.1", 1000), RelayHop(1, 2)),
    ],
    ids=["other port", "other host", "through a relay"],
)
def test_a_cookie_is_good_for_the_address_and_port_it_was_sent_to_only(pair: Pair, path: Path) -> None:
    initiator, responder = pair
    cookie_for(initiator, responder, now=0.0)
    data = initiation(initiator, 0.5)
    assert responder.handle_datagram(data, path, now=0.5, wall_ns=WALL) is DropReason.BAD_MAC2
    assert deliver(responder, data, 0.5) is None


def test_a_response_needs_a_cookie_too_when_the_initiator_is_under_load(pair: Pair) -> None:
    initiator, responder = pair
    want(initiator, 0.0)
    transfer(initiator, responder, 0.0)
    flood(initiator, 0.0)
    assert transfer(responder, initiator, 0.1) == [DropReason.BAD_MAC2]
    assert transfer(initiator, responder, 0.1) == [None]  # to the index of the response
    timeout(initiator, 1.0)
    flood(initiator, 1.0)
    transfer(initiator, responder, 1.0)
    assert transfer(responder, initiator, 1.0) == [None]


def test_a_sender_with_a_cookie_is_still_limited_whatever_port_it_uses(pair: Pair) -> None:
    _, responder = pair
    flood(responder, 0.0)
    reasons = []
    for port in range(2000, 2000 + 3 * HANDSHAKES_BURSTABLE):
        path = Path(0, Address("192.0.2.7", port))
        stranger = WireGuard(bytes([9]) * 32, entropy=counting_entropy(b"%d" % port))
        stranger.add_peer(1, responder.public_key)
        cookie_for(stranger, responder, now=0.1, path=path)
        reasons.append(responder.handle_datagram(initiation(stranger, 0.1), path, now=0.1, wall_ns=WALL))
    allowed = [DropReason.UNKNOWN_PEER] * HANDSHAKES_BURSTABLE
    assert reasons == [*allowed, *[DropReason.FLOOD] * 2 * HANDSHAKES_BURSTABLE]


@pytest.mark.parametrize(
    ("left", "right", "is_same"),
    [
        (Path(1, Address("2001:db8::1", 1)), Path(1, Address("2001:db8::2", 2)), True),
        (Path(1, Address("2001:db8::1", 1)), Path(1, Address("2001:db8:0:1::1", 1)), False),
        (Path(0, Address("192.0.2.1", 1)), Path(0, Address("192.0.2.2", 1)), False),
        (Path(0, Address("192.0.2.1", 1), RelayHop(1, 2)), Path(0, Address("192.0.2.1", 1), RelayHop(1, 3)), False),
    ],
    ids=["same /64", "other /64", "other IPv4", "other member behind the relay"],
)
def test_a_sender_is_an_ipv4_address_an_ipv6_64_or_a_relays_member(
    pair: Pair, left: Path, right: Path, *, is_same: bool
) -> None:
    _, responder = pair
    flood(responder, 0.0)
    reasons = []
    for number, path in enumerate([left] * HANDSHAKES_BURSTABLE + [right]):
        stranger = WireGuard(bytes([9]) * 32, entropy=counting_entropy(b"%d" % number))
        stranger.add_peer(1, responder.public_key)
        cookie_for(stranger, responder, now=0.1, path=path)
        reasons.append(responder.handle_datagram(initiation(stranger, 0.1), path, now=0.1, wall_ns=WALL))
    assert reasons[-1] is (DropReason.FLOOD if is_same else DropReason.UNKNOWN_PEER)


def test_a_peer_that_answers_with_cookies_only_does_not_make_us_send_more(pair: Pair) -> None:
    initiator, responder = pair

    def answer(data: bytes, now: float) -> None:
        message = messages.parse(data)
        assert isinstance(message, Initiation)
        for number in range(20):
            reply = responder._checker.make_reply(data, message.sender, b"anywhere", now=now)
            assert deliver(initiator, reply, now) is (None if number == 0 else DropReason.DECRYPT_FAILED)

    answered, _ = initiations_until_giving_up(initiator, answer)
    unanswered, _ = initiations_until_giving_up(make_pair(counting_entropy(), [], [])[0])
    assert len(answered) == len(unanswered)


def test_a_cookie_that_does_not_open_is_refused(pair: Pair) -> None:
    initiator, responder = pair
    flood(responder, 0.0)
    assert deliver(responder, initiation(initiator, 0.0), 0.0) is DropReason.BAD_MAC2
    (reply,) = responder.take_transmits()
    for position in range(8, len(reply.data)):
        assert deliver(initiator, flip(reply.data, position), 0.1) is DropReason.DECRYPT_FAILED
    assert deliver(initiator, reply.data, 0.1) is None
    assert deliver(initiator, reply.data, 0.1) is DropReason.DECRYPT_FAILED, "it answers one message once"


# Stamps and the end of keys.


def test_keys_are_forgotten_after_nine_minutes_and_the_machine_is_quiet_then(pair: Pair) -> None:
    ours, _ = shake_hands(*pair, 0.0)
    machine = pair[0]
    assert machine.next_timeout() == ours.created_at + 540
    timeout(machine, ours.created_at + 539.9)
    assert machine.take_events() == []
    timeout(machine, ours.created_at + 540)
    assert machine.take_events() == [ForgetKeypairs(1)]
    assert machine.next_timeout() is None
    assert machine._by_index == {}


def test_a_new_session_puts_off_the_end_of_keys(pair: Pair) -> None:
    shake_hands(*pair, 0.0)
    shake_hands(*pair, 400.0)
    timeout(pair[0], 541.0)
    assert pair[0].take_events() == []
    assert pair[0].next_timeout() == pytest.approx(940.0, abs=1)


def test_silence_after_data_starts_a_handshake_once(pair: Pair) -> None:
    machine, _ = pair
    shake_hands(*pair, 0.0)
    silence = Stamps(first_sent_at=100.0, last_sent_at=101.0)
    for now in (114.9, 115.0, 116.0, 117.0):
        machine.handle_stats(1, silence, now=now, wall_ns=at(now))
    assert len(machine.take_transmits()) == 1
    for now in range(120, 230):
        timeout(machine, float(now))
        machine.handle_stats(1, silence, now=float(now), wall_ns=at(now))
    assert machine.take_events() == [HandshakeGaveUp(1)]
    machine.take_transmits()
    machine.handle_stats(1, silence, now=300.0, wall_ns=at(300.0))
    assert machine.take_transmits() == [], "nobody sends any more"


def test_a_keepalive_is_due_ten_seconds_after_unanswered_data(pair: Pair) -> None:
    machine, _ = pair
    stamps = Stamps(first_received_at=100.0, last_authenticated_at=100.0)
    machine.handle_stats(1, stamps, now=111.0, wall_ns=at(111.0))
    assert machine.take_events() == [], "without a session there is nothing to keep alive"
    shake_hands(*pair, 99.0)
    for now, events in ((109.9, []), (110.0, [SendKeepalive(1)])):
        machine.handle_stats(1, stamps, now=now, wall_ns=at(now))
        assert machine.take_events() == events


def test_a_persistent_keepalive_is_due_when_idle_and_starts_a_handshake_when_the_session_died(pair: Pair) -> None:
    machine, _ = pair
    machine.set_persistent_keepalive(1, 25.0)
    ours, _ = shake_hands(*pair, 0.0)
    born = ours.created_at
    machine.handle_stats(1, Stamps(last_sent_at=born + 10), now=born + 34.9, wall_ns=WALL)
    assert machine.take_events() == []
    machine.handle_stats(1, Stamps(last_sent_at=born + 10), now=born + 35, wall_ns=WALL)
    assert machine.take_events() == [SendKeepalive(1)]
    assert machine.take_transmits() == []
    machine.handle_stats(1, Stamps(last_sent_at=born + 170), now=born + 196, wall_ns=at(200.0))
    assert machine.take_events() == []
    assert len(machine.take_transmits()) == 1
    machine.set_persistent_keepalive(1, None)
    machine.handle_stats(1, Stamps(last_sent_at=born + 170), now=born + 300, wall_ns=at(300.0))
    assert machine.take_events() == []


# Anything at all.


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 4]), st.binary(max_size=160)), max_size=8), st.booleans())
def test_rubbish_in_between_does_not_disturb_a_handshake(rubbish: list[tuple[int, bytes]], is_padded: bool) -> None:
    initiator, responder = make_pair(counting_entropy(), [], [])
    sizes = {1: 148, 2: 92, 3: 64, 4: 32}
    want(initiator, 0.0)
    for machine in (responder, initiator):
        for kind, body in rubbish:
            data = bytes([kind, 0, 0, 0]) + body
            data = data.ljust(sizes[kind], b"\0")[: sizes[kind]] if is_padded else data
            assert deliver(machine, data, 0.0) is not None
        assert transfer(initiator if machine is responder else responder, machine, 0.1) == [None]
    assert installed(initiator).send_key == installed(responder).receive_key


@pytest.fixture
def entropy() -> Callable[[int], bytes]:
    return counting_entropy()


@pytest.fixture
def pair(entropy: Callable[[int], bytes]) -> Pair:
    return make_pair(entropy, [], [])


def counting_entropy(seed: bytes = b"") -> Callable[[int], bytes]:
    count = 0

    def draw(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(seed + count.to_bytes(8, "big")).digest(size)

    return draw


def scripted(*values: bytes) -> Callable[[int], bytes]:
    """Randomness that was written down, in the order in which it is drawn; zeros when there is no more."""
    remaining = list(values)

    def draw(size: int) -> bytes:
        value = remaining.pop(0) if remaining else bytes(size)
        assert len(value) == size
        return value

    return draw


def make_pair(entropy: Callable[[int], bytes], ours: list[bytes], theirs: list[bytes]) -> Pair:
    initiator, responder = WireGuard(entropy(32), entropy=entropy), WireGuard(entropy(32), entropy=entropy)
    initiator.add_peer(1, responder.public_key, ours)
    responder.add_peer(1, initiator.public_key, theirs)
    return initiator, responder


def at(now: float) -> int:
    return WALL + int(now * NANO)


def want(machine: WireGuard, now: float) -> None:
    machine.handle_handshake_wanted(1, now=now, wall_ns=at(now))


def timeout(machine: WireGuard, now: float) -> None:
    machine.handle_timeout(now=now, wall_ns=at(now))


def deliver(machine: WireGuard, data: bytes, now: float) -> DropReason | None:
    return machine.handle_datagram(data, PATH, now=now, wall_ns=at(now))


def transfer(source: WireGuard, target: WireGuard, now: float) -> list[DropReason | None]:
    return [deliver(target, item.data, now) for item in source.take_transmits()]


def initiation(machine: WireGuard, now: float) -> bytes:
    want(machine, now)
    (sent,) = machine.take_transmits()
    return sent.data


def shake_hands(initiator: WireGuard, responder: WireGuard, now: float) -> tuple[InstallKeypair, InstallKeypair]:
    want(initiator, now)
    assert transfer(initiator, responder, now + 0.1) == [None]
    assert transfer(responder, initiator, now + 0.2) == [None]
    return installed(initiator), installed(responder)


def cross_hands(a: WireGuard, b: WireGuard) -> None:
    """Both start at time 0, and each answers the other."""
    want(a, 0.0)
    want(b, 0.0)
    from_a, from_b = a.take_transmits(), b.take_transmits()
    for sent, target in ((from_a, b), (from_b, a)):
        assert [deliver(target, item.data, 0.1) for item in sent] == [None]
    assert transfer(a, b, 0.2) == transfer(b, a, 0.2) == [None]


def installed(machine: WireGuard) -> InstallKeypair:
    """The one keypair that came of a handshake, and nothing odd beside it."""
    events = machine.take_events()
    (keypair,) = (event for event in events if isinstance(event, InstallKeypair))
    tag = tag_in(keypair.remote_index)
    expected: list[object] = [keypair, SessionEstablished(1, PATH, is_initiator=keypair.is_initiator, tag=tag)]
    if keypair.is_initiator:
        expected.insert(1, SendKeepalive(1))
    assert events == expected
    return keypair


def flood(machine: WireGuard, now: float) -> None:
    """Handshake messages of a stranger's until the machine is under load."""
    data = whitepaper.with_macs(Initiation(1, bytes(108)).encode()[:-32], machine.public_key)
    other = Path(0, Address("198.51.100.1", 9))
    for _ in range(UNDER_LOAD_RATE + 1):
        machine.handle_datagram(data, other, now=now, wall_ns=WALL)
    machine._transmits = [sent for sent in machine._transmits if sent.path != other]


def cookie_for(machine: WireGuard, target: WireGuard, *, now: float, path: Path = PATH) -> None:
    """Give the machine a cookie of the target's for this path, and end the attempt that it took."""
    flood(target, now)
    data = initiation(machine, now)
    assert target.handle_datagram(data, path, now=now, wall_ns=WALL) is DropReason.BAD_MAC2
    (reply,) = target.take_transmits()
    assert isinstance(messages.parse(reply.data), CookieReply)
    assert machine.handle_datagram(reply.data, path, now=now, wall_ns=WALL) is None
    machine._end_attempt(machine._peers[1])


def initiations_until_giving_up(
    machine: WireGuard, answer: Callable[[bytes, float], None] = lambda data, now: None
) -> tuple[list[float], float]:
    """When each initiation was sent to a peer that never agrees, and when the machine gave up."""
    want(machine, 0.0)
    sent_at, now = [], 0.0
    while (events := machine.take_events()) == []:
        for sent in machine.take_transmits():
            sent_at.append(now)
            answer(sent.data, now)
        due = machine.next_timeout()
        assert due is not None
        assert now < 1000
        now = due
        timeout(machine, now)
    assert events == [HandshakeGaveUp(1)]
    return sent_at, now


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
