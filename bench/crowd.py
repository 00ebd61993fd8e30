"""A crowd: memory and idle CPU of a daemon with a hundred connected peers, each a real daemon on a host of its own.

python -m bench.crowd [--peers 100]

host 0 ─┐
host 1 ─┼── bridge (the internet, 20.1.0.0/16) ── the rendezvous, 20.1.0.1
  …     ┘
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from meshvpn import ipc
from meshvpn.cli.client import Client, CliError
from tests.netns.lab import SERVER_HOST, LabError, stopping_on_signals

from .arena import Arena, cpu_seconds, resident_bytes
from .contestants import BIN
from .figures import Check, Section, say, table

NETWORK = "crowd"
RETRIES = 3
AT_ONCE = 4
"""Daemons that start and join at a time."""
PATIENCE = 300.0
SETTLE = 15.0
"""Seconds after the last handshake before idling is measured."""
IDLE = 30.0
PORT = 9
CONNECTED = ("direct", "relay")


class Crowd:
    """The rendezvous and the daemons so far."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._password = arena.directory / "password"
        self._password.touch(mode=0o600)
        self._password.write_text("correct horse battery staple\n")
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.repeated = 0
        data = str(arena.directory / "rendezvous")
        serve = [str(BIN / "meshvpn-rendezvous"), "serve", "--listen", f"{SERVER_HOST}:7770", "--data", data]
        arena.wait_ready(arena.start("net", "rendezvous", serve), "rendezvous")

    def add(self, count: int) -> None:
        """So many daemons more; the very first one creates the network. Raises LabError."""
        first = len(self.daemons)
        for number in range(first, first + count):
            host = self._arena.add_open_host(number)
            state, socket = str(self._arena.directory / host), str(self.socket(number))
            command = [str(BIN / "meshvpnd"), "--state-dir", state, "--socket", socket]
            self.daemons.append(self._arena.start(host, host, command))
        for number in range(first, first + count):
            self._arena.wait_ready(self.daemons[number], f"o{number}")
        entering = {number: self._enter(number) for number in range(first, first + count)}
        for number, process in entering.items():
            for _ in range(RETRIES):
                if process.wait(timeout=60) == 0:
                    break
                # A machine on which a hundred daemons meet at once may be too busy to answer in time.
                say(f"crowd: {self._arena.last_line(f'enter{number}')}")
                self.repeated += 1
                process = self._enter(number)
            if process.wait(timeout=60) != 0:
                raise LabError(f"o{number}: {self._arena.last_line(f'enter{number}')}")

    def socket(self, number: int) -> Path:
        """The path of a daemon's API."""
        return self._arena.directory / f"o{number}.sock"

    def peers(self) -> list[ipc.PeerView]:
        """The first daemon's. Raises CliError."""
        return Client(str(self.socket(0))).get(f"/v1/networks/{NETWORK}/peers", list[ipc.PeerView])

    def talk_to_all(self) -> None:
        """Make the first daemon shake hands with everybody: a packet to each."""
        addresses = " ".join(peer.address for peer in self.peers())
        loop = f"for host in {addresses}; do echo > /dev/udp/$host/{PORT}; done"
        self._arena.run("o0", ["bash", "-c", loop])

    def _enter(self, number: int) -> subprocess.Popen[bytes]:
        command = [str(BIN / "meshvpn"), "--socket", str(self.socket(number)), "join" if number else "create", NETWORK]
        options = ["--server", SERVER_HOST, "--nick", f"host{number}", "--password-file", str(self._password)]
        return self._arena.start(f"o{number}", f"enter{number}", [*command, *options])


def section(count: int) -> Section:
    """A table, and what is required. Raises LabError."""
    with Arena() as arena:
        crowd = Crowd(arena)
        crowd.add(1)
        time.sleep(SETTLE)
        daemon = crowd.daemons[0].pid
        alone, _ = resident_bytes(daemon)
        began = time.monotonic()
        while len(crowd.daemons) <= count:
            crowd.add(min(AT_ONCE, count + 1 - len(crowd.daemons)))
            if len(crowd.daemons) % 20 == 1:
                say(f"crowd: {len(crowd.daemons)} daemons")
        arena.wait("paths", lambda: _all(crowd, count, lambda peer: peer.state in CONNECTED), timeout=PATIENCE)
        joined = time.monotonic() - began
        crowd.talk_to_all()
        began = time.monotonic()
        arena.wait(
            "sessions", lambda: _all(crowd, count, lambda peer: peer.last_handshake_s is not None), timeout=PATIENCE
        )
        shaken = time.monotonic() - began
        time.sleep(SETTLE)
        resident, _ = resident_bytes(daemon)
        before = cpu_seconds([daemon])
        time.sleep(IDLE)
        idle = (cpu_seconds([daemon]) - before) / IDLE * 100
        direct = sum(peer.state == "direct" for peer in crowd.peers())
    grown = (resident - alone) / count / 1e3
    rows = [
        ["peers connected directly at the end", f"{direct} of {count}"],
        ["resident memory without peers, MB", f"{alone / 1e6:.1f}"],
        [f"resident memory with {count} peers, MB", f"{resident / 1e6:.1f}"],
        ["memory a peer, kB", f"{grown:.1f}"],
        [f"idle CPU with {count} connected peers, % of a core", f"{idle:.2f}"],
        ["joins that had to be repeated", str(crowd.repeated)],
        ["all started, joined and connected after, s", f"{joined:.0f}"],
        [f"{count} handshakes at once by the daemon, s", f"{shaken:.2f}"],
    ]
    checks = [
        Check(f"idle CPU with {count} connected peers, % of a core", idle, 0.3),
        Check("memory a peer, kB", grown, 20.0),
    ]
    return Section("A hundred peers" if count == 100 else f"{count} peers", table(["", ""], rows), checks)


def _all(crowd: Crowd, count: int, condition: Callable[[ipc.PeerView], bool]) -> bool:
    try:
        peers = crowd.peers()
    except CliError:
        return False  # it is busy
    return len(peers) == count and all(condition(peer) for peer in peers)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.crowd", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peers", type=int, default=100)
    options = parser.parse_args()
    with stopping_on_signals():
        print(section(options.peers).text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
