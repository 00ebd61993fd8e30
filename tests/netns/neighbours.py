"""New UDP flows at an even pace, as a NAT sees those of a busy office: one packet each.

python -m tests.netns.neighbours HOST RATE          until it is ended
"""

from __future__ import annotations

import itertools
import socket
import sys
import time


def main() -> None:
    host, rate = sys.argv[1], float(sys.argv[2])
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    started = time.monotonic()
    for number, port in enumerate(itertools.cycle(range(1024, 65536))):
        time.sleep(max(0.0, started + number / rate - time.monotonic()))  # the pace of the flows
        sock.sendto(b"", (host, port))


if __name__ == "__main__":
    main()
