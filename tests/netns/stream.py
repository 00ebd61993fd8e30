"""Numbered UDP packets from one place to another, and what became of them.

    python -m tests.netns.stream receive HOST PORT                  a number on standard input ends it
    python -m tests.netns.stream send HOST PORT RATE COUNT SIZES    prints how many it sent; SIGTERM ends it early

Both print `ready` first. A payload is sequence(4) ‖ length(2), then bytes that follow from the sequence number, so that
a packet that was cut or mixed up is noticed. SIZES are payload sizes with commas between, used in turn.
"""

from __future__ import annotations

import hashlib
import json
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from .lab import Lab, LabError

VOICE = (172,)
"""160 bytes of G.711 and the RTP header: 200 bytes with IP and UDP."""
SILENCE = 2.0
"""Seconds without a packet after which those that are missing are lost."""
FOR_DUPLICATES = 0.3
"""Seconds more in which a second copy would come."""
MAX_LATENESS = 0.02
"""Seconds that a sender makes up for after it was not scheduled: a longer burst would test the kernel's queues."""
READY = "ready\n"
_HEAD = struct.Struct("!IH")
_RECEIVE_BUFFER = 4 << 20


@dataclass(slots=True)
class Arrived:
    """What a receiver got. Instants are Unix time."""

    sent: int = 0
    received: int = 0
    duplicates: int = 0
    corrupted: int = 0
    missing: tuple[int, int] | None = None
    """The first and the last sequence number that did not come."""
    last_at: float = 0.0
    longest_gap: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Every packet once and as it was sent, and there were some."""
        return self.sent > 0 and (self.received, self.duplicates, self.corrupted) == (self.sent, 0, 0)


class Stream:
    """Both ends, running from construction on."""

    def __init__(
        self,
        lab: Lab,
        sender: str,
        receiver: str,
        address: str,
        port: int,
        *,
        rate: int = 50,
        count: int = 3000,
        sizes: Sequence[int] = VOICE,
    ) -> None:
        self._receiver = _start(lab, receiver, "receive", address, str(port))
        pace = (str(rate), str(count), ",".join(map(str, sizes)))
        self._sender = _start(lab, sender, "send", address, str(port), *pace)

    def stop(self) -> Arrived:
        """Send no more; what arrived."""
        self._sender.send_signal(signal.SIGTERM)
        return self.finish()

    def finish(self) -> Arrived:
        """Wait until everything was sent; what arrived."""
        sent = tell(self._sender)
        return Arrived(**json.loads(tell(self._receiver, sent)))


def _start(lab: Lab, where: str, *arguments: str) -> subprocess.Popen[str]:
    process = lab.open(where, [sys.executable, "-m", "tests.netns.stream", *arguments])
    if tell(process) != READY:
        raise LabError(f"did not start: {' '.join(arguments)}")
    return process


def tell(process: subprocess.Popen[str], line: str = "") -> str:
    """Give a program that `Lab.open` started a line, and get one back."""
    assert process.stdin is not None, "it was opened with pipes"
    assert process.stdout is not None, "both ways"
    process.stdin.write(line)
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise LabError(f"{process.args!r} ended with status {process.wait()}")
    return answer


def payload(sequence: int, size: int) -> bytes:
    """The payload with this number."""
    head = _HEAD.pack(sequence, size)
    return head + hashlib.shake_128(head).digest(size - _HEAD.size)


def send(host: str, port: int, rate: int, count: int, sizes: Sequence[int]) -> int:
    """Send at an even pace; the number sent."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    sock = socket.socket(_family(host), socket.SOCK_DGRAM)
    sock.connect((host, port))
    sys.stdout.write(READY)
    sys.stdout.flush()
    started = time.monotonic()
    for sequence in range(count):
        wait = started + sequence / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)  # the pace of the stream
        elif wait < -MAX_LATENESS:
            started -= wait
        if stopped:
            return sequence
        try:
            sock.send(payload(sequence, sizes[sequence % len(sizes)]))
        except OSError:
            continue  # refused by the kernel, or an ICMP error about an earlier packet: sent, and lost
    return count


@dataclass(slots=True)
class Receiver:
    """Collects until it has as many as it is told were sent, or it has become silent."""

    sock: socket.socket
    arrived: Arrived = field(default_factory=Arrived)
    _seen: set[int] = field(default_factory=set)

    def run(self) -> Arrived:
        """Until the end."""
        while not select.select([sys.stdin], [], [], 0)[0]:
            if select.select([self.sock, sys.stdin], [], [])[0][0] is self.sock:
                self._take(self.sock.recv(65536), time.time())
        self.arrived.sent = int(sys.stdin.readline())
        while select.select([self.sock], [], [], self._patience())[0]:
            self._take(self.sock.recv(65536), time.time())
        missing = [number for number in range(self.arrived.sent) if number not in self._seen]
        self.arrived.missing = (missing[0], missing[-1]) if missing else None
        return self.arrived

    def _patience(self) -> float:
        return FOR_DUPLICATES if self.arrived.received >= self.arrived.sent else SILENCE

    def _take(self, data: bytes, now: float) -> None:
        arrived = self.arrived
        sequence, size = _HEAD.unpack_from(data) if len(data) >= _HEAD.size else (-1, 0)
        if size < _HEAD.size or data != payload(sequence, size):
            arrived.corrupted += 1
        elif sequence in self._seen:
            arrived.duplicates += 1
        else:
            self._seen.add(sequence)
            arrived.received += 1
            if arrived.last_at:
                arrived.longest_gap = max(arrived.longest_gap, now - arrived.last_at)
            arrived.last_at = now


def _receive(host: str, port: int) -> Arrived:
    sock = socket.socket(_family(host), socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    sock.bind((host, port))
    sys.stdout.write(READY)
    sys.stdout.flush()
    return Receiver(sock).run()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def main() -> None:
    match sys.argv[1:]:
        case ["send", host, port, rate, count, sizes]:
            sent = send(host, int(port), int(rate), int(count), [int(size) for size in sizes.split(",")])
            sys.stdout.write(f"{sent}\n")
        case ["receive", host, port]:
            sys.stdout.write(json.dumps(asdict(_receive(host, int(port)))) + "\n")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
