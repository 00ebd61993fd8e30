"""Kernel features: what a voice packet costs with each of them left out, and with all.

    python -m bench.features [--rounds 5] [--seconds 2] [--rate 50000]

Two engines without their daemons; nothing else differs between the variants.
"""

from __future__ import annotations

import argparse
import sys

from tests.netns.lab import stopping_on_signals
from tun.engine import FEATURES

from .arena import Arena
from .figures import Section, figure, say, table
from .load import Load, Sample, measure
from .peers import start

RATE = 50_000
NONE = "all in use"
VARIANTS = {NONE: [], **{f"without {name}": [name] for name in FEATURES}, "without all": [*FEATURES]}


def collect(load: Load, rounds: int, seconds: float) -> dict[str, list[Sample]]:
    """Interleaved rounds. Raises LabError."""
    samples: dict[str, list[Sample]] = {name: [] for name in VARIANTS}
    with Arena() as arena:
        tunnels = {
            name: start(arena, f"some{number}", 2, without) for number, (name, without) in enumerate(VARIANTS.items())
        }
        for number in range(rounds):
            for name, tunnel in tunnels.items():
                samples[name].append(measure(arena, tunnel, load, seconds))
            say(f"features: round {number + 1}")
    return samples


def section(load: Load, rounds: int, seconds: float) -> Section:
    """A table. The ratio is the median of the rounds' ratios: each to the one with all features of its own round."""
    samples = collect(load, rounds, seconds)
    rows = []
    for name, found in samples.items():
        ratios = figure(one.cost_us / base.cost_us for one, base in zip(found, samples[NONE], strict=True))
        rows.append(
            [
                name,
                figure(one.cost_us for one in found).text(2),
                ratios.text(2),
                figure(one.p50_ms for one in found).text(3),
                figure(one.loss * 100 for one in found).text(2),
            ]
        )
    head = ["", "CPU µs/packet", "ratio", "p50 ms", "loss %"]
    return Section("Kernel features", f"Two engines without their daemons, {load}.\n\n{table(head, rows)}")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.features", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rate", type=int, default=RATE)
    options = parser.parse_args()
    with stopping_on_signals():
        print(section(Load(options.rate), options.rounds, options.seconds).text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
