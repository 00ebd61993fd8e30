"""A test stand: the real programs in one namespace with a rendezvous, and a second host where somebody has to join.

"net"  rendezvous on 20.1.0.1, daemons       "s1"  daemons behind a NAT router
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..netns.lab import SERVER_HOST, Lab
from . import raw

BIN = Path(sys.executable).parent
PASSWORD = "correct horse battery staple"
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("MESHVPN_")}
Done = subprocess.CompletedProcess[str]


def refusal(done: Done, status: int) -> str:
    """The line that a failed command printed, after checking that it is one line and the exit status right."""
    assert done.returncode == status, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("meshvpn: ")
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def meshvpn(socket: Path, *arguments: str, stdin: str | bytes = "") -> Done:
    """Run the command; a Unix socket needs no namespace."""
    command = [str(BIN / "meshvpn"), "--socket", str(socket), *arguments]
    data = stdin if isinstance(stdin, bytes) else stdin.encode()
    done = subprocess.run(command, input=data, env=ENVIRONMENT, capture_output=True, timeout=60, check=False)
    stdout, stderr = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in stderr, stderr
    return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)


@dataclass
class Daemon:
    """One meshvpnd and its state; it may be started several times."""

    lab: Lab
    name: str
    where: str
    program: Sequence[str]
    options: Sequence[str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.lab.directory / f"{self.name}.sock"

    @property
    def state(self) -> Path:
        return self.lab.directory / f"{self.name}.state"

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def command(self) -> list[str]:
        return [*self.program, "--state-dir", str(self.state), "--socket", str(self.socket), *self.options]

    def start(self, program: Sequence[str] = ()) -> None:
        """Start and wait until it is ready, or dead."""
        before = self.log().count("ready")
        self.program = program or self.program
        self.process = self.lab.start(self.where, self.name, self.command())
        self.lab.wait(
            f"{self.name} ready", lambda: self.log().count("ready") > before or self.running.poll() is not None
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit status."""
        self.running.send_signal(number)
        return self.running.wait(timeout=10)

    def log(self) -> str:
        file = self.lab.directory / f"{self.name}.log"
        return file.read_text() if file.exists() else ""

    def meshvpn(self, *arguments: str, stdin: str | bytes = "") -> Done:
        return meshvpn(self.socket, *arguments, stdin=stdin)

    def enter(self, command: str, net: str, *options: str, password: str = PASSWORD) -> Done:
        """Create or join."""
        source = ("--server", SERVER_HOST, "--password-file", "-")
        return self.meshvpn(command, net, *source, *options, stdin=password + "\n")

    def enters(self, command: str, net: str, *options: str) -> None:
        """The same; it has to succeed."""
        done = self.enter(command, net, *options)
        assert done.returncode == 0, done.stderr

    def does(self, *arguments: str, stdin: str = "") -> str:
        """A command that has to succeed; what it printed."""
        done = self.meshvpn(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        """What `status` shows, asked for without the command: that is quicker to poll."""
        found: dict[str, Any] = json.loads(raw.ask(raw.Connection(self.socket), "GET", "/v1/status")[1])
        return found

    def networks(self) -> dict[str, dict[str, Any]]:
        """What `list` shows, by name."""
        found = json.loads(raw.ask(raw.Connection(self.socket), "GET", "/v1/networks")[1])
        return {network["network"]: network for network in found}

    def networks_if_alive(self) -> dict[str, dict[str, Any]] | None:
        """The same, or None if the daemon is dead."""
        try:
            return self.networks()
        except (ConnectionError, FileNotFoundError, http.client.HTTPException):
            return None

    def wait_online(self, net: str) -> None:
        self.lab.wait(f"{net} online at {self.name}", lambda: self.networks()[net]["state"] == "online")


class Stand:
    """A lab with a rendezvous."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.server: subprocess.Popen[bytes] | None = None
        self.daemons: list[Daemon] = []

    def start_server(self) -> None:
        """Start the rendezvous, the first time or again."""
        self.server = self._serve("rendezvous", 7770)

    def start_plain_server(self, port: int) -> None:
        """Another one, without TLS."""
        self._serve("plain", port, "--no-tls")

    def _serve(self, name: str, port: int, *options: str) -> subprocess.Popen[bytes]:
        where = ["--listen", f"{SERVER_HOST}:{port}", "--data", str(self.lab.directory / name)]
        log = self.lab.directory / f"{name}.log"
        before = log.read_text().count("ready") if log.exists() else 0
        process = self.lab.start("net", name, [str(BIN / "meshvpn-rendezvous"), "serve", *where, *options])
        self.lab.wait(f"{name} ready", lambda: log.read_text().count("ready") > before)
        return process

    def stop_server(self) -> None:
        assert self.server is not None
        self.server.terminate()
        self.server.wait(timeout=10)

    def daemon(self, name: str, where: str = "net", options: Sequence[str] = ()) -> Daemon:
        """A daemon with a state of its own, not started."""
        made = Daemon(self.lab, name, where, [str(BIN / "meshvpnd")], options)
        self.daemons.append(made)
        return made


@contextlib.contextmanager
def stand(*, sites: int = 0) -> Iterator[Stand]:
    """A stand with its rendezvous running, and so many hosts s1, s2, … besides."""
    with Lab() as lab:
        hosts = [lab.add_site(number + 1) for number in range(sites)]
        made = Stand(lab)
        made.start_server()
        for host in hosts:
            _wait_until_reachable(lab, host)
        yield made


def _wait_until_reachable(lab: Lab, host: str) -> None:
    """A busy kernel takes its time until new links carry packets."""
    ping = ["ping", "-c", "1", "-W", "1", SERVER_HOST]
    lab.wait(f"{host} reaches the server", lambda: lab.attempt(host, ping).returncode == 0)
