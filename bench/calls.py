"""Calls' worth of RTP-shaped UDP between hosts, and what became of it.

    python -m bench.calls receive PORT SECONDS          prints one JSON line
    python -m bench.calls send HOST PORT CALLS SECONDS  50 packets a second and call, evenly spread

A packet is 172 bytes of payload (200 with IP and UDP): call(2) ‖ sequence(4) ‖ send time(8), then zeros. Times are of
CLOCK_REALTIME, which all namespaces of one machine share; the receiver's are the kernel's (SO_TIMESTAMPNS).
"""

from __future__ import annotations

import json
import socket
import statistics
import struct
import sys
import time
from dataclasses import asdict, dataclass

PACKETS_PER_SECOND = 50
PAYLOAD = 172
_HEAD = struct.Struct("!HIQ")
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@qq")
GRACE = 1.5
"""Seconds that a receiver waits for stragglers."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one receiver; times in milliseconds."""

    received: int
    expected: int
    duplicates: int
    delay_p50: float
    delay_p99: float
    jitter: float

    @property
    def lost(self) -> int:
        """Packets that did not come."""
        return self.expected - self.received


def send(host: str, port: int, calls: int, seconds: float) -> int:
    """Send; returns the number of packets."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)  # EF, as a PBX marks voice
    sock.connect((host, port))
    padding = bytes(PAYLOAD - _HEAD.size)
    interval = 1 / (PACKETS_PER_SECOND * calls)
    total = int(PACKETS_PER_SECOND * calls * seconds)
    started = time.monotonic()
    for number in range(total):
        wait = started + number * interval - time.monotonic()
        if wait > 0:
            time.sleep(wait)  # the pace of the calls
        sequence, call = divmod(number, calls)
        sock.send(_HEAD.pack(call, sequence, time.time_ns()) + padding)
    return total


def receive(port: int, calls: int, seconds: float) -> Result:
    """Receive until the sender must be done."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind(("0.0.0.0", port))
    sock.settimeout(seconds + 10)
    seen: set[tuple[int, int]] = set()
    delays: list[float] = []
    jitter: dict[int, float] = {}
    last: dict[int, float] = {}
    duplicates = 0
    deadline = float("inf")
    while time.monotonic() < deadline:
        try:
            data, control, _, _ = sock.recvmsg(2048, 64)
        except TimeoutError:
            break
        if deadline == float("inf"):
            deadline = time.monotonic() + seconds + GRACE
            sock.settimeout(GRACE)
        call, sequence, sent = _HEAD.unpack_from(data)
        duplicates += (call, sequence) in seen
        seen.add((call, sequence))
        whole, fraction = _TIMESPEC.unpack(control[0][2])
        delay = (whole * 10**9 + fraction - sent) / 1e6
        delays.append(delay)
        # RFC 3550 §6.4.1
        jitter[call] = jitter.get(call, 0.0) + (abs(delay - last.get(call, delay)) - jitter.get(call, 0.0)) / 16
        last[call] = delay
    ordered = sorted(delays) or [float("nan")]
    return Result(
        received=len(seen),
        expected=int(PACKETS_PER_SECOND * calls * seconds),
        duplicates=duplicates,
        delay_p50=statistics.median(ordered),
        delay_p99=ordered[int(len(ordered) * 0.99)],
        jitter=statistics.fmean(jitter.values()) if jitter else float("nan"),
    )


def main() -> None:
    """Entry point."""
    match sys.argv[1:]:
        case ["send", host, port, calls, seconds]:
            print(send(host, int(port), int(calls), float(seconds)))
        case ["receive", port, calls, seconds]:
            print(json.dumps(asdict(receive(int(port), int(calls), float(seconds)))))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
