"""Noise_IKpsk2 against another implementation's vectors, and against everything that is not quite the right message."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import primitives
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.noise import Initiator, Responder, TransportKeys
from tests.vectors import load

from .test_primitives import LOW_ORDER

INITIATOR, RESPONDER, STRANGER = bytes(range(1, 33)), bytes(range(2, 34)), bytes(range(3, 35))
INITIATOR_EPHEMERAL, RESPONDER_EPHEMERAL = bytes(range(40, 72)), bytes(range(80, 112))
PSK, OTHER_PSK = b"\x11" * 32, b"\x22" * 32
STAMP = bytes(range(12))


def vector_id(vector: dict[str, Any]) -> str:
    payload = "payload" if vector["messages"][0]["payload"] else "empty"
    return f"{'prologue' if vector['prologue'] else 'bare'}-{payload}"


@pytest.mark.parametrize("vector", load("noise_ikpsk2"), ids=vector_id)
def test_both_ends_write_the_published_messages_and_read_each_other(vector: dict[str, Any]) -> None:
    key = {name: bytes.fromhex(value) for name, value in vector.items() if isinstance(value, str)}
    first, second, third, fourth = ({n: bytes.fromhex(v) for n, v in m.items()} for m in vector["messages"])
    responder_public = primitives.x25519_public(key["responder_static"])
    initiator = Initiator(
        key["initiator_static"], responder_public, key["initiator_ephemeral"], prologue=key["prologue"]
    )
    responder = Responder(key["responder_static"], prologue=key["prologue"])

    assert initiator.write_message(first["payload"]) == first["ciphertext"]
    assert responder.read_message(first["ciphertext"]) == first["payload"]
    assert responder.remote_static == primitives.x25519_public(key["initiator_static"])

    message, theirs = responder.write_message(second["payload"], key["responder_ephemeral"], key["preshared_key"])
    assert message == second["ciphertext"]
    payload, ours = initiator.read_message(message, key["preshared_key"])
    assert payload == second["payload"]
    assert ours.handshake_hash == theirs.handshake_hash

    assert primitives.aead_encrypt(ours.send, 0, third["payload"], b"") == third["ciphertext"]
    assert primitives.aead_decrypt(theirs.receive, 0, third["ciphertext"], b"") == third["payload"]
    assert primitives.aead_encrypt(theirs.send, 0, fourth["payload"], b"") == fourth["ciphertext"]
    assert primitives.aead_decrypt(ours.receive, 0, fourth["ciphertext"], b"") == fourth["payload"]


FIRST_REGIONS = {"ephemeral": range(0, 32), "static": range(32, 80), "payload": range(80, 108)}
SECOND_REGIONS = {"ephemeral": range(0, 32), "empty": range(32, 48)}


@pytest.mark.parametrize("region", FIRST_REGIONS.values(), ids=FIRST_REGIONS)
def test_a_first_message_with_any_flipped_bit_is_refused_and_leaves_the_responder_as_it_was(region: range) -> None:
    initiator, responder = make_ends()
    message = initiator.write_message(STAMP)
    for position in region:
        for bit in range(8):
            before = state_of(responder)
            assert reason_of(partial(responder.read_message, flip(message, position, bit))) is REFUSED
            assert state_of(responder) == before
    assert responder.read_message(message) == STAMP


@pytest.mark.parametrize("region", SECOND_REGIONS.values(), ids=SECOND_REGIONS)
def test_a_second_message_with_any_flipped_bit_is_refused_and_leaves_the_initiator_as_it_was(region: range) -> None:
    initiator, responder = make_ends()
    responder.read_message(initiator.write_message(STAMP))
    message, theirs = responder.write_message(b"", RESPONDER_EPHEMERAL, PSK)
    for position in region:
        for bit in range(8):
            before = state_of(initiator)
            assert reason_of(partial(initiator.read_message, flip(message, position, bit), PSK)) is REFUSED
            assert state_of(initiator) == before
    assert initiator.read_message(message, PSK)[1].send == theirs.receive


def test_the_bit_of_an_ephemeral_that_the_curve_ignores_is_protected_by_the_hash() -> None:
    # The top bit of a u-coordinate does not count (RFC 7748 §5), so the shared secret is the same with it.
    initiator, responder = make_ends()
    message = initiator.write_message(STAMP)
    assert reason_of(lambda: responder.read_message(flip(message, 31, 7))) is REFUSED
    responder.read_message(message)
    second, _ = responder.write_message(b"", RESPONDER_EPHEMERAL, PSK)
    assert reason_of(lambda: initiator.read_message(flip(second, 31, 7), PSK)) is REFUSED


@pytest.mark.parametrize("size", range(108))
def test_a_truncated_message_is_refused(size: int) -> None:
    initiator, responder = make_ends()
    first = initiator.write_message(STAMP)
    assert reason_of(lambda: responder.read_message(first[:size])) is REFUSED
    responder.read_message(first)
    second, _ = responder.write_message(b"", RESPONDER_EPHEMERAL, PSK)
    if size < len(second):
        assert reason_of(lambda: initiator.read_message(second[:size], PSK)) is REFUSED


def test_a_wrong_preshared_key_is_refused_and_the_right_one_still_works() -> None:
    initiator, responder = make_ends()
    responder.read_message(initiator.write_message(STAMP))
    message, theirs = responder.write_message(b"", RESPONDER_EPHEMERAL, PSK)
    assert reason_of(lambda: initiator.read_message(message, OTHER_PSK)) is REFUSED
    assert initiator.read_message(message, PSK)[1].receive == theirs.send


def test_a_message_to_another_key_or_with_another_prologue_is_refused() -> None:
    message = make_ends()[0].write_message(STAMP)
    assert reason_of(lambda: Responder(STRANGER).read_message(message)) is REFUSED
    assert reason_of(lambda: Responder(RESPONDER, prologue=b"other").read_message(message)) is REFUSED


def test_an_answer_to_one_initiation_does_not_fit_another() -> None:
    initiator, responder = make_ends()
    responder.read_message(initiator.write_message(STAMP))
    message, _ = responder.write_message(b"", RESPONDER_EPHEMERAL, PSK)
    later = Initiator(INITIATOR, primitives.x25519_public(RESPONDER), RESPONDER_EPHEMERAL)
    later.write_message(STAMP)
    assert reason_of(lambda: later.read_message(message, PSK)) is REFUSED


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_public_keys_of_low_order_are_refused_wherever_they_stand(point: bytes) -> None:
    initiator, responder = make_ends()
    message = initiator.write_message(STAMP)
    assert reason_of(lambda: responder.read_message(point + message[32:])) is REFUSED
    assert reason_of(lambda: initiator.read_message(point + bytes(16), PSK)) is REFUSED
    with pytest.raises(ValueError, match="low order"):
        Initiator(INITIATOR, point, INITIATOR_EPHEMERAL).write_message(STAMP)


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_a_static_key_of_low_order_is_refused_although_it_was_sealed_correctly(point: bytes) -> None:
    # What an initiator with that "public key" would send up to `s`, made with the state's own steps.
    initiator, responder = make_ends()
    state = initiator._state
    ephemeral = primitives.x25519_public(INITIATOR_EPHEMERAL)
    state.mix_ephemeral(ephemeral)
    state.mix_key(primitives.x25519(INITIATOR_EPHEMERAL, primitives.x25519_public(RESPONDER)))
    message = ephemeral + state.encrypt_and_hash(point)
    before = state_of(responder)
    assert reason_of(lambda: responder.read_message(message + bytes(28))) is REFUSED
    assert state_of(responder) == before


def test_a_responder_can_answer_once_more_with_another_preshared_key() -> None:
    initiator, responder = make_ends()
    responder.read_message(initiator.write_message(STAMP))
    responder.write_message(b"", RESPONDER_EPHEMERAL, OTHER_PSK)
    message, theirs = responder.write_message(b"", STRANGER, PSK)
    assert initiator.read_message(message, PSK)[1].send == theirs.receive


@settings(max_examples=30, deadline=None)
@given(*[st.binary(min_size=32, max_size=32)] * 5, st.binary(max_size=40), st.binary(max_size=40))
def test_any_keys_and_payloads_give_both_ends_the_same_session(
    static_i: bytes, static_r: bytes, ephemeral_i: bytes, ephemeral_r: bytes, psk: bytes, first: bytes, second: bytes
) -> None:
    initiator = Initiator(static_i, primitives.x25519_public(static_r), ephemeral_i)
    responder = Responder(static_r)
    assert responder.read_message(initiator.write_message(first)) == first
    message, theirs = responder.write_message(second, ephemeral_r, psk)
    payload, ours = initiator.read_message(message, psk)
    assert payload == second
    assert (ours.send, ours.receive) == (theirs.receive, theirs.send)
    assert ours.send != ours.receive


def test_a_private_key_shows_in_no_text() -> None:
    keys = TransportKeys(b"SECRET" * 6, b"SECRET" * 6, b"hash")
    assert "SECRET" not in repr(keys)
    assert "SECRET" not in f"{keys}"


REFUSED = DropReason.DECRYPT_FAILED


def make_ends() -> tuple[Initiator, Responder]:
    return Initiator(INITIATOR, primitives.x25519_public(RESPONDER), INITIATOR_EPHEMERAL), Responder(RESPONDER)


def flip(message: bytes, position: int, bit: int) -> bytes:
    return message[:position] + bytes([message[position] ^ 1 << bit]) + message[position + 1 :]


def state_of(end: Initiator | Responder) -> tuple[bytes, ...]:
    symmetric = end._state
    remote = (end.remote_static, end._remote_ephemeral) if isinstance(end, Responder) else ()
    return (symmetric.chaining_key, symmetric.handshake_hash, symmetric.key, *remote)


def reason_of(read: Callable[[], object]) -> DropReason | None:
    try:
        read()
    except MalformedMessage as error:
        return error.reason
    return None
