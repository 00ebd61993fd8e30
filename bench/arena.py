"""Pairs of hosts joined by one cable, and what the processes on them cost.

    NAMEa 20.1.0.1 ── veth, MTU 1500 ── 20.1.0.2 NAMEb

Each contestant has a pair of its own, so that all can be up at once and be measured in turn without meeting.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.netns.lab import SERVER_HOST, Lab, LabError

OUTER = ("20.1.0.1", "20.1.0.2")
STAR = (("20.3.1.2", "20.3.1.1"), ("20.3.2.2", "20.3.2.1"))
"""Each outer host of a star, and the middle's address that it sees."""
OUTER_MTU = 1500
INNER = ("10.77.0.1", "10.77.0.2")
INNER_MTU = 1400
PATIENCE = 120.0
"""Seconds for a program to start, on a machine where a hundred daemons do so."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The names of two hosts, for the arena's methods."""

    a: str
    b: str


class Arena(Lab):
    """A lab with pairs."""

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def add_pair(self, name: str) -> Pair:
        """Two namespaces and the cable."""
        pair = Pair(f"{name}a", f"{name}b")
        for host in (pair.a, pair.b):
            self._namespace(host)
        self._ip(pair.a, f"link add eth0 type veth peer name eth0 netns {self.prefix}{pair.b}")
        for host, address in zip((pair.a, pair.b), OUTER, strict=True):
            self._ip(host, f"addr add {address}/24 dev eth0")
            self._ip(host, f"link set eth0 mtu {OUTER_MTU} up")
        return pair

    def add_open_host(self, number: int) -> str:
        """A host on the lab's internet with no NAT before it.

        It is routed, not bridged: the kernel's neighbour table is one for all namespaces and ends at 1,024 entries,
        which some 32 hosts that all know each other would fill.
        """
        host, address = f"o{number}", f"20.1.{1 + number // 250}.{1 + number % 250}"
        self._namespace(host)
        self._ip(host, f"link add eth0 type veth peer name {host} netns {self.prefix}net")
        self._ip(host, f"addr add {address}/32 dev eth0")
        self._ip(host, "link set eth0 up")
        self._ip(host, f"route add {SERVER_HOST} dev eth0")
        self._ip(host, f"route add default via {SERVER_HOST}")
        self._ip("net", f"link set {host} up")
        self._ip("net", f"route add {address} dev {host}")
        self.run("net", ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        return host

    def ip(self, where: str, arguments: str) -> None:
        """Run `ip` on a host. Raises LabError."""
        self._ip(where, arguments)

    def popen(self, where: str, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a program whose output is wanted; it ends with the arena."""
        process = subprocess.Popen(
            [*self._inside(where), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._processes.append(process)  # the lab only ends it
        return process

    def wait_ready(self, process: subprocess.Popen[bytes], name: str) -> None:
        """Wait until what a program prints has "ready" in it. Raises LabError with its last line if it ends before."""
        self.wait(f"{name} ready", lambda: "ready" in self.log(name) or process.poll() is not None, timeout=PATIENCE)
        if "ready" not in self.log(name):
            raise LabError(f"{name} did not start: {self.last_line(name)}")

    def last_line(self, name: str) -> str:
        """The last that a program printed."""
        path = self.directory / f"{name}.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return next((line for line in reversed(lines) if line.strip()), "nothing")

    def end(self, processes: Iterable[subprocess.Popen[Any]]) -> None:
        """End some processes before the arena closes."""
        for process in processes:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._processes.remove(process)

    def add_star(self, name: str) -> tuple[Pair, str]:
        """Two hosts that reach a third but not each other (STAR). Returns them and the third."""
        pair, middle = Pair(f"{name}a", f"{name}b"), f"{name}m"
        for host in (pair.a, pair.b, middle):
            self._namespace(host)
        self.run(middle, ["sysctl", "-qw", "net.ipv4.ip_forward=0"])
        for host, (here, there) in zip((pair.a, pair.b), STAR, strict=True):
            self._ip(host, f"link add eth0 type veth peer name {host} netns {self.prefix}{middle}")
            self._ip(host, f"addr add {here}/24 dev eth0")
            self._ip(host, f"link set eth0 mtu {OUTER_MTU} up")
            self._ip(host, f"route add default via {there}")
            self._ip(middle, f"addr add {there}/24 dev {host}")
            self._ip(middle, f"link set {host} mtu {OUTER_MTU} up")
        return pair, middle


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of all threads of these processes so far, with the kernel's work in their name (softirqs too)."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def busy_seconds() -> float:
    """CPU time of the whole machine that was not idle, steal left out."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / 100


def softirq_pids() -> list[int]:
    """The ksoftirqd threads: work that the kernel took off the daemons."""
    return [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and _command(path).startswith("ksoftirqd/")
    ]


def resident_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process, and its proportional share (what is shared is divided)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Rss"].split()[0]) * 1024, int(fields["Pss"].split()[0]) * 1024


def _command(path: Path) -> str:
    try:
        return (path / "comm").read_text()
    except FileNotFoundError:
        return ""  # it ended meanwhile
