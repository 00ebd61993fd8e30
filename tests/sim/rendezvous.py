"""The rendezvous in virtual time: core and relay as they are, storage in memory, control connections as queues.

What rendezvous/server.py does around the core is done here in the same order, with the same limit on messages. A test
may make it lie: `tamper` sees every message before it leaves and says what leaves instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import msgspec

from meshvpn.proto import control
from meshvpn.proto.control import (
    Attach,
    Attached,
    Create,
    Goodbye,
    Join,
    MemberEntry,
    Presence,
    PresenceEntry,
    PutCharter,
    PutLeave,
    PutRecord,
    RefusalCode,
    Refused,
    RelayGrant,
    Signal,
    Signalled,
    Welcome,
)
from rendezvous.core import NetworkDoc, Outcome, apply, entries, is_proof_valid, locator_of, uid_of
from rendezvous.limits import Buckets, Limits
from rendezvous.relay import Relay

from .network import Network
from .nodes import RelayMachine

LATENCY = (0.03, 0.05)
"""Seconds one way between a member and the server: from … to, drawn for each connection."""
HANDSHAKES = 2
"""Round trips until a connection is open: TCP and TLS."""
WALL = 1_700_000_000
"""Unix time at the start of the simulation."""

Answered = Create | Join | Attach | PutRecord | PutCharter | PutLeave
Tamper = Callable[[bytes, control.Response], list[control.Response]]
"""From the receiver's identity and what is meant for it to what it gets."""


class Client(Protocol):
    """The member's end of a connection."""

    def handle_open(self, wire: Wire) -> None: ...

    def handle_message(self, wire: Wire, data: bytes) -> None: ...

    def handle_closed(self, wire: Wire) -> None: ...


@dataclass(eq=False, slots=True)
class Wire:
    """One control connection: what is sent arrives in order, unless the connection breaks before."""

    client: Client
    nonce: bytes
    latency: float
    uid: bytes | None = None
    identity: bytes = b""
    grant: RelayGrant | None = None
    is_open: bool = True


