"""The command `meshvpn-rendezvous`: introduces the members of private networks to each other, and relays."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import uvloop
from typer.exceptions import TyperException

import meshvpn
from meshvpn.dumps import forbid_dumps
from meshvpn.proto.errors import ConfigError, MeshError
from meshvpn.systemd import notify
from meshvpn.usage import usage_line

from . import tls
from .limits import Limits
from .server import Server
from .sources import Network
from .sqlite_store import SqliteStore

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
log = logging.getLogger("rendezvous")

DEFAULT_PORT = 7770
DEFAULT_DATA = Path("/var/lib/meshvpn-rendezvous")
REFUSED, USAGE, INTERRUPTED = 1, 2, 130
"""Exit statuses."""
STREAM_FILES = 3
"""File descriptors of one relay stream by WebSocket."""
SPARE_FILES = 256
"""File descriptors for sockets, storage, and connections that are no control connections (yet)."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"meshvpn-rendezvous {meshvpn.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Introduce the members of private networks to each other, and relay where no direct way is."""


@app.command()
def serve(
    listen: Annotated[
        list[str] | None, typer.Option(help="HOST:PORT, may be repeated", show_default=f"0.0.0.0:{DEFAULT_PORT}")
    ] = None,
    port2: Annotated[
        int,
        typer.Option(
            help="second UDP port, by which members learn of what kind their NAT is", show_default="the port + 1"
        ),
    ] = 0,
    data: Annotated[Path, typer.Option(help="directory of the database and the certificate")] = DEFAULT_DATA,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain instead of a self-signed one")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key of --tls-cert")] = None,
    no_tls: Annotated[bool, typer.Option("--no-tls", help="plain HTTP, for a reverse proxy or a test")] = False,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="address or network of a proxy whose X-Forwarded-For counts, may be repeated"),
    ] = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR")] = "INFO",
) -> None:
    """Serve until SIGTERM or SIGINT."""
    try:
        options = _check(listen or [f"0.0.0.0:{DEFAULT_PORT}"], port2, data, tls_cert, tls_key, no_tls, trusted_proxy)
        _start_logging(log_level)
    except ConfigError as error:
        _fail(error, USAGE)
    os.umask(0o077)
    try:
        forbid_dumps()
        uvloop.run(_serve(options))
    except (MeshError, OSError) as error:
        _fail(error, REFUSED)


@app.command()
def pin(data: Annotated[Path, typer.Option(help="the server's data directory")] = DEFAULT_DATA) -> None:
    """Print the pin of the self-signed certificate."""
    try:
        print(tls.pin_of(data / "server.crt"))
    except ConfigError as error:
        _fail(error, REFUSED)


def main() -> None:
    """Entry point: one line for each failure."""
    arguments = sys.argv[1:]
    try:
        status = app(arguments or ["--help"], prog_name="meshvpn-rendezvous", standalone_mode=False)
    except TyperException as error:
        print(f"meshvpn-rendezvous: {usage_line(error, 'meshvpn-rendezvous')}", file=sys.stderr)
        status = USAGE
    except typer.Abort:  # interrupted before it served
        status = INTERRUPTED
    sys.exit(status if arguments else USAGE)


async def _serve(options: Options) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    limits = _limits()
    lock = _lock(options.data)
    context, shown = _tls(options)
    tcp = [_bind(host, port, socket.SOCK_STREAM) for host, port in options.listen]
    hosts = dict.fromkeys(host for host, _ in options.listen)
    udp = [_bind(host, port, socket.SOCK_DGRAM) for host in hosts for port in options.udp_ports]
    store = await SqliteStore.open(options.data / "networks.sqlite3")
    server = Server(store, limits, udp=udp, udp_ports=options.udp_ports, trusted_proxies=options.trusted_proxies)
    await server.start(tcp, context)
    log.info(
        "ready listen=%s udp=%d,%d connections=%d pin=%s",
        ",".join(f"{host}:{port}" for host, port in options.listen),
        *options.udp_ports,
        limits.connections,
        shown,
    )
    notify("READY=1")
    await stopping.wait()
    notify("STOPPING=1")
    await server.stop()
    os.close(lock)


def _fail(error: Exception, status: int) -> NoReturn:
    print(f"meshvpn-rendezvous: {error}", file=sys.stderr)
    raise typer.Exit(status) from error


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says, checked."""

    listen: list[tuple[str, int]]
    udp_ports: tuple[int, int]
    data: Path
    certificate: tuple[Path, Path] | None
    """With its key, when one was given."""
    no_tls: bool
    trusted_proxies: list[Network]


def _check(
    listen: list[str],
    port2: int,
    data: Path,
    certificate: Path | None,
    key: Path | None,
    no_tls: bool,
    trusted_proxies: list[str] | None,
) -> Options:
    if (certificate is None) != (key is None):
        raise ConfigError("--tls-cert and --tls-key", "only one of them was given", "give both or none")
    given = None if certificate is None or key is None else (certificate, key)
    if no_tls and given is not None:
        raise ConfigError("--no-tls", "a certificate was given too", "leave one of them away")
    addresses = [_parse(text) for text in listen]
    port = addresses[0][1]
    second = port2 or port + 1
    if not 0 < second < 65536 or second == port:
        raise ConfigError(f"--port2 {second}", "it is not a second port", "give a number from 1 to 65535")
    proxies = [_parse_network(text) for text in trusted_proxies or []]
    return Options(addresses, (port, second), data, given, no_tls, proxies)


def _start_logging(level: str) -> None:
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigError(f"--log-level {level}", "there is no such level", "use DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")


def _tls(options: Options) -> tuple[ssl.SSLContext | None, str]:
    """The context, and the pin as it is shown."""
    if options.no_tls:
        return None, "none (no TLS)"
    certificate, key = options.certificate or tls.ensure_certificate(options.data)
    return tls.server_context(certificate, key), tls.pin_of(certificate)


def _limits() -> Limits:
    """The limits, with as many connections as there may be file descriptors: most systems give a program 1,024."""
    limits = Limits()
    wanted = limits.connections + STREAM_FILES * limits.streams + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < possible:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    # A quarter of them for streams where there are few.
    streams = min(limits.streams, (possible - SPARE_FILES) // (4 * STREAM_FILES))
    return replace(limits, connections=max(1, possible - SPARE_FILES - STREAM_FILES * streams), streams=max(0, streams))


def _lock(data: Path) -> int:
    """Make the data directory ours alone."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        problem = f"it cannot be written ({(error.strerror or str(error)).lower()})"
        raise ConfigError(f"--data {data}", problem, "give another directory, or the rights to this one") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(str(data), "another server uses it", "stop that one, or give another --data") from error
    return descriptor


def _parse(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--listen {text}", "it is not HOST:PORT", "write for example 0.0.0.0:7770 or [::]:7770")
    return host.strip("[]"), int(port)


def _parse_network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        problem, remedy = f"it is no address or network ({error})", "write for example 127.0.0.1 or 10.0.0.0/8"
        raise ConfigError(f"--trusted-proxy {text}", problem, remedy) from error


def _bind(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
        problem = f"cannot be bound ({(error.strerror or str(error)).lower()})"
        raise ConfigError(f"{protocol} {host}:{port}", problem, "give another --listen or --port2") from error
    return sock


if __name__ == "__main__":
    main()
