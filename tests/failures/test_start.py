"""What keeps meshvpnd from starting: one line on standard error, exit status 1, nothing touched."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..netns.lab import Lab
from .stand import BIN, Daemon, Stand

pytestmark = pytest.mark.netns
MESHVPND = str(BIN / "meshvpnd")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def daemon(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    made = Stand(lab).daemon(request.node.name.partition("[")[0])
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()


def test_without_the_privilege_it_says_which(lab: Lab, daemon: Daemon) -> None:
    dropped = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
    line = _refusal(lab, [*dropped, *daemon.command()])
    assert "CAP_NET_ADMIN is missing" in line
    assert "run meshvpnd as root" in line
    assert not daemon.state.exists()


def test_without_the_tun_device_it_says_what_to_load(lab: Lab, daemon: Daemon) -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$0" "$@"']
    line = _refusal(lab, [*hidden, *daemon.command()])
    assert "/dev/net/tun" in line
    assert "modprobe tun" in line
    assert not daemon.state.exists()


def test_a_second_daemon_leaves_the_first_ones_state_alone(lab: Lab, daemon: Daemon) -> None:
    daemon.start()
    line = _refusal(lab, [MESHVPND, "--state-dir", str(daemon.state), "--socket", str(lab.directory / "other.sock")])
    assert str(daemon.state) in line
    assert "used by another meshvpnd" in line
    assert daemon.meshvpn("status").returncode == 0


def test_a_second_daemon_leaves_the_first_ones_socket_alone(lab: Lab, daemon: Daemon) -> None:
    daemon.start()
    other = lab.directory / "another state"
    line = _refusal(lab, [MESHVPND, "--state-dir", str(other), "--socket", str(daemon.socket)])
    assert str(daemon.socket) in line
    assert "another daemon answers there" in line
    assert daemon.meshvpn("status").returncode == 0


def test_a_socket_that_a_dead_daemon_left_is_no_obstacle(daemon: Daemon) -> None:
    daemon.start()
    daemon.running.kill()
    daemon.running.wait()
    assert daemon.socket.is_socket()
    daemon.start()
    assert daemon.meshvpn("status").returncode == 0


@pytest.mark.parametrize("option", ["--state-dir", "--socket"])
@pytest.mark.parametrize("place", ["file/in it", "dir"])
def test_a_place_that_cannot_be_used_is_named(lab: Lab, daemon: Daemon, option: str, place: str) -> None:
    (lab.directory / "file").touch()
    (lab.directory / "dir").mkdir(exist_ok=True)
    where = lab.directory / place
    if (option, place) == ("--state-dir", "dir"):
        (where / "lock").mkdir(exist_ok=True)
    line = _refusal(lab, [*daemon.command(), option, str(where)])
    assert str(where) in line
    assert f"give another {option}" in line


def test_a_socket_path_that_is_too_long_is_named(lab: Lab, daemon: Daemon) -> None:
    line = _refusal(lab, [*daemon.command(), "--socket", str(lab.directory / ("long" * 30))])
    assert "give another --socket" in line


@pytest.mark.parametrize(
    "options",
    [
        ("--log-level", "LOUD"),
        ("--log-format", "xml"),
        ("--no-such-option",),
        ("--state-dir",),
        ("--state", "abbreviated"),
        ("argument",),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(lab: Lab, options: tuple[str, ...]) -> None:
    line = _refusal(lab, [MESHVPND, *options], status=2)
    assert line.endswith("see `meshvpnd --help`\n")


def test_a_configuration_that_is_not_understood_keeps_it_from_starting(lab: Lab, daemon: Daemon) -> None:
    file = lab.directory / "wrong.toml"
    file.write_text("duplicate = 'always'\n")
    command = [*daemon.command(), "--config", str(file)]
    complaint = f'meshvpnd: {file}: duplicate: it is not understood; write "off", "signalling" or "voice"\n'
    assert _refusal(lab, command, status=2) == complaint
    assert _refusal(lab, [*command, "--check"], status=2) == complaint
    assert not daemon.state.exists()


def test_what_the_configuration_says_is_in_force(lab: Lab) -> None:
    file = lab.directory / "right.toml"
    file.write_text("log_format = 'json'\n[network.elsewhere]\nmtu = 1300\n")
    daemon = Stand(lab).daemon("configured", options=["--config", str(file)])
    assert lab.run("net", [MESHVPND, "--check", "--config", str(file)]) == f"{file}: in order\n"
    daemon.start()
    assert json.loads(daemon.meshvpn("--json", "status").stdout)["config_file"] == str(file)
    assert daemon.stop() == 0
    messages = [json.loads(line)["message"] for line in daemon.log().splitlines()]
    assert "configuration for a network that this host is not in network=elsewhere" in messages


def test_the_socket_can_be_reached_by_its_group_and_by_nobody_else(lab: Lab) -> None:
    # Under a strict umask too: the directory must be passable for the group, the socket must not be open to all.
    daemon = Stand(lab).daemon("modes")
    socket = lab.directory / "run" / "meshvpn" / "api.sock"
    daemon.program = ["sh", "-c", 'umask 077 && exec "$0" "$@"', MESHVPND]
    daemon.options = ["--socket", str(socket)]
    daemon.start()
    assert [_mode(socket.parent.parent), _mode(socket.parent), _mode(socket)] == [0o755, 0o755, 0o660]
    assert _mode(daemon.state) == 0o700
    assert daemon.stop() == 0
    assert not socket.exists()


def test_a_state_directory_that_existed_keeps_its_mode(daemon: Daemon) -> None:
    daemon.state.mkdir(mode=0o755)
    daemon.start()
    assert _mode(daemon.state) == 0o755


def test_the_log_is_a_json_object_a_line_if_asked_for(lab: Lab) -> None:
    daemon = Stand(lab).daemon("json", options=["--log-format", "json", "--log-level", "debug"])
    daemon.start()
    assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.log().splitlines()]
    ready = next(line for line in lines if line["message"].startswith("ready "))
    assert ready["level"] == "INFO"
    assert ready["logger"] == "meshvpnd"


@pytest.mark.parametrize("program", ["meshvpn", "meshvpnd"])
def test_each_program_tells_its_version(program: str) -> None:
    done = subprocess.run([str(BIN / program), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{program} 0.")
    assert done.stdout.count("\n") == 1


def _refusal(lab: Lab, command: list[str], status: int = 1) -> str:
    done = lab.attempt("net", command)
    assert done.returncode == status, done.stdout
    assert done.stdout.startswith("meshvpnd: ")
    assert done.stdout.count("\n") == 1, done.stdout
    return done.stdout


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
