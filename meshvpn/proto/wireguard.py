"""The WireGuard handshakes of one node with all its peers (whitepaper §5.4, §6). Transport packets are the engine's.

Per peer there is at most one initiation of ours under way and, in the engine, the keypairs that came of handshakes:

    wanted ──initiation──▶ waiting ──response──▶ InstallKeypair, SendKeepalive
       ▲                      │ no answer: again after 1 s, 2 s, then REKEY_TIMEOUT; gives up after REKEY_ATTEMPT_TIME
       └── new data ──────────┘
    initiation of the peer ──response──▶ InstallKeypair as `next` ──first packet──▶ handle_keypair_confirmed

Preshared keys are a list, newest first. The initiator accepts a response made with any of them. The responder answers
with the newest and, as long as the peer does not use what came of it but asks again, with each in turn.

Sender indices carry a tag of the daemon's run (clones.py). Handshakes of a peer with another tag than the one that is
expected of it are not used before somebody has found out who sends them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from . import messages, primitives, timers
from .clones import tag_in
from .commands import ForgetKeypairs, InstallKeypair, SendKeepalive
from .constants import (
    INITIATION_INTERVAL,
    MIN_RESEND,
    NO_PRESHARED_KEY,
    REJECT_AFTER_TIME,
    REKEY_ATTEMPT_TIME,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER,
    STARTUP_RETRIES,
)
from .cookie import CookieChecker, CookieJar, HandshakeLimiter, LoadMeter
from .deadlines import Deadlines
from .drops import DropReason
from .errors import MalformedMessage
from .messages import CookieReply, Initiation, Response
from .noise import Initiator, Responder, TransportKeys
from .timers import SilenceTimer, Stamps
from .transport import Path


@dataclass(frozen=True, slots=True)
class HandshakeTransmit:
    """A handshake message. `path` None: on the peer's primary path; else back where the cause came from."""

    peer: int | None
    path: Path | None
    data: bytes


@dataclass(frozen=True, slots=True)
class SessionEstablished:
    """A handshake succeeded; its last message came on `path`, so the peer is there."""

    peer: int
    path: Path
    is_initiator: bool
    tag: int = 0


@dataclass(frozen=True, slots=True)
class OtherInstance:
    """A handshake message that was not used: another run of the peer's daemon made it. None: it was a response."""

    peer: int
    path: Path
    initiation: Initiation | None


@dataclass(frozen=True, slots=True)
class HandshakeGaveUp:
    """No answer for REKEY_ATTEMPT_TIME."""

    peer: int


WireGuardEvent = InstallKeypair | ForgetKeypairs | SendKeepalive | SessionEstablished | OtherInstance | HandshakeGaveUp


@dataclass(slots=True)
class _Attempt:
    """Our initiations until one is answered."""

    started_at: float
    sent_at: float = 0.0
    retry_at: float = 0.0
    tries: int = 0
    index: int = 0
    handshake: Initiator | None = None
    mac1: bytes = b""
    held_until: float = float("-inf")


@dataclass(slots=True, repr=False)
class _Peer:
    number: int
    public_key: bytes
    preshared_keys: tuple[bytes, ...]
    jar: CookieJar
    tag: int | None = None
    attempt: _Attempt | None = None
    greatest_timestamp: bytes = bytes(12)
    initiation_at: float = float("-inf")
    unconfirmed_answers: int = 0
    last_timestamp: bytes = bytes(12)
    keypair_at: float | None = None
    keypair_indices: list[int] = field(default_factory=list)
    silence: SilenceTimer = field(default_factory=SilenceTimer)
    persistent_keepalive: float | None = None


