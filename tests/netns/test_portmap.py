"""Port mappings at a real router (Debian's miniupnpd): two symmetric NATs reach each other by nothing else."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from .igd import Igd, make_symmetric
from .lab import Lab
from .mesh import Mesh

pytestmark = pytest.mark.netns


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def make_mesh(lab: Lab, method: str) -> tuple[Mesh, Igd]:
    """Two sites behind symmetric NATs, the first of which maps ports."""
    mesh = Mesh(lab, 2, log_level="DEBUG")
    for number in (1, 2):
        make_symmetric(lab, number)
    igd = Igd(lab, 1, method)
    igd.start()
    mesh.start()
    mesh.found()
    return mesh, igd


@pytest.mark.parametrize("method", ["pcp", "nat-pmp", "upnp"])
def test_a_mapping_makes_a_symmetric_nat_reachable_for_another_and_ends_with_the_daemon(lab: Lab, method: str) -> None:
    mesh, igd = make_mesh(lab, method)
    mesh.wait_direct()
    assert f"port mapped at the router by={method}" in lab.log("daemon1")
    assert len(igd.mappings()) == 1
    mesh.daemons[1].send_signal(signal.SIGTERM)
    mesh.daemons[1].wait()
    assert igd.mappings() == []


def test_a_router_that_was_started_anew_gets_the_mapping_again(lab: Lab) -> None:
    mesh, igd = make_mesh(lab, "pcp")
    mesh.wait_direct()
    before = igd.mappings()
    igd.restart()
    lab.wait("mapped again", lambda: igd.mappings() == before)
    mesh.daemons[1].send_signal(signal.SIGKILL)
    mesh.daemons[1].wait()
    mesh.start_daemon(1)
    lab.wait("renewed by the next daemon", lambda: lab.log("daemon1").count("port mapped at the router by=pcp") == 2)
    assert igd.mappings() == before
    mesh.wait_direct()