class Rendezvous:
    """The server; `documents` are its disk."""

    def __init__(self, network: Network, machine: RelayMachine) -> None:
        self.network = network
        self.documents: dict[bytes, bytes] = {}
        self.tamper: Tamper = lambda _identity, message: [message]
        self.is_up = True
        self.refusals: list[Refused] = []
        self.wires: dict[bytes, dict[bytes, Wire]] = {}
        self._machine = machine
        self._limits = Limits()
        self._entropy = network.entropy("rendezvous")
        self._messages = Buckets(self._limits.message_rate, self._limits.message_burst)
        self._open: dict[Wire, None] = {}
        self._transcript = blake2b(digest_size=16)

    @property
    def transcript(self) -> str:
        """A hash over all control messages that arrived."""
        return self._transcript.hexdigest()

    @property
    def relay(self) -> Relay:
        return self._machine.relay

    # What happens to the server.

    def stop(self) -> None:
        """The machine is gone from one moment to the next; documents stay."""
        self.is_up = False
        for wire in list(self._open):
            self.cut(wire)
        self._machine.relay = Relay(self._limits, entropy=self._entropy)

    def start(self) -> None:
        self.is_up = True

    def cut(self, wire: Wire) -> None:
        """The connection breaks; both ends notice at once."""
        if wire.is_open:
            self.hang_up(wire)
            wire.client.handle_closed(wire)

    def document(self, uid: bytes) -> NetworkDoc:
        return msgspec.msgpack.decode(self.documents[uid], type=NetworkDoc)

    # The member's side calls these.

    def connect(self, client: Client) -> Wire:
        least, most = LATENCY
        wire = Wire(client, self._entropy(32), least + (most - least) * self._entropy(1)[0] / 255)
        if self.is_up:
            self._later(2 * HANDSHAKES * wire.latency, lambda: self._accept(wire))
        else:
            self._later(2 * wire.latency, lambda: self.cut(wire))
        return wire

    def submit(self, wire: Wire, data: bytes) -> None:
        """A message of the member on its way."""
        self._later(wire.latency, lambda: self._handle(wire, data) if wire.is_open else None)

    def hang_up(self, wire: Wire) -> None:
        """The member closed the connection, or it broke."""
        wire.is_open = False
        self._forget(wire)

    # Like rendezvous/server.py.

    def _accept(self, wire: Wire) -> None:
        if not wire.is_open:
            return
        if not self.is_up:
            return self.cut(wire)
        self._open[wire] = None
        wire.client.handle_open(wire)
        self._send(
            wire,
            Welcome(
                version=control.PROTOCOL_VERSION,
                nonce=wire.nonce,
                observed_host="",
                udp_port=7770,
                udp_port2=7771,
                software="simulation",
            ),
        )

    def _handle(self, wire: Wire, data: bytes) -> None:
        self._note(wire, b">" + data)
        if not self._messages.take(wire, now=self.network.now):
            return self._refuse(wire, 0, RefusalCode.RATE_LIMITED)
        request = control.decode_request(data)
        if isinstance(request, Signal):
            return self._forward(wire, request)
        is_opening = isinstance(request, Create | Join | Attach)
        if is_opening != (wire.uid is None):
            return self._refuse(wire, request.rid, RefusalCode.BAD_REQUEST)
        if isinstance(request, Create | Join | Attach):
            if not is_proof_valid(request, wire.nonce):
                return self._refuse(wire, request.rid, RefusalCode.BAD_SIGNATURE)
            identity = request.identity
        else:
            identity = wire.identity
        document = self._load(wire, request)
        outcome = apply(document, request, identity, wall=WALL + int(self.network.now))
        if outcome.document is not None:
            document = outcome.document
            if not self._is_locator_free(document):
                return self._refuse(wire, request.rid, RefusalCode.NETWORK_EXISTS)
            self.documents[uid_of(document)] = msgspec.msgpack.encode(document)
        return self._finish(wire, request, identity, outcome, document)

    def _load(self, wire: Wire, request: Answered) -> NetworkDoc | None:
        match request:
            case Create(charter=charter):
                uid = uid_of(NetworkDoc(charter, b"", [], []))
            case Join(locator=locator):
                found = [uid for uid in self.documents if locator_of(self.document(uid)) == locator]
                return self.document(found[0]) if found else None
            case Attach(uid=uid):
                pass
            case _:
                assert wire.uid is not None
                uid = wire.uid
        return self.document(uid) if uid in self.documents else None

    def _is_locator_free(self, document: NetworkDoc) -> bool:
        locator = locator_of(document)
        others = [self.document(uid) for uid in self.documents if uid != uid_of(document)]
        return locator is None or all(locator_of(other) != locator for other in others)

    def _finish(
        self, wire: Wire, request: Answered, identity: bytes, outcome: Outcome, document: NetworkDoc | None
    ) -> None:
        if isinstance(outcome.reply, Refused):
            self.refusals.append(outcome.reply)
            for message in (*outcome.publish, outcome.reply):
                self._send(wire, message)
            return
        if isinstance(request, Create | Join | Attach):
            assert document is not None
            assert outcome.address is not None
            self._attach(wire, request.rid, identity, outcome.address, document)
            return
        assert wire.uid is not None
        if outcome.reply is not None:
            self._send(wire, outcome.reply)
        others = self.wires.get(wire.uid, {})
        for message in outcome.publish:
            for other in others.values():
                if other is not wire:
                    self._send(other, message)
        for identity_out, goodbye in outcome.goodbye.items():
            self.relay.evict(wire.uid, identity_out)
            if (leaver := others.get(identity_out)) is not None:
                self._send(leaver, goodbye)
                self._close(leaver)

    def _attach(self, wire: Wire, rid: int, identity: bytes, address: str, document: NetworkDoc) -> None:
        uid = uid_of(document)
        members = self.wires.setdefault(uid, {})
        if (older := members.pop(identity, None)) is not None:
            self._send(older, Goodbye(code="replaced", message="the member connected again from elsewhere"))
            self._close(older)
        wire.uid, wire.identity, wire.grant = uid, identity, self.relay.grant(uid, identity)
        self._send(
            wire,
            Attached(
                rid=rid,
                address=address,
                charter=document.charter,
                members=entries(document),
                online=[PresenceEntry(other, _relay_id(entry)) for other, entry in members.items()],
                relay=wire.grant,
            ),
        )
        self._publish(uid, Presence(entry=PresenceEntry(identity, wire.grant.id)))
        members[identity] = wire

    def _forget(self, wire: Wire) -> None:
        self._open.pop(wire, None)
        self._messages.forget(wire)
        if wire.uid is None:
            return
        if wire.grant is not None:
            self.relay.release(wire.grant.id, now=self.network.now)
        members = self.wires.get(wire.uid, {})
        if members.get(wire.identity) is wire:
            del members[wire.identity]
            self._publish(wire.uid, Presence(entry=PresenceEntry(wire.identity, 0)))

    def _forward(self, wire: Wire, request: Signal) -> None:
        if wire.uid is None or len(request.payload) > control.MAX_SIGNAL:
            return self._refuse(wire, 0, RefusalCode.BAD_REQUEST)
        other = self.wires.get(wire.uid, {}).get(request.to)
        if other is not None:
            self._send(other, Signalled(source=wire.identity, payload=request.payload))
        return None

    def _publish(self, uid: bytes, message: control.Response) -> None:
        for wire in self.wires.get(uid, {}).values():
            self._send(wire, message)

    def _refuse(self, wire: Wire, rid: int, code: RefusalCode) -> None:
        self.refusals.append(Refused(rid=rid, code=code, message=code.value))
        self._send(wire, self.refusals[-1])

    # Delivery.

    def push(self, uid: bytes, identity: bytes, message: control.Response) -> None:
        """Say something to a member of one's own accord."""
        self._send(self.wires[uid][identity], message)

    def _send(self, wire: Wire, message: control.Response) -> None:
        for told in self.tamper(wire.identity, message):
            data = control.encode(told)
            self._later(wire.latency, lambda data=data: self._deliver(wire, data))  # type: ignore[misc]

    def _deliver(self, wire: Wire, data: bytes) -> None:
        if wire.is_open:
            self._note(wire, b"<" + data)
            wire.client.handle_message(wire, data)

    def _close(self, wire: Wire) -> None:
        """End it after what is on its way; nobody counts the member as online from now on."""
        self._forget(wire)
        self._later(wire.latency, lambda: self.cut(wire))

    def _later(self, delay: float, action: Callable[[], None]) -> None:
        self.network.call_at(self.network.now + delay, action)

    def _note(self, wire: Wire, data: bytes) -> None:
        self._transcript.update(f"{self.network.now:.9f} ".encode() + wire.nonce + data)


def _relay_id(wire: Wire) -> int:
    return 0 if wire.grant is None else wire.grant.id


def entry_of(document: NetworkDoc, identity: bytes) -> MemberEntry:
    """A member as the server hands it out."""
    return next(entry for entry in entries(document) if entry.identity == identity)
