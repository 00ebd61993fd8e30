"""Many members that move at once: neither the rendezvous nor the members are flooded, and nobody renews keys for it."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from meshvpn.proto import control
from meshvpn.proto.control_session import ControlSession, attach_opening
from meshvpn.proto.disco import MAGIC
from meshvpn.proto.offers import MESH_RATE, Offers
from meshvpn.proto.peer import make_peer
from meshvpn.proto.transport import RELAY_HEADER, RELAY_WORD
from meshvpn.proto.turn import spread
from tests.unit.founded import found

from .duel import INTERVAL, Duel
from .mesh import Mesh, pairs
from .network import Packet
from .rendezvous import Wire
from .world import PORT_RESTRICTED

MEMBERS = 10
WORDS = {1: "handshake", 2: "handshake", 3: "handshake"}


def test_members_that_move_at_once_cost_a_bounded_number_of_packets_and_no_handshake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mesh = Mesh()
    members = mesh.found(*[PORT_RESTRICTED] * MEMBERS, settle=30.0)
    assert all(left.is_direct(right) for left, right in pairs(members))
    packets, signals = Counter[str](), Counter[str]()

    def note(packet: Packet) -> bool:
        if packet.source.host.startswith("20."):
            inner = packet.data[RELAY_HEADER.size :] if packet.data[0] == RELAY_WORD else packet.data
            packets["probe" if inner.startswith(MAGIC) else WORDS.get(inner[0], "other")] += 1
        return False

    mesh.network.filters.append(note)
    submit = mesh.rendezvous.submit

    def count(wire: Wire, data: bytes) -> None:
        if isinstance(control.decode_request(data), control.Signal):
            signals["offer"] += 1
        submit(wire, data)

    monkeypatch.setattr(mesh.rendezvous, "submit", count)
    for number, member in enumerate(members):
        mesh.routers[member.name].reboot(f"20.{number + 100}.0.1")
        member.tell_network_change()
    mesh.run_until(lambda: all(left.is_direct(right) for left, right in pairs(members)), within=10.0)
    mesh.run(20.0)
    ways = MEMBERS * (MEMBERS - 1)
    # Half a minute's probes, relayed ones counted on both legs.
    assert packets["probe"] <= 50 * ways
    assert packets["handshake"] == 0
    assert packets["other"] <= 10 * MEMBERS
    assert ways <= signals.total() <= 2 * ways


# Two hundred whole members would take minutes. What leaves a member of so many is what its 199 pairs of path agents
# send, and what its offers say: each of these machines runs here as it is, on its own.

FLEET = 200


def test_of_two_hundred_members_that_move_at_once_none_sends_more_than_a_busy_minute_does() -> None:
    dice, probes, arrived = random.Random(1), Counter[int](), []
    for number in range(FLEET - 1):
        duel = Duel(number, 0.08, 0.16)
        duel.run(15.0)
        duel.probes.clear()
        started_at = duel.now
        duel.move([spread(FLEET - 1) * dice.random() for _ in range(2)])
        duel.run(35.0)
        assert duel.is_moved(), number
        probes.update(int(at - started_at) for at, end in duel.probes if end == 0)
        arrived.append(min(at for at, path in duel.ends[0].moves if path == duel.ends[0].paths[-1]) - started_at)
    assert max(probes.values()) <= 400
    assert max(probes.values()) <= 3 * probes.total() / spread(FLEET)
    assert max(arrived) <= spread(FLEET) + 3.0


def test_running_calls_do_not_wait_for_their_turn() -> None:
    for seed in range(10):
        duel = Duel(seed, 0.08, 0.16)
        duel.call()
        duel.run(5.0)
        received = [end.received for end in duel.ends]
        duel.move([20.0, 20.0])
        duel.run(2.0)
        assert duel.is_moved()
        # What was under way, and the relay's longer way.
        assert all(end.received - before >= 2.0 / INTERVAL - 5 for end, before in zip(duel.ends, received, strict=True))


def test_a_call_that_begins_before_the_turn_ends_the_wait_and_its_first_packets_arrive() -> None:
    for seed in range(10):
        duel = Duel(seed, 0.08, 0.16)
        duel.move([20.0, 20.0])
        duel.run(3.0)
        duel.call()
        duel.run(3.0)
        assert duel.is_moved()
        assert all(end.received == end.expected for end in duel.ends)


def test_the_rendezvous_gets_the_offers_of_two_hundred_members_within_half_a_minute_and_never_at_once() -> None:
    network = found(FLEET)
    roster = network.roster(0)
    everybody = [
        make_peer(number, member, network.disco_keys[0], number, entropy=network.entropy, mtu=1400)
        for number, member in enumerate(roster.members.values())
    ]
    at_server, urgent = Counter[int](), []
    for number in range(FLEET):
        offers = Offers(network.identities[number], bytes(32), roster, entropy=random.Random(number).randbytes)
        talks = set(random.Random(-number).sample(range(len(everybody)), 3))
        for peer in everybody:
            peer.is_online = True
            offers.want(peer, is_urgent=peer.number in talks)
        now, told = 0.0, []
        while (at := offers.next_timeout()) is not None:
            now = max(now, at)
            told += [now] * len(offers.take_signals(now=now))
        at_server.update(int(at) for at in told)
        urgent.append(told[len(talks) - 1])
    assert at_server.total() == FLEET * len(everybody)
    assert at_server[0] <= 3 * FLEET + 1.2 * MESH_RATE
    assert max(at_server[second] for second in at_server if second) <= 1.2 * MESH_RATE
    assert max(at_server) <= 30
    assert max(urgent) == 0.0


@pytest.mark.parametrize("outage", [0.0, 1.0, 5.0, 600.0])
def test_a_fleet_comes_back_to_a_server_spread_over_seconds_and_is_there_within_five(outage: float) -> None:
    network = found(1)
    attempts: list[float] = []
    for number in range(FLEET):
        opening = attach_opening(network.identities[0], network.uid)
        session = ControlSession(opening, entropy=random.Random(number).randbytes)
        session.handle_start(now=0.0)
        session.handle_connected(now=0.0)
        now = 10.0
        session.handle_disconnected(now=now)
        while True:
            at = session.next_timeout()
            assert at is not None
            now = at
            session.handle_timeout(now=now)
            if now >= 10.0 + outage:
                break
            session.handle_disconnected(now=now)
        attempts.append(now - 10.0 - outage)
    assert max(attempts) <= 4.5
    assert max(Counter(int(at * 10) for at in attempts).values()) <= FLEET / 10
