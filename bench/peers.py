"""Many peers: what a packet costs with 2, 100 and 1,000 peers in the engine's table.

    python -m bench.peers [--rounds 3] [--seconds 2]

Two engines, each with as many peers as said; the same two peers talk, or all of them in turn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from tests.netns.lab import stopping_on_signals

from .arena import OUTER, Arena
from .contestants import Tunnel
from .engine_host import DEVICE, INSIDE, OUTSIDE
from .figures import Section, figure, ratio, say, table
from .load import Load, Sample, measure

ROOT = Path(__file__).resolve().parent.parent
COUNTS = (2, 100, 1_000)
RATE = 50_000
FLOWS = 1_000
TWO, ALL = "two peers talk", "all peers talk in turn"


def start(arena: Arena, name: str, count: int, without: Collection[str] = ()) -> Tunnel:
    """Two engines with `count` peers each, that do without some kernel features. Raises LabError."""
    pair = arena.add_pair(name)
    seed = arena.directory / f"{name}.seed"
    seed.touch(mode=0o600)
    seed.write_bytes(os.urandom(32))
    processes: list[subprocess.Popen[bytes]] = []
    for end, host in enumerate((pair.a, pair.b)):
        host_of_engine = f"{sys.executable} -m bench.engine_host {end} {count} {' '.join(without)}"
        run = f"exec env PYTHONPATH={ROOT} {host_of_engine} < {seed}"
        processes.append(arena.start(host, host, ["sh", "-c", run]))
        arena.wait_ready(processes[-1], host)
        arena.ip(host, f"link set {DEVICE} mtu 1400 up")
        # Each end has all of its peers' addresses.
        arena.ip(host, f"route add local {INSIDE[end]}/16 dev lo".replace(".1/16", ".0/16"))
        arena.ip(host, f"route add {INSIDE[1 - end]}/16 dev {DEVICE}".replace(".1/16", ".0/16"))
    outside = f"{OUTSIDE}/16".replace(".1/16", ".0/16")
    arena.ip(pair.a, f"route add {outside} via {OUTER[1]}")
    arena.ip(pair.b, f"route add local {outside} dev lo")
    return Tunnel(pair, processes, (str(INSIDE[0]), str(INSIDE[1])), span=count)


def collect(rounds: int, seconds: float) -> dict[tuple[int, str], list[Sample]]:
    """Interleaved rounds. Raises LabError."""
    samples: dict[tuple[int, str], list[Sample]] = {}
    load = Load(RATE, flows=FLOWS)
    with Arena() as arena:
        tunnels = {count: start(arena, f"peers{count}", count) for count in COUNTS}
        for _ in range(rounds):
            for count, tunnel in tunnels.items():
                for who, span in ((TWO, 2), (ALL, count)):
                    sample = measure(arena, replace(tunnel, span=span), load, seconds)
                    samples.setdefault((count, who), []).append(sample)
        say("peers: done")
    return samples


def section(rounds: int, seconds: float) -> Section:
    """A table, and what is required."""
    samples = collect(rounds, seconds)
    cost = {key: figure(sample.cost_us for sample in found) for key, found in samples.items()}
    rows = []
    for (count, who), found in samples.items():
        lost = figure(sample.loss * 100 for sample in found).text(2)
        rows.append([f"{count:,} peers, {who}", cost[count, who].text(2), lost])
    text = (
        f"Two engines without their daemons, {Load(RATE, flows=FLOWS)}. Each peer has an address of its own, so "
        "packets of two peers are never sent as one message: where many talk, there is less to put together.\n\n"
    )
    what = "CPU a packet, 1,000 peers in the table against 2"
    return Section(
        "Many peers",
        text + table(["", "CPU µs/packet", "loss %"], rows),
        ratio(what, cost.get((1_000, TWO)), cost.get((2, TWO)), 1.1),
    )


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    with stopping_on_signals():
        print(section(options.rounds, options.seconds).text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
