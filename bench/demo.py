"""The main job, end to end: three PBXs behind NATs, a hundred calls, an eviction. Exit status 0 if every claim held."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from tests.netns.lab import Lab, LabError, stopping_on_signals
from tests.netns.mesh import NETWORK, Mesh

from .calls import Result

CALLS = (sys.executable, str(Path(__file__).with_name("calls.py")))
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
            self._enter(mesh, number, command)
        for number in mesh.hosts:
            took = lab.wait("direct paths", lambda number=number: mesh.is_direct(number, 2))  # type: ignore[misc]
            self.say(f"piaf-server{number} has direct paths to both others (waited {took:.1f} s)")
        self._show(mesh, 1, "list")
        self._show(mesh, 1, "peers", NETWORK)
        self.claim("all paths are direct", all(mesh.is_direct(number, 2) for number in mesh.hosts))
        addresses = {number: mesh.address(number) for number in mesh.hosts}
        self._calls(mesh, addresses)
        self._evict(mesh, addresses)
        self._come_back(mesh)

    def _calls(self, mesh: Mesh, addresses: dict[int, str]) -> None:
        self.say(f"100 calls, 50 packets a second and direction, 200 bytes each, for {SECONDS} s")
        running = [
            call
            for number, (first, second, calls) in enumerate(PAIRS)
            for call in (
                Call(mesh, first, second, addresses[second], 20000 + 2 * number, calls),
                Call(mesh, second, first, addresses[first], 20001 + 2 * number, calls),
            )
        ]
        results = [call.finish() for call in running]
        expected, lost = sum(r.expected for r in results), sum(r.lost for r in results)
        worst = max(result.delay_p99 for result in results)
        median = statistics.median(result.delay_p50 for result in results)
        jitter = max(result.jitter for result in results)
        self.say(f"one-way delay p50 {median:.2f} ms, p99 {worst:.2f} ms; jitter {jitter:.2f} ms")
        self.claim(f"lost {lost} of {expected} packets ({100 * lost / expected:.3f} %)", lost == 0)

    def _evict(self, mesh: Mesh, addresses: dict[int, str]) -> None:
        self.say("evicting piaf-server3, while piaf-server1 and piaf-server2 are in 10 calls")
        calls = [Call(mesh, 1, 2, addresses[2], 20100, 10), Call(mesh, 2, 1, addresses[1], 20101, 10)]
        probes = [Probe(mesh, first, second, addresses[second]) for first, second in ((1, 3), (2, 3), (3, 1), (3, 2))]
        mesh.lab.wait("probes answered", lambda: all(probe.answers() for probe in probes))
        typed_at = time.time()
        self._show(mesh, 1, "evict", NETWORK, "piaf-server3", options=("--yes",))
        results = [call.finish() for call in calls]
        last = max(probe.stop() for probe in probes) - typed_at
        self.say(f"pinging each 10 ms, piaf-server3 reached or was reached last {last:.2f} s after `evict` was typed")
        self.claim(f"within {EVICT_WITHIN:.0f} s it reaches nobody and nobody it", last < EVICT_WITHIN)
        lost = sum(result.lost for result in results)
        self.claim(f"the other two lost {lost} of {sum(r.expected for r in results)} packets meanwhile", lost == 0)

    def _come_back(self, mesh: Mesh) -> None:
        self._refused(mesh, "with the password that it knows, which the eviction retired", "no network with that name")
        mesh.password_file.write_text("a new password that everybody knows\n")
        self._show(mesh, 1, "passwd", NETWORK, options=("--password-file", str(mesh.password_file)))
        self._refused(mesh, "with its identity, even if it learns the new password", "evicted")

    def _refused(self, mesh: Mesh, how: str, reason: str) -> None:
        done = mesh.enter(3, "join")
        print(f"piaf-server3 # meshvpn join {NETWORK}\n{done.stdout}", end="", flush=True)
        self.claim(f"piaf-server3 cannot come back {how}", done.returncode == 1 and reason in done.stdout)

    def _enter(self, mesh: Mesh, number: int, command: str) -> None:
        done = mesh.enter(number, command)
        print(f"piaf-server{number} # meshvpn {command} {NETWORK}\n{done.stdout}", end="", flush=True)
        self.claim(f"piaf-server{number}: {command}", done.returncode == 0)

    def _show(self, mesh: Mesh, number: int, *arguments: str, options: tuple[str, ...] = ()) -> None:
        """A command as a person types it; `options` stand for the answers to its prompts."""
        done = mesh.meshvpn(number, *arguments, *options)
        print(f"piaf-server{number} # meshvpn {' '.join(arguments)}\n{done}", end="", flush=True)


class Call:
    """Some calls in one direction: a receiver and a sender, which the lab ends whatever happens."""

    def __init__(self, mesh: Mesh, sender: int, receiver: int, address: str, port: int, calls: int) -> None:
        self._lab, self._name = mesh.lab, f"receive{port}"
        arguments = [str(calls), str(SECONDS)]
        self._receive = mesh.lab.start(mesh.hosts[receiver], self._name, [*CALLS, "receive", str(port), *arguments])
        listening = f":{port} "
        mesh.lab.wait("receiver", lambda: listening in mesh.lab.run(mesh.hosts[receiver], ["ss", "-lun"]))
        command = [*CALLS, "send", address, str(port), *arguments]
        self._send = mesh.lab.start(mesh.hosts[sender], f"send{port}", command)

    def finish(self) -> Result:
        """Wait for both ends."""
        self._send.wait(timeout=60)
        self._receive.wait(timeout=60)
        return Result(**json.loads(self._lab.log(self._name)))


class Probe:
    """Pings each 10 ms through the mesh, and when the last was answered (Unix seconds)."""

    def __init__(self, mesh: Mesh, sender: int, receiver: int, address: str) -> None:
        self._lab, self._name = mesh.lab, f"probe{sender}{receiver}"
        # -D prints when each answer came, -O makes a missing one visible in the log.
        command = ["ping", "-D", "-O", "-i", "0.01", "-W", "1", address]
        self._process = mesh.lab.start(mesh.hosts[sender], self._name, command)

    def answers(self) -> list[float]:
        """When answers came."""
        lines = self._lab.log(self._name).splitlines()
        return [float(line[1 : line.index("]")]) for line in lines if " bytes from " in line]

    def stop(self) -> float:
        """When the last answer came."""
        self._process.terminate()
        self._process.wait(timeout=10)
        return self.answers()[-1]


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
