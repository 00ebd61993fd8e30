"""How many two-way calls fit: the largest number of which all are carried well.

python -m bench.capacity [--rounds 1] [--seconds 2] [NAME …]
"""

from __future__ import annotations

import argparse
import sys

from tests.netns.lab import stopping_on_signals

from .arena import Arena
from .contestants import ALL, Tunnel, bring_up_all
from .figures import Section, figure, say, table
from .load import Load, measure

CALL_RATE = 50
"""Packets a second and direction of a call."""
CALL_LOSS, CALL_P99_MS = 0.001, 5.0
"""What a call may suffer to count as carried."""
MAX_CALLS = 4_000


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


def section(arena: Arena, tunnels: dict[str, Tunnel], *, rounds: int, seconds: float) -> Section:
    """The largest number of calls of each."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, tunnel in tunnels.items():
            found.setdefault(name, []).append(most_calls(arena, tunnel, seconds))
            say(f"calls: {name} {found[name][-1]:.0f}")
    rows = [[name, figure(values).text(0)] for name, values in sorted(found.items(), key=lambda item: -max(item[1]))]
    text = f"Loss under {CALL_LOSS:.1%} and p99 under {CALL_P99_MS:g} ms in both directions at once, G.711.\n\n"
    return Section("Concurrent two-way calls", text + table(["", "calls"], rows))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("names", nargs="*", default=[contestant.name for contestant in ALL])
    options = parser.parse_args()
    with stopping_on_signals(), Arena() as arena:
        tunnels, _ = bring_up_all(arena, [one for one in ALL if one.name in options.names])
        print(section(arena, tunnels, rounds=options.rounds, seconds=options.seconds).text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
