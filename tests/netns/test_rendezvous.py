"""What a rendezvous is for, and what goes on without it: restarts during calls, relaying where nothing else works."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from .lab import Lab
from .mesh import Mesh

pytestmark = pytest.mark.netns


@pytest.fixture
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    with Lab() as lab:
        made = Mesh(lab, request.param)
        made.start()
        yield made


@pytest.mark.parametrize("mesh", [4], indirect=True)
def test_a_restart_of_the_rendezvous_disturbs_no_call_and_loses_nothing(mesh: Mesh) -> None:
    mesh.found(1, 2)
    mesh.wait_direct(1, 2)
    addresses = [mesh.address(1), mesh.address(2)]
    for how, newcomer in ((signal.SIGTERM, 3), (signal.SIGKILL, 4)):
        call = mesh.call(1, 2)
        mesh.wait_good(1, 2)
        mesh.end_server(how)
        assert mesh.enter(newcomer, "join").returncode == 4
        mesh.start_server()
        mesh.lab.wait("both are back", lambda: mesh.is_attached(1) and mesh.is_attached(2))
        mesh.admit(newcomer)
        addresses.append(mesh.address(newcomer))
        mesh.lab.wait("the newcomer is reached", lambda to=addresses[-1]: mesh.reaches(1, to))  # type: ignore[misc]
        for stream in call:
            arrived = stream.stop()
            assert arrived.is_whole, arrived
    assert len(set(addresses)) == 4
    assert [mesh.address(number) for number in mesh.hosts] == addresses


@pytest.mark.parametrize("mesh", [2], indirect=True)
def test_who_cannot_reach_each_other_is_relayed_and_moves_to_the_direct_path_without_losing_a_packet(
    mesh: Mesh,
) -> None:
    mesh.block_direct_paths()
    mesh.found()
    mesh.lab.wait("relayed", lambda: mesh.states(1) == mesh.states(2) == ["relay"])
    (peer,) = mesh.peers(1)
    assert (peer["relay"], peer["endpoint"]) == ("rendezvous", None)
    assert mesh.reaches(1, mesh.address(2), count=3)
    call = mesh.call(1, 2)
    mesh.unblock()
    mesh.wait_direct()
    assert mesh.peers(1)[0]["relay"] is None
    for stream in call:
        arrived = stream.stop()
        assert arrived.is_whole, arrived
    mesh.block_direct_paths()
    mesh.lab.wait("relayed again", lambda: mesh.states(1) == mesh.states(2) == ["relay"])
    assert mesh.reaches(1, mesh.address(2), count=3)
