"""Two hosts that run with one identity, as copies of one disk do: who was there first stays. Pure.

A run of the daemon is an *instance*; its name follows from the disco key, which is new with each start. The server asks
a connected instance whether it is there before it lets another one in (control.Ask). Peers know an instance by a *tag*
in the sender index of its handshakes, the upper 16 of 32 bits that mean nothing to anybody else:

    handshake with another tag, while the peer is reachable ──pings to the instance that is known──▶
        a pong, or an authenticated packet ──▶ the handshake is dropped, its sender told by a notice
        nothing for PATIENCE               ──▶ that instance is gone: the handshake is answered

    notice  MVdscN ‖ tunnel key of who sends it(32) ‖ nonce(24) ‖ secretbox(sender index(4) ‖ mac1(16))

The secretbox' key is BLAKE2b-32(key = X25519 of the two tunnel keys, label); index and mac1 are of the initiation that
was dropped, so that a notice is worth nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from . import keys as key_rules
from . import primitives
from .deadlines import Deadlines
from .drops import DropReason
from .errors import MalformedMessage

INSTANCE = 16
"""Bytes of an instance's name."""
PINGS = 5
"""Of one challenge: several, for one may be lost."""
PATIENCE = (0.3, 0.9)
"""Seconds for an answer, to which four round trips are added: at least, and at most altogether. So long waits who was
started anew and is not known yet."""
RETRY_AFTER = 60.0
"""Seconds after which a host tries again that was told that it is a copy: the other one may be switched off by then."""
STAND_DOWN = 150.0
"""Seconds for which a host keeps quiet that the server refused as a copy, if it does not refuse it again meanwhile."""
TOLD_FOR = 600.0
"""Seconds for which users are told of a copy after it was last seen."""
NOTICE_MAGIC = b"MVdscN"
_INSTANCE_LABEL = b"meshvpn instance v1"
_NOTICE_LABEL = b"meshvpn notice v1"
_KEY = 32
_MAC1 = 16
_NOTICE_BYTES = len(NOTICE_MAGIC) + _KEY + 24 + 16 + 4 + _MAC1


def instance_of(disco_public: bytes) -> bytes:
    """The name of the daemon's run that has this disco key."""
    return primitives.blake2b(disco_public, INSTANCE, _INSTANCE_LABEL)


def tag_of(disco_public: bytes) -> int:
    """What handshakes of that run carry: 16 bits."""
    return int.from_bytes(instance_of(disco_public)[:2], "big")


def tag_in(index: int) -> int:
    """The tag in a sender index."""
    return index >> 16


def is_notice(data: bytes) -> bool:
    """Cheap test by magic and size."""
    return data.startswith(NOTICE_MAGIC) and len(data) == _NOTICE_BYTES


def notice_sender(data: bytes) -> bytes:
    """The tunnel key that it claims to come from; the box proves it."""
    return data[len(NOTICE_MAGIC) : len(NOTICE_MAGIC) + _KEY]


def seal_notice(secret: bytes, to: bytes, index: int, mac1: bytes, entropy: Callable[[int], bytes]) -> bytes:
    """Tell who sent that initiation that another host answers to its identity. Raises ValueError for a weak key."""
    plaintext = index.to_bytes(4, "little") + mac1
    sealed = key_rules.seal_secret(_notice_key(secret, to), plaintext, entropy)
    return NOTICE_MAGIC + primitives.x25519_public(secret) + sealed


def open_notice(secret: bytes, data: bytes) -> tuple[int, bytes]:
    """Sender index and mac1 of the initiation that was dropped. Raises MalformedMessage."""
    try:
        key = _notice_key(secret, notice_sender(data))
    except ValueError as error:
        raise MalformedMessage(DropReason.DECRYPT_FAILED) from error
    plaintext = key_rules.open_secret(key, data[len(NOTICE_MAGIC) + _KEY :])
    if plaintext is None or len(plaintext) != 4 + _MAC1:
        raise MalformedMessage(DropReason.DECRYPT_FAILED)
    return int.from_bytes(plaintext[:4], "little"), plaintext[4:]


def _notice_key(secret: bytes, public: bytes) -> bytes:
    return primitives.blake2b(_NOTICE_LABEL, 32, primitives.x25519(secret, public))


@dataclass(slots=True)
class _Challenge:
    started_at: float
    patience: float
    sent: int = 0


@dataclass(slots=True)
class Challenges:
    """The questions to peers whether they are there yet, by their numbers."""

    _open: dict[int, _Challenge] = field(default_factory=dict)
    _deadlines: Deadlines = field(default_factory=Deadlines)

    def start(self, number: int, rtt: float, *, now: float) -> None:
        """Ask; one question at a time. `rtt` in seconds."""
        if number not in self._open:
            self._open[number] = _Challenge(now, min(PATIENCE[0] + 4 * rtt, PATIENCE[1]))
            self._deadlines.set(number, now)

    def forget(self, number: int) -> None:
        """It is settled otherwise."""
        self._open.pop(number, None)
        self._deadlines.set(number, None)

    def handle_sign(self, number: int, at: float) -> bool:
        """A sign of life of that instant: does it answer a question? Then that is over."""
        challenge = self._open.get(number)
        if challenge is None or at <= challenge.started_at:
            return False
        self.forget(number)
        return True

    def next_timeout(self) -> float | None:
        """The next ping or verdict."""
        return self._deadlines.first()

    def take_due(self, *, now: float) -> tuple[list[int], list[int]]:
        """Whom to ping, and who did not answer."""
        pings, silent = [], []
        for number in self._deadlines.take_due(now=now):
            challenge = self._open[number]
            if now >= challenge.started_at + challenge.patience:
                self.forget(number)
                silent.append(number)
                continue
            challenge.sent += 1
            pings.append(number)
            # The last ping leaves a round trip's time before the verdict.
            share = 1.0 if challenge.sent >= PINGS else challenge.sent / (PINGS + 2)
            self._deadlines.set(number, challenge.started_at + challenge.patience * share)
        return pings, silent
