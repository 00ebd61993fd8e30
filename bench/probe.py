"""UDP probes through a tunnel that is not there yet.

python -m bench.probe answer PORT               until it is ended
python -m bench.probe ask HOST PORT SECONDS     prints the CLOCK_MONOTONIC time of the first answer
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time

INTERVAL = 0.005


def answer(port: int) -> None:
    """Send everything back."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", port))
    print("ready", flush=True)
    while True:
        data, source = sock.recvfrom(2048)
        sock.sendto(data, source)


def ask(host: str, port: int, seconds: float) -> float | None:
    """Send a probe every few milliseconds until one comes back, or time is up."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    print("ready", flush=True)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # no route yet
            sock.sendto(b"probe", (host, port))
        if select.select([sock], [], [], INTERVAL)[0]:
            at = time.monotonic()
            with contextlib.suppress(OSError):  # a router's ICMP error
                if sock.recvfrom(2048)[1] == (host, port):
                    return at
    return None


def main() -> None:
    """Entry point."""
    match sys.argv[1:]:
        case ["answer", port]:
            answer(int(port))
        case ["ask", host, port, seconds]:
            print(ask(host, int(port), float(seconds)), flush=True)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
