"""Three PBXs behind NATs in one network: the programs themselves, real TUN devices, real NAT."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from .lab import Lab
from .mesh import NETWORK, Mesh

pytestmark = pytest.mark.netns


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Lab() as lab:
        made = Mesh(lab, 3)
        made.start()
        made.found()
        yield made


def test_everybody_reaches_everybody_directly_and_an_evicted_member_nobody(mesh: Mesh) -> None:
    for number in (1, 2, 3):
        mesh.lab.wait(f"site {number} is direct", lambda number=number: mesh.is_direct(number, 2))  # type: ignore[misc]
    addresses = {number: mesh.address(number) for number in (1, 2, 3)}
    for number in (1, 2, 3):
        for other in {1, 2, 3} - {number}:
            assert mesh.reaches(number, addresses[other], count=3)
    mesh.meshvpn(1, "evict", NETWORK, "piaf-server3")
    assert not mesh.reaches(1, addresses[3])
    assert not mesh.reaches(2, addresses[3])
    assert mesh.reaches(1, addresses[2], count=3)
    assert mesh.enter(3, "join").returncode == 1
    assert "(evicted)" in mesh.meshvpn(3, "list")


def test_a_killed_daemon_comes_back_with_its_network_and_address(mesh: Mesh) -> None:
    address = mesh.address(2)
    mesh.daemons[2].send_signal(signal.SIGKILL)
    mesh.daemons[2].wait()
    assert "mesh0" in mesh.lab.run(mesh.hosts[2], ["ip", "link"]), "the interface outlives the daemon"
    mesh.start_daemon(2)
    assert mesh.address(2) == address
    mesh.lab.wait("reached again", lambda: mesh.reaches(1, address))


def test_a_changed_default_route_is_noticed_and_a_call_loses_nothing(mesh: Mesh) -> None:
    mesh.wait_good(1, 2)
    call = mesh.call(1, 2, count=200)
    assert "routes changed" not in mesh.lab.log("daemon2"), "its own routes are no change"
    mesh.lab.run(mesh.hosts[2], ["ip", "route", "add", "default", "via", "192.168.2.1", "metric", "50"])
    mesh.lab.wait("the change is noticed", lambda: "routes changed" in mesh.lab.log("daemon2"))
    assert [stream.finish().is_whole for stream in call] == [True, True]


def test_refusals_are_one_line_with_the_right_exit_status(mesh: Mesh) -> None:
    mesh.password_file.write_text("wrong\n")
    mesh.meshvpn(3, "leave", NETWORK, "--yes")
    refused = mesh.enter(3, "join")
    assert (refused.returncode, refused.stdout.count("\n")) == (1, 1)
    assert "no network with that name and password" in refused.stdout
    unreachable = mesh.attempt(3, "join", "other", "--server", "20.1.0.99", "--password-file", str(mesh.password_file))
    assert (unreachable.returncode, unreachable.stdout.count("\n")) == (4, 1)
    assert mesh.attempt(1, "--socket", "/nonexistent", "list").returncode == 3
