"""Two members behind one carrier's NAT that does not lead back inside: the relay, from the first packet on."""

from __future__ import annotations

import pytest

from .member import Member
from .mesh import KEYS, Mesh
from .nat import Filtering, Mapping, Nat, Ports
from .network import Link, Router, Segment
from .world import ONE_WAY, Reach, best_reach


@pytest.mark.parametrize(("seed", "wait"), [(1, 0.0), (2, 0.05), (3, 0.5)])
def test_no_packet_is_lost_between_two_behind_one_carrier_without_hairpin(seed: int, wait: float) -> None:
    mesh, a, b = behind_one_carrier(seed)
    assert best_reach(a.host, b.host) is Reach.RELAYED
    mesh.run_until(lambda: knows(a, b) and knows(b, a), within=5.0)
    mesh.run(wait)
    streams = [mesh.stream(a, b), mesh.stream(b, a)]
    mesh.run(4.0)
    mesh.stop_streams()
    for stream in streams:
        assert len(stream.sent) > 100
        assert not stream.lost
        assert not stream.repeated


def behind_one_carrier(seed: int) -> tuple[Mesh, Member, Member]:
    """Both with a router of their own in a carrier's network; the second joins what the first has just founded."""
    mesh, carrier = Mesh(seed), Segment("carrier")
    nat = Nat(
        Mapping.INDEPENDENT,
        Filtering.ADDRESS_AND_PORT,
        ports=Ports.SEQUENTIAL,
        hairpin=False,
        accepts_input=False,
        seed=f"{seed}/carrier",
    )
    link = Link(latency=ONE_WAY)
    Router(mesh.network, "carrier", inside=carrier, outside=mesh.internet, address="20.9.0.1", nat=nat, link=link)
    a, b = mesh.add_member("a", outside=carrier), mesh.add_member("b", outside=carrier)
    a.create(KEYS)
    mesh.run(1.0)
    b.join(KEYS)
    return mesh, a, b


def knows(member: Member, other: Member) -> bool:
    return member.peer(other) is not None
