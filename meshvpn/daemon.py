"""The daemon `meshvpnd`: opens its state, brings up the networks, serves the local API, ends cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from aiohttp import web

import meshvpn

from .ipc import DEFAULT_SOCKET
from .net.api import Api, Events
from .net.monitor import NetworkMonitor
from .net.networks import Networks
from .proto.errors import ConfigError, MeshError
from .proto.keys import nick_from_hostname
from .state import StateDir

log = logging.getLogger("meshvpnd")

DEFAULT_STATE_DIR = Path("/var/lib/meshvpn")
SOCKET_GROUP = "meshvpn"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def run(
    state_dir: Annotated[Path, typer.Option(help="keys and membership, for this daemon alone")] = DEFAULT_STATE_DIR,
    socket_path: Annotated[Path, typer.Option("--socket", help="of the local API")] = Path(DEFAULT_SOCKET),
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR")] = "INFO",
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    """Serve until SIGTERM or SIGINT."""
    if version:
        sys.stdout.write(f"meshvpnd {meshvpn.__version__}\n")
        raise typer.Exit
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold every key
    os.umask(0o077)
    try:
        _check_privileges()
        uvloop.run(_serve(state_dir, socket_path))
    except (MeshError, OSError) as error:
        sys.stderr.write(f"meshvpnd: {error}\n")
        raise typer.Exit(1) from error


def main() -> None:
    """Entry point."""
    app()


async def _serve(state_dir: Path, socket_path: Path) -> None:
    directory = StateDir(state_dir)
    events = Events()
    networks = Networks(directory, nick_from_hostname(socket.gethostname()), events.publish)
    listener = _bind(socket_path)
    runner = web.AppRunner(Api(networks, events, str(state_dir)).application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await networks.start()
    monitor = NetworkMonitor(networks.handle_network_change)
    await web.SockSite(runner, listener).start()
    log.info("ready state=%s socket=%s networks=%d", state_dir, socket_path, len(networks.by_uid))
    _notify("READY=1")
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()
    _notify("STOPPING=1")
    monitor.close()
    await runner.cleanup()
    await networks.stop()
    socket_path.unlink(missing_ok=True)
    directory.close()


def _check_privileges() -> None:
    """CAP_NET_ADMIN is what it takes; say so before anything half works."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    if not int(effective, 16) >> 12 & 1:
        raise ConfigError("privileges", "CAP_NET_ADMIN is missing", "run meshvpnd as root or by its systemd service")
    if not os.path.exists("/dev/net/tun"):
        raise ConfigError("/dev/net/tun", "it is missing", "load the module: modprobe tun")


def _bind(path: Path) -> socket.socket:
    """The API's socket: 0660, of the group meshvpn if there is one."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if path.is_socket():
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with probe:
                if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
                    raise ConfigError(str(path), "another daemon answers there", "give another --socket")
            path.unlink()
        sock.bind(str(path))
        path.chmod(0o660)
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(path, -1, grp.getgrnam(SOCKET_GROUP).gr_gid)
    except OSError as error:
        sock.close()
        problem = f"cannot be made ({error.strerror})"
        raise ConfigError(str(path), problem, "give another --socket") from error
    sock.setblocking(False)
    return sock


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); nothing happens when it did not start us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


if __name__ == "__main__":
    main()
