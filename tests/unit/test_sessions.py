"""Whole sessions in virtual time: two ends of handshakes, stamps and data plane, and a wire that loses what it is told.

Each end is read once a second, as the daemon does it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import commands
from meshvpn.proto.commands import ForgetKeypairs, InstallKeypair, SendKeepalive
from meshvpn.proto.constants import REJECT_AFTER_TIME, REKEY_AFTER_TIME, UNDER_LOAD_RATE
from meshvpn.proto.dataplane import DataPlane, HandshakeWanted, KeypairConfirmed, RekeyWanted
from meshvpn.proto.messages import TYPE_COOKIE, TYPE_INITIATION, TYPE_RESPONSE, TYPE_TRANSPORT
from meshvpn.proto.timers import Stamps
from meshvpn.proto.transport import Address, Path
from meshvpn.proto.wireguard import WireGuard

from .test_wireguard import counting_entropy, flood

WALL = 1_700_000_000_000_000_000
LATENCY = 0.04
STEP = 0.02
KEYS = {"a": bytes([1]) * 32, "b": bytes([2]) * 32}
HOSTS = {"a": bytes([10, 0, 0, 1]), "b": bytes([10, 0, 0, 2])}
PATHS = {"a": Path(0, Address("192.0.2.1", 1000)), "b": Path(0, Address("192.0.2.2", 1000))}


def test_a_call_of_ten_minutes_loses_no_packet_to_its_rekeys(wire: Wire) -> None:
    for number in range(600 * 10):
        wire.send("a", number)
        wire.send("b", number)
        wire.run(0.1)
    wire.run(1.0)
    assert wire.received["a"] == wire.received["b"] == list(range(600 * 10))
    assert 600 / REJECT_AFTER_TIME < wire.count(TYPE_INITIATION) <= 600 / REKEY_AFTER_TIME + 1


def test_of_two_ends_that_began_at_once_one_alone_renews_the_session(wire: Wire) -> None:
    wire.send("a", 0)
    wire.send("b", 0)
    wire.run(10.0)
    assert {wire.count(TYPE_INITIATION, name) for name in "ab"} <= {1, 2}
    begun = len(wire.sent)
    for number in range(1, 900):
        wire.send("a", number)
        wire.send("b", number)
        wire.run(1.0)
    renewals = [sent.source for sent in wire.sent[begun:] if sent.kind == TYPE_INITIATION]
    assert len(renewals) == 900 // (REKEY_AFTER_TIME + 1)
    assert len(set(renewals)) == 1


def test_a_one_way_stream_keeps_its_session_and_loses_nothing(wire: Wire) -> None:
    for number in range(400):
        wire.send("a", number)
        wire.run(1.0)
    assert wire.received["b"] == list(range(400))
    assert wire.count(TYPE_INITIATION) <= 400 / REKEY_AFTER_TIME + 1
    # The listener's keepalives are all that comes back: one for each ten seconds.
    assert 35 <= wire.count(TYPE_TRANSPORT, "b") <= 45


def test_one_packet_is_answered_by_one_keepalive_and_then_all_is_quiet(wire: Wire) -> None:
    wire.send("a", 1)
    wire.run(20.0)
    assert wire.received["b"] == [1]
    sent = len(wire.sent)
    wire.run(600.0)
    assert len(wire.sent) == sent
    assert all(end.wireguard.next_timeout() is None for end in wire.ends.values())


def test_a_peer_that_was_restarted_and_only_listens_is_shaken_hands_with_once(wire: Wire) -> None:
    wire.send("a", 1)
    wire.run(60.0)
    wire.restart("b")
    wire.send("a", 2)  # on keys that nobody has any more
    wire.run(300.0)
    assert wire.count(TYPE_INITIATION, "a") == 2
    wire.send("a", 3)
    wire.run(1.0)
    assert wire.received["b"] == [1, 3]


def test_a_dead_peer_is_knocked_at_for_ninety_seconds_after_the_last_packet(wire: Wire) -> None:
    wire.send("a", 1)
    wire.run(30.0)
    wire.is_lost = lambda sent: True
    for number in range(20):
        wire.send("a", number)
        wire.run(1.0)
    wire.run(160.0)
    knocks = wire.count(TYPE_INITIATION)
    assert knocks > 15
    wire.run(600.0)
    assert wire.count(TYPE_INITIATION) == knocks


def test_a_dead_peer_that_is_still_sent_to_is_knocked_at_for_as_long(wire: Wire) -> None:
    wire.send("a", 0)
    wire.run(1.0)
    wire.is_lost = lambda sent: True
    for number in range(400):
        wire.send("a", number)
        wire.run(1.0)
    times = [sent.at for sent in wire.sent if sent.kind == TYPE_INITIATION]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 20
    wire.is_lost = lambda sent: False
    wire.send("a", 400)
    wire.run(7.0)
    assert wire.received["b"][-1] == 400


def test_the_first_packet_arrives_within_a_second_or_so_if_one_datagram_is_lost(wire: Wire) -> None:
    wire.is_lost = lambda sent: len(wire.sent) == 1
    wire.send("a", 1)
    wire.run(1.2)
    assert wire.received["b"] == [1]


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(1, 12), max_size=6), st.booleans())
def test_whatever_six_handshake_messages_are_lost_the_packets_arrive(lost: set[int], is_mutual: bool) -> None:
    wire = Wire()
    handshakes = 0

    def is_lost(sent: Sent) -> bool:
        nonlocal handshakes
        handshakes += sent.kind != TYPE_TRANSPORT
        return sent.kind != TYPE_TRANSPORT and handshakes in lost

    wire.is_lost = is_lost
    wire.send("a", 1)
    if is_mutual:
        wire.send("b", 2)
    wire.run(40.0)
    assert wire.received["b"] == [1]
    assert wire.received["a"] == [2] * is_mutual


def test_a_responder_under_load_costs_one_cookie_and_one_repetition(wire: Wire) -> None:
    flood(wire.ends["b"].wireguard, 0.0)
    wire.send("a", 1)
    for _ in range(30):
        flood(wire.ends["b"].wireguard, wire.now)
        wire.run(0.1)
    assert wire.received["b"] == [1]
    assert [sent.kind for sent in wire.sent if sent.kind != TYPE_TRANSPORT] == [
        TYPE_INITIATION,
        TYPE_COOKIE,
        TYPE_INITIATION,
        TYPE_RESPONSE,
    ]


def test_both_ends_under_load_still_agree(wire: Wire) -> None:
    wire.send("a", 1)
    for _ in range(100):
        for end in wire.ends.values():
            flood(end.wireguard, wire.now)
        wire.run(0.1)
    assert wire.received["b"] == [1]
    assert wire.count(TYPE_COOKIE) <= 4 < UNDER_LOAD_RATE


@dataclass(frozen=True, slots=True)
class Sent:
    """A datagram on the wire."""

    at: float
    source: str
    kind: int


class End:
    """One machine with its data plane, joined as meshvpn.proto.node joins them."""

    def __init__(self, name: str, other: str, entropy: Callable[[int], bytes]) -> None:
        self.name = name
        self.wireguard = WireGuard(KEYS[name], entropy=entropy)
        self.plane = DataPlane()
        self.wireguard.add_peer(1, WireGuard(KEYS[other], entropy=entropy).public_key)
        self.plane.add_peer(1)
        self.plane.add_route(HOSTS[other], 32, 1)
        self.plane.set_endpoint(1, 0, PATHS[other].remote.host, PATHS[other].remote.port)

    def step(self, now: float, *, is_second: bool) -> list[bytes]:
        """Do what is due; the datagrams to send."""
        wall_ns = WALL + int(now * 1e9)
        self.plane.handle_time(now=now)
        for path, data in self.plane.take_datagrams():
            self.wireguard.handle_datagram(data, path, now=now, wall_ns=wall_ns)
        for event in self.plane.take_events():
            match event:
                case HandshakeWanted():
                    self.wireguard.handle_handshake_wanted(1, now=now, wall_ns=wall_ns)
                case RekeyWanted():
                    self.wireguard.handle_rekey_wanted(1, now=now, wall_ns=wall_ns)
                case KeypairConfirmed(local_index=index):
                    self.wireguard.handle_keypair_confirmed(1, index, now=now)
        if is_second:
            self.wireguard.handle_stats(1, self.stamps(), now=now, wall_ns=wall_ns)
        if (at := self.wireguard.next_timeout()) is not None and at <= now:
            self.wireguard.handle_timeout(now=now, wall_ns=wall_ns)
        self.apply_events()
        transmits = [item.data for item in self.wireguard.take_transmits()]
        return transmits + [item.data for item in self.plane.take_transmits()]

    def apply_events(self) -> None:
        for event in self.wireguard.take_events():
            if isinstance(event, (InstallKeypair, ForgetKeypairs, SendKeepalive)):
                commands.apply(event, self.plane)

    def stamps(self) -> Stamps:
        stats = self.plane.stats(1)
        return Stamps(
            stats.first_sent_at,
            stats.first_received_at,
            stats.more_arrived,
            stats.last_authenticated_at,
            stats.last_sent_at,
        )


class Wire:
    """Both ends, what is between them, and the clock."""

    def __init__(self) -> None:
        self.now = 1.0
        self.sent: list[Sent] = []
        self.received: dict[str, list[int]] = {"a": [], "b": []}
        self.is_lost: Callable[[Sent], bool] = lambda sent: False
        self.ends = {"a": self._make("a"), "b": self._make("b")}
        self._flying: list[tuple[float, str, bytes]] = []

    def _make(self, name: str, seed: bytes = b"") -> End:
        return End(name, "b" if name == "a" else "a", counting_entropy(name.encode() + seed))

    def restart(self, name: str) -> None:
        self.ends[name] = self._make(name, b"again")

    def send(self, name: str, number: int) -> None:
        """A numbered packet from one host to the other."""
        other = "b" if name == "a" else "a"
        packet = b"\x45\0\0\x20" + bytes(8) + HOSTS[name] + HOSTS[other] + number.to_bytes(12, "big")
        self.ends[name].plane.handle_packet(packet, now=self.now)

    def count(self, kind: int, source: str | None = None) -> int:
        return sum(sent.kind == kind and source in (None, sent.source) for sent in self.sent)

    def run(self, seconds: float) -> None:
        """Let time pass, in steps; what is quiet takes a second at once."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            before = int(self.now)
            self._step()
            is_quiet = not self._flying and not self._is_due_before(int(self.now) + 1.0)
            self.now = min(end, int(self.now) + 1.0 if is_quiet else self.now + STEP)
            if int(self.now) != before:
                self._step(is_second=True)

    def _is_due_before(self, time: float) -> bool:
        deadlines = (end.wireguard.next_timeout() for end in self.ends.values())
        return any(at is not None and at < time for at in deadlines)

    def _step(self, *, is_second: bool = False) -> None:
        arrived = [item for item in self._flying if item[0] <= self.now]
        self._flying = [item for item in self._flying if item[0] > self.now]
        for _, name, data in arrived:
            source = PATHS["b" if name == "a" else "a"]
            self.ends[name].plane.handle_datagram(data, source, now=self.now)
        for name, end in self.ends.items():
            for data in end.step(self.now, is_second=is_second):
                sent = Sent(self.now, name, data[0])
                self.sent.append(sent)
                if not self.is_lost(sent):
                    self._flying.append((self.now + LATENCY, "b" if name == "a" else "a", data))
            for packet in end.plane.take_packets():
                self.received[name].append(int.from_bytes(packet[20:], "big"))


@pytest.fixture
def wire() -> Wire:
    return Wire()
