"""An engine of three: two ends that reach each other through the third alone, which relays as a member does.

python -m bench.relay_host ROLE       0 and 1: the ends, middle: the relay; prints "ready"; until it is ended
"""

from __future__ import annotations

import signal
import sys
import time
from ipaddress import IPv4Address

from meshvpn.proto.transport import RelayHop
from tun.device import open_device
from tun.engine import Engine

from .arena import INNER, STAR
from .engine_host import DEVICE, PORT, open_udp

IDS = (11, 12)
"""Of the ends, at the relay."""
RATE = 1e9
"""Bytes a second: nothing that is sent here is over it."""
KEYS = (bytes(range(32)), bytes(range(32, 64)))
"""Fixed: what they seal is made here and goes nowhere."""


def connect_end(engine: Engine, end: int) -> None:
    """The other end is peer 1."""
    other = 1 - end
    engine.add_peer(1)
    engine.add_route(IPv4Address(INNER[other]).packed, 32, 1)
    engine.set_endpoint(1, 0, STAR[end][1], PORT, RelayHop(IDS[end], IDS[other]).header())
    engine.install_keypair(
        1,
        local_index=1,
        remote_index=1,
        send_key=KEYS[end],
        receive_key=KEYS[other],
        is_initiator=end == 0,
        created_at=time.monotonic(),
    )


def relay(engine: Engine) -> None:
    """Both ends are peers."""
    for end, relay_id in enumerate(IDS):
        engine.add_peer(1 + end)
        engine.set_relay_paths(1 + end, relay_id, [(0, STAR[end][0], PORT)])
    engine.set_relaying(RATE, RATE)


def main() -> None:
    """Entry point."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    device, udp = open_device(DEVICE, persist=False), open_udp()
    engine = Engine(device.fd, [udp.fileno()])
    if sys.argv[1] == "middle":
        relay(engine)
    else:
        connect_end(engine, int(sys.argv[1]))
    engine.start()
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    engine.stop()


if __name__ == "__main__":
    main()
