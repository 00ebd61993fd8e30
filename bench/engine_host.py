"""One engine with many peers on a TUN device, without the daemon: what the number of peers alone costs.

    python -m bench.engine_host END PEERS [FEATURE …]

Reads the keys' seed from standard input, does without the kernel features named, prints "ready", runs until ended.

Peer n of end 0 is INSIDE[1] + n, reached at OUTSIDE + n (addresses of end 1): no two peers share an address, so packets
of two peers never travel in one message. All peers of end 1 are at end 0's one address.
"""

from __future__ import annotations

import hashlib
import signal
import socket
import sys
import time
from collections.abc import Collection
from ipaddress import IPv4Address

from tun.device import open_device
from tun.engine import Engine

from .arena import OUTER

INSIDE = (IPv4Address("10.65.0.1"), IPv4Address("10.66.0.1"))
OUTSIDE = IPv4Address("20.2.0.1")
PORT = 7003
DEVICE = "vpn0"
SOCKET_BUFFER = 4 << 20
_SO_RCVBUFFORCE = 33


def run(end: int, peers: int, seed: bytes, without: Collection[str]) -> None:
    """Forward until SIGTERM."""
    device = open_device(DEVICE, persist=False, vnet_hdr="vnet_hdr" not in without)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, SOCKET_BUFFER)
    udp.bind(("0.0.0.0", PORT))
    udp.setblocking(False)
    engine = Engine(device.fd, [udp.fileno()], without=without)
    for number in range(peers):
        keys = [hashlib.blake2b(bytes([way]) + number.to_bytes(4), key=seed, digest_size=32).digest() for way in (0, 1)]
        peer = number + 1  # the engine counts from one
        engine.add_peer(peer)
        engine.add_route((INSIDE[1 - end] + number).packed, 32, peer)
        engine.set_endpoint(peer, 0, str(OUTSIDE + number) if end == 0 else OUTER[0], PORT)
        engine.install_keypair(
            peer,
            local_index=peer,
            remote_index=peer,
            send_key=keys[end],
            receive_key=keys[1 - end],
            is_initiator=end == 0,
            created_at=time.monotonic(),
        )
    engine.start()
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    engine.stop()


def main() -> None:
    """Entry point."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    run(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer.read(), sys.argv[3:])


if __name__ == "__main__":
    main()
