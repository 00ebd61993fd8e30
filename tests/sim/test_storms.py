"""Many members that move at once: neither the rendezvous nor the members are flooded, and nobody renews keys for it."""

from __future__ import annotations

from collections import Counter

import pytest

from meshvpn.proto import control
from meshvpn.proto.disco import MAGIC
from meshvpn.proto.transport import RELAY_HEADER, RELAY_WORD

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
    members = mesh.found(*[PORT_RESTRICTED] * MEMBERS, settle=10.0)
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
