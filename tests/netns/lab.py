"""Network namespaces for tests and the demo: a public internet, and sites behind NAT routers.

    server 20.1.0.1 ──┐
                      ├── bridge (the internet, 20.1.0.0/16)
    r1 20.1.0.11 ─────┤   each router masquerades and drops what nobody asked for:
    r2 20.1.0.12 ─────┘   endpoint-independent mapping, address and port-dependent filtering (RFC 4787)
     │
    s1 192.168.1.2        the PBX of site 1

    h1 20.1.0.101         a host on the internet itself, 2001:db8::101 too

Everything carries a prefix of its own and is removed at the end, also after a failure.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
SERVER_HOST = "20.1.0.1"

_NAT_RULES = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority 100;
        oifname "wan" masquerade;
    }
    chain input {
        type filter hook input priority 0;
        iifname "wan" ct state established,related accept;
        iifname "wan" drop;
    }
}
"""


class LabError(Exception):
    """Something that the lab was asked for did not happen; the message has the output."""


class Lab:
    """The namespaces and the processes in them."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        self.prefix = f"mv{os.getpid() % 100000}x{next(self._numbers)}"
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        self._namespaces: list[str] = []
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        try:
            self._namespace("net")
            self._make_internet()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_site(self, number: int) -> str:
        """A router and a PBX behind it; returns the PBX's name."""
        router, host = f"r{number}", f"s{number}"
        for name in (router, host):
            self._namespace(name)
        self._ip(router, f"link add wan type veth peer name w{number} netns {self.prefix}net")
        self._ip("net", f"link set w{number} master br0 up")
        self._ip(router, f"link add lan type veth peer name eth0 netns {self.prefix}{host}")
        self._ip(router, f"addr add {router_address(number)}/16 dev wan")
        self._ip(router, f"addr add 192.168.{number}.1/24 dev lan")
        for link in ("wan", "lan"):
            self._ip(router, f"link set {link} up")
        self._ip(host, f"addr add 192.168.{number}.2/24 dev eth0")
        self._ip(host, "link set eth0 up")
        self._ip(host, f"route add default via 192.168.{number}.1")
        self.run(router, ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        self.run(router, ["nft", "-f", "-"], text=_NAT_RULES)
        return host

    def add_host(self, number: int) -> str:
        """A host with a public address and no router; returns its name."""
        host = f"h{number}"
        self._namespace(host)
        self._ip(host, f"link add eth0 type veth peer name e{number} netns {self.prefix}net")
        self._ip("net", f"link set e{number} master br0 up")
        self._ip(host, f"addr add {public_address(number)}/16 dev eth0")
        self._ip(host, f"addr add {public_address6(number)}/64 dev eth0 nodad")
        self._ip(host, "link set eth0 up")
        return host

    def run(
        self, where: str, command: Sequence[str], *, text: str = "", check: bool = True, timeout: float = 30
    ) -> str:
        """Run a program in a namespace; its standard output and error together."""
        done = self.attempt(where, command, text=text, timeout=timeout)
        if check and done.returncode != 0:
            raise LabError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}")
        return done.stdout

    def attempt(
        self, where: str, command: Sequence[str], *, text: str = "", timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """The same, with its exit status."""
        return subprocess.run(
            [*self._inside(where), *command],
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, where: str, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program; what it prints goes to `log(name)`."""
        with (self.directory / f"{name}.log").open("ab") as output:
            process = subprocess.Popen([*self._inside(where), *command], stdout=output, stderr=output, cwd=ROOT)
        self._processes.append(process)
        return process

    def open(self, where: str, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a program to talk to by its standard input and output."""
        process = subprocess.Popen(
            [*self._inside(where), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self._processes.append(process)
        return process

    def log(self, name: str) -> str:
        """What a program has printed so far."""
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def wait(self, what: str, condition: Callable[[], bool], *, timeout: float = 20) -> float:
        """Wait until it holds; the seconds that it took. Raises LabError."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > timeout:
                raise LabError(f"did not happen in {timeout} s: {what}")
            time.sleep(0.05)
        return time.monotonic() - started

    def close(self) -> None:
        """End the processes, remove the namespaces and files; a further Ctrl-C waits until it is done."""
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self.end_processes()
            while self._namespaces:
                subprocess.run(["ip", "netns", "del", self._namespaces.pop()], check=False, stderr=subprocess.DEVNULL)
            shutil.rmtree(self.directory, ignore_errors=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def end_processes(self) -> None:
        """SIGTERM, and SIGKILL for who does not heed it."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            process.kill()
            process.communicate()
        self._processes.clear()

    def _make_internet(self) -> None:
        self._ip("net", "link add br0 type bridge")
        self._ip("net", "link set br0 up")
        self._ip("net", f"addr add {SERVER_HOST}/16 dev br0")

    def _namespace(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", self.prefix + name], check=True)
        self._namespaces.append(self.prefix + name)
        self._ip(name, "link set lo up")

    def _ip(self, where: str, arguments: str) -> None:
        self.run(where, ["ip", *arguments.split()])

    def _inside(self, where: str) -> list[str]:
        return ["ip", "netns", "exec", self.prefix + where]


def router_address(number: int) -> str:
    """The public address of a site."""
    return f"20.1.0.{10 + number}"


def public_address(number: int) -> str:
    """Of a host that `add_host` made."""
    return f"20.1.0.{100 + number}"


def public_address6(number: int) -> str:
    """The same in IPv6."""
    return f"2001:db8::{100 + number}"


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """SIGTERM ends the lab as Ctrl-C does, by an exception that unwinds it."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
