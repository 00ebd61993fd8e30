"""Members in one LAN find each other without the server."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from .lab import Lab
from .mesh import Mesh

pytestmark = pytest.mark.netns


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Lab() as lab:
        made = Mesh(lab, 0)
        made.hosts = {number: lab.add_host(number) for number in (1, 2)}
        made.start()
        made.found()
        yield made


def test_two_that_start_at_new_addresses_while_the_server_is_dead_meet_in_their_lan(mesh: Mesh) -> None:
    mesh.wait_direct()
    address = mesh.address(2)
    assert mesh.server is not None
    for process in (*mesh.daemons.values(), mesh.server):
        process.send_signal(signal.SIGTERM)
        process.wait()
    for number, host in mesh.hosts.items():
        mesh.lab.run(host, ["ip", "addr", "flush", "dev", "eth0", "scope", "global"])
        mesh.lab.run(host, ["ip", "addr", "add", f"20.1.7.{number}/16", "dev", "eth0"])
    for number in mesh.hosts:
        mesh.start_daemon(number)
    mesh.lab.wait("they meet", lambda: mesh.reaches(1, address))
    assert mesh.reaches(1, address, count=10)
    assert not mesh.is_attached(1)


def test_a_member_that_changes_its_address_is_found_again(mesh: Mesh) -> None:
    mesh.wait_direct()
    address = mesh.address(2)
    assert mesh.server is not None
    mesh.server.kill()
    mesh.server.wait()
    for number, host in mesh.hosts.items():
        mesh.lab.run(host, ["ip", "addr", "flush", "dev", "eth0", "scope", "global"])
        mesh.lab.run(host, ["ip", "addr", "add", f"20.1.8.{number}/16", "dev", "eth0"])
    mesh.lab.wait("found again", lambda: mesh.reaches(1, address))
