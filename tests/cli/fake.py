"""A fake daemon on a Unix socket, and the real program run against it."""

from __future__ import annotations

import http.server
import os
import pty
import select
import signal
import socketserver
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from meshvpn import ipc

PASSWORD = "correct horse battery"
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("MESHVPN_")}
PEER = ipc.PeerView(
    nick="berlin",
    identity="ab12cd34" * 8,
    address="10.7.5.2",
    address6="fd00::2",
    state="direct",
    endpoint="203.0.113.9:43667",
    relay=None,
    why="direct, R 92; relay, R 78",
    mtu=1400,
    path_mtu=1468,
    rtt_ms=18.25,
    jitter_ms=0.5,
    loss=0.01,
    r=92.4,
    mos=4.38,
    rx_r=91.4,
    rx_mos=4.36,
    rx_loss=0.0,
    rx_jitter_ms=1.25,
    rx_bytes=1500,
    tx_bytes=10,
    rx_packets=7,
    tx_packets=1,
    rx_lost=0,
    rx_reordered=0,
    rx_duplicates=0,
    rx_marked=7,
    rx_kept_marks=7,
    kept_marks=1.0,
    last_handshake_s=3.0,
    routes=[],
)
NETWORK = ipc.NetworkView(
    network="piaf-vpn",
    uid="00" * 16,
    state="online",
    address="10.7.5.1",
    address6="fd00::1",
    interface="mesh0",
    nick="me",
    access="open",
    role="owner",
    is_pending=False,
    epoch=1,
    owner="me",
    pool="10.7.5.0/24",
    capacity=254,
    has_password=True,
    note=None,
    members=[PEER],
)


class FakeDaemon(socketserver.ThreadingUnixStreamServer):
    """Answers every request with one prepared reply and keeps what was asked, but for the list of networks."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Handler)
        self.path = path
        self.status = 200
        self.reply: object = ipc.Reply(message="done")
        self.networks: list[ipc.NetworkView] = []
        self.requests: list[tuple[str, str, bytes]] = []

    def refuse(self, status: int, message: str) -> None:
        self.status, self.reply = status, ipc.ErrorReply(code="x", message=message)


class _Handler(http.server.BaseHTTPRequestHandler):
    def _answer(self) -> None:
        daemon = self.server
        assert isinstance(daemon, FakeDaemon)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_list = (self.command, self.path) == ("GET", "/v1/networks")
        if not is_list:
            daemon.requests.append((self.command, self.path, body))
            if daemon.status == 0:
                return  # as if it were killed now
        data = msgspec.json.encode(daemon.networks if is_list else daemon.reply)
        self.send_response(200 if is_list else daemon.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def meshvpn(
    path: Path,
    *arguments: str | bytes,
    stdin: str = "",
    environment: Mapping[str, str] = ENVIRONMENT,
    encoding: str = "utf-8",
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "meshvpn.cli", "--socket", str(path), *arguments],
        input=stdin,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        encoding=encoding,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    return done


def typed(daemon: FakeDaemon, arguments: list[str], *answers: str) -> tuple[int, str]:
    """Run the command at a terminal and give one answer to each question; exit status and what is to be seen."""
    pid, terminal = pty.fork()
    if pid == 0:
        program = [sys.executable, "-m", "meshvpn.cli", "--socket", str(daemon.path), *arguments]
        os.execve(sys.executable, program, ENVIRONMENT)
    shown, left = "", list(answers)
    try:
        while True:
            assert select.select([terminal], [], [], 30)[0], f"no end in sight: {shown!r}"
            shown += os.read(terminal, 65536).decode()
            if left and shown.endswith((": ", "[y/N] ")):
                os.write(terminal, left.pop(0).encode())
    except OSError:  # EIO: the other end is closed
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(terminal)
