"""Handshake initiations of strangers who know the victim's public key, in bursts: they put it under load.

python -m tests.netns.flood HOST PORT PUBLIC_KEY BURST SECONDS      the key in base64, a burst each quarter second

Prints a line once it is answered with a cookie.
"""

from __future__ import annotations

import base64
import os
import socket
import sys
import time

from meshvpn.proto.cookie import CookieJar
from meshvpn.proto.messages import TYPE_COOKIE, Initiation

INTERVAL = 0.25
COOKIE = "a cookie came"


def main() -> None:
    host, port, key, burst, seconds = sys.argv[1:]
    jar = CookieJar(base64.b64decode(key))
    messages = [jar.sign(Initiation(number, os.urandom(108)).encode(), now=0.0) for number in range(int(burst))]
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    is_waiting = True
    started = time.monotonic()
    for number in range(int(float(seconds) / INTERVAL)):
        time.sleep(max(0.0, started + number * INTERVAL - time.monotonic()))  # the pace of the bursts
        for message in messages:
            sock.sendto(message, (host, int(port)))
        if is_waiting and _has_cookie(sock):
            is_waiting = False
            sys.stdout.write(f"{COOKIE}\n")
            sys.stdout.flush()


def _has_cookie(sock: socket.socket) -> bool:
    try:
        return sock.recv(2048, socket.MSG_DONTWAIT)[0] == TYPE_COOKIE
    except BlockingIOError:
        return False


if __name__ == "__main__":
    main()
