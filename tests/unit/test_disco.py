"""Disco datagrams: what is sealed is read back, nothing else opens, nothing is amplified, nothing can be sent back."""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl import bindings

from meshvpn.proto import disco
from meshvpn.proto.disco import DiscoBox, Ping, Pong
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.transport import Address

ALICE_SECRET = bytes(range(32))
BOB_SECRET = bytes(range(100, 132))
ALICE_PUBLIC = disco.public_key(ALICE_SECRET)
BOB_PUBLIC = disco.public_key(BOB_SECRET)
HEADER = len(disco.MAGIC) + 32
TRANSACTION = b"transaction!"


def alice() -> DiscoBox:
    return DiscoBox(ALICE_SECRET, BOB_PUBLIC)


def bob() -> DiscoBox:
    return DiscoBox(BOB_SECRET, ALICE_PUBLIC)


def entropy(seed: int = 1) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def test_the_layout_is_magic_key_nonce_box() -> None:
    data = alice().seal(Ping(TRANSACTION, 0x0102), entropy())
    assert data[:6] == b"MVdsc1"
    assert data[6:38] == ALICE_PUBLIC == disco.sender_key(data)
    # Opened by the other end with the library alone, from the two keys.
    plaintext = bindings.crypto_box_open(data[62:], data[38:62], ALICE_PUBLIC, BOB_SECRET)
    assert plaintext == b"\x01" + TRANSACTION + bytes(6) + b"\x01\x02" + bytes(disco.PING_BYTES - 21)


def test_a_pong_has_the_documented_bytes() -> None:
    data = alice().seal(Pong(TRANSACTION, Address("192.0.2.7", 0x1234), 5, 6, 7), entropy())
    plaintext = bindings.crypto_box_open(data[62:], data[38:62], ALICE_PUBLIC, BOB_SECRET)
    head = b"\x02" + TRANSACTION + b"\x04" + bytes([192, 0, 2, 7]) + bytes(12) + b"\x12\x34"
    assert plaintext == head + b"\0\0\0\x05\0\0\0\x06\0\0\0\x07"


def test_versions_that_know_nothing_of_lost_packets_are_understood() -> None:
    ping = b"\x01" + TRANSACTION + bytes(7) + b"\x09" + bytes(disco.SHORT_PING_BYTES - 21)
    opened = bob().open(sealed_by_alice(ping))
    assert opened == Ping(TRANSACTION, 9, disco.SHORT_PING_BYTES)
    short = Pong(TRANSACTION, Address("192.0.2.7", 1), 5, 6)
    data = alice().seal(short, entropy())
    assert len(data) == disco.OVERHEAD + disco.SHORT_PING_BYTES
    assert bob().open(data) == short


@given(
    st.binary(min_size=12, max_size=12),
    st.integers(0, 2**64 - 1),
    st.integers(disco.PING_BYTES, 1400),
    st.integers(0, 2**32),
)
@settings(max_examples=50, deadline=None)
def test_a_ping_is_read_back(transaction_id: bytes, sequence: int, size: int, seed: int) -> None:
    ping = Ping(transaction_id, sequence, size)
    data = alice().seal(ping, entropy(seed))
    assert len(data) == disco.OVERHEAD + size
    assert bob().open(data) == ping


@given(
    st.binary(min_size=12, max_size=12),
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.none() | st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None)
def test_a_pong_is_read_back(
    transaction_id: bytes,
    host: IPv4Address | IPv6Address,
    port: int,
    received: int,
    arrived: int,
    lost: int | None,
) -> None:
    pong = Pong(transaction_id, Address(str(host), port), received, arrived, lost)
    assert bob().open(alice().seal(pong, entropy())) == pong


def test_a_pong_is_never_longer_than_the_shortest_ping() -> None:
    ping = alice().seal(Ping(TRANSACTION, 7), entropy())
    for host in ("192.0.2.1", "2001:db8::1"):
        assert len(bob().seal(Pong(TRANSACTION, Address(host, 65535), 2**40, 2**40, 2**40), entropy())) <= len(ping)


def test_a_ping_too_short_to_be_answered_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        bob().open(sealed_by_alice(b"\x01" + TRANSACTION))


def test_only_the_other_end_opens_it() -> None:
    data = alice().seal(Ping(TRANSACTION, 7), entropy())
    assert reason_of(DiscoBox(bytes(32), ALICE_PUBLIC), data) in (DropReason.DECRYPT_FAILED, DropReason.NOT_FOR_US)
    assert reason_of(DiscoBox(BOB_SECRET, disco.public_key(bytes(32))), data) is DropReason.UNKNOWN_PEER


