"""Handshakes: a thousand peers that want a session at the same moment, as after a power cut.

    python -m bench.handshakes [--peers 1000] [--rounds 3]

One responder (meshvpn.proto.wireguard) on a UDP socket in a process of its own, and all initiators in another, on
loopback. Under load the responder asks for cookies, and initiators come back when the paper says: both are in the time.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection

from meshvpn.proto.commands import InstallKeypair
from meshvpn.proto.primitives import x25519_public
from meshvpn.proto.transport import Address, Path
from meshvpn.proto.wireguard import WireGuard

from .figures import Section, figure, say, table

BUFFER = 32 << 20
PATIENCE = 60.0
RESPONDER = "127.0.0.1"
FIRST_INITIATOR = (127 << 24) + (1 << 16)
"""Each has an address of its own, as real peers do: the responder limits handshakes by source."""
LOOK = 0.05
_SO_RCVBUFFORCE = 33
_MAX_MESSAGE = 2048


@dataclass(frozen=True, slots=True)
class Sample:
    """One run."""

    seconds: float
    established: int
    responder_cpu: float
    drops: dict[str, int] = field(default_factory=dict)


def respond(secret: bytes, publics: list[bytes], pipe: Connection) -> None:
    """Answer until told to stop; then send back CPU seconds and drops."""
    sock = _socket(RESPONDER)
    machine = WireGuard(secret, entropy=os.urandom)
    for number, public in enumerate(publics):
        machine.add_peer(number, public)
    pipe.send(sock.getsockname()[1])
    began = time.process_time()
    while not pipe.poll():
        select.select([sock.fileno(), pipe.fileno()], [], [])
        for data, source in _received(sock):
            path = Path(0, Address(*source))
            machine.handle_datagram(data, path, now=time.monotonic(), wall_ns=time.time_ns())
            for transmit in machine.take_transmits():
                sock.sendto(transmit.data, source)
            machine.take_events()
    pipe.send((time.process_time() - began, {reason.value: count for reason, count in machine.drops.items()}))


class Initiators:
    """All of them; each makes its first message before the run begins."""

    def __init__(self, secrets: list[bytes], responder: bytes, port: int) -> None:
        self._responder = (RESPONDER, port)
        self._path = Path(0, Address(*self._responder))
        self._machines: dict[int, tuple[socket.socket, WireGuard]] = {}
        self._poll = select.epoll()
        for number, secret in enumerate(secrets):
            value = FIRST_INITIATOR + number
            sock = _socket(socket.inet_ntoa(value.to_bytes(4)))
            machine = WireGuard(secret, entropy=os.urandom)
            machine.add_peer(0, responder)
            machine.handle_handshake_wanted(0, now=time.monotonic(), wall_ns=time.time_ns())
            self._machines[sock.fileno()] = sock, machine
            self._poll.register(sock, select.EPOLLIN)
        self.waiting = set(self._machines)

    def run(self) -> float:
        """Until all have a session or patience ends; the seconds that it took."""
        began = time.monotonic()
        for number in self.waiting:
            self._send(number)
        while self.waiting and time.monotonic() - began < PATIENCE:
            for number, _ in self._poll.poll(LOOK, maxevents=len(self._machines)):
                self._receive(number)
            now, wall_ns = time.monotonic(), time.time_ns()
            for number in self.waiting:
                machine = self._machines[number][1]
                if (machine.next_timeout() or now + 1) <= now:
                    machine.handle_timeout(now=now, wall_ns=wall_ns)
                    self._send(number)
        return time.monotonic() - began

    def close(self) -> None:
        """Close the sockets."""
        self._poll.close()
        for sock, _ in self._machines.values():
            sock.close()

    def _send(self, number: int) -> None:
        sock, machine = self._machines[number]
        for transmit in machine.take_transmits():
            sock.sendto(transmit.data, self._responder)

    def _receive(self, number: int) -> None:
        sock, machine = self._machines[number]
        for data, _ in _received(sock):
            machine.handle_datagram(data, self._path, now=time.monotonic(), wall_ns=time.time_ns())
        if any(isinstance(event, InstallKeypair) for event in machine.take_events()):
            self.waiting.discard(number)


def measure(peers: int) -> Sample:
    """One run."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, peers + 256), most))
    secret, secrets = os.urandom(32), [os.urandom(32) for _ in range(peers)]
    ours, theirs = get_context("fork").Pipe()
    responder = get_context("fork").Process(
        target=respond, args=(secret, [x25519_public(one) for one in secrets], theirs), daemon=True
    )
    responder.start()
    initiators = Initiators(secrets, x25519_public(secret), ours.recv())
    try:
        seconds = initiators.run()
        ours.send(None)
        cpu, drops = ours.recv()
    finally:
        initiators.close()
        responder.terminate()
        responder.join()
    return Sample(seconds, peers - len(initiators.waiting), cpu, drops)


def section(peers: int, rounds: int) -> Section:
    """A table."""
    samples = [measure(peers) for _ in range(rounds)]
    say("handshakes: done")
    drops: Counter[str] = Counter()
    for sample in samples:
        drops.update(sample.drops)
    rows = [
        ["established", figure(sample.established for sample in samples).text(0)],
        ["all of them after, s", figure(sample.seconds for sample in samples).text(2)],
        ["responder's CPU a handshake, ms", figure(s.responder_cpu * 1e3 / peers for s in samples).text(2)],
        *([f"sent back or dropped a run: {name}", f"{count / rounds:.0f}"] for name, count in drops.items()),
    ]
    return Section(f"{peers:,} handshakes at once", table(["", ""], rows))


def _socket(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if host == RESPONDER:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
    sock.bind((host, 0))
    sock.setblocking(False)
    return sock


def _received(sock: socket.socket) -> list[tuple[bytes, tuple[str, int]]]:
    found: list[tuple[bytes, tuple[str, int]]] = []
    while True:
        try:
            found.append(sock.recvfrom(_MAX_MESSAGE))
        except BlockingIOError:
            return found


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.handshakes", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peers", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(section(options.peers, options.rounds).text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
