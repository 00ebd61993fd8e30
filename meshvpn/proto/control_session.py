"""The member's side of the control connection to the rendezvous, pure.

    idle ──start──▶ connecting ──connected──▶ greeting ──Welcome──▶ attaching ──Attached──▶ attached
      ▲                │ failed                   │ closed, late        │ refused, closed       │ closed
      │                ▼                          ▼                     ▼                       ▼
      └──stop──── waiting (full jitter) ◀─────────┴─────────────────────┴───────────────────────┘

The first opening may be a Create or a Join; every later one is an Attach. A request is answered, refused, or fails with
code `unavailable` when the connection ends or the answer takes longer than REQUEST_TIMEOUT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from . import control
from .control import Ask, Attach, Attached, Create, Done, Goodbye, Here, Join, RefusalCode, Refused, Welcome
from .drops import DropReason
from .errors import MalformedMessage, StateError
from .invites import InviteKeys, make_invitation
from .keys import Identity
from .signed import DOMAIN_SESSION, Signed

REQUEST_TIMEOUT = 10.0
"""Seconds. A rendezvous answers in one round trip and one disk flush; ten seconds mean that it is stuck."""
OPEN_TIMEOUT = 10.0
"""Seconds from the connection to Attached."""
BACKOFF_FIRST = 2.0
BACKOFF_LAST = 4.0
"""Seconds; each wait is drawn from 0 … the bound (full jitter), the first too, so that a fleet does not come back in
step: two hundred members of a server that was started anew are at most twenty in a tenth of a second. All are back so
long after a server, and a moment for the connection."""
BACKOFF_REFUSED = 60.0
"""Seconds at most after a refusal that only people can lift (evicted, deleted, locked)."""
TRANSIENT = frozenset({RefusalCode.RATE_LIMITED, RefusalCode.UNAVAILABLE})
"""Refusals that time alone lifts."""
MAX_PENDING = 64
"""Requests without an answer."""
MAX_WORDS = 200
"""Characters that are kept of what the server says to people."""


class SessionState(Enum):
    """Where the connection stands; see the module's diagram."""

    IDLE = "idle"
    WAITING = "waiting"
    CONNECTING = "connecting"
    GREETING = "greeting"
    ATTACHING = "attaching"
    ATTACHED = "attached"


@dataclass(frozen=True, slots=True)
class ConnectWanted:
    """The shell should open a connection now and report `handle_connected` or `handle_disconnected`."""


@dataclass(frozen=True, slots=True)
class DisconnectWanted:
    """The shell should close the connection and report `handle_disconnected`."""


@dataclass(frozen=True, slots=True)
class SessionAttached:
    """We are in; `answer` is the whole state of the network as the server has it."""

    answer: Attached
    welcome: Welcome


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The connection ended after it was attached."""


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """The server refused to let us in."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A request was carried out (`code` None) or not."""

    rid: int
    code: str | None
    message: str


SessionEvent = ConnectWanted | DisconnectWanted | SessionAttached | SessionLost | SessionRefused | RequestFinished

Opening = Callable[[int, bytes], Create | Join | Attach]
"""Builds the first request from its rid and the server's nonce."""


def create_opening(identity: Identity, uid: bytes, charter: Signed, *, instance: bytes = b"") -> Opening:
    """Open the session by registering a network."""
    return lambda rid, nonce: Create(
        rid=rid, charter=charter, identity=identity.public, proof=_proof(identity, nonce, uid), instance=instance
    )


def join_opening(identity: Identity, locator: bytes, *, instance: bytes = b"") -> Opening:
    """Open the session by joining the network behind a locator."""
    return lambda rid, nonce: Join(
        rid=rid, locator=locator, identity=identity.public, proof=_proof(identity, nonce, locator), instance=instance
    )


def invited_opening(identity: Identity, keys: InviteKeys, *, instance: bytes = b"") -> Opening:
    """Open the session by joining with an invite."""
    invitation = make_invitation(keys, identity.public)
    return lambda rid, nonce: Join(
        rid=rid,
        locator=keys.locator,
        identity=identity.public,
        proof=_proof(identity, nonce, keys.locator),
        invitation=invitation,
        instance=instance,
    )


