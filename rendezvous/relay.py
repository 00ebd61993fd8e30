"""The relay of last resort: forwards sealed packets between two members of one network. Pure; reads nothing of them.

    frame: word 5 ‖ source id(4) ‖ destination id(4) ‖ packet          (meshvpn/proto/transport.py)

An id belongs to one control connection. Its address is what an authenticated STUN request came from last; a frame
passes if it comes from the address bound to its source id, and its destination is bound and of the same network.
Bindings outlive the control connection by RELAY_BINDING_LIFETIME, so a call does not notice when that breaks.
No answer is longer than what it answers: whoever forges a victim's address gains nothing by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meshvpn.proto import stun
from meshvpn.proto.buckets import Buckets
from meshvpn.proto.control import RELAY_BINDING_LIFETIME, RelayGrant
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.stun import MessageType
from meshvpn.proto.transport import RELAY_HEADER, Address, is_frame

from .limits import Limits
from .sources import source_key

UNAUTHORIZED = 401
MAX_SEATS_PER_MEMBER = 4
"""The live connection's, and those whose calls go on while it comes back once more; the oldest is given up."""
MAX_SEATS = 131_072
"""In all (about 400 bytes each); beyond it the oldest whose connection is gone is given up."""


@dataclass(slots=True, repr=False)
class _Seat:
    """One id."""

    uid: bytes
    identity: bytes
    key: bytes
    counter: int = -1
    socket: int = -1
    address: Address | None = None
    bound_at: float = float("-inf")
    released_at: float | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """A datagram to send, unchanged, from this socket."""

    socket: int
    to: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class SeatMoved:
    """A seat is bound to another address, or (None) to none any more. `account` is the member's oldest seat."""

    number: int
    account: int
    uid: bytes
    socket: int
    address: Address | None


