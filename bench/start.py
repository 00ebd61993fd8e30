"""Start: from start to ready, from `join` typed to the first packet and to a direct path, and memory when idle.

    python -m bench.start [--rounds 3]

Measured on the demo's network: three sites behind NAT routers. Two hosts join in each round, each on a fresh daemon.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from meshvpn import ipc
from meshvpn.cli.client import Client, CliError
from tests.netns.lab import LabError, stopping_on_signals
from tests.netns.mesh import BIN, NETWORK, Mesh

from .arena import Arena, cpu_seconds, resident_bytes
from .figures import Check, Section, figure, table

ROOT = Path(__file__).resolve().parent.parent
LOOK = 0.005
PATIENCE = 20.0
PORT = 5005
SETTLE = 5.0
"""Seconds after the last join in which punching and first handshakes end; then memory is read and idling measured."""
IDLE = 10.0

READY, FIRST_PACKET, DIRECT = "start to ready, s", "join to first packet, s", "join to direct path, s"
RESIDENT, PROPORTIONAL, IDLE_CPU = "resident memory, MB", "proportional share, MB", "idle CPU, % of a core"

Results = dict[str, list[float]]


def measure(rounds: int) -> Results:
    """All figures, several rounds. Raises LabError."""
    results: Results = defaultdict(list)
    for _ in range(rounds):
        with Arena() as arena:
            _round(arena, results)
    return results


def _round(arena: Arena, results: Results) -> None:
    mesh = Mesh(arena, 3)
    mesh.start_server()
    for number in mesh.hosts:
        results[READY].append(_start_daemon(mesh, number))
    if mesh.enter(1, "create").returncode != 0:
        raise LabError(f"create: {arena.log('daemon1')}")
    address = mesh.address(1)
    _ready(_probe(mesh, 1, "answer", str(PORT)))
    for number in (2, 3):
        _join(mesh, number, address, results)
    time.sleep(SETTLE)
    daemon = mesh.daemons[1].pid
    resident, proportional = resident_bytes(daemon)
    results[RESIDENT].append(resident / 1e6)
    results[PROPORTIONAL].append(proportional / 1e6)
    before = cpu_seconds([daemon])
    time.sleep(IDLE)
    results[IDLE_CPU].append((cpu_seconds([daemon]) - before) / IDLE * 100)


def _start_daemon(mesh: Mesh, number: int) -> float:
    name, socket = f"daemon{number}", mesh.socket(number)
    state = str(mesh.lab.directory / f"state{number}")
    began = time.monotonic()
    command = [str(BIN / "meshvpnd"), "--state-dir", state, "--socket", str(socket)]
    mesh.daemons[number] = mesh.lab.start(mesh.hosts[number], name, command)
    return until(f"{name} ready", lambda: "ready" in mesh.lab.log(name)) - began


def _join(mesh: Mesh, number: int, first: str, results: Results) -> None:
    """A join is over when it reaches the first member, and everybody directly."""
    asking = _probe(mesh, number, "ask", first, str(PORT), str(PATIENCE))
    _ready(asking)
    client = Client(str(mesh.socket(number)))
    command = [str(BIN / "meshvpn"), "--socket", str(mesh.socket(number)), "join", NETWORK]
    options = ["--server", "20.1.0.1", "--nick", f"piaf-server{number}", "--password-file", str(mesh.password_file)]
    typed = time.monotonic()
    mesh.lab.start(mesh.hosts[number], f"join{number}", [*command, *options])
    direct = until("a direct path", lambda: _is_direct(client, number - 1))
    output, _ = asking.communicate(timeout=PATIENCE)
    if output.strip() == "None":
        raise LabError(f"no packet through the tunnel in {PATIENCE} s; join said: {mesh.lab.log(f'join{number}')}")
    results[FIRST_PACKET].append(float(output) - typed)
    results[DIRECT].append(direct - typed)


def _is_direct(client: Client, others: int) -> bool:
    try:
        peers = client.get(f"/v1/networks/{NETWORK}/peers", list[ipc.PeerView])
    except CliError:
        return False  # it has not joined yet
    return [peer.state for peer in peers].count("direct") == others


def _probe(mesh: Mesh, number: int, *arguments: str) -> subprocess.Popen[str]:
    assert isinstance(mesh.lab, Arena)
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "bench.probe", *arguments]
    return mesh.lab.popen(mesh.hosts[number], command)


def _ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise LabError("a probe did not start")


def until(what: str, condition: Callable[[], bool]) -> float:
    """Look often; the monotonic time at which it held. Raises LabError."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"did not happen in {PATIENCE} s: {what}")
        time.sleep(LOOK)
    return time.monotonic()


def section(results: Results) -> Section:
    """One table, and what is required."""
    rows = [[name, figure(values).text(2), str(len(values))] for name, values in results.items()]
    bounds = ((FIRST_PACKET, 1.0), (DIRECT, 3.0), (RESIDENT, 70.0))
    checks = [Check(name, figure(results[name]).median, bound) for name, bound in bounds]
    text = "On the demo's network, three sites behind NAT routers; a probe each 5 ms.\n\n"
    return Section("Start and join", text + table(["", "median (range)", "samples"], rows), checks)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.start", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    with stopping_on_signals():
        print(section(measure(parser.parse_args().rounds)).text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