def approved_opening(identity: Identity, uid: bytes, approval: Signed, *, instance: bytes = b"") -> Opening:
    """Open the session by joining with an approval of the owner or an admin; no password is needed."""
    return lambda rid, nonce: Join(
        rid=rid,
        locator=uid,
        identity=identity.public,
        proof=_proof(identity, nonce, uid),
        approval=approval,
        instance=instance,
    )


def attach_opening(identity: Identity, uid: bytes, *, instance: bytes = b"") -> Opening:
    """Open the session as the member that we are."""
    return lambda rid, nonce: Attach(
        rid=rid, uid=uid, identity=identity.public, proof=_proof(identity, nonce, uid), instance=instance
    )


def _proof(identity: Identity, nonce: bytes, subject: bytes) -> bytes:
    return identity.sign(DOMAIN_SESSION, nonce + subject).signature


class ControlSession:
    """One member's connection to one rendezvous."""

    def __init__(self, opening: Opening, *, entropy: Callable[[int], bytes]) -> None:
        self.state = SessionState.IDLE
        self.refusal: SessionRefused | None = None
        self._opening = opening
        self._entropy = entropy
        self._welcome: Welcome | None = None
        self._next_rid = 1
        self._opening_rid = 0
        self._deadline: float | None = None
        self._failures = 0
        self._pending: dict[int, float] = {}
        self._messages: list[bytes] = []
        self._events: list[SessionEvent] = []

    @property
    def is_attached(self) -> bool:
        """True while requests can be made."""
        return self.state is SessionState.ATTACHED

    @property
    def is_opening(self) -> bool:
        """True while it is not decided whether the server lets us in."""
        return self.state in (SessionState.CONNECTING, SessionState.GREETING, SessionState.ATTACHING)

    def handle_start(self, *, now: float) -> None:
        """Connect, and stay connected until `handle_stop`."""
        if self.state is SessionState.IDLE:
            self._connect(now)

    def handle_stop(self, *, now: float) -> None:
        """Close and stay closed."""
        if self.state in (SessionState.GREETING, SessionState.ATTACHING, SessionState.ATTACHED):
            self._events.append(DisconnectWanted())
        self._fail_pending("the daemon closed the connection")
        self.state, self._deadline = SessionState.IDLE, None

    def handle_retry(self, *, now: float) -> None:
        """Something changed (network, user): do not wait for the backoff's end."""
        if self.state is SessionState.WAITING:
            self._failures = 0
            self._connect(now)

    def use_attach(self, opening: Opening) -> None:
        """From the next connection on, open with this."""
        self._opening = opening

    def handle_connected(self, *, now: float) -> None:
        """The WebSocket is open; the server speaks first."""
        if self.state is not SessionState.CONNECTING:
            raise StateError(f"connected while {self.state.value}")
        self.state, self._deadline = SessionState.GREETING, now + OPEN_TIMEOUT

    def handle_disconnected(self, *, now: float) -> None:
        """The connection could not be opened, or ended."""
        if self.state in (SessionState.IDLE, SessionState.WAITING):
            return
        was_attached = self.is_attached
        self._fail_pending("the connection to the rendezvous ended")
        self._wait(now)
        if was_attached:
            self._events.append(SessionLost())

    def handle_message(self, data: bytes, *, now: float) -> control.Response | DropReason | None:
        """One message from the server; returned if it is for the roster or the paths, else None."""
        try:
            message = control.decode_response(data)
        except MalformedMessage as error:
            return error.reason
        match message:
            case Welcome():
                return self._handle_welcome(message, now)
            case Attached():
                return self._handle_attached(message)
            case Refused():
                return self._handle_refused(message, now)
            case Done(rid=rid):
                return self._finish(rid, None, "")
            case Ask(token=token) if self.is_attached:
                self._messages.append(control.encode(Here(token=token)))
                return message
            case Goodbye(code=code, message=text):
                if code in (RefusalCode.EVICTED, RefusalCode.DELETED):
                    self._refuse(code, _plain(text))
                return None
            case _:
                # CharterChanged also precedes a refusal (evicted, deleted): the member verifies it by itself.
                return (
                    message if self.state in (SessionState.ATTACHING, SessionState.ATTACHED) else DropReason.UNEXPECTED
                )

    def request(self, build: Callable[[int], control.Request], *, now: float) -> int:
        """Send a request; its number comes back in RequestFinished."""
        rid = self._take_rid()
        if not self.is_attached or len(self._pending) >= MAX_PENDING:
            self._events.append(RequestFinished(rid, RefusalCode.UNAVAILABLE, "not connected to the rendezvous"))
            return rid
        self._pending[rid] = now + REQUEST_TIMEOUT
        self._messages.append(control.encode(build(rid)))
        return rid

    def send(self, message: control.Signal) -> bool:
        """Send what is not answered; False if there is no connection (then it is not sent later either)."""
        if self.is_attached:
            self._messages.append(control.encode(message))
        return self.is_attached

    def next_timeout(self) -> float | None:
        """Backoff's end, opening's deadline, or the first unanswered request's."""
        deadlines = [self._deadline, *self._pending.values()]
        return min((at for at in deadlines if at is not None), default=None)

    def handle_timeout(self, *, now: float) -> None:
        """Do what is due."""
        for rid in [rid for rid, at in self._pending.items() if at <= now]:
            self._finish(rid, RefusalCode.UNAVAILABLE, "the rendezvous did not answer in time")
        if self._deadline is None or now < self._deadline:
            return
        if self.state is SessionState.WAITING:
            self._connect(now)
        else:
            self._events.append(DisconnectWanted())
            self.handle_disconnected(now=now)

    def take_messages(self) -> list[bytes]:
        """What to send on the connection, in order; clears."""
        messages, self._messages = self._messages, []
        return messages

    def take_events(self) -> list[SessionEvent]:
        """What happened; clears."""
        events, self._events = self._events, []
        return events

    def _connect(self, now: float) -> None:
        self.state, self._deadline = SessionState.CONNECTING, None
        self._messages.clear()
        self._events.append(ConnectWanted())

    def _wait(self, now: float) -> None:
        needs_people = self.refusal is not None and self.refusal.code not in TRANSIENT
        bound = BACKOFF_REFUSED if needs_people else min(BACKOFF_LAST, BACKOFF_FIRST * 2 ** min(self._failures, 10))
        self._failures += 1
        fraction = int.from_bytes(self._entropy(4), "little") / 2**32
        # After such a refusal hurry gains nothing: at least half the bound.
        wait = bound * (0.5 + fraction / 2) if needs_people else bound * fraction
        self.state, self._deadline = SessionState.WAITING, now + wait
        self._messages.clear()

    def _handle_welcome(self, message: Welcome, now: float) -> DropReason | None:
        if self.state is not SessionState.GREETING:
            return DropReason.UNEXPECTED
        self._welcome = message
        self._opening_rid = self._take_rid()
        self._messages.append(control.encode(self._opening(self._opening_rid, message.nonce)))
        self.state = SessionState.ATTACHING
        return None

    def _handle_attached(self, message: Attached) -> DropReason | None:
        if self.state is not SessionState.ATTACHING or message.rid != self._opening_rid or self._welcome is None:
            return DropReason.UNEXPECTED
        self.state, self._deadline, self._failures, self.refusal = SessionState.ATTACHED, None, 0, None
        self._events.append(SessionAttached(message, self._welcome))
        return None

    def _handle_refused(self, message: Refused, now: float) -> DropReason | None:
        code, text = _plain(message.code), _plain(message.message)
        if self.state is SessionState.ATTACHING and message.rid == self._opening_rid:
            self._refuse(code, text)
            self._events.append(DisconnectWanted())
            self.handle_disconnected(now=now)
            return None
        return self._finish(message.rid, code, text)

    def _refuse(self, code: str, text: str) -> None:
        self.refusal = SessionRefused(code, text)
        self._events.append(self.refusal)

    def _finish(self, rid: int, code: str | None, text: str) -> DropReason | None:
        if self._pending.pop(rid, None) is None:
            return DropReason.UNEXPECTED
        self._events.append(RequestFinished(rid, code, text))
        return None

    def _fail_pending(self, text: str) -> None:
        for rid in list(self._pending):
            self._finish(rid, RefusalCode.UNAVAILABLE, text)

    def _take_rid(self) -> int:
        rid, self._next_rid = self._next_rid, self._next_rid + 1
        return rid


def _plain(text: str) -> str:
    """What is printed to terminals and written into logs must be short and carry no control sequences."""
    return "".join(character if character.isprintable() else "?" for character in text[:MAX_WORDS])
