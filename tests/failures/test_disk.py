"""A full disk: under the state, and under standard output."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .stand import BIN, ENVIRONMENT, Daemon, Stand, refusal, stand

pytestmark = pytest.mark.netns
MESHVPN = str(BIN / "meshvpn")
IN_SMALL_DISK = 'mkdir -p "$1" && mount -t tmpfs -o size=256k,mode=0700 none "$1" && shift && exec "$@"'


@pytest.fixture(scope="module")
def made() -> Iterator[Stand]:
    with stand(sites=1) as found:
        yield found


@pytest.fixture(scope="module")
def office(made: Stand) -> Daemon:
    """The owner of a network to join."""
    daemon = made.daemon("owner")
    daemon.start()
    daemon.enters("create", "office")
    return daemon


@pytest.fixture
def small(made: Stand) -> Iterator[Daemon]:
    """A daemon whose state is on a disk of 256 kB that only it sees."""
    daemon = made.daemon(f"small{len(made.daemons)}", "s1")
    inside = ["unshare", "--mount", "sh", "-c", IN_SMALL_DISK, "sh", str(daemon.state)]
    daemon.start([*inside, str(BIN / "meshvpnd")])
    yield daemon
    daemon.stop()


@pytest.mark.parametrize("command", ["create", "join"])
def test_entering_a_network_fails_in_one_line_and_works_when_there_is_room(
    office: Daemon, small: Daemon, command: str
) -> None:
    net = "office" if command == "join" else "mine"
    ballast = _fill(small)
    line = refusal(small.enter(command, net), 1)
    assert "no space left on device" in line
    assert "make room" in line
    assert small.networks() == {}
    assert sorted(entry.name for entry in _disk(small).iterdir()) == ["ballast", "lock"]
    ballast.unlink()
    small.enters(command, net)
    assert small.networks()[net]["state"] == "online"
    small.does("delete" if command == "create" else "leave", net)


def test_a_setting_that_cannot_be_kept_is_not_taken(small: Daemon) -> None:
    small.enters("create", "mine", "--nick", "before")
    (file,) = _disk(small).glob("*/network")
    saved = file.read_bytes()
    ballast = _fill(small)
    for arguments in (("nick", "mine", "after"), ("down", "mine")):
        line = refusal(small.meshvpn(*arguments), 1)
        assert "no space left on device" in line
        assert "what was saved before is intact" in line
    assert small.networks()["mine"]["nick"] == "before"
    assert small.networks()["mine"]["state"] == "online"
    assert file.read_bytes() == saved
    assert [entry.name for entry in file.parent.iterdir()] == ["network"]
    ballast.unlink()
    small.does("nick", "mine", "after")
    assert small.networks()["mine"]["nick"] == "after"
    small.does("delete", "mine")


def test_a_network_is_deleted_for_good_on_a_full_disk_too(small: Daemon) -> None:
    small.enters("create", "mine")
    _fill(small)
    small.does("delete", "mine")
    assert small.networks() == {}
    assert sorted(entry.name for entry in _disk(small).iterdir()) == ["ballast", "lock"]


def test_what_the_server_already_decided_is_done_and_the_trouble_shown(made: Stand, small: Daemon) -> None:
    small.enters("create", "mine")
    ballast = _fill(small)
    small.does("passwd", "mine", "--password-file", "-", stdin="another password\n")
    note = small.networks()["mine"]["note"]
    assert "no space left on device" in note
    assert f"mine: {note}" in small.status()["problems"]
    ballast.unlink()
    small.does("nick", "mine", "other")
    small.lab.wait("saved again", lambda: small.networks()["mine"]["note"] is None)
    small.does("delete", "mine")


@pytest.mark.parametrize("arguments", [("list",), ("--json", "list"), ("status",), ("--version",), ("--help",)])
def test_standard_output_on_a_full_disk_is_one_line_and_status_1(office: Daemon, arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = _run(office, arguments, full.fileno())
    assert done.returncode == 1
    assert done.stderr == b"meshvpn: standard output cannot be written (no space left on device)\n"


def test_a_reader_that_went_away_is_no_reason_to_talk(office: Daemon) -> None:
    for arguments in (("list",), ("status",), ("--help",)):
        with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
            reader.wait()
            assert reader.stdin is not None
            done = _run(office, arguments, reader.stdin.fileno())
        assert done.stderr == b""


def test_standard_streams_that_are_closed_are_no_reason_to_fail(office: Daemon) -> None:
    closing = ["sh", "-c", 'exec "$0" "$@" <&- >&-', MESHVPN, "--socket", str(office.socket), "list"]
    done = subprocess.run(closing, env=ENVIRONMENT, stderr=subprocess.PIPE, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def _run(daemon: Daemon, arguments: tuple[str, ...], stdout: int) -> subprocess.CompletedProcess[bytes]:
    command = [MESHVPN, "--socket", str(daemon.socket), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, stdout=stdout, stderr=subprocess.PIPE, timeout=30, check=False)


def _disk(daemon: Daemon) -> Path:
    """The state as the daemon sees it, in its own mount namespace."""
    return Path(f"/proc/{daemon.running.pid}/root{daemon.state}")


def _fill(daemon: Daemon) -> Path:
    """Leave no room at all; the file to delete for room."""
    ballast = _disk(daemon) / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(1 << 20))
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as output:
        output.write(bytes(4096))
    return ballast
