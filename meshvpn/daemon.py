"""The daemon `meshvpnd`: opens its state, brings up the networks, serves the local API, ends cleanly."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import grp
import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn, get_args

import uvloop
from aiohttp import web

import meshvpn

from . import config
from .dumps import forbid_dumps
from .ipc import DEFAULT_SOCKET, SOCKET_GROUP
from .net.api import Api, Events
from .net.monitor import NetworkMonitor, SleepMonitor
from .net.networks import Networks
from .proto.errors import ConfigError, MeshError
from .proto.keys import nick_from_hostname
from .state import StateDir
from .systemd import notify

log = logging.getLogger("meshvpnd")

DEFAULT_STATE_DIR = Path("/var/lib/meshvpn")
BACKLOG = 64
"""Commands that wait for an answer."""
LOG_LEVELS = get_args(config.LogLevel)
REFUSED, USAGE = 1, 2
"""Exit statuses (DESIGN §10)."""


class _Parser(argparse.ArgumentParser):
    """The standard library's, which costs 8 MB less of resident memory than typer; errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line."""
        self.exit(USAGE, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def main() -> None:
    """Entry point: serve until SIGTERM or SIGINT."""
    options = _parser().parse_args()
    try:
        settings = config.load(options.config)
    except ConfigError as error:
        sys.stderr.write(f"meshvpnd: {error}\n")
        sys.exit(USAGE)
    if options.check:
        sys.stdout.write(f"{settings.file or config.DEFAULT_FILE}: {'in order' if settings.file else 'not there'}\n")
        return
    _start_log(options.log_format or settings.log_format or "text", options.log_level or settings.log_level or "INFO")
    os.umask(0o077)
    try:
        forbid_dumps()
        _check_privileges()
        uvloop.run(_serve(settings, options.state_dir, options.socket))
    except (MeshError, OSError) as error:
        sys.stderr.write(f"meshvpnd: {error}\n")
        sys.exit(REFUSED)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("meshvpnd", description=__doc__, allow_abbrev=False)
    option = parser.add_argument
    option(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"settings of networks and log (default: {config.DEFAULT_FILE}, if it is there)",
    )
    option("--check", action="store_true", help="say whether the configuration file is in order, and end")
    option(
        "--state-dir",
        metavar="DIR",
        type=Path,
        default=DEFAULT_STATE_DIR,
        help="keys and membership, for this daemon alone (default: %(default)s)",
    )
    option(
        "--socket",
        metavar="PATH",
        type=Path,
        default=Path(DEFAULT_SOCKET),
        help="where `meshvpn` finds this daemon (default: %(default)s)",
    )
    option("--log-format", choices=("text", "json"), help="a line for people (the default), or a JSON object a line")
    option("--log-level", type=str.upper, choices=LOG_LEVELS, help="least important line to write (default: INFO)")
    option("--version", action="version", help="print the version", version=f"meshvpnd {meshvpn.__version__}")
    return parser


class _JsonLines(logging.Formatter):
    """One object a line: when, how bad, who says it, what."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _start_log(form: str, level: str) -> None:
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(_JsonLines() if form == "json" else text)
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("pyroute2").setLevel(max(logging.INFO, logging.getLevelName(level)))  # it dumps each message


async def _serve(settings: config.Config, state_dir: Path, socket_path: Path) -> None:
    directory = StateDir(state_dir)
    events = Events()
    networks = Networks(directory, settings, nick_from_hostname(socket.gethostname()), events.publish)
    listener = _bind(socket_path)
    runner = web.AppRunner(Api(networks, events, str(state_dir)).application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await networks.start()
    for name in networks.unknown_in_config():
        log.warning("configuration for a network that this host is not in network=%s", name)
    monitors = NetworkMonitor(networks.handle_network_change), SleepMonitor(networks.handle_wake)
    await web.SockSite(runner, listener).start()
    log.info("ready state=%s socket=%s networks=%d", state_dir, socket_path, len(networks.by_uid))
    notify("READY=1")
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()
    notify("STOPPING=1")
    for monitor in monitors:
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
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _make_way(path.parent)
        if path.is_socket():
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with probe:
                if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
                    raise ConfigError(str(path), "another daemon answers there", "give another --socket")
            path.unlink()
        sock.bind(str(path))
        path.chmod(0o660)
        # From here on: who asks while the networks come up waits, and no other daemon takes the socket for left behind.
        sock.listen(BACKLOG)
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(path, -1, grp.getgrnam(SOCKET_GROUP).gr_gid)
    except ConfigError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        problem = f"the API's socket cannot be made there ({(error.strerror or str(error)).lower()})"
        raise ConfigError(str(path), problem, "give another --socket") from error
    sock.setblocking(False)
    return sock


def _make_way(directory: Path) -> None:
    """Make the directories that are missing; in spite of our umask all may pass: the socket has a mode of its own."""
    for missing in reversed([place for place in (directory, *directory.parents) if not place.exists()]):
        missing.mkdir()
        missing.chmod(0o755)


if __name__ == "__main__":
    main()
