"""The first contact with a rendezvous: create or join, once, then the open connection is handed over."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from ..proto import clones, disco
from ..proto.control import MAX_MESSAGE, PutLeave
from ..proto.control_session import (
    ConnectWanted,
    ControlSession,
    DisconnectWanted,
    Opening,
    SessionAttached,
    SessionRefused,
)
from ..proto.errors import MeshError, RendezvousError
from ..proto.signed import Signed
from .control_link import ControlLink, LinkHandler, ServerIdentity, ServerUnreachableError
from .randomness import entropy

TIMEOUT = 15.0
"""Seconds for connection, TLS and the server's answer."""
LEAVE_TIMEOUT = 5.0
"""Seconds for the server to take back what it gave."""
MAX_BACKLOG = MAX_MESSAGE
"""Bytes of messages that wait for the interface to be made, which takes a fraction of a second."""


class AnswerLostError(ServerUnreachableError):
    """The request was sent and no answer came: it may have been carried out."""


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """One run of the daemon in a network: its secret disco key."""

    disco: bytes

    @property
    def instance(self) -> bytes:
        """By what the server knows this run."""
        return clones.instance_of(disco.public_key(self.disco))


@dataclass(slots=True)
class Enrolled:
    """An attached session on an open connection. `hand_over` gives it to who runs the network."""

    link: ControlLink
    session: ControlSession
    attached: SessionAttached
    server: ServerIdentity
    run: Run
    backlog: list[bytes] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """The connection ended in the meantime, for `reason`."""
    reason: MeshError | None = None

    def hand_over(self, handler: LinkHandler) -> None:
        """From now on `handler` is told; it first gets what came in the meantime."""
        self.link.handler = handler
        for message in self.backlog:
            handler.handle_message(message)
        if self.closed.is_set():
            # Without this it would wait for ever for a connection that it believes to be there.
            handler.handle_closed(self.reason)

    async def leave(self, leave: Signed) -> None:
        """It came to nothing: tell the server, as well as it can be told, and close."""
        self.session.request(lambda rid: PutLeave(rid=rid, leave=leave), now=time.monotonic())
        for data in self.session.take_messages():
            self.link.send(data)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT):
                await self.closed.wait()  # by the server, after its answer
        await self.link.close()


async def enrol(url: str, pin: str | None, opening: Opening, run: Run) -> Enrolled:
    """Connect and send the opening request, which names the run, once.

    Raises RendezvousError (refused), AnswerLostError, ServerUnreachableError (nothing was asked), PinMismatchError.
    """
    attempt = _Attempt(url, pin, opening, run)
    try:
        async with asyncio.timeout(TIMEOUT):
            return await attempt.run()
    except (TimeoutError, ServerUnreachableError) as error:
        await attempt.link.close()
        if attempt.has_asked:
            raise AnswerLostError(f"the rendezvous {url} was asked and did not answer; check the server") from error
        if isinstance(error, ServerUnreachableError):
            raise
        raise ServerUnreachableError(f"the rendezvous {url} does not answer; try again, or check the server") from error
    except MeshError:
        await attempt.link.close()
        raise


class _Attempt:
    def __init__(self, url: str, pin: str | None, opening: Opening, run: Run) -> None:
        self._run = run
        self.link = ControlLink(url, pin, self)
        self.has_asked = False
        self._session = ControlSession(opening, entropy=entropy)
        self._server: ServerIdentity | None = None
        self._result: asyncio.Future[Enrolled] = asyncio.get_running_loop().create_future()
        self._enrolled: Enrolled | None = None
        self._backlog_bytes = 0

    async def run(self) -> Enrolled:
        self._session.handle_start(now=time.monotonic())
        self._pump()
        return await self._result

    def handle_open(self, server: ServerIdentity) -> None:
        self._server = server
        self._session.handle_connected(now=time.monotonic())
        self._pump()

    def handle_message(self, data: bytes) -> None:
        if self._enrolled is not None:
            self._keep(self._enrolled, data)
            return
        self._session.handle_message(data, now=time.monotonic())
        self._pump()

    def handle_closed(self, reason: MeshError | None) -> None:
        if self._enrolled is not None:
            self._enrolled.reason = reason
            self._enrolled.closed.set()
        elif not self._result.done():
            self._result.set_exception(
                reason or ServerUnreachableError(f"the rendezvous {self.link.url} closed the connection; try again")
            )

    def _keep(self, enrolled: Enrolled, data: bytes) -> None:
        self._backlog_bytes += len(data)
        if self._backlog_bytes <= MAX_BACKLOG:
            enrolled.backlog.append(data)
        else:
            self.link.cut()  # what is lost comes again with the next connection

    def _pump(self) -> None:
        for event in self._session.take_events():
            match event:
                case ConnectWanted():
                    self.link.open()
                case DisconnectWanted():
                    self.link.cut()
                case SessionRefused(code=code, message=message) if not self._result.done():
                    self._result.set_exception(RendezvousError(code, message))
                case SessionAttached() if self._server is not None and not self._result.done():
                    self._enrolled = Enrolled(self.link, self._session, event, self._server, self._run)
                    self._result.set_result(self._enrolled)
                case _:
                    pass
        for data in self._session.take_messages():
            self.has_asked = True
            self.link.send(data)
