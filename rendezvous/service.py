"""What the server does with a control message: limits, the decision, storage, and who hears of it.

Requests about one network are decided one after the other, and what follows from one is queued to everybody before the
next is looked at, so that all members hear the same things in the same order. No socket, no clock of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from meshvpn.proto import control
from meshvpn.proto.buckets import Bucket, Buckets
from meshvpn.proto.control import (
    Ask,
    Attach,
    Attached,
    CharterChanged,
    Create,
    Here,
    Join,
    PutCharter,
    RefusalCode,
    Refused,
    Signal,
)
from meshvpn.proto.errors import MalformedMessage

from .connection import Connection
from .core import (
    Admission,
    Answered,
    NetworkDoc,
    Opening,
    Outcome,
    apply,
    is_proof_valid,
    locator_of,
    refuse_locator,
    uid_of,
)
from .limits import Limits
from .locks import Locks
from .metrics import Metrics
from .presence import Delivery, PresenceTable, Seat
from .relay import Relay
from .rivals import Rivals
from .store import ConflictError, LocatorTakenError, Store, StoreError

log = logging.getLogger(__name__)

MAX_CONFLICTS = control.MAX_MEMBERS
"""Times that one request starts over. Each conflict is somebody else's success, and a network has no more members."""

FAILURES_LOGGED = 1 / 60
"""Lines a second about a storage that fails: clients go on asking."""


