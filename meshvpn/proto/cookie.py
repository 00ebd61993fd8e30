"""mac1, mac2 and cookies (whitepaper §5.4.4, §5.4.7, §5.3): what is checked before any work is done for a stranger."""

from __future__ import annotations

from collections.abc import Callable

from . import primitives
from .buckets import Buckets
from .constants import (
    COOKIE_SECRET_LATENCY,
    COOKIE_SECRET_MAX_AGE,
    HANDSHAKES_BURSTABLE,
    HANDSHAKES_PER_SECOND,
    LABEL_COOKIE,
    LABEL_MAC1,
    MAX_RATE_ENTRIES,
    UNDER_LOAD_RATE,
)
from .messages import MACS_BYTES, CookieReply

_MAC = 16
_NO_MAC = bytes(_MAC)


class CookieChecker:
    """The receiver's side: is a message made for our key, and does its sender own its address?"""

    def __init__(self, public_key: bytes, *, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._mac1_key = primitives.blake2s(LABEL_MAC1 + public_key)
        self._cookie_key = primitives.blake2s(LABEL_COOKIE + public_key)
        self._secret = b""
        self._secret_at = 0.0

    def is_mac1_valid(self, message: bytes) -> bool:
        """The first gate: whoever does not know our public key gets nothing at all."""
        covered, mac1 = message[:-MACS_BYTES], message[-MACS_BYTES:-_MAC]
        return primitives.is_equal(primitives.mac(self._mac1_key, covered), mac1)

    def is_mac2_valid(self, message: bytes, source: bytes, *, now: float) -> bool:
        """True if the message carries the cookie that its source address was sent."""
        cookie = self._cookie(source, now)
        return primitives.is_equal(primitives.mac(cookie, message[:-_MAC]), message[-_MAC:])

    def make_reply(self, message: bytes, sender: int, source: bytes, *, now: float) -> bytes:
        """A cookie reply to the message with this sender index."""
        nonce = self._entropy(24)
        mac1 = message[-MACS_BYTES:-_MAC]
        sealed = primitives.xaead_encrypt(self._cookie_key, nonce, self._cookie(source, now), mac1)
        return CookieReply(sender, nonce, sealed).encode()

    def _cookie(self, source: bytes, now: float) -> bytes:
        if not self._secret or now - self._secret_at >= COOKIE_SECRET_MAX_AGE:
            self._secret, self._secret_at = self._entropy(32), now
        return primitives.mac(self._secret, source)


class CookieJar:
    """The sender's side, one a peer: adds both macs and keeps the cookie that the peer sent."""

    def __init__(self, remote_public_key: bytes) -> None:
        self._mac1_key = primitives.blake2s(LABEL_MAC1 + remote_public_key)
        self._cookie_key = primitives.blake2s(LABEL_COOKIE + remote_public_key)
        self._last_mac1 = b""
        self._cookie = b""
        self._cookie_at = 0.0

    def sign(self, message: bytes, *, now: float) -> bytes:
        """The encoded message with its macs filled in."""
        covered = message[:-MACS_BYTES]
        mac1 = self._last_mac1 = primitives.mac(self._mac1_key, covered)
        is_fresh = self._cookie and now - self._cookie_at < COOKIE_SECRET_MAX_AGE - COOKIE_SECRET_LATENCY
        mac2 = primitives.mac(self._cookie, covered + mac1) if is_fresh else _NO_MAC
        return covered + mac1 + mac2

    def accept_reply(self, reply: CookieReply, *, now: float) -> bool:
        """Keep the cookie; False if the reply is not to our last message. It answers one message only once."""
        if not self._last_mac1:
            return False
        cookie = primitives.xaead_decrypt(self._cookie_key, reply.nonce, reply.cookie, self._last_mac1)
        if cookie is None:
            return False
        self._cookie, self._cookie_at, self._last_mac1 = cookie, now, b""
        return True


class HandshakeLimiter(Buckets):
    """Under load, each source address gets HANDSHAKES_PER_SECOND; the table holds the most recent sources."""

    def __init__(self) -> None:
        super().__init__(HANDSHAKES_PER_SECOND, HANDSHAKES_BURSTABLE, size=MAX_RATE_ENTRIES)


class LoadMeter:
    """Says whether handshakes come faster than UNDER_LOAD_RATE; once they do, for the second that follows too."""

    def __init__(self) -> None:
        self._second = 0.0
        self._count = 0
        self._until = float("-inf")

    def is_under_load(self, *, now: float) -> bool:
        """Count one handshake message."""
        if now - self._second >= 1.0:
            self._second, self._count = now, 0
        self._count += 1
        if self._count > UNDER_LOAD_RATE:
            self._until = now + 1.0
        return now < self._until
