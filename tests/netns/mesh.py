"""The three programs, as a user installs them, in a lab."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .lab import SERVER_HOST, Lab

BIN = Path(sys.executable).parent
NETWORK = "piaf-vpn"


class Mesh:
    """A rendezvous and one daemon a site. Sites are numbered from 1."""

    def __init__(self, lab: Lab, sites: int) -> None:
        self.lab = lab
        self.hosts = {number: lab.add_site(number) for number in range(1, sites + 1)}
        self.daemons: dict[int, subprocess.Popen[bytes]] = {}
        self.password_file = lab.directory / "password"
        self.password_file.touch(mode=0o600)
        self.password_file.write_text("correct horse battery staple\n")

    def start(self) -> None:
        """Start everything and wait until it is ready."""
        self.start_server()
        for number in self.hosts:
            self.start_daemon(number)

    def start_server(self) -> subprocess.Popen[bytes]:
        """Start the rendezvous."""
        data = self.lab.directory / "rendezvous"
        command = [str(BIN / "meshvpn-rendezvous"), "serve", "--listen", f"{SERVER_HOST}:7770", "--data", str(data)]
        process = self.lab.start("net", "rendezvous", command)
        started = self.lab.log("rendezvous").count("ready") + 1
        self.lab.wait("rendezvous ready", lambda: self.lab.log("rendezvous").count("ready") >= started)
        return process

    def start_daemon(self, number: int) -> None:
        """Start a site's daemon, the first time or again."""
        name = f"daemon{number}"
        state = self.lab.directory / f"state{number}"
        command = [str(BIN / "meshvpnd"), "--state-dir", str(state), "--socket", str(self.socket(number))]
        self.daemons[number] = self.lab.start(self.hosts[number], name, command)
        self.lab.wait(f"{name} answers", lambda: self.attempt(number, "status").returncode == 0)

    def socket(self, number: int) -> Path:
        """The path of a daemon's API."""
        return self.lab.directory / f"daemon{number}.sock"

    def attempt(self, number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `meshvpn` at a site."""
        command = [str(BIN / "meshvpn"), "--socket", str(self.socket(number)), *arguments]
        return self.lab.attempt(self.hosts[number], command)

    def meshvpn(self, number: int, *arguments: str) -> str:
        """The same; raises LabError if it fails."""
        command = [str(BIN / "meshvpn"), "--socket", str(self.socket(number)), *arguments]
        return self.lab.run(self.hosts[number], command)

    def enter(self, number: int, command: str) -> subprocess.CompletedProcess[str]:
        """Create or join."""
        return self.attempt(
            number,
            command,
            NETWORK,
            "--server",
            SERVER_HOST,
            "--nick",
            f"piaf-server{number}",
            "--password-file",
            str(self.password_file),
        )

    def peers(self, number: int) -> list[dict[str, Any]]:
        """`peers --json`."""
        found: list[dict[str, Any]] = json.loads(self.meshvpn(number, "--json", "peers", NETWORK))
        return found

    def address(self, number: int) -> str:
        """The mesh address of a site's PBX."""
        return str(json.loads(self.meshvpn(number, "--json", "list"))[0]["address"])

    def is_direct(self, number: int, others: int) -> bool:
        """True if a site reaches this many others directly."""
        return [peer["state"] for peer in self.peers(number)].count("direct") == others

    def reaches(self, number: int, address: str, *, count: int = 1) -> bool:
        """True if pings through the mesh are answered."""
        command = ["ping", "-c", str(count), "-i", "0.2", "-W", "1", address]
        return self.lab.attempt(self.hosts[number], command).returncode == 0
