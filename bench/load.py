"""One run of voice-shaped load through a tunnel (bench/voice.c): what it cost and what became of the packets."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.netns.lab import LabError

from . import native
from .arena import Arena, busy_seconds, cpu_seconds, softirq_pids
from .contestants import Tunnel

FLOWS = 256
G711, G729 = 200, 60
"""Bytes of an IP packet of 20 ms of speech."""
PORT = 5004
STRAGGLERS = 0.3
"""Seconds after the last packet was sent in which one may still arrive."""


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
    """Seconds of the kernel's ksoftirqd threads meanwhile: work that it took off everybody."""
    generator: float
    """Cores that the load itself used, senders and receivers."""
    busy: float
    """Part of all cores, whoever used them."""
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


def measure(arena: Arena, tunnel: Tunnel, load: Load, seconds: float, *, measured: Sequence[int] = ()) -> Sample:
    """One run; CPU is that of the processes `measured`, or else of the tunnel's daemons. Raises LabError."""
    started: list[subprocess.Popen[str]] = []
    try:
        return _measure(arena, tunnel, load, seconds, measured or tunnel.pids, started)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"voice did not end in {error.timeout:.0f} s") from error
    finally:
        arena.end(started)


def _measure(
    arena: Arena,
    tunnel: Tunnel,
    load: Load,
    seconds: float,
    measured: Sequence[int],
    started: list[subprocess.Popen[str]],
) -> Sample:
    hosts, voice = (tunnel.pair.a, tunnel.pair.b), native.program("voice")
    ways = [(0, 1), (1, 0)] if load.is_two_way else [(0, 1)]
    sinks = [arena.popen(hosts[to], [voice, "receive", str(PORT), str(load.flows)]) for _, to in ways]
    started += sinks
    for sink in sinks:
        if _line(sink) != "ready":
            raise LabError("the receiver did not start")
    ksoftirqd = softirq_pids()
    cpu, softirq, busy, began = cpu_seconds(measured), cpu_seconds(ksoftirqd), busy_seconds(), time.monotonic()
    senders = [arena.popen(hosts[end], _sender(voice, tunnel, load, seconds, end)) for end, _ in ways]
    started += senders
    sent = [_result(sender, seconds * 3 + 10) for sender in senders]
    time.sleep(STRAGGLERS)
    busy = (busy_seconds() - busy) / (time.monotonic() - began)
    cpu, softirq = cpu_seconds(measured) - cpu, cpu_seconds(ksoftirqd) - softirq
    for sink in sinks:
        sink.terminate()
    got = [_result(sink, 10) for sink in sinks]
    return Sample(
        sent=sum(one["sent"] for one in sent),
        received=sum(one["received"] for one in got),
        offered=sum(one["sent"] / one["seconds"] for one in sent) / len(sent),
        cpu=cpu,
        softirq=softirq,
        generator=sum(one["cpu"] for one in [*sent, *got]) / max(one["seconds"] for one in sent),
        busy=busy / (os.cpu_count() or 1),
        p50_ms=max(one["p50_ms"] for one in got),
        p99_ms=max(one["p99_ms"] for one in got),
        p999_ms=max(one["p999_ms"] for one in got),
        jitter_ms=max(one["jitter_ms"] for one in got),
        reordered=sum(one["reordered"] for one in got),
        duplicates=sum(one["duplicates"] for one in got),
    )


def _sender(voice: str, tunnel: Tunnel, load: Load, seconds: float, end: int) -> list[str]:
    shape = [str(load.rate), str(load.size), str(load.flows), str(seconds)]
    spread = [str(tunnel.span), tunnel.addresses[end]] if tunnel.span > 1 else []
    return [voice, "send", tunnel.addresses[1 - end], str(PORT), *shape, *spread]


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _result(process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
    output, _ = process.communicate(timeout=timeout)
    if process.returncode != 0:
        raise LabError(f"voice: exit status {process.returncode}: {output.strip()}")
    result: dict[str, Any] = json.loads(output)
    return result
