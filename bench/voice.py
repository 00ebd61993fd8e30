"""Voice: what a small packet at a constant rate costs, how long it takes, how many are lost.

    python -m bench.voice [--rates 5000,50000] [--sizes 200,60] [--flows 256,1] [--ways 1,2] [--rounds 3] [--seconds 3]
                          [NAME …]

CPU is what all threads of both daemons used, the kernel's work in their name with it, per packet that arrived.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.netns.lab import LabError, stopping_on_signals

from .arena import Arena
from .contestants import ALL, BATCH, MESHVPN, PEERS, SINGLE, Tunnel, bring_up_all
from .figures import Check, Figure, Section, figure, ratio, say, table
from .load import FLOWS, G711, G729, Load, Sample, measure
from .plot import Bar, Panel

RATES = (5_000, 20_000, 50_000, 100_000, 150_000)

Samples = dict[Load, dict[str, list[Sample]]]


@dataclass(frozen=True, slots=True)
class Step:
    """A load, how often it is measured, and for how long each time."""

    load: Load
    rounds: int
    seconds: float


def plan(*, is_full: bool) -> list[Step]:
    """What the benchmark's two profiles measure: what is judged most often, the rest of the full grid more briefly."""
    judged = [Load(5_000), Load(50_000), Load(100_000)]
    if not is_full:
        more = [Load(50_000, size=G729), Load(50_000, flows=1), Load(25_000, is_two_way=True)]
        return [Step(load, 3, 1.5) for load in [*judged, *more]]
    grid = [Load(rate, size, is_two_way=two) for two in (False, True) for size in (G711, G729) for rate in RATES]
    grid += [Load(rate, flows=1) for rate in RATES]
    return [Step(load, 5, 2.0) if load in judged else Step(load, 3, 0.8) for load in grid]


def collect(arena: Arena, tunnels: dict[str, Tunnel], steps: Sequence[Step]) -> Samples:
    """Round by round, contestant by contestant, so that what disturbs the machine disturbs all alike."""
    samples: Samples = {step.load: {} for step in steps}
    for step in steps:
        for _ in range(step.rounds):
            for name, tunnel in tunnels.items():
                try:
                    sample = measure(arena, tunnel, step.load, step.seconds)
                except (LabError, OSError, subprocess.SubprocessError) as error:
                    print(f"{name}: {step.load}: {error}", file=sys.stderr, flush=True)
                else:
                    samples[step.load].setdefault(name, []).append(sample)
        say(f"voice: {step.load}")
    return samples


def section(samples: Samples) -> Section:
    """A table a load, and what is required."""
    head = [
        "",
        "CPU µs/packet",
        "loss %",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "jitter ms",
        "reordered %",
        "load itself %",
        "machine busy %",
    ]
    parts = [
        "CPU: all threads of both daemons, with the kernel's work in their name, per packet that arrived; where many "
        "were lost, the cost of the lost ones is in it. Delays are one way; those of two directions are the worse "
        "one's. Generator, receiver and both daemons share the cores; the last two columns are parts of all.\n"
    ]
    for load, by_name in samples.items():
        rows = [[name, *_row(found)] for name, found in sorted(by_name.items(), key=lambda item: cost(item[1]).median)]
        offered = figure(sample.offered for found in by_name.values() for sample in found)
        parts.append(f"\n**{load}** (offered {offered.low:,.0f}–{offered.high:,.0f})\n\n{table(head, rows)}")
    return Section("Voice", "".join(parts), _checks(samples))


def panels(samples: Samples) -> list[Panel]:
    """For the plot: CPU a packet at the loads that the requirements name."""
    found = [
        Panel(f"CPU of both ends per packet, µs: {load}", [_bar(name, by_name[name]) for name in _bycost(by_name)])
        for load, by_name in samples.items()
        if load in (Load(50_000), Load(100_000)) and by_name
    ]
    return found


def _bycost(by_name: dict[str, list[Sample]]) -> list[str]:
    return sorted(by_name, key=lambda name: cost(by_name[name]).median)


