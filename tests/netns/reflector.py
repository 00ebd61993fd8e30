"""What a NAT does, found out as a stranger would: by asking servers on two addresses, two ports each, what they see.

    python -m tests.netns.reflector serve HOST1 HOST2 PORT1 PORT2
    python -m tests.netns.reflector ask HOST1 HOST2 PORT1 PORT2       prints a Finding as JSON

A question is the number of the server that is to answer, 0 … 3 (2 × address + port), or nothing for that which was
asked; the answer is the address that the question came from.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from dataclasses import asdict, dataclass
from itertools import pairwise, product

from .nats import Filtering, Mapping

WAIT = 0.6
"""Seconds for an answer; the lab's round trip is far below."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Values of Mapping and Filtering; `mapping` None: no answer at all."""

    mapping: str | None
    filtering: str | None = None
    keeps_ports: bool = False
    has_hairpin: bool = False


def _servers(arguments: list[str]) -> list[tuple[str, int]]:
    return [(host, int(port)) for host, port in product(arguments[:2], arguments[2:])]


def serve(servers: list[tuple[str, int]]) -> None:
    """Answer until killed."""
    sockets = []
    for server in servers:
        sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sockets[-1].bind(server)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        for sock in select.select(sockets, [], [])[0]:
            question, source = sock.recvfrom(64)
            answering = sockets[int(question)] if question else sock
            answering.sendto(f"{source[0]} {source[1]}".encode(), source)


class Prober:
    """Asks from one socket."""

    def __init__(self, servers: list[tuple[str, int]]) -> None:
        self._servers = servers
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("0.0.0.0", 0))

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    def seen(self, server: int, answering: int | None = None) -> tuple[str, int] | None:
        """Where a server sees us, None without an answer."""
        self.sock.sendto(b"" if answering is None else str(answering).encode(), self._servers[server])
        answer = self.hear()
        if answer is None:
            return None
        host, port = answer.decode().split()
        return host, int(port)

    def hear(self) -> bytes | None:
        """What comes next, None if nothing does."""
        return self.sock.recv(64) if select.select([self.sock], [], [], WAIT)[0] else None


def ask(servers: list[tuple[str, int]]) -> Finding:
    """Find out."""
    prober = Prober(servers)
    first = prober.seen(0)
    if first is None:
        return Finding(None)
    # Before any other server was asked: it would be let in afterwards.
    filtering = _filtering(prober)
    seen = [first, *(prober.seen(number) for number in (1, 2, 3))]
    ports = [0 if one is None else one[1] for one in seen]
    keeps_ports = first[1] == prober.port
    return Finding(_mapping(ports).value, filtering.value, keeps_ports, _has_hairpin(servers))


def _filtering(prober: Prober) -> Filtering:
    if prober.seen(0, answering=2) is not None:
        return Filtering.NONE
    return Filtering.PORT if prober.seen(0, answering=1) is None else Filtering.ADDRESS


def _mapping(ports: list[int]) -> Mapping:
    if len(set(ports)) == 1:
        return Mapping.INDEPENDENT
    if all(after - before == 1 for before, after in pairwise(ports)):
        return Mapping.COUNTING
    return Mapping.PER_ADDRESS if ports[0] == ports[1] and ports[2] == ports[3] else Mapping.RANDOM


def _has_hairpin(servers: list[tuple[str, int]]) -> bool:
    """Do we reach ourselves by our outside address, and do we come from outside?"""
    caller, called = Prober(servers), Prober(servers)
    target, source = called.seen(0), caller.seen(0)
    if target is None or source is None:
        return False
    called.sock.sendto(b"a hole", source)
    caller.sock.sendto(b"hairpin", target)
    if not select.select([called.sock], [], [], WAIT)[0]:
        return False
    return bool(called.sock.recvfrom(64)[1] == source)


def main() -> None:
    match sys.argv[1:]:
        case ["serve", *arguments]:
            serve(_servers(arguments))
        case ["ask", *arguments]:
            sys.stdout.write(json.dumps(asdict(ask(_servers(arguments)))) + "\n")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
