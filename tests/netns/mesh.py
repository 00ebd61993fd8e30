"""The three programs, as a user installs them, in a lab."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from .lab import SERVER_HOST, Lab, LabError, router_address
from .stream import Stream

BIN = Path(sys.executable).parent
NETWORK = "piaf-vpn"
DEFAULT_PORT = 7770

_BLOCK = """
table ip block {
    chain forward {
        type filter hook forward priority 0;
        ip protocol PROTOCOL ip daddr { HOSTS } drop;
        ip protocol PROTOCOL ip saddr { HOSTS } drop;
    }
}
"""


class Mesh:
    """A rendezvous and one daemon a site. Sites are numbered from 1."""

    def __init__(self, lab: Lab, sites: int, *, log_level: str = "INFO") -> None:
        self.lab = lab
        self.log_level = log_level
        self.port = DEFAULT_PORT
        self.server_hosts = [SERVER_HOST]
        """As they stand in a URL."""
        self.hosts = {number: lab.add_site(number) for number in range(1, sites + 1)}
        self.server: subprocess.Popen[bytes] | None = None
        self.daemons: dict[int, subprocess.Popen[bytes]] = {}
        self.starts: dict[int, int] = {}
        self.configs: dict[int, str] = {}
        self.password_file = self.write_password("password", "correct horse battery staple")

    def start(self) -> None:
        """Start everything and wait until it is ready."""
        self.start_server()
        for number in self.hosts:
            self.start_daemon(number)

    def found(self, *numbers: int) -> None:
        """Create the network at the first of these sites (or of all), join it at the others."""
        for position, number in enumerate(numbers or self.hosts):
            self.admit(number, "join" if position else "create")

    def admit(self, number: int, command: str = "join") -> None:
        """Create or join; raises LabError if it fails."""
        done = self.enter(number, command)
        if done.returncode != 0:
            raise LabError(f"site {number}: {done.stdout}")

    def start_server(self) -> None:
        """Start the rendezvous, the first time or again."""
        data = self.lab.directory / "rendezvous"
        command = [str(BIN / "meshvpn-rendezvous"), "serve", "--data", str(data)]
        for host in self.server_hosts:
            command += ["--listen", f"{host}:{self.port}"]
        self.server = self.lab.start("net", "rendezvous", [*command, "--log-level", self.log_level])
        started = self.lab.log("rendezvous").count("ready") + 1
        self.lab.wait("rendezvous ready", lambda: self.lab.log("rendezvous").count("ready") >= started)

    def end_server(self, how: signal.Signals, *numbers: int) -> None:
        """End the rendezvous and wait until these sites (or all) have noticed."""
        assert self.server is not None, "it was started"
        self.server.send_signal(how)
        self.server.wait()
        self.lab.wait(
            "the loss is noticed", lambda: not any(self.is_attached(number) for number in numbers or self.hosts)
        )

    def is_attached(self, number: int) -> bool:
        """True if a site is connected to the rendezvous."""
        servers = json.loads(self.meshvpn(number, "--json", "status"))["servers"]
        return [server["state"] for server in servers] == ["connected"]

    def start_daemon(self, number: int) -> None:
        """Start a site's daemon, the first time or again."""
        name = f"daemon{number}"
        state = self.lab.directory / f"state{number}"
        command = [str(BIN / "meshvpnd"), "--state-dir", str(state), "--socket", str(self.socket(number))]
        command += ["--log-level", self.log_level]
        if number in self.configs:
            file = self.lab.directory / f"daemon{number}.toml"
            file.write_text(self.configs[number])
            command += ["--config", str(file)]
        starts = self.starts.get(number, 0) + 1
        self.starts[number] = starts
        self.daemons[number] = self.lab.start(self.hosts[number], name, command)
        self.lab.wait(f"{name} is ready", lambda: self.lab.log(name).count(" ready state=") >= starts)

    def socket(self, number: int) -> Path:
        """The path of a daemon's API."""
        return self.lab.directory / f"daemon{number}.sock"

    def attempt(self, number: int, *arguments: str) -> CompletedProcess[str]:
        """Run `meshvpn` at a site."""
        command = [str(BIN / "meshvpn"), "--socket", str(self.socket(number)), *arguments]
        return self.lab.attempt(self.hosts[number], command)

    def meshvpn(self, number: int, *arguments: str) -> str:
        """The same; raises LabError if it fails."""
        command = [str(BIN / "meshvpn"), "--socket", str(self.socket(number)), *arguments]
        return self.lab.run(self.hosts[number], command)

    def enter(self, number: int, command: str, *, password_file: Path | None = None) -> CompletedProcess[str]:
        """Create or join."""
        file = str(password_file or self.password_file)
        options = ("--server", SERVER_HOST, "--nick", f"piaf-server{number}", "--password-file", file)
        return self.attempt(number, command, NETWORK, *options)

    def write_password(self, name: str, password: str) -> Path:
        """A file that only its owner can read."""
        file = self.lab.directory / name
        file.touch(mode=0o600)
        file.write_text(f"{password}\n")
        return file

    def network(self, number: int) -> dict[str, Any]:
        """The one network of `list --json`."""
        (found,) = json.loads(self.meshvpn(number, "--json", "list"))
        return dict(found)

    def peers(self, number: int) -> list[dict[str, Any]]:
        """`peers --json`."""
        found: list[dict[str, Any]] = json.loads(self.meshvpn(number, "--json", "peers", NETWORK))
        return found

    def address(self, number: int) -> str:
        """The mesh address of a site's PBX."""
        return str(self.network(number)["address"])

    def states(self, number: int) -> list[str]:
        """How a site reaches the others."""
        return [peer["state"] for peer in self.peers(number)]

    def is_direct(self, number: int, others: int) -> bool:
        """True if a site reaches this many others directly."""
        return self.states(number).count("direct") == others

    def reaches(self, number: int, address: str, *, count: int = 1) -> bool:
        """True if pings through the mesh are answered."""
        command = ["ping", "-c", str(count), "-i", "0.2", "-W", "1", address]
        return self.lab.attempt(self.hosts[number], command).returncode == 0

    def stream(self, sender: int, receiver: int, port: int = 5060, *, rate: int = 50, count: int = 3000) -> Stream:
        """Packets through the mesh; a call's one direction if nothing else is said."""
        return Stream(
            self.lab, self.hosts[sender], self.hosts[receiver], self.address(receiver), port, rate=rate, count=count
        )

    def call(self, first: int, second: int, port: int = 5060, *, count: int = 3000) -> tuple[Stream, Stream]:
        """A call: 50 packets a second each way."""
        return self.stream(first, second, port, count=count), self.stream(second, first, port, count=count)

    def wait_good(self, *numbers: int) -> None:
        """Wait until the direct paths between these sites sound so well that nothing makes them leave it.

        What a busy machine adds to the first round trips may make the relay look better for a while.
        """
        for number in numbers:
            self.lab.wait(f"site {number} has good paths", partial(self._is_good, number, numbers), timeout=60)

    def _is_good(self, number: int, group: tuple[int, ...]) -> bool:
        good = {peer["nick"] for peer in self.peers(number) if peer["state"] == "direct" and peer["mos"] > 4.2}
        return good >= {f"piaf-server{other}" for other in group if other != number}

    def wait_direct(self, *numbers: int) -> None:
        """Wait until these sites (or all) reach each other directly."""
        group = numbers or tuple(self.hosts)
        for number in group:
            self.lab.wait(f"site {number} is direct", partial(self.is_direct, number, len(group) - 1))

    def wait_reached(self, *numbers: int) -> None:
        """Wait until these sites (or all) reach each other, directly or not.

        A busy machine makes a path look bad at times; then the relay serves for half a minute and more.
        """
        group = numbers or tuple(self.hosts)
        for number in group:
            self.lab.wait(f"site {number} reaches the others", partial(self._is_reaching, number, len(group) - 1))

    def _is_reaching(self, number: int, others: int) -> bool:
        return sum(state in ("direct", "relay") for state in self.states(number)) == others

    def block_direct_paths(self) -> None:
        """The routers drop UDP to and from other routers; that of the rendezvous passes."""
        for number in self.hosts:
            self._block(number, "udp", [router_address(other) for other in self.hosts if other != number])

    def block_control(self, number: int) -> None:
        """A site's router drops TCP to and from the rendezvous, without a word."""
        self._block(number, "tcp", [SERVER_HOST])

    def unblock(self) -> None:
        """Undo what was blocked at every site."""
        for number in self.hosts:
            self.lab.run(f"r{number}", ["nft", "delete", "table", "ip", "block"])

    def _block(self, number: int, protocol: str, hosts: list[str]) -> None:
        rules = _BLOCK.replace("PROTOCOL", protocol).replace("HOSTS", ", ".join(hosts))
        self.lab.run(f"r{number}", ["nft", "-f", "-"], text=rules)