def _bar(name: str, samples: list[Sample]) -> Bar:
    colour = "#2da44e" if name == MESHVPN.name else "#b1bac4" if name in _FLOORS else "#54719c"
    return Bar(name, cost(samples), f"{figure(sample.loss * 100 for sample in samples).median:.2f} % lost", colour)


_FLOORS = (SINGLE.name, BATCH.name)


def _checks(samples: Samples) -> list[Check]:
    checks: list[Check] = []
    for rate in (50_000, 100_000):
        found = {name: cost(values) for name, values in samples.get(Load(rate), {}).items()}
        ours = found.get(MESHVPN.name)
        best = _least(found[peer.name] for peer in PEERS if peer.name in found)
        what = f"CPU a voice packet at {rate:,}/s"
        if rate == 50_000:
            checks += ratio(f"{what} against fastd", ours, found.get("fastd"), 0.7)
        checks += ratio(f"{what} against the best peer", ours, best, 0.5)
        checks += ratio(f"{what} against the bare copy with GSO/GRO", ours, found.get(BATCH.name), 1.6)
    if lossy := samples.get(Load(100_000), {}).get(MESHVPN.name):
        checks.append(Check("loss at 100,000/s one way, %", figure(one.loss * 100 for one in lossy).median, 0.01))
    return [*checks, *_delay_checks(samples)]


def _delay_checks(samples: Samples) -> list[Check]:
    slow = {name: figure(one.p50_ms for one in found) for name, found in samples.get(Load(5_000), {}).items()}
    fast = {name: figure(one.p99_ms for one in found) for name, found in samples.get(Load(50_000), {}).items()}
    floors, peers = (_least(slow[name] for name in _FLOORS if name in slow), [peer.name for peer in PEERS])
    return [
        *ratio("delay p50 at 5,000/s against the quicker bare copy", slow.get(MESHVPN.name), floors, 1.15),
        *ratio(
            "delay p99 at 50,000/s against the quicker bare copy",
            fast.get(MESHVPN.name),
            _least(fast[name] for name in _FLOORS if name in fast),
            1.5,
        ),
        *ratio(
            "delay p99 at 50,000/s against the quickest peer",
            fast.get(MESHVPN.name),
            _least(fast[name] for name in peers if name in fast),
            1.0,
        ),
    ]


def _least(figures: Iterable[Figure]) -> Figure | None:
    return min(figures, key=lambda one: one.median, default=None)


def cost(samples: list[Sample]) -> Figure:
    """Of several rounds."""
    return figure(sample.cost_us for sample in samples)


def _row(samples: list[Sample]) -> list[str]:
    return [
        cost(samples).text(2),
        figure(sample.loss * 100 for sample in samples).text(3),
        figure(sample.p50_ms for sample in samples).text(3),
        figure(sample.p99_ms for sample in samples).text(3),
        figure(sample.p999_ms for sample in samples).text(2),
        figure(sample.jitter_ms for sample in samples).text(3),
        figure(sample.reordered * 100 / max(1, sample.received) for sample in samples).text(3),
        figure(sample.generator * 100 / (os.cpu_count() or 1) for sample in samples).text(0),
        figure(sample.busy * 100 for sample in samples).text(0),
    ]


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.voice", description=__doc__.split("\n", 1)[0])
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--rates", type=numbers, default=[50_000])
    parser.add_argument("--sizes", type=numbers, default=[G711])
    parser.add_argument("--flows", type=numbers, default=[FLOWS])
    parser.add_argument("--ways", type=numbers, default=[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("names", nargs="*", default=[contestant.name for contestant in ALL])
    options = parser.parse_args()
    steps = [
        Step(Load(rate, size, flows, way == 2), options.rounds, options.seconds)
        for way in options.ways
        for flows in options.flows
        for size in options.sizes
        for rate in options.rates
    ]
    with stopping_on_signals(), Arena() as arena:
        tunnels, _ = bring_up_all(arena, [one for one in ALL if one.name in options.names])
        print(section(collect(arena, tunnels, steps)).text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
