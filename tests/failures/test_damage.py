"""A state file that is not what was written: kept aside, named, and the other networks come up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .stand import Daemon, stand

pytestmark = pytest.mark.netns

Harm = Callable[[bytes], bytes]
HARMS: dict[str, Harm] = {
    "empty": lambda whole: b"",
    "cut in the magic": lambda whole: whole[:5],
    "cut in the checksum": lambda whole: whole[:30],
    "cut before the content": lambda whole: whole[:40],
    "cut in the content": lambda whole: whole[: len(whole) // 2],
    "cut by one byte": lambda whole: whole[:-1],
    "one bit of the magic": lambda whole: _flip(whole, 0),
    "one bit of the checksum": lambda whole: _flip(whole, 20),
    "one bit of the content": lambda whole: _flip(whole, len(whole) // 2),
    "a hole of zeros": lambda whole: whole[:512] + bytes(256) + whole[768:],
    "longer than written": lambda whole: whole + b"\0",
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """In a network for each harm, and two more: `lame` and `sound`."""
    with stand() as made:
        found = made.daemon("daemon")
        found.start()
        for name in (*HARMS, "lame", "sound"):
            found.enters("create", name)
        yield found


def test_damaged_files_are_kept_aside_and_named_and_the_other_networks_come_up(daemon: Daemon) -> None:
    files = {name: daemon.state / network["uid"] / "network" for name, network in daemon.networks().items()}
    assert daemon.stop() == 0
    harmed = {name: harm(files[name].read_bytes()) for name, harm in HARMS.items()}
    for name, content in harmed.items():
        files[name].write_bytes(content)
    daemon.start()
    problems = daemon.status()["problems"]
    remedy = "is damaged and was kept as network.damaged-1; restore it from a backup or join again"
    assert sorted(problems) == sorted(f"{files[name]} {remedy}" for name in HARMS)
    for problem in problems:
        assert f"ERROR meshvpn.net.networks {problem}\n" in daemon.log()
    for name, content in harmed.items():
        assert files[name].with_name("network.damaged-1").read_bytes() == content
        assert not files[name].exists()
    assert sorted(daemon.networks()) == ["lame", "sound"]
    daemon.wait_online("lame")
    daemon.wait_online("sound")
    for name in HARMS:
        files[name].with_name("network.damaged-1").unlink()


def test_what_was_kept_aside_is_named_at_each_start_and_never_overwritten(daemon: Daemon) -> None:
    file = daemon.state / daemon.networks()["lame"]["uid"] / "network"
    whole = file.read_bytes()
    for number in (1, 2):
        assert daemon.stop() == 0
        _write(file, b"harm %d" % number)
        daemon.start()
    assert daemon.stop() == 0
    daemon.start()
    assert [problem.split(" is kept as ")[1] for problem in daemon.status()["problems"]] == [
        "network.damaged-1; restore it from a backup or join again",
        "network.damaged-2; restore it from a backup or join again",
    ]
    assert [file.with_name(f"network.damaged-{number}").read_bytes() for number in (1, 2)] == [b"harm 1", b"harm 2"]
    # As an operator would who has a backup: the network is whole again.
    assert daemon.stop() == 0
    for number in (1, 2):
        file.with_name(f"network.damaged-{number}").unlink()
    _write(file, whole)
    daemon.start()
    daemon.wait_online("lame")
    assert daemon.status()["problems"] == []


def test_a_copy_of_a_networks_directory_is_not_the_network_a_second_time(daemon: Daemon) -> None:
    uid = daemon.networks()["lame"]["uid"]
    copy = daemon.state / f"{uid}.bak"
    copy.mkdir(mode=0o700)
    _write(copy / "network", (daemon.state / uid / "network").read_bytes())
    assert daemon.stop() == 0
    daemon.start()
    assert sorted(daemon.networks()) == ["lame", "sound"]
    assert daemon.status()["problems"] == [f"{copy} is ignored: it is a copy of {uid}; move it elsewhere"]
    (copy / "network").unlink()
    copy.rmdir()


def _write(file: Path, content: bytes) -> None:
    """As a backup that kept the mode does."""
    file.touch(mode=0o600)
    file.write_bytes(content)


def _flip(whole: bytes, position: int) -> bytes:
    return whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :]
