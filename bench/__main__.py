"""All questions in one run: a Markdown page and a plot.

    python -m bench [--full] [--check] [--only voice,start,…] [--output DIRECTORY]

They go to docs/performance, or to bench/results if only some questions were asked.
Exit status 0 unless something broke; with --check, 1 also if a required figure was missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from meshvpn.cli.client import CliError
from tests.netns.lab import LabError, stopping_on_signals

from . import bulk, capacity, crowd, features, handshakes, peers, relay, start, voice
from .arena import Arena, resident_bytes
from .contestants import ALL, MESHVPN, Tunnel, bring_up_all
from .figures import Section, say, table
from .load import Load
from .plot import draw

ROOT = Path(__file__).resolve().parent.parent
OUTPUT, PARTIAL = ROOT / "docs" / "performance", ROOT / "bench" / "results"


class Run:
    """One run of the benchmark and what it found."""

    def __init__(self, questions: Sequence[str], *, is_full: bool) -> None:
        self.sections: list[Section] = []
        self.problems: list[str] = []
        self.plot = ""
        self._questions = questions
        self._is_full = is_full
        self._machine = _machine(is_full)

    def run(self) -> None:
        """Every question; one that breaks does not stop the others."""
        if {"voice", "capacity", "bulk"} & set(self._questions):
            self._attempt("tunnels", self._tunnels)
        rounds = 5 if self._is_full else 3
        self._ask("peers", lambda: peers.section(rounds, 2.0))
        self._ask("relay", lambda: relay.section(relay.RATE, rounds, 3.0))
        self._ask("handshakes", lambda: handshakes.section(1_000, rounds))
        self._ask("crowd", lambda: crowd.section(100 if self._is_full else 20))
        self._ask("features", lambda: features.section(Load(features.RATE), rounds, 2.0))
        self._ask("start", lambda: start.section(start.measure(rounds)))

    def page(self) -> str:
        """The Markdown page."""
        checks = [check for section in self.sections for check in section.checks]
        parts = [f"# Measured\n\n{self._machine}\n"]
        if self.plot:
            parts.append("![CPU time per voice packet](voice.svg)\n")
        if checks:
            head = ["required", "measured", "bound", "holds"]
            parts.append(f"## Requirements\n\n{table(head, [check.row() for check in checks])}")
        parts += [f"## {section.title}\n\n{section.text}" for section in self.sections]
        if self.problems:
            parts.append("## What went wrong\n\n" + "".join(f"- {problem}\n" for problem in self.problems))
        return "\n".join(parts)

    def _tunnels(self) -> None:
        """What is measured on the contestants' pairs of hosts."""
        with Arena() as arena:
            tunnels, problems = bring_up_all(arena, ALL)
            self.problems += problems
            self._ask("voice", lambda: self._voice(arena, tunnels))
            rounds = 3 if self._is_full else 1
            self._ask("capacity", lambda: capacity.section(arena, tunnels, rounds=rounds, seconds=1.0))
            self._ask("bulk", lambda: bulk.section(arena, tunnels, rounds, 2))

    def _voice(self, arena: Arena, tunnels: dict[str, Tunnel]) -> Section:
        samples = voice.collect(arena, tunnels, voice.plan(is_full=self._is_full))
        self.plot = draw(voice.panels(samples), self._machine.split("\n", 1)[0])
        section = voice.section(samples)
        if (ours := tunnels.get(MESHVPN.name)) is None:
            return section
        memory = max(resident_bytes(pid)[0] for pid in ours.pids) / 1e6
        return replace(section, text=f"{section.text}\nResident memory of meshvpnd after all this: {memory:.1f} MB.\n")

    def _ask(self, name: str, question: Callable[[], Section]) -> None:
        if name in self._questions:
            self._attempt(name, lambda: self.sections.append(question()))

    def _attempt(self, name: str, action: Callable[[], None]) -> None:
        say(name)
        try:
            action()
        except (LabError, CliError, OSError, subprocess.SubprocessError) as error:
            self.problems.append(f"{name}: {error}")
            say(self.problems[-1])


QUESTIONS = ("voice", "capacity", "bulk", "peers", "relay", "handshakes", "crowd", "start")
"""Asked if nothing is said. There is one more that compares meshvpn with itself only: features."""


def _machine(is_full: bool) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    versions = ", ".join(f"{one.name} {one.version()}" for one in ALL)
    return (
        f"{os.cpu_count()} cores, {model}; Linux {platform.release()}; {time.strftime('%Y-%m-%d')}\n\n"
        f"{versions}; Python {platform.python_version()}. {'Full' if is_full else 'Quick'} profile; load "
        f"average before the run {os.getloadavg()[0]:.1f}. Medians of interleaved rounds (least–greatest)."
    )


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--full", action="store_true", help="all loads and more rounds")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a required figure is missed")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(QUESTIONS))
    parser.add_argument("--output", type=Path, help="directory of page and plot")
    options = parser.parse_args()
    output = options.output or (OUTPUT if set(options.only) == set(QUESTIONS) else PARTIAL)
    run = Run(options.only, is_full=options.full)
    try:
        with stopping_on_signals():
            run.run()
    except KeyboardInterrupt:
        say("interrupted; everything was removed")
        return 130
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.md").write_text(run.page())
    if run.plot:
        (output / "voice.svg").write_text(run.plot)
    print(run.page())
    say(f"written to {output}")
    missed = [check for section in run.sections for check in section.checks if not check.holds]
    return 1 if run.problems or (options.check and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
