"""mac1, mac2 and cookies from both sides, and the limits that hold under load."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings

from meshvpn.proto import messages
from meshvpn.proto.constants import (
    COOKIE_SECRET_LATENCY,
    COOKIE_SECRET_MAX_AGE,
    HANDSHAKES_BURSTABLE,
    HANDSHAKES_PER_SECOND,
    MAX_RATE_ENTRIES,
    UNDER_LOAD_RATE,
)
from meshvpn.proto.cookie import CookieChecker, CookieJar, HandshakeLimiter, LoadMeter
from meshvpn.proto.messages import CookieReply, Initiation

PUBLIC, OTHER_PUBLIC = bytes(range(32)), bytes(range(1, 33))
SOURCE = b"192.0.2.1 1000 "
BARE = Initiation(7, bytes(range(108))).encode()


def test_the_macs_are_the_papers() -> None:
    signed = CookieJar(PUBLIC).sign(BARE, now=0.0)
    key = hashlib.blake2s(b"mac1----" + PUBLIC).digest()
    assert signed[:116] == BARE[:116]
    assert signed[116:132] == hashlib.blake2s(BARE[:116], key=key, digest_size=16).digest()
    assert signed[132:] == bytes(16)


def test_only_who_knows_the_public_key_passes_the_first_gate() -> None:
    checker = make_checker()
    signed = CookieJar(PUBLIC).sign(BARE, now=0.0)
    assert checker.is_mac1_valid(signed)
    assert not checker.is_mac1_valid(BARE)
    assert not checker.is_mac1_valid(CookieJar(OTHER_PUBLIC).sign(BARE, now=0.0))
    for position in range(132):
        assert not checker.is_mac1_valid(flip(signed, position))


def test_a_cookie_reply_is_the_papers_and_says_the_mac_of_the_source() -> None:
    checker, jar = make_checker(), CookieJar(PUBLIC)
    signed = jar.sign(BARE, now=0.0)
    reply = reply_to(checker, signed, now=0.0)
    assert reply.receiver == 7
    key = hashlib.blake2s(b"cookie--" + PUBLIC).digest()
    cookie = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(reply.cookie, signed[116:132], reply.nonce, key)
    # The nonce is the first thing that was drawn, the secret the second.
    assert (reply.nonce, cookie) == (draw(1, 24), hashlib.blake2s(SOURCE, key=draw(2, 32), digest_size=16).digest())


def test_a_message_with_the_cookie_passes_the_second_gate_from_that_source_only() -> None:
    checker, jar = make_checker(), CookieJar(PUBLIC)
    assert not checker.is_mac2_valid(jar.sign(BARE, now=0.0), SOURCE, now=0.0)
    assert jar.accept_reply(reply_to(checker, jar.sign(BARE, now=0.0), now=0.0), now=0.0)
    signed = jar.sign(BARE, now=0.1)
    assert checker.is_mac2_valid(signed, SOURCE, now=0.1)
    assert not checker.is_mac2_valid(signed, SOURCE + b"x", now=0.1)
    for position in range(len(signed)):
        assert not checker.is_mac2_valid(flip(signed, position), SOURCE, now=0.1)


def test_a_cookie_is_refused_once_its_secret_is_two_minutes_old() -> None:
    checker, jar = make_checker(), CookieJar(PUBLIC)
    jar.accept_reply(reply_to(checker, jar.sign(BARE, now=1000.0), now=1000.0), now=1000.0)
    signed = jar.sign(BARE, now=1000.0)
    assert checker.is_mac2_valid(signed, SOURCE, now=1000.0 + COOKIE_SECRET_MAX_AGE - 0.1)
    assert not checker.is_mac2_valid(signed, SOURCE, now=1000.0 + COOKIE_SECRET_MAX_AGE)
    assert not checker.is_mac2_valid(signed, SOURCE, now=1000.0 + 10 * COOKIE_SECRET_MAX_AGE)


def test_the_sender_stops_using_a_cookie_a_little_before_that() -> None:
    checker, jar = make_checker(), CookieJar(PUBLIC)
    jar.accept_reply(reply_to(checker, jar.sign(BARE, now=0.0), now=0.0), now=0.0)
    last = COOKIE_SECRET_MAX_AGE - COOKIE_SECRET_LATENCY
    assert jar.sign(BARE, now=last - 0.1)[132:] != bytes(16)
    assert jar.sign(BARE, now=last)[132:] == bytes(16)


def test_a_reply_counts_for_the_last_message_once_and_for_no_other() -> None:
    checker, jar = make_checker(), CookieJar(PUBLIC)
    early = reply_to(checker, jar.sign(BARE, now=0.0), now=0.0)
    other = Initiation(8, bytes(108)).encode()
    late = reply_to(checker, jar.sign(other, now=0.1), now=0.1)
    assert not jar.accept_reply(early, now=0.2)
    assert jar.accept_reply(late, now=0.2)
    assert not jar.accept_reply(late, now=0.2)


def test_a_reply_before_anything_was_sent_is_refused() -> None:
    checker = make_checker()
    reply = reply_to(checker, CookieJar(PUBLIC).sign(BARE, now=0.0), now=0.0)
    assert not CookieJar(PUBLIC).accept_reply(reply, now=0.0)


@pytest.mark.parametrize("field", ["nonce", "cookie"])
def test_a_reply_with_any_flipped_byte_is_refused_and_the_genuine_one_still_counts(field: str) -> None:
    checker, jar = make_checker(), CookieJar(PUBLIC)
    reply = reply_to(checker, jar.sign(BARE, now=0.0), now=0.0)
    genuine: bytes = getattr(reply, field)
    for position in range(len(genuine)):
        parts = {"nonce": reply.nonce, "cookie": reply.cookie} | {field: flip(genuine, position)}
        assert not jar.accept_reply(CookieReply(7, **parts), now=0.0)
    assert jar.accept_reply(reply, now=0.0)


# Limits.


def test_load_begins_with_the_first_message_above_the_rate_and_ends_a_second_after_the_last() -> None:
    meter = LoadMeter()
    outcomes = [meter.is_under_load(now=0.5) for _ in range(UNDER_LOAD_RATE + 1)]
    assert outcomes == [False] * UNDER_LOAD_RATE + [True]
    assert meter.is_under_load(now=1.49)
    assert not meter.is_under_load(now=1.51)


def test_load_that_goes_on_is_load_without_a_gap() -> None:
    meter = LoadMeter()
    step = 1 / (2 * UNDER_LOAD_RATE)
    outcomes = [meter.is_under_load(now=number * step) for number in range(10 * UNDER_LOAD_RATE)]
    first = outcomes.index(True)
    assert first <= UNDER_LOAD_RATE + 1
    assert all(outcomes[first:])


def test_messages_at_the_rate_are_never_load() -> None:
    meter = LoadMeter()
    assert not any(meter.is_under_load(now=number / UNDER_LOAD_RATE) for number in range(5 * UNDER_LOAD_RATE))


def test_each_source_has_its_burst_and_then_its_rate() -> None:
    limiter = HandshakeLimiter()
    for source in (b"a", b"b"):
        outcomes = [limiter.take(source, now=0.0) for _ in range(HANDSHAKES_BURSTABLE + 3)]
        assert outcomes == [True] * HANDSHAKES_BURSTABLE + [False] * 3
    step = 1 / (4 * HANDSHAKES_PER_SECOND)
    allowed = sum(limiter.take(b"a", now=1.0 + number * step) for number in range(40 * HANDSHAKES_PER_SECOND))
    assert abs(allowed - 10 * HANDSHAKES_PER_SECOND - HANDSHAKES_BURSTABLE) <= 1


def test_the_table_of_sources_is_bounded_and_forgets_who_was_silent_for_longest() -> None:
    limiter = HandshakeLimiter()
    for _ in range(HANDSHAKES_BURSTABLE):
        limiter.take(b"busy", now=0.0)
    for number in range(3 * MAX_RATE_ENTRIES):
        limiter.take(number.to_bytes(4, "big"), now=0.0)
        if number % 1000 == 0:
            assert not limiter.take(b"busy", now=0.0)
    assert len(limiter) == MAX_RATE_ENTRIES


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.floats(0, 2)), max_size=100))
def test_no_source_ever_gets_more_than_burst_and_rate(steps: list[tuple[bytes, float]]) -> None:
    limiter, now, allowed = HandshakeLimiter(), 0.0, {b"a": 0, b"b": 0}
    for source, wait in steps:
        now += wait
        allowed[source] += limiter.take(source, now=now)
    assert all(count <= HANDSHAKES_BURSTABLE + now * HANDSHAKES_PER_SECOND + 1e-6 for count in allowed.values())


def make_checker() -> CookieChecker:
    count = 0

    def entropy(size: int) -> bytes:
        nonlocal count
        count += 1
        return draw(count, size)

    return CookieChecker(PUBLIC, entropy=entropy)


def draw(number: int, size: int) -> bytes:
    return bytes([number]) * size


def reply_to(checker: CookieChecker, message: bytes, *, now: float) -> CookieReply:
    reply = messages.parse(checker.make_reply(message, 7, SOURCE, now=now))
    assert isinstance(reply, CookieReply)
    return reply


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