class Relay:
    """STUN and relay on the server's UDP sockets. `socket` is a number of the shell's.

    `twins`: the socket of the same address and the other port, from which who asks for it is answered (RFC 5780 §6.1).

    Whoever forwards frames elsewhere (tun/relay.pyx) follows the seats by `take_moves`.
    """

    def __init__(
        self, limits: Limits, *, entropy: Callable[[int], bytes], twins: Mapping[int, int] | None = None
    ) -> None:
        self.drops: Counter[DropReason] = Counter()
        self.forwarded_packets = 0
        self.forwarded_bytes = 0
        self.stun_answers = 0
        self._entropy = entropy
        self._twins = twins or {}
        self._seats: dict[int, _Seat] = {}
        self._members: dict[tuple[bytes, bytes], list[int]] = {}
        self._moves: list[SeatMoved] = []
        self._stun_limit = Buckets(limits.stun_rate, limits.stun_burst)
        self._traffic_limit = Buckets(limits.relay_bytes_rate, limits.relay_bytes_burst)

    def __len__(self) -> int:
        return len(self._seats)

    def grant(self, uid: bytes, identity: bytes) -> RelayGrant:
        """A new id for a member of a network."""
        if len(self._seats) >= MAX_SEATS:
            self._give_up()
        while (number := int.from_bytes(self._entropy(4), "little")) in self._seats or number == 0:
            pass
        self._seats[number] = _Seat(uid, identity, self._entropy(32))
        numbers = self._members.setdefault((uid, identity), [])
        bound = [self._seats[other] for other in numbers if self._seats[other].address is not None]
        numbers.append(number)
        if bound:
            # Others hear of the new id before the member binds it: until then they reach it where it is known.
            earlier = max(bound, key=lambda seat: seat.bound_at)
            self._bind(number, self._seats[number], earlier.address, earlier.socket, earlier.bound_at)
        if len(numbers) > MAX_SEATS_PER_MEMBER:
            self._remove(numbers[0])
        return RelayGrant(number, self._seats[number].key)

    def release(self, number: int, *, now: float) -> None:
        """The control connection is gone; the binding stays for its lifetime."""
        if (seat := self._seats.get(number)) is not None:
            seat.released_at = now

    def unbind(self, number: int, address: Address) -> None:
        """Nothing can be sent to this address any more; a seat that has another one by now keeps it."""
        if (seat := self._seats.get(number)) is not None and seat.address == address:
            self._move(number, seat, -1, None)

    def evict(self, uid: bytes, identity: bytes) -> None:
        """Nothing is relayed for this member from now on, not even for a connection that is gone already."""
        for number in list(self._members.get((uid, identity), ())):
            self._remove(number)

    def handle_timeout(self, *, now: float) -> None:
        """Forget bindings that are too old, and ids whose connection is gone too; call now and then."""
        for number, seat in list(self._seats.items()):
            if seat.address is not None and not _is_bound(seat, now):
                self._move(number, seat, -1, None)
            if seat.released_at is None:
                continue
            if now - max(seat.released_at, seat.bound_at) > RELAY_BINDING_LIFETIME:
                self._remove(number)

    def take_moves(self) -> list[SeatMoved]:
        """Which seats are bound elsewhere since the last call; clears."""
        moves, self._moves = self._moves, []
        return moves

    def handle_datagram(
        self, data: bytes, source: Address, socket: int, *, now: float, client: str | None = None
    ) -> Forward | None:
        """A datagram; what to send in consequence, if anything. STUN is limited by `client`, if not by the source."""
        if is_frame(data):
            outcome = self._forward(data, source, now)
        elif stun.is_stun(data):
            outcome = self._answer(data, source, socket, now, client or source_key(source.host))
        else:
            outcome = DropReason.UNKNOWN_TYPE
        if isinstance(outcome, DropReason):
            self.drops[outcome] += 1
            return None
        return outcome

    def _forward(self, data: bytes, source: Address, now: float) -> Forward | DropReason:
        _, source_id, destination_id = RELAY_HEADER.unpack_from(data)
        sender, receiver = self._seats.get(source_id), self._seats.get(destination_id)
        if sender is None or sender.address != source or not _is_bound(sender, now):
            return DropReason.DISALLOWED_SOURCE
        if receiver is None or receiver.uid != sender.uid or receiver.address is None or not _is_bound(receiver, now):
            return DropReason.UNKNOWN_PEER
        if not self._traffic_limit.take((sender.uid, sender.identity), now=now, amount=len(data)):
            return DropReason.OVER_LIMIT
        self.forwarded_packets += 1
        self.forwarded_bytes += len(data)
        return Forward(receiver.socket, receiver.address, data)

    def _answer(self, data: bytes, source: Address, socket: int, now: float, client: str) -> Forward | DropReason:
        if not self._stun_limit.take(client, now=now):
            return DropReason.FLOOD
        try:
            message = stun.parse(data)
        except MalformedMessage as error:
            return error.reason
        if message.type != MessageType.REQUEST:
            return DropReason.UNKNOWN_TYPE
        found = None if message.username is None else self._authenticate(message)
        if isinstance(found, DropReason):
            self.drops[found] += 1
            return _reply(data, stun.binding_error(message.transaction_id, UNAUTHORIZED), source, socket)
        key = None if found is None else found[1].key
        origin = self._twins.get(socket, socket) if found is None and message.wants_other_port else socket
        reply = _reply(data, stun.binding_success(message.transaction_id, source, key=key), source, origin)
        if isinstance(reply, Forward):
            self.stun_answers += 1
            if found is not None:
                self._bind(*found, source, socket, now)
        return reply

    def _authenticate(self, message: stun.Message) -> tuple[int, _Seat] | DropReason:
        parsed = stun.parse_relay_username(message.username or "")
        seat = self._seats.get(parsed[0]) if parsed is not None else None
        if parsed is None or seat is None:
            return DropReason.UNKNOWN_PEER
        if not message.is_authentic(seat.key):
            return DropReason.BAD_SIGNATURE
        if parsed[1] <= seat.counter:
            # A recorded request, played back from elsewhere, would take the member's packets away.
            return DropReason.REPLAYED
        seat.counter = parsed[1]
        return parsed[0], seat

    def _bind(self, number: int, seat: _Seat, source: Address | None, socket: int, now: float) -> None:
        seat.bound_at = now
        if (seat.address, seat.socket) != (source, socket):
            self._move(number, seat, socket, source)

    def _move(self, number: int, seat: _Seat, socket: int, address: Address | None) -> None:
        seat.socket, seat.address = socket, address
        account = self._members[seat.uid, seat.identity][0]
        self._moves.append(SeatMoved(number, account, seat.uid, socket, address))

    def _give_up(self) -> None:
        released = (number for number, seat in self._seats.items() if seat.released_at is not None)
        if (number := next(released, None)) is not None:
            self._remove(number)

    def _remove(self, number: int) -> None:
        seat = self._seats.pop(number)
        if seat.address is not None:
            self._move(number, seat, -1, None)
        member = seat.uid, seat.identity
        self._members[member].remove(number)
        if not self._members[member]:
            del self._members[member]
            self._traffic_limit.forget(member)


def _reply(request: bytes, answer: bytes, source: Address, socket: int) -> Forward | DropReason:
    return Forward(socket, source, answer) if len(answer) <= len(request) else DropReason.TOO_SHORT


def _is_bound(seat: _Seat, now: float) -> bool:
    return now - seat.bound_at <= RELAY_BINDING_LIFETIME