@pytest.mark.parametrize(
    "message", [Ping(TRANSACTION, 7), Pong(TRANSACTION, Address("192.0.2.1", 1), 1, 2)], ids=["ping", "pong"]
)
def test_a_datagram_sent_back_with_the_sender_swapped_does_not_open(message: Ping | Pong) -> None:
    for secret, box in ((ALICE_SECRET, alice()), (BOB_SECRET, bob())):
        for seed in range(8):
            data = box.seal(message, entropy(seed))
            reflected = disco.MAGIC + box.remote_public + data[HEADER:]
            assert reason_of(box, reflected) is DropReason.NOT_FOR_US
            turned = bytearray(reflected)
            turned[HEADER + 23] ^= 1
            assert reason_of(box, bytes(turned)) is DropReason.DECRYPT_FAILED
            assert reason_of(box, data) is DropReason.UNKNOWN_PEER
            assert secret not in data


def test_every_flipped_bit_is_noticed() -> None:
    data = alice().seal(Ping(TRANSACTION, 7), entropy())
    receiver = bob()
    for position in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(MalformedMessage):
            receiver.open(bytes(damaged))


def test_every_truncation_is_rejected() -> None:
    data = alice().seal(Ping(TRANSACTION, 7), entropy())
    for size in range(len(data)):
        with pytest.raises(MalformedMessage):
            bob().open(data[:size])


def test_a_key_of_low_order_makes_a_box_that_nothing_opens() -> None:
    box = DiscoBox(BOB_SECRET, bytes(32))
    forged = disco.MAGIC + bytes(32) + bytes(24) + bindings.crypto_secretbox(b"\x01" + bytes(35), bytes(24), bytes(32))
    assert disco.is_disco(forged)
    assert reason_of(box, forged) is not None
    box.seal(Ping(TRANSACTION, 7), entropy())


@given(st.binary(max_size=80))
@settings(max_examples=150, deadline=None)
def test_any_plaintext_of_a_member_is_a_message_or_malformed(plaintext: bytes) -> None:
    open_quietly(bob(), sealed_by_alice(plaintext))


@given(st.sampled_from([1, 2]), st.binary(min_size=35, max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_body_behind_a_known_type_is_a_message_or_malformed(kind: int, body: bytes) -> None:
    open_quietly(bob(), sealed_by_alice(bytes([kind]) + body))


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_refused(data: bytes, is_plausible: bool) -> None:
    with pytest.raises(MalformedMessage):
        bob().open(disco.MAGIC + ALICE_PUBLIC + data if is_plausible else data)


def test_bytes_after_a_known_message_are_ignored() -> None:
    pong = b"\x02" + TRANSACTION + b"\x04" + bytes(16) + b"\0\x01\0\0\0\x05\0\0\0\x06"
    assert bob().open(sealed_by_alice(pong + b"\0\0\0\x07more")) == Pong(TRANSACTION, Address("0.0.0.0", 1), 5, 6, 7)


@pytest.mark.parametrize(
    "data", [b"", b"MVdsc1", b"MVdsc1" + bytes(71), b"MVdsc2" + bytes(200), b"\x01\0\0\0" + bytes(144)]
)
def test_is_disco_refuses_what_is_short_or_something_else(data: bytes) -> None:
    assert not disco.is_disco(data)


def test_is_disco_accepts_the_shortest_datagram_that_can_be_one() -> None:
    assert disco.is_disco(b"MVdsc1" + bytes(72))


def sealed_by_alice(plaintext: bytes) -> bytes:
    """As alice's end would send it, whatever the plaintext."""
    nonce = bytearray(range(24))
    nonce[-1] = nonce[-1] & 0xFE | (ALICE_PUBLIC > BOB_PUBLIC)
    return disco.MAGIC + ALICE_PUBLIC + nonce + bindings.crypto_box(plaintext, bytes(nonce), BOB_PUBLIC, ALICE_SECRET)


def open_quietly(box: DiscoBox, data: bytes) -> None:
    assert reason_of(box, data) in (None, DropReason.TOO_SHORT, DropReason.UNKNOWN_TYPE, DropReason.MALFORMED)


def reason_of(box: DiscoBox, data: bytes) -> DropReason | None:
    try:
        box.open(data)
    except MalformedMessage as error:
        return error.reason
    return None
