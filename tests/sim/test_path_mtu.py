"""Large packets on paths that carry only smaller ones: what fits is found, and nothing vanishes for long."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshvpn.proto.events import PeerMtuChanged
from meshvpn.proto.options import DEFAULT_MTU
from meshvpn.proto.path_mtu import CALM_CHECK, CHECK, IDLE_DELAY, RAISE_AFTER, STEP

from .member import Member
from .mesh import KEYS, Mesh
from .network import Packet
from .world import PORT_RESTRICTED, SYMMETRIC, Kind

IPV4 = 20 + 8 + 32
"""Bytes around a packet inside."""
RELAYED = IPV4 + 12


@pytest.mark.parametrize("mtu", [1500, 1492, 1468, 1460, 1400, 1300, 1280, 1100, 600])
@pytest.mark.parametrize(("kind", "overhead"), [(PORT_RESTRICTED, IPV4), (SYMMETRIC, RELAYED)])
def test_what_fits_is_found_to_the_last_step(mtu: int, kind: Kind, overhead: int) -> None:
    mesh, one, other = members(kind, mtu)
    fits = min(DEFAULT_MTU, mtu - overhead)
    for source, target in ((one, other), (other, one)):
        limit = limit_of(source, target)
        assert fits - STEP < limit <= fits
        assert mesh.reaches(source, target, limit)
        assert limit == fits or not mesh.reaches(source, target, limit + STEP)


def test_the_interfaces_own_mtu_is_proved_by_one_large_ping() -> None:
    mesh = Mesh()
    (one,) = mesh.found(PORT_RESTRICTED)
    large = count(mesh, lambda packet: packet.is_whole and len(packet.data) > 1000)
    other = mesh.add_member("b")
    other.join(KEYS)
    mesh.run(150.0)  # until members gossip again: with payload the path is proved anew
    assert one.is_direct(other)
    assert 2 <= large() <= 4, "one on the relay and one on the direct path, from each end"
    assert changes(one) == []


@pytest.mark.parametrize(("bulk", "check"), [(False, CALM_CHECK), (True, CHECK)])
def test_a_black_hole_in_the_middle_of_a_call_is_soon_over(bulk: bool, check: float) -> None:
    mesh, one, other = members(PORT_RESTRICTED, 1500)
    call = mesh.stream(one, other, interval=0.1)
    for _ in range(350):
        assert mesh.reaches(one, other, 1200 if bulk else 200)
        mesh.run(0.02)
    mesh.routers["b"].link.mtu = 1300
    assert not mesh.reaches(one, other, DEFAULT_MTU, within=0.5)
    mesh.run_until(lambda: limit_of(one, other) < DEFAULT_MTU, check + 3.0)
    mesh.run(2.0)
    assert limit_of(one, other) == (1300 - IPV4) // STEP * STEP
    assert mesh.reaches(one, other, limit_of(one, other))
    mesh.stop_streams()
    assert not call.lost


def test_a_path_that_grows_is_used_to_the_full_after_a_while() -> None:
    mesh, one, other = members(PORT_RESTRICTED, 1300)
    mesh.stream(one, other, interval=4.0)
    mesh.run(30.0)
    mesh.routers["b"].link.mtu = 1500
    mesh.run_until(lambda: limit_of(one, other) == DEFAULT_MTU, RAISE_AFTER + 10.0)
    assert changes(one)[-1] == (None, None)


def test_another_path_has_its_own_limit_and_a_known_one_keeps_it() -> None:
    mesh, one, other = members(PORT_RESTRICTED, 1500)
    mesh.network.filters.append(lambda packet: is_direct(packet) and packet.size > 1300)
    mesh.stream(one, other, interval=0.1)
    mesh.run(20.0)
    small = limit_of(one, other)
    assert small == (1300 - IPV4) // STEP * STEP
    mesh.network.cut("20.1.0.1", "20.2.0.1")
    mesh.run(20.0)
    assert not one.is_direct(other)
    assert limit_of(one, other) == DEFAULT_MTU, "the relay's"
    mesh.network.spoilt.clear()
    mesh.run_until(lambda: one.is_direct(other), 60.0)
    assert limit_of(one, other) == small, "known from before"


@pytest.mark.parametrize("loss", [0.02, 0.1, 0.3])
def test_loss_is_not_taken_for_a_small_path(loss: float) -> None:
    mesh, one, other = members(PORT_RESTRICTED, 1500)
    mesh.routers["b"].link.loss = loss
    mesh.stream(one, other, interval=0.5)
    mesh.run(240.0)
    assert changes(one) == []


def test_an_outage_is_not_taken_for_a_small_path() -> None:
    mesh, one, other = members(PORT_RESTRICTED, 1500)
    mesh.stream(one, other, interval=0.2)
    for seconds in (1.0, 3.0, 3.5, 3.5, 3.5, 20.0):
        mesh.run(CALM_CHECK + 5.3)
        mesh.routers["b"].link.is_up = False
        mesh.run(seconds)
        mesh.routers["b"].link.is_up = True
    mesh.run(20.0)
    assert changes(one) == []


@pytest.mark.parametrize("fragments_pass", [True, False])
def test_where_ipv6_does_not_fit_it_is_said_whether_it_goes_in_fragments(fragments_pass: bool) -> None:
    mesh = Mesh()
    for name in ("a", "b"):
        mesh.add_member(name)
        mesh.routers[name].link.mtu = 1280
        mesh.routers[name].link.passes_fragments = fragments_pass
    one, other = mesh.members.values()
    one.create(KEYS)
    mesh.run(1.0)
    other.join(KEYS)
    mesh.run(IDLE_DELAY + 10.0)
    assert one.is_direct(other)
    assert changes(one)[-1] == ((1280 - IPV4) // STEP * STEP, fragments_pass)
    assert mesh.reaches(one, other, 1280) is fragments_pass


def test_a_peer_that_is_gone_leaves_no_limit_behind() -> None:
    mesh, one, other = members(PORT_RESTRICTED, 1300)
    rid = other.act(lambda node, now, wall_ns: node.leave(now=now, wall_ns=wall_ns))
    assert rid is not None
    mesh.run(2.0)
    assert one.peer(other) is None
    assert changes(one)[-1] == (None, None)


def members(kind: Kind, mtu: int) -> tuple[Mesh, Member, Member]:
    """Two that reach each other; the second one's line carries so much, and no fragments."""
    mesh = Mesh()
    one, other = mesh.add_member("a", kind), mesh.add_member("b", kind)
    mesh.routers["b"].link.mtu = mtu
    mesh.routers["b"].link.passes_fragments = False
    one.create(KEYS)
    mesh.run(1.0)
    other.join(KEYS)
    mesh.run(IDLE_DELAY + 12.0)
    return mesh, one, other


def limit_of(source: Member, target: Member) -> int:
    peer = source.peer(target)
    assert peer is not None
    return peer.mtu.limit


def changes(member: Member) -> list[tuple[int | None, bool | None]]:
    """What its shell was told of the sizes for others."""
    return [(event.mtu, event.fragments_pass) for _, event in member.events if isinstance(event, PeerMtuChanged)]


def count(mesh: Mesh, is_counted: Callable[[Packet], bool]) -> Callable[[], int]:
    """How many such packets leave sites from now on."""
    found = []

    def note(packet: Packet) -> bool:
        if packet.source.host.startswith("20.") and not packet.destination.host.startswith("192."):
            found.append(is_counted(packet))
        return False

    mesh.network.filters.append(note)
    return lambda: sum(found)


def is_direct(packet: Packet) -> bool:
    return {packet.source.host, packet.destination.host} == {"20.1.0.1", "20.2.0.1"}
