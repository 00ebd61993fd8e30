"""The main job, end to end: three PBXs behind NATs, a hundred calls, an eviction. Exit status 0 if every claim held."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.netns.lab import Lab, LabError, stopping_on_signals
from tests.netns.mesh import NETWORK, Mesh

from .calls import Result

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 10
PAIRS = ((1, 2, 34), (1, 3, 33), (2, 3, 33))
"""Sites and the calls between them: a hundred in all."""
EVICT_WITHIN = 1.0


class Demo:
    """Tells what it does, and remembers what did not hold."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.failed = 0

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.monotonic() - self._started:5.1f} s] {text}", flush=True)

    def claim(self, text: str, holds: bool) -> None:
        """A claim and whether it held."""
        self.failed += not holds
        self.say(f"{'ok     ' if holds else 'FAILED '} {text}")

    def run(self, lab: Lab) -> None:
        """All of it."""
        self.say("three sites behind NAT routers, a rendezvous on the internet between them")
        mesh = Mesh(lab, 3)
        mesh.start()
        for number, command in ((1, "create"), (2, "join"), (3, "join")):
            done = mesh.enter(number, command)
            print(f"piaf-server{number} # meshvpn {command} {NETWORK}\n{done.stdout}", end="")
            self.claim(f"piaf-server{number}: {command}", done.returncode == 0)
        for number in (1, 2, 3):
            took = lab.wait("direct paths", lambda number=number: mesh.is_direct(number, 2))  # type: ignore[misc]
            self.say(f"piaf-server{number} has direct paths (waited {took:.1f} s)")
        print(f"piaf-server1 # meshvpn list\n{mesh.meshvpn(1, 'list')}", end="")
        print(f"piaf-server1 # meshvpn peers {NETWORK}\n{mesh.meshvpn(1, 'peers', NETWORK)}", end="", flush=True)
        addresses = {number: mesh.address(number) for number in mesh.hosts}
        self._calls(mesh, addresses)
        self._evict(mesh, addresses)

    def _calls(self, mesh: Mesh, addresses: dict[int, str]) -> None:
        self.say(f"100 calls, 50 packets a second and direction, 200 bytes each, for {SECONDS} s")
        running = [
            call
            for number, (first, second, calls) in enumerate(PAIRS)
            for call in (
                start_calls(mesh, first, second, addresses[second], 20000 + 2 * number, calls),
                start_calls(mesh, second, first, addresses[first], 20001 + 2 * number, calls),
            )
        ]
        results = [finish(call) for call in running]
        expected, lost = sum(r.expected for r in results), sum(r.lost for r in results)
        worst = max(result.delay_p99 for result in results)
        median = sorted(result.delay_p50 for result in results)[len(results) // 2]
        jitter = max(result.jitter for result in results)
        self.say(f"one-way delay p50 {median:.2f} ms, p99 {worst:.2f} ms; jitter {jitter:.2f} ms")
        self.claim(f"lost {lost} of {expected} packets ({100 * lost / expected:.3f} %)", lost == 0)

    def _evict(self, mesh: Mesh, addresses: dict[int, str]) -> None:
        self.say("evicting piaf-server3 while piaf-server1 and piaf-server2 talk")
        call = start_calls(mesh, 1, 2, addresses[2], 20100, 10)
        back = start_calls(mesh, 2, 1, addresses[1], 20101, 10)
        print(mesh.meshvpn(1, "evict", NETWORK, "piaf-server3"), end="", flush=True)
        evicted_at = time.monotonic()
        gone = [not mesh.reaches(first, addresses[second]) for first, second in ((1, 3), (2, 3), (3, 1), (3, 2))]
        # Each probe waits a second for an answer; those that went out within the first second count.
        self.claim("nobody reaches piaf-server3 and it reaches nobody", all(gone))
        self.say(f"probed until {time.monotonic() - evicted_at:.1f} s after the eviction")
        again = mesh.enter(3, "join")
        print(again.stdout, end="")
        self.claim("piaf-server3 cannot come back with its identity", again.returncode == 1)
        lost = finish(call).lost + finish(back).lost
        self.claim(f"the other two lost {lost} packets meanwhile", lost == 0)


def start_calls(
    mesh: Mesh, sender: int, receiver: int, address: str, port: int, calls: int
) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Start receiver and sender."""
    receive = popen(mesh, receiver, ["receive", str(port), str(calls), str(SECONDS)])
    listening = f":{port} "
    mesh.lab.wait("receiver", lambda: listening in mesh.lab.run(mesh.hosts[receiver], ["ss", "-lun"]))
    return receive, popen(mesh, sender, ["send", address, str(port), str(calls), str(SECONDS)])


def popen(mesh: Mesh, number: int, arguments: list[str]) -> subprocess.Popen[str]:
    """One end of some calls."""
    inside = ["ip", "netns", "exec", mesh.lab.prefix + mesh.hosts[number]]
    return subprocess.Popen(
        [*inside, sys.executable, "-m", "bench.calls", *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def finish(call: tuple[subprocess.Popen[str], subprocess.Popen[str]]) -> Result:
    """Wait for both ends."""
    receive, send = call
    send.communicate(timeout=60)
    output, _ = receive.communicate(timeout=60)
    return Result(**json.loads(output))


def main() -> int:
    """Entry point."""
    demo = Demo()
    try:
        with stopping_on_signals(), Lab() as lab:
            demo.run(lab)
    except LabError as error:
        demo.claim(str(error), False)
    except KeyboardInterrupt:
        demo.say("interrupted; everything was removed")
        return 130
    demo.say("everything was removed" + (f"; {demo.failed} claims FAILED" if demo.failed else "; all claims held"))
    return 1 if demo.failed else 0


if __name__ == "__main__":
    sys.exit(main())
