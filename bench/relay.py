"""Relay: what a packet costs at the rendezvous, against a bare UDP copy with GSO/GRO in its place.

    python -m bench.relay [--rounds 3] [--seconds 3] [--rate 10000]

    a ──── middle ──── b        the middle forwards no IP: all that passes goes through the program

The server allows each member 4 MB/s, which 10,000 voice packets a second stay below.
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.netns.lab import stopping_on_signals

from . import native
from .arena import INNER, INNER_MTU, STAR, Arena
from .contestants import BIN, Processes, Tunnel
from .figures import Section, figure, ratio, say, table
from .load import Load, Sample, measure

RATE = 10_000
SERVER, COPY = "meshvpn-rendezvous", "copy-gso"
Relays = dict[str, tuple[Tunnel, int]]
"""The tunnel and the relay's process number, by name."""


def start_server(arena: Arena) -> tuple[Tunnel, int]:
    """The rendezvous and two members that cannot reach each other. Raises LabError."""
    pair, middle = arena.add_star("rdv")
    directory = arena.directory / middle
    directory.mkdir()
    password = directory / "password"
    password.touch(mode=0o600)
    password.write_text("correct horse battery staple\n")
    serve = [str(BIN / "meshvpn-rendezvous"), "serve", "--listen", "0.0.0.0:7770", "--data", str(directory / "data")]
    server = arena.start(middle, middle, serve)
    arena.wait_ready(server, middle)
    processes: Processes = []
    addresses = []
    for end, host in enumerate((pair.a, pair.b)):
        socket = str(directory / f"socket{end}")
        daemon = [str(BIN / "meshvpnd"), "--state-dir", str(directory / f"state{end}"), "--socket", socket]
        processes.append(arena.start(host, host, daemon))
        arena.wait_ready(processes[-1], host)
        meshvpn = [str(BIN / "meshvpn"), "--json", "--socket", socket]
        where = ["--server", f"{STAR[end][1]}:7770", "--password-file", str(password)]
        arena.run(host, [*meshvpn, ["create", "join"][end], "bench", *where])
        addresses.append(json.loads(arena.run(host, [*meshvpn, "list"]))[0]["address"])
    return Tunnel(pair, processes, (addresses[0], addresses[1])), server.pid


def start_copy(arena: Arena) -> tuple[Tunnel, int]:
    """Bare copies at both ends and in the middle. Raises LabError."""
    pair, middle = arena.add_star("cpy")
    floors = native.program("floors")
    relay = arena.start(middle, middle, [floors, "relay", "0.0.0.0", "7002", STAR[0][0], STAR[1][0]])
    processes: Processes = []
    for end, host in enumerate((pair.a, pair.b)):
        here, there = STAR[end]
        processes.append(arena.start(host, host, [floors, "batch", "vpn0", here, there, "7002"]))
        arena.wait("vpn0", lambda host=host: arena.attempt(host, ["ip", "link", "show", "vpn0"]).returncode == 0)  # type: ignore[misc]
        arena.ip(host, f"addr add {INNER[end]}/24 dev vpn0")
        arena.ip(host, f"link set vpn0 mtu {INNER_MTU} up")
    return Tunnel(pair, processes), relay.pid


def collect(rate: int, rounds: int, seconds: float) -> dict[str, list[Sample]]:
    """Interleaved rounds. Raises LabError."""
    samples: dict[str, list[Sample]] = {}
    with Arena() as arena:
        relays: Relays = {SERVER: start_server(arena), COPY: start_copy(arena)}
        for tunnel, _ in relays.values():
            ping = ["ping", "-c", "1", "-W", "1", tunnel.addresses[1]]
            arena.wait("a ping", lambda tunnel=tunnel, ping=ping: arena.attempt(tunnel.pair.a, ping).returncode == 0)  # type: ignore[misc]
        for _ in range(rounds):
            for name, (tunnel, relay) in relays.items():
                samples.setdefault(name, []).append(measure(arena, tunnel, Load(rate), seconds, measured=[relay]))
        say("relay: done")
    return samples


def section(rate: int, rounds: int, seconds: float) -> Section:
    """A table, and what is required."""
    samples = collect(rate, rounds, seconds)
    cost = {name: figure(sample.cost_us for sample in found) for name, found in samples.items()}
    rows = [
        [
            name,
            cost[name].text(2),
            figure(sample.loss * 100 for sample in found).text(3),
            figure(sample.p50_ms for sample in found).text(3),
            figure(sample.p99_ms for sample in found).text(3),
        ]
        for name, found in samples.items()
    ]
    text = f"CPU of the relay alone, {Load(rate)}.\n\n"
    return Section(
        "Relay",
        text + table(["", "CPU µs/packet", "loss %", "p50 ms", "p99 ms"], rows),
        ratio("relay, CPU a packet against the bare UDP copy with GSO/GRO", cost[SERVER], cost[COPY], 1.5),
    )


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rate", type=int, default=RATE)
    options = parser.parse_args()
    with stopping_on_signals():
        print(section(options.rate, options.rounds, options.seconds).text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
