"""Voice: what a small packet at a constant rate costs, how long it takes, how many are lost; and how many calls fit.

    python -m bench.voice [--rates 5000,50000] [--sizes 200,60] [--flows 256,1] [--ways 1,2] [--rounds 3] [--seconds 3]
                          [--calls] [NAME …]

CPU is what all threads of both daemons used, the kernel's work in their name with it, per packet that arrived.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.netns.lab import LabError, stopping_on_signals

from . import native
from .arena import Arena, busy_seconds, cpu_seconds, softirq_pids
from .contestants import ALL, Contestant, Tunnel, bring_up
from .figures import Figure, figure, table

RATES = (5_000, 20_000, 50_000, 100_000, 150_000)
FLOWS = 256
G711, G729 = 200, 60
"""Bytes of an IP packet of 20 ms of speech."""
PORT = 5004
STRAGGLERS = 0.3
"""Seconds after the last packet was sent in which one may still arrive."""
CALL_RATE = 50
"""Packets a second and direction of a call."""
CALL_LOSS, CALL_P99_MS = 0.001, 5.0
"""What a call may suffer to count as carried."""
MAX_CALLS = 4_000


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent. `rate` is packets a second in each direction."""

    rate: int
    size: int = G711
    flows: int = FLOWS
    is_two_way: bool = False

    def __str__(self) -> str:
        flows = "one flow" if self.flows == 1 else f"{self.flows} flows"
        return f"{self.rate:,} packets/s {'each way' if self.is_two_way else 'one way'}, {self.size} bytes, {flows}"


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of it. Delays of two directions are those of the worse."""

    sent: int
    received: int
    offered: float
    cpu: float
    softirq: float
    busy: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    jitter_ms: float
    reordered: int
    duplicates: int

    @property
    def loss(self) -> float:
        return 1 - self.received / self.sent

    @property
    def cost_us(self) -> float:
        """Microseconds of both daemons' CPU per packet that arrived."""
        return self.cpu * 1e6 / self.received if self.received else float("inf")


def measure(arena: Arena, tunnel: Tunnel, load: Load, seconds: float) -> Sample:
    """One run. Raises LabError."""
    hosts = (tunnel.pair.a, tunnel.pair.b)
    voice = native.program("voice")
    ways = [(0, 1), (1, 0)] if load.is_two_way else [(0, 1)]
    sinks = [arena.popen(hosts[to], [voice, "receive", str(PORT), str(load.flows)]) for _, to in ways]
    for sink in sinks:
        if _line(sink) != "ready":
            raise LabError("the receiver did not start")
    shape = [str(load.rate), str(load.size), str(load.flows), str(seconds)]
    ksoftirqd = softirq_pids()
    cpu, softirq, busy, began = cpu_seconds(tunnel.pids), cpu_seconds(ksoftirqd), busy_seconds(), time.monotonic()
    senders = [
        arena.popen(hosts[source], [voice, "send", tunnel.addresses[to], str(PORT), *shape]) for source, to in ways
    ]
    sent = [_result(sender, seconds * 3 + 10) for sender in senders]
    time.sleep(STRAGGLERS)
    busy = (busy_seconds() - busy) / (time.monotonic() - began)
    cpu, softirq = cpu_seconds(tunnel.pids) - cpu, cpu_seconds(ksoftirqd) - softirq
    for sink in sinks:
        sink.terminate()
    got = [_result(sink, 10) for sink in sinks]
    return Sample(
        sent=sum(one["sent"] for one in sent),
        received=sum(one["received"] for one in got),
        offered=sum(one["sent"] / one["seconds"] for one in sent) / len(sent),
        cpu=cpu,
        softirq=softirq,
        busy=busy,
        p50_ms=max(one["p50_ms"] for one in got),
        p99_ms=max(one["p99_ms"] for one in got),
        p999_ms=max(one["p999_ms"] for one in got),
        jitter_ms=max(one["jitter_ms"] for one in got),
        reordered=sum(one["reordered"] for one in got),
        duplicates=sum(one["duplicates"] for one in got),
    )


