"""Bulk: TCP through the tunnel by iperf3, one stream and eight, up and down.

python -m bench.bulk [--rounds 3] [--seconds 3] [NAME …]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass

from tests.netns.lab import LabError, stopping_on_signals

from .arena import Arena, cpu_seconds
from .contestants import ALL, MESHVPN, NEWEST, Tunnel, bring_up_all
from .figures import Figure, Section, figure, ratio, say, table

PORT = "5201"
SETTLE = 1
"""Seconds of TCP's slow start that are left out."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What iperf3 is asked for."""

    streams: int
    is_down: bool

    def __str__(self) -> str:
        return f"{'one stream' if self.streams == 1 else f'{self.streams} streams'} {'down' if self.is_down else 'up'}"


SHAPES = tuple(Shape(streams, is_down) for streams in (1, 8) for is_down in (False, True))


@dataclass(frozen=True, slots=True)
class Sample:
    """One run."""

    gbits: float
    cpu: float
    seconds: float

    @property
    def cost(self) -> float:
        """CPU seconds of both daemons per gigabyte."""
        return self.cpu / (self.gbits / 8 * self.seconds) if self.gbits else float("inf")


def measure(arena: Arena, tunnel: Tunnel, shape: Shape, seconds: int) -> Sample:
    """One run. Raises LabError."""
    server = arena.popen(tunnel.pair.b, ["iperf3", "--server", "--one-off", "--port", PORT])
    listening = f":{PORT} "
    command = ["iperf3", "--client", tunnel.addresses[1], "--port", PORT, "--json", "--omit", str(SETTLE)]
    command += ["--time", str(seconds), "--parallel", str(shape.streams), *(["--reverse"] if shape.is_down else [])]
    try:
        arena.wait("iperf3", lambda: listening in arena.run(tunnel.pair.b, ["ss", "-ltn"]))
        before = cpu_seconds(tunnel.pids)
        done = arena.run(tunnel.pair.a, command, timeout=seconds * 3 + 20)
        cpu = cpu_seconds(tunnel.pids) - before
    except subprocess.TimeoutExpired as error:
        raise LabError(f"iperf3 did not end in {error.timeout:.0f} s") from error
    finally:
        arena.end([server])
    received = json.loads(done)["end"]["sum_received"]
    whole = seconds + SETTLE
    return Sample(received["bits_per_second"] / 1e9, cpu * seconds / whole, received["seconds"])


Samples = dict[str, dict[Shape, list[Sample]]]


def section(arena: Arena, tunnels: dict[str, Tunnel], rounds: int, seconds: int) -> Section:
    """A table, and what is required."""
    samples: Samples = {}
    for _ in range(rounds):
        for shape in SHAPES:
            for name, tunnel in tunnels.items():
                try:
                    found = measure(arena, tunnel, shape, seconds)
                except (LabError, ValueError, KeyError) as error:
                    say(f"bulk: {name}: {shape}: {error}")
                    continue
                samples.setdefault(name, {}).setdefault(shape, []).append(found)
        say("bulk: a round done")
    rows = [
        [name, *(_speed(by_shape, shape, 2) for shape in SHAPES), _cost(by_shape)] for name, by_shape in samples.items()
    ]
    checks = ratio(
        "TCP, one stream up, against Debian's wireguard-go",
        _figure(samples, MESHVPN.name, SHAPES[0]),
        _figure(samples, "wireguard-go", SHAPES[0]),
        1.2,
        is_least=True,
    ) + ratio(
        "TCP, one stream up, against the newest wireguard-go",
        _figure(samples, MESHVPN.name, SHAPES[0]),
        _figure(samples, NEWEST, SHAPES[0]),
        1.0,
        is_least=True,
    )
    head = ["Gbit/s", *(str(shape) for shape in SHAPES), "CPU s/GB, one stream up"]
    return Section("Bulk", table(head, sorted(rows, key=lambda row: -float(row[1].split()[0]))), checks)


def _figure(samples: Samples, name: str, shape: Shape) -> Figure | None:
    found = samples.get(name, {}).get(shape)
    return figure(sample.gbits for sample in found) if found else None


def _speed(by_shape: dict[Shape, list[Sample]], shape: Shape, digits: int) -> str:
    found = by_shape.get(shape)
    return figure(sample.gbits for sample in found).text(digits) if found else "0 (failed)"


def _cost(by_shape: dict[Shape, list[Sample]]) -> str:
    found = by_shape.get(SHAPES[0])
    return figure(sample.cost for sample in found).text(2) if found else ""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.bulk", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("names", nargs="*", default=[contestant.name for contestant in ALL])
    options = parser.parse_args()
    with stopping_on_signals(), Arena() as arena:
        tunnels, _ = bring_up_all(arena, [one for one in ALL if one.name in options.names])
        print(section(arena, tunnels, options.rounds, options.seconds).text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
