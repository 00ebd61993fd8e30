"""An evicted member is out: at once, everywhere, for good, whatever it knows. The others notice nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from .lab import Lab
from .mesh import NETWORK, Mesh
from .stream import Stream

pytestmark = pytest.mark.netns

WITHIN = 1.0
"""Seconds from the end of the command to the last packet of the evicted member (what this product promises)."""

RATE = 100
"""Packets a second of a probe."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """Five sites: one to evict a rule, and two that stay."""
    with Lab() as lab:
        made = Mesh(lab, 5)
        made.start()
        made.found()
        yield made


class Rule(NamedTuple):
    """What `evict` is told about the password, and what of two passwords lets strangers in afterwards."""

    target: int
    options: tuple[str, ...]
    old_admits: bool
    new_admits: bool


@pytest.mark.parametrize(
    "rule",
    [
        Rule(3, ("--keep-password",), old_admits=True, new_admits=False),
        Rule(4, ("--new-password",), old_admits=False, new_admits=True),
        Rule(5, (), old_admits=False, new_admits=False),
    ],
    ids=["keep", "new", "retire"],
)
def test_an_evicted_member_is_cut_off_at_once_and_stays_out_whatever_it_knows(mesh: Mesh, rule: Rule) -> None:
    old, new = mesh.password_file, mesh.write_password(f"new{rule.target}", f"another password {rule.target}")
    mesh.wait_reached()
    identity = identity_of(mesh, rule.target)
    call, probes = mesh.call(1, 2), start_probes(mesh, rule.target)
    check_cut(mesh, rule.target, probes, evict(mesh, rule.target, new, *rule.options))
    for stream in call:
        arrived = stream.stop()
        assert arrived.is_whole, arrived
    for number in mesh.hosts.keys() - {rule.target}:
        assert identity not in [peer["identity"] for peer in mesh.peers(number)]
    mesh.lab.wait("it knows", lambda: mesh.network(rule.target)["state"] == "evicted")
    for known in (old, new):
        refused = mesh.enter(rule.target, "join", password_file=known)
        assert (refused.returncode, refused.stdout.count("\n")) == (1, 1), refused.stdout
        assert mesh.network(rule.target)["state"] == "evicted"
    # As another identity it is a stranger like any other.
    mesh.meshvpn(rule.target, "leave", NETWORK, "--yes")
    if not rule.old_admits:
        assert mesh.enter(rule.target, "join", password_file=old).returncode == 1
    if not (rule.old_admits or rule.new_admits):
        assert mesh.enter(rule.target, "join", password_file=new).returncode == 1
        assert "the password is retired" in mesh.meshvpn(1, "list")
        mesh.meshvpn(1, "passwd", NETWORK, "--password-file", str(new))
    mesh.password_file = old if rule.old_admits else new
    mesh.admit(rule.target)
    assert identity_of(mesh, rule.target) != identity


def test_the_others_cut_it_off_even_if_it_never_hears_of_its_eviction(mesh: Mesh) -> None:
    mesh.wait_reached()
    mesh.block_control(3)
    probes = start_probes(mesh, 3)
    check_cut(mesh, 3, probes, evict(mesh, 3, mesh.password_file, "--keep-password"))
    assert mesh.network(3)["state"] == "online", "it believes that it is a member"


def test_an_eviction_survives_the_restart_of_everything(mesh: Mesh) -> None:
    mesh.wait_reached(1, 2, 4, 5)
    evict(mesh, 5, mesh.password_file, "--keep-password")
    mesh.lab.wait("it knows", lambda: mesh.network(5)["state"] == "evicted")
    mesh.end_server(signal.SIGKILL, 1, 2, 4, 5)  # the third hears nothing, not even that
    for daemon in mesh.daemons.values():
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    mesh.start()
    mesh.wait_reached(1, 2, 4)
    assert mesh.reaches(1, mesh.address(2))
    assert not mesh.reaches(1, mesh.address(5))
    assert mesh.network(5)["state"] == "evicted"
    refused = mesh.enter(5, "join")
    assert (refused.returncode, refused.stdout.count("\n")) == (1, 1), refused.stdout


def test_without_the_server_members_tell_each_other_of_an_eviction(mesh: Mesh) -> None:
    for number in (1, 4):
        mesh.lab.wait("the second reaches it", partial(mesh.reaches, 2, mesh.address(number)))
    mesh.end_server(signal.SIGKILL, 1, 2, 4)
    ends = ((2, 4), (4, 2))
    probes = [mesh.stream(*pair, port, rate=RATE, count=60 * RATE) for port, pair in enumerate(ends, 6100)]
    mesh.lab.wait("packets pass", partial(mesh.reaches, 2, mesh.address(4)))
    check_cut(mesh, 4, probes, evict(mesh, 4, mesh.password_file, "--keep-password"))
    assert "piaf-server4" not in [peer["nick"] for peer in mesh.peers(2)]
    assert mesh.reaches(1, mesh.address(2))


def evict(mesh: Mesh, target: int, new_password: Path, *options: str) -> float:
    """When it was done, Unix time."""
    mesh.meshvpn(1, "evict", NETWORK, f"piaf-server{target}", "--password-file", str(new_password), *options)
    return time.time()


def identity_of(mesh: Mesh, number: int) -> str:
    """As the others see it."""
    (found,) = [peer["identity"] for peer in mesh.peers(1) if peer["nick"] == f"piaf-server{number}"]
    return str(found)


def start_probes(mesh: Mesh, target: int) -> list[Stream]:
    """A packet each 10 ms between the target and both that stay, each way."""
    ends = ((1, target), (target, 1), (2, target), (target, 2))
    return [mesh.stream(*pair, port, rate=RATE, count=60 * RATE) for port, pair in enumerate(ends, 6000)]


def check_cut(mesh: Mesh, target: int, probes: list[Stream], evicted_at: float) -> None:
    assert not mesh.reaches(1, mesh.address(target)), "and a ping waits for a second"
    for probe in probes:
        arrived = probe.stop()
        assert 0 < arrived.received < arrived.sent - RATE * WITHIN, "packets went before and after"
        assert arrived.last_at < evicted_at + WITHIN, arrived