def most_calls(arena: Arena, tunnel: Tunnel, seconds: float) -> int:
    """The largest number of two-way calls, to 3 %, that all are carried well; by bisection, each step tried twice."""

    def is_carried(calls: int) -> bool:
        load = Load(calls * CALL_RATE, flows=calls, is_two_way=True)
        for _ in range(2):
            sample = measure(arena, tunnel, load, seconds)
            if sample.loss < CALL_LOSS and sample.p99_ms < CALL_P99_MS and sample.offered > 0.98 * load.rate:
                return True
        return False

    low, high = 0, 50
    while high < MAX_CALLS and is_carried(high):
        low, high = high, high * 2
    high = min(high, MAX_CALLS)
    while high - low > max(10, low * 0.03):
        middle = (low + high) // 2
        if is_carried(middle):
            low = middle
        else:
            high = middle
    return low


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _result(process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
    output, _ = process.communicate(timeout=timeout)
    if process.returncode != 0:
        raise LabError(f"voice: exit status {process.returncode}: {output.strip()}")
    result: dict[str, Any] = json.loads(output)
    return result


Samples = dict[Load, dict[str, list[Sample]]]


def measure_all(
    arena: Arena, tunnels: dict[str, Tunnel], loads: Sequence[Load], rounds: int, seconds: float
) -> Iterator[tuple[Load, str, Sample]]:
    """Round by round, contestant by contestant, so that what disturbs the machine disturbs all alike."""
    for load in loads:
        for _ in range(rounds):
            for name, tunnel in tunnels.items():
                try:
                    yield load, name, measure(arena, tunnel, load, seconds)
                except (LabError, OSError, subprocess.SubprocessError) as error:
                    print(f"{name}: {load}: {error}", file=sys.stderr, flush=True)


def report(samples: Samples) -> str:
    """A table a load."""
    head = ["", "CPU µs/packet", "loss %", "p50 ms", "p99 ms", "p99.9 ms", "jitter ms", "reordered %", "machine busy %"]
    parts = []
    for load, by_name in samples.items():
        rows = [[name, *_row(found)] for name, found in sorted(by_name.items(), key=lambda item: _cost(item[1]).median)]
        offered = figure(sample.offered for found in by_name.values() for sample in found)
        parts.append(f"\n{load} (offered {offered.low:,.0f}–{offered.high:,.0f})\n\n{table(head, rows)}")
    return "".join(parts)


def _cost(samples: list[Sample]) -> Figure:
    return figure(sample.cost_us for sample in samples)


def _row(samples: list[Sample]) -> list[str]:
    return [
        _cost(samples).text(2),
        figure(sample.loss * 100 for sample in samples).text(3),
        figure(sample.p50_ms for sample in samples).text(3),
        figure(sample.p99_ms for sample in samples).text(3),
        figure(sample.p999_ms for sample in samples).text(2),
        figure(sample.jitter_ms for sample in samples).text(3),
        figure(sample.reordered * 100 / max(1, sample.received) for sample in samples).text(3),
        figure(sample.busy * 50 for sample in samples).text(0),
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
    parser.add_argument("--calls", action="store_true", help="look for the largest number of calls instead")
    parser.add_argument("names", nargs="*", default=[contestant.name for contestant in ALL])
    options = parser.parse_args()
    loads = [
        Load(rate, size, flows, way == 2)
        for way in options.ways
        for flows in options.flows
        for size in options.sizes
        for rate in options.rates
    ]
    with stopping_on_signals(), Arena() as arena:
        tunnels = start_all(arena, [one for one in ALL if one.name in options.names])
        if options.calls:
            for name, tunnel in tunnels.items():
                print(f"{name}: {most_calls(arena, tunnel, options.seconds)} calls", flush=True)
            return 0
        samples: Samples = defaultdict(lambda: defaultdict(list))
        for load, name, sample in measure_all(arena, tunnels, loads, options.rounds, options.seconds):
            samples[load][name].append(sample)
        print(report(samples))
    return 0


def start_all(arena: Arena, contestants: Sequence[Contestant]) -> dict[str, Tunnel]:
    """Those that start; the others are named on stderr."""
    tunnels = {}
    for contestant in contestants:
        try:
            tunnels[contestant.name] = bring_up(arena, contestant)
        except LabError as error:
            print(error, file=sys.stderr, flush=True)
    return tunnels


if __name__ == "__main__":
    sys.exit(main())