class Service:
    """The control side of one node."""

    def __init__(
        self,
        store: Store,
        relay: Relay,
        limits: Limits,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.presence: PresenceTable[Connection] = PresenceTable()
        self._rivals: Rivals[Connection] = Rivals()
        self._store = store
        self._relay = relay
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self.locks = Locks()
        self._guesses = Buckets(limits.join_rate, limits.join_burst)
        self._creations = Buckets(limits.create_rate, limits.create_burst)
        self._envelopes = Buckets(limits.envelope_rate, limits.envelope_burst)
        self._log_failures = Bucket(FAILURES_LOGGED, 1.0, now=clock())

    async def handle_message(self, connection: Connection, data: bytes) -> None:
        """One message of a client."""
        now = self._clock()
        if connection.is_closing:
            return  # evicted or replaced, and still talking
        if not connection.bytes.take(len(data), now=now):
            self._refuse(connection, 0, RefusalCode.RATE_LIMITED, "too much data; slow down")
            connection.close()
            return
        try:
            request = control.decode_request(data)
        except MalformedMessage:
            self._refuse(connection, 0, RefusalCode.BAD_REQUEST, "the message cannot be read")
            connection.close()
            return
        if not connection.messages.take(now=now):
            rid = 0 if isinstance(request, Signal | Here) else request.rid
            self._refuse(connection, rid, RefusalCode.RATE_LIMITED, "too many messages; slow down")
            return
        await self._handle_request(connection, request)

    def handle_opening_timeout(self, connection: Connection) -> None:
        """A client had its time to become a member's connection."""
        if self.presence.seat(connection) is None:
            connection.close()

    def handle_closed(self, connection: Connection) -> None:
        """A client's connection ended."""
        if connection.is_cut:
            self._metrics.cut.inc()
        if connection.relay_id is not None:
            self._relay.release(connection.relay_id, now=self._clock())
        if (seat := self.presence.seat(connection)) is not None:
            self._rivals.handle_left(seat.uid, seat.identity, now=self._clock())
        self._deliver(self.presence.detach(connection))
        self._rivals.handle_closed(connection, now=self._clock())

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is due."""
        return self._rivals.next_timeout()

    async def handle_timeout(self) -> None:
        """Let in whose rivals did not answer."""
        for newcomer in self._rivals.take_due(now=self._clock()):
            if not newcomer.connection.is_closing:
                decision = self._let_in(newcomer.connection, newcomer.request, newcomer.uid, silent=newcomer.asked)
                await self._answer(newcomer.connection, newcomer.request, decision)

    async def _handle_request(self, connection: Connection, request: control.Request) -> None:
        seat = self.presence.seat(connection)
        match request:
            case Signal():
                self._forward(connection, seat, request)
            case Here(token=token):
                self._refuse_clone(connection, token)
            case Create() | Join() | Attach() if seat is None and connection not in self._rivals:
                await self._answer(connection, request, self._open(connection, request))
            case Create() | Join() | Attach():
                self._refuse(connection, request.rid, RefusalCode.BAD_REQUEST, "the connection is attached already")
            case _ if seat is None:
                self._refuse(connection, request.rid, RefusalCode.BAD_REQUEST, "the connection is not attached yet")
            case PutCharter() if not self._take_envelopes(connection, len(request.envelopes)):
                text = "too many records were sealed anew from your address; wait a minute"
                self._refuse(connection, request.rid, RefusalCode.RATE_LIMITED, text)
            case _:
                await self._answer(connection, request, self._decide(connection, request, seat.uid, seat.identity))

    async def _answer(self, connection: Connection, request: Answered, decision: Awaitable[None]) -> None:
        try:
            await decision
        except StoreError as error:
            self._metrics.storage_failures.inc()
            if self._log_failures.take(now=self._clock()):
                log.error("storage failed error=%s", error)
            self._refuse(connection, request.rid, RefusalCode.UNAVAILABLE, "the server cannot store it now; try again")

    async def _open(self, connection: Connection, request: Opening) -> None:
        now = self._clock()
        if isinstance(request, Join) and not self._guesses.has(connection.source, now=now):
            text = "too many wrong names or passwords from your address; wait a minute"
            self._refuse(connection, request.rid, RefusalCode.RATE_LIMITED, text)
        elif isinstance(request, Create) and not self._creations.take(connection.source, now=now):
            text = "too many networks were created from your address; try again later"
            self._refuse(connection, request.rid, RefusalCode.RATE_LIMITED, text)
        elif not is_proof_valid(request, connection.nonce):
            text = "the proof of identity does not hold"
            self._refuse(connection, request.rid, RefusalCode.BAD_SIGNATURE, text)
        elif (uid := await self._locate(request)) is not None:
            await self._let_in(connection, request, uid)
        else:
            # Charged even beyond what is left: many guesses at once pass the check above together.
            self._guesses.charge(connection.source, now=self._clock())
            outcome = apply(None, request, request.identity, wall=int(self._wall()))
            self._finish(connection, request, b"", request.identity, outcome)

    async def _let_in(
        self, connection: Connection, request: Opening, uid: bytes, *, silent: Connection | None = None
    ) -> None:
        """Unless another instance of the member is connected, and is not the one that did not answer."""
        rival = self.presence.rival(uid, request.identity, request.instance)
        if rival is None and self._rivals.is_too_early(uid, request.identity, request.instance, now=self._clock()):
            text = "another host with this host's identity was connected a moment ago"
            self._refuse(connection, request.rid, RefusalCode.CLONED, text)
            return
        if rival is None or rival is silent:
            await self._decide(connection, request, uid, request.identity)
            return
        token = self._rivals.wait(connection, uid, request, rival, now=self._clock())
        rival.send(control.encode(Ask(token=token)))

    def _refuse_clone(self, connection: Connection, token: int) -> None:
        if (newcomer := self._rivals.handle_here(connection, token)) is None:
            return
        text = "another host with this host's identity is connected"
        self._refuse(newcomer.connection, newcomer.request.rid, RefusalCode.CLONED, text)
        log.warning(
            "two hosts with one identity network=%s member=%s connected=%s refused=%s",
            newcomer.uid.hex()[:8],
            newcomer.request.identity.hex()[:8],
            connection.source,
            newcomer.connection.source,
        )

    async def _locate(self, request: Opening) -> bytes | None:
        match request:
            case Create(charter=charter):
                return uid_of(charter)
            case Join(locator=uid, approval=approval) if approval is not None:
                return uid
            case Join(locator=locator, invitation=invitation) if invitation is not None:
                return await self._store.find_invite(locator)
            case Join(locator=locator):
                return await self._store.find(locator)
            case Attach(uid=uid):
                return uid

    async def _decide(self, connection: Connection, request: Answered, uid: bytes, identity: bytes) -> None:
        async with self.locks.hold(uid):
            for _ in range(MAX_CONFLICTS):
                # Loaded under the lock: while it was waited for, the sender may have been evicted.
                stored = await self._store.get(uid)
                before, revision = (stored.document, stored.revision) if stored is not None else (None, 0)
                outcome = apply(before, request, identity, wall=int(self._wall()))
                if outcome.document is not None:
                    if _is_guess(before, outcome.document) and not self._take_guess(connection):
                        text = "too many passwords were set from your address; wait a minute"
                        self._refuse(connection, request.rid, RefusalCode.RATE_LIMITED, text)
                        return
                    try:
                        await self._store.put(outcome.document, revision)
                    except ConflictError:
                        continue
                    except LocatorTakenError:
                        outcome = refuse_locator(request)
                self._finish(connection, request, uid, identity, outcome)
                return
        raise StoreError("too many conflicting changes of one network")

    def _take_guess(self, connection: Connection) -> bool:
        return self._guesses.take(connection.source, now=self._clock())

    def _take_envelopes(self, connection: Connection, count: int) -> bool:
        return self._envelopes.take(connection.source, now=self._clock(), amount=count)

    def _finish(self, connection: Connection, request: Answered, uid: bytes, identity: bytes, outcome: Outcome) -> None:
        if outcome.evidence is not None:
            connection.send(control.encode(CharterChanged(charter=outcome.evidence, members=[])))
        match outcome.reply:
            case Admission() as admission:
                instance = request.instance if isinstance(request, Create | Join | Attach) else b""
                self._attach(connection, request.rid, uid, identity, admission, instance)
            case Refused(rid=rid, code=code, message=message):
                self._refuse(connection, rid, RefusalCode(code), message)
            case done:
                connection.send(control.encode(done))
        if outcome.notice is not None:
            for leaver in outcome.notice.goodbyes:
                self._relay.evict(uid, leaver)
            self._deliver(self.presence.publish(uid, outcome.notice, sender=connection))

    def _attach(
        self, connection: Connection, rid: int, uid: bytes, identity: bytes, admission: Admission, instance: bytes
    ) -> None:
        if connection.is_closing:
            return  # too late: it must not take the place of a connection that lives
        grant = self._relay.grant(uid, identity)
        connection.relay_id = grant.id
        deliveries = self.presence.attach(connection, uid, identity, grant.id, instance)
        connection.send(
            control.encode(
                Attached(
                    rid=rid,
                    address=admission.address,
                    charter=admission.charter,
                    members=admission.members,
                    online=[entry for entry in self.presence.online(uid) if entry.identity != identity],
                    relay=grant,
                )
            )
        )
        self._deliver(deliveries)
        self._metrics.joins.inc()
        log.info("member attached network=%s member=%s", uid.hex()[:8], identity.hex()[:8])

    def _forward(self, connection: Connection, seat: Seat[Connection] | None, request: Signal) -> None:
        if seat is None or len(request.payload) > control.MAX_SIGNAL:
            self._refuse(connection, 0, RefusalCode.BAD_REQUEST, "not attached, or the payload is too large")
            return
        deliveries = self.presence.signal(seat, request.to, request.payload)
        self._metrics.signals.inc(len(deliveries))
        self._deliver(deliveries)

    def _refuse(self, connection: Connection, rid: int, code: RefusalCode, message: str) -> None:
        self._metrics.refusals.labels(code.value).inc()
        connection.send(control.encode(Refused(rid=rid, code=code, message=message)))

    def _deliver(self, deliveries: list[Delivery[Connection]]) -> None:
        for delivery in deliveries:
            message = control.encode(delivery.message)
            for connection in delivery.to:
                connection.send(message)
                if delivery.is_last:
                    connection.close()


def _is_guess(before: NetworkDoc | None, after: NetworkDoc) -> bool:
    """True if storing this tells whether a network with another name and password exists."""
    locator = locator_of(after)
    return before is not None and locator is not None and locator != locator_of(before)