class WireGuard:
    """The machine. `wall_ns` is Unix time in nanoseconds, used for the initiation's timestamp only."""

    def __init__(self, private_key: bytes, *, entropy: Callable[[int], bytes], tag: int | None = None) -> None:
        self._tag = tag
        self.public_key = primitives.x25519_public(private_key)
        self.drops: Counter[DropReason] = Counter()
        self._private_key = private_key
        self._entropy = entropy
        self._checker = CookieChecker(self.public_key, entropy=entropy)
        self._limiter = HandshakeLimiter()
        self._load = LoadMeter()
        self._peers: dict[int, _Peer] = {}
        self._by_key: dict[bytes, _Peer] = {}
        self._by_index: dict[int, _Peer] = {}
        self._deadlines = Deadlines()
        self._transmits: list[HandshakeTransmit] = []
        self._events: list[WireGuardEvent] = []

    def add_peer(self, peer: int, public_key: bytes, preshared_keys: Sequence[bytes] = ()) -> None:
        """A peer and its static key. Without preshared keys it is a plain WireGuard peer."""
        if peer in self._peers or public_key in self._by_key:
            raise ValueError(f"peer {peer} or its key is there already")
        entry = _Peer(peer, public_key, _keys(preshared_keys), CookieJar(public_key))
        self._peers[peer] = self._by_key[public_key] = entry

    def set_preshared_keys(self, peer: int, keys: Sequence[bytes]) -> None:
        """From the next handshake on; sessions that are up stay up."""
        self._peers[peer].preshared_keys = _keys(keys)

    def peer_of(self, public_key: bytes) -> int | None:
        """The number of the peer with this static key."""
        entry = self._by_key.get(public_key)
        return None if entry is None else entry.number

    def set_tag(self, peer: int, tag: int | None) -> None:
        """Which run of the peer's daemon to deal with; None: any, as with implementations that know no tags."""
        self._peers[peer].tag = tag

    def handle_accepted(self, other: OtherInstance, *, now: float, wall_ns: int) -> None:
        """The message was of the run that we deal with from now on; `set_tag` comes first."""
        if other.initiation is None:
            # It has answered us, to no effect: ask again.
            self.handle_path_available(other.peer, now=now, wall_ns=wall_ns)
            return
        try:
            reason = self._handle_initiation(other.initiation, other.path, now)
        except MalformedMessage as error:
            reason = error.reason
        if reason is not None:
            self.drops[reason] += 1

    def set_persistent_keepalive(self, peer: int, interval: float | None) -> None:
        """Seconds after which an idle session is due an empty packet, or None."""
        self._peers[peer].persistent_keepalive = interval

    def remove_peer(self, peer: int) -> None:
        """Forget the peer; handshakes of it that are under way die with it."""
        entry = self._peers.pop(peer)
        del self._by_key[entry.public_key]
        self._end_attempt(entry)
        self._release(entry.keypair_indices)
        self._deadlines.set(peer, None)
        # Its number may be another peer's next, who must not get what was meant for this one.
        self._events = [event for event in self._events if event.peer != peer]
        self._transmits = [transmit for transmit in self._transmits if transmit.peer != peer]

    def handle_datagram(self, data: bytes, path: Path, *, now: float, wall_ns: int) -> DropReason | None:
        """A message of type 1, 2 or 3."""
        reason = self._handle_datagram(data, path, now, wall_ns)
        if reason is not None:
            self.drops[reason] += 1
        return reason

    def handle_handshake_wanted(self, peer: int, *, now: float, wall_ns: int) -> None:
        """The engine has data for the peer and no keypair to seal it with."""
        self._start(self._peers[peer], now, wall_ns)

    def handle_rekey_wanted(self, peer: int, *, now: float, wall_ns: int) -> None:
        """The keypair in use is due for renewal (REKEY_AFTER_TIME, REKEY_AFTER_MESSAGES)."""
        self._start(self._peers[peer], now, wall_ns)

    def handle_keypair_confirmed(self, peer: int, local_index: int, *, now: float) -> None:
        """The peer used the keypair that our response made."""
        entry = self._peers[peer]
        entry.unconfirmed_answers = 0
        # There is a session: what we wanted one of our own for is served (kernel driver: timers_handshake_complete).
        self._end_attempt(entry)

    def handle_stats(self, peer: int, stamps: Stamps, *, now: float, wall_ns: int) -> None:
        """The engine's stamps, read about once a second: do what they say is due."""
        entry = self._peers[peer]
        if (at := entry.silence.due_at(stamps)) is not None and at <= now:
            entry.silence.handle_fired(now=now)
            self._start(entry, now, wall_ns)
        if entry.keypair_at is None:
            return
        interval = entry.persistent_keepalive
        is_idle = interval is not None and timers.persistent_keepalive_at(stamps, interval, entry.keypair_at) <= now
        if is_idle and not _has_session(entry, now):
            self._start(entry, now, wall_ns)
        elif is_idle or ((at := timers.keepalive_at(stamps)) is not None and at <= now):
            self._events.append(SendKeepalive(peer))

    def handle_refusal(self, peer: int, index: int, mac1: bytes, wait: float, *, now: float) -> DropReason | None:
        """The peer says that another host has our keys, and that it did not use this initiation: try again later."""
        entry = self._peers[peer]
        attempt = entry.attempt
        if attempt is None or attempt.index != index or attempt.mac1 != mac1:
            return DropReason.UNEXPECTED
        attempt.started_at = now
        attempt.held_until = attempt.retry_at = now + wait
        self._schedule(entry)
        return None

    def handle_path_available(self, peer: int, *, now: float, wall_ns: int) -> None:
        """There is a (new) way to the peer: what may have been lost on the old one is sent again."""
        entry = self._peers[peer]
        if entry.attempt is None or now < entry.attempt.held_until:
            return
        if (earliest := entry.attempt.sent_at + MIN_RESEND) <= now:
            self._send_initiation(entry, entry.attempt, now, wall_ns)
        else:
            entry.attempt.retry_at = min(entry.attempt.retry_at, earliest)
            self._schedule(entry)

    def next_timeout(self) -> float | None:
        """The next repetition or end of keys."""
        return self._deadlines.first()

    def handle_timeout(self, *, now: float, wall_ns: int) -> None:
        """Repeat initiations, give up, forget keys."""
        for number in self._deadlines.take_due(now=now):
            entry = self._peers[number]
            if entry.attempt is not None and entry.attempt.retry_at <= now:
                self._retry(entry, entry.attempt, now, wall_ns)
            if entry.keypair_at is not None and timers.zero_at(entry.keypair_at) <= now:
                entry.keypair_at = None
                self._release(entry.keypair_indices)
                self._events.append(ForgetKeypairs(entry.number))
            self._schedule(entry)

    def take_transmits(self) -> list[HandshakeTransmit]:
        """Messages to send; clears."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def take_events(self) -> list[WireGuardEvent]:
        """What the data plane must do and what happened; clears."""
        events, self._events = self._events, []
        return events

    # Initiating.

    def _start(self, entry: _Peer, now: float, wall_ns: int) -> None:
        if entry.attempt is None:
            entry.attempt = _Attempt(started_at=now)
            self._send_initiation(entry, entry.attempt, now, wall_ns)

    def _retry(self, entry: _Peer, attempt: _Attempt, now: float, wall_ns: int) -> None:
        if now - attempt.started_at < REKEY_ATTEMPT_TIME:
            self._send_initiation(entry, attempt, now, wall_ns)
            return
        self._end_attempt(entry)
        self._events.append(HandshakeGaveUp(entry.number))

    def _send_initiation(self, entry: _Peer, attempt: _Attempt, now: float, wall_ns: int) -> None:
        # A new ephemeral and timestamp each time, so the responder can tell a repetition from a replay.
        handshake = Initiator(self._private_key, entry.public_key, self._entropy(32))
        try:
            noise = handshake.write_message(self._timestamp(entry, wall_ns))
        except ValueError:
            self.drops[DropReason.DECRYPT_FAILED] += 1
            self._end_attempt(entry)
            return
        self._by_index.pop(attempt.index, None)
        attempt.index, attempt.handshake = self._new_index(entry), handshake
        attempt.sent_at = now
        attempt.retry_at = now + self._retry_wait(entry, attempt)
        attempt.tries += 1
        self._schedule(entry)
        data = entry.jar.sign(Initiation(attempt.index, noise).encode(), now=now)
        attempt.mac1 = data[-messages.MACS_BYTES : -messages.MACS_BYTES // 2]
        self._transmits.append(HandshakeTransmit(entry.number, None, data))

    def _retry_wait(self, entry: _Peer, attempt: _Attempt) -> float:
        if not _has_session(entry, attempt.sent_at) and attempt.tries < len(STARTUP_RETRIES):
            return STARTUP_RETRIES[attempt.tries]
        return REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER * int.from_bytes(self._entropy(4), "little") / 2**32

    def _timestamp(self, entry: _Peer, wall_ns: int) -> bytes:
        stamp = primitives.tai64n(wall_ns)
        if stamp <= entry.last_timestamp:
            # Within one grain, or after the clock went back: still newer than the last one, or the peer refuses it.
            stamp = (int.from_bytes(entry.last_timestamp, "big") + 1).to_bytes(12, "big")
        entry.last_timestamp = stamp
        return stamp

    def _end_attempt(self, entry: _Peer) -> None:
        if entry.attempt is not None:
            self._by_index.pop(entry.attempt.index, None)
            entry.attempt = None
            self._schedule(entry)

    def _schedule(self, entry: _Peer) -> None:
        retry_at = None if entry.attempt is None else entry.attempt.retry_at
        zero_at = None if entry.keypair_at is None else timers.zero_at(entry.keypair_at)
        at = min((at for at in (retry_at, zero_at) if at is not None), default=None)
        self._deadlines.set(entry.number, at)

    # Receiving.

    def _handle_datagram(self, data: bytes, path: Path, now: float, wall_ns: int) -> DropReason | None:
        try:
            message = messages.parse(data)
        except MalformedMessage as error:
            return error.reason
        if isinstance(message, CookieReply):
            return self._handle_cookie_reply(message, now)
        if not self._checker.is_mac1_valid(data):
            return DropReason.BAD_MAC1
        if (reason := self._check_load(data, message.sender, path, now)) is not None:
            return reason
        try:
            if isinstance(message, Initiation):
                return self._handle_initiation(message, path, now)
            return self._handle_response(message, path, now)
        except MalformedMessage as error:
            return error.reason

    def _check_load(self, data: bytes, sender: int, path: Path, now: float) -> DropReason | None:
        if not self._load.is_under_load(now=now):
            return None
        source = _address_of(path)
        if not self._checker.is_mac2_valid(data, source, now=now):
            reply = self._checker.make_reply(data, sender, source, now=now)
            self._transmits.append(HandshakeTransmit(None, path, reply))
            return DropReason.BAD_MAC2
        return None if self._limiter.take(_sender_of(path), now=now) else DropReason.FLOOD

    def _handle_initiation(self, message: Initiation, path: Path, now: float) -> DropReason | None:
        handshake = Responder(self._private_key)
        timestamp = handshake.read_message(message.noise)
        entry = self._by_key.get(handshake.remote_static)
        if entry is None:
            return DropReason.UNKNOWN_PEER
        if timestamp <= entry.greatest_timestamp:
            return DropReason.STALE_TIMESTAMP
        if now - entry.initiation_at < INITIATION_INTERVAL:
            return DropReason.FLOOD
        if entry.tag is not None and tag_in(message.sender) != entry.tag:
            self._events.append(OtherInstance(entry.number, path, message))
            return DropReason.CLONED
        preshared_key = entry.preshared_keys[entry.unconfirmed_answers % len(entry.preshared_keys)]
        noise, keys = handshake.write_message(b"", self._entropy(32), preshared_key)
        entry.greatest_timestamp, entry.initiation_at = timestamp, now
        entry.unconfirmed_answers += 1
        index = self._new_index(entry)
        data = entry.jar.sign(Response(index, message.sender, noise).encode(), now=now)
        self._transmits.append(HandshakeTransmit(entry.number, path, data))
        self._install(entry, index, message.sender, keys, is_initiator=False, now=now)
        self._events.append(SessionEstablished(entry.number, path, is_initiator=False, tag=tag_in(message.sender)))
        return None

    def _handle_response(self, message: Response, path: Path, now: float) -> DropReason | None:
        entry = self._by_index.get(message.receiver)
        attempt = entry.attempt if entry is not None else None
        if entry is None or attempt is None or attempt.index != message.receiver or attempt.handshake is None:
            return DropReason.UNKNOWN_INDEX
        if entry.initiation_at >= attempt.sent_at and self.public_key < entry.public_key:
            # Both began at once. Two sessions would come due together each REKEY_AFTER_TIME: the one that the greater
            # key began is enough, and if our answer to it was lost, ours is tried again.
            return None
        keys = _open_response(attempt.handshake, message.noise, entry.preshared_keys)
        if keys is None:
            return DropReason.DECRYPT_FAILED
        if entry.tag is not None and tag_in(message.sender) != entry.tag:
            self._events.append(OtherInstance(entry.number, path, None))
            return DropReason.CLONED
        entry.attempt = None
        self._install(entry, message.receiver, message.sender, keys, is_initiator=True, now=now)
        # The responder may not send before it has heard from us (§5.4.3); what the engine has staged does that too.
        self._events.append(SendKeepalive(entry.number))
        self._events.append(SessionEstablished(entry.number, path, is_initiator=True, tag=tag_in(message.sender)))
        return None

    def _handle_cookie_reply(self, reply: CookieReply, now: float) -> DropReason | None:
        entry = self._by_index.get(reply.receiver)
        if entry is None:
            return DropReason.UNKNOWN_INDEX
        return None if entry.jar.accept_reply(reply, now=now) else DropReason.DECRYPT_FAILED

    def _install(
        self, entry: _Peer, local: int, remote: int, keys: TransportKeys, *, is_initiator: bool, now: float
    ) -> None:
        entry.keypair_at = now
        entry.keypair_indices.append(local)
        # The engine holds three keypairs (previous, current, next): older indices are free again.
        self._release(entry.keypair_indices, keep=3)
        self._schedule(entry)
        self._events.append(
            InstallKeypair(entry.number, local, remote, keys.send, keys.receive, is_initiator, created_at=now)
        )

    def _new_index(self, entry: _Peer) -> int:
        while True:
            index = int.from_bytes(self._entropy(4), "little")
            if self._tag is not None:
                # In the upper half: engines find a keypair by the lower bits.
                index = self._tag << 16 | index & 0xFFFF
            if index and index not in self._by_index:
                self._by_index[index] = entry
                return index

    def _release(self, indices: list[int], *, keep: int = 0) -> None:
        while len(indices) > keep:
            self._by_index.pop(indices.pop(0), None)


def _keys(preshared_keys: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(preshared_keys) or (NO_PRESHARED_KEY,)


def _has_session(entry: _Peer, now: float) -> bool:
    return entry.keypair_at is not None and now - entry.keypair_at < REJECT_AFTER_TIME


def _open_response(handshake: Initiator, noise: bytes, preshared_keys: Sequence[bytes]) -> TransportKeys | None:
    for preshared_key in preshared_keys:
        try:
            _, keys = handshake.read_message(noise, preshared_key)
        except MalformedMessage:
            continue
        return keys
    return None


def _address_of(path: Path) -> bytes:
    """What a cookie is bound to: the address and port that the sender must receive at to know it (§5.4.7)."""
    relayed = b"" if path.relay is None else path.relay.remote_id.to_bytes(4, "little")
    return f"{path.remote.host} {path.remote.port} ".encode() + relayed


def _sender_of(path: Path) -> bytes:
    """What counts as one sender: a relay's member, an IPv4 address, or an IPv6 /64, on whatever port (§5.3)."""
    if path.relay is not None:
        return f"{path.remote.host} {path.relay.remote_id}".encode()
    packed = ip_address(path.remote.host).packed
    return packed if len(packed) == 4 else packed[:8]
