"""The command `meshvpn-rendezvous`."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

import meshvpn
from meshvpn.proto.errors import ConfigError, MeshError

from . import tls
from .limits import Limits
from .server import Server
from .store import SqliteStore

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
log = logging.getLogger("rendezvous")

DEFAULT_PORT = 7770
DEFAULT_DATA = Path("/var/lib/meshvpn-rendezvous")


@app.command()
def serve(
    listen: Annotated[list[str] | None, typer.Option(help="HOST:PORT, may be repeated")] = None,
    port2: Annotated[int, typer.Option(help="second UDP port, to classify NATs (0: the port + 1)")] = 0,
    data: Annotated[Path, typer.Option(help="directory of the database and the certificate")] = DEFAULT_DATA,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain instead of a self-signed one")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key of --tls-cert")] = None,
    no_tls: Annotated[bool, typer.Option("--no-tls", help="plain HTTP, for a reverse proxy or a test")] = False,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR")] = "INFO",
) -> None:
    """Serve until SIGTERM or SIGINT."""
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        uvloop.run(_serve(listen or [f"0.0.0.0:{DEFAULT_PORT}"], port2, data, tls_cert, tls_key, no_tls))
    except (MeshError, OSError) as error:
        print(f"meshvpn-rendezvous: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


@app.command()
def pin(data: Annotated[Path, typer.Option(help="the server's data directory")] = DEFAULT_DATA) -> None:
    """Print the pin of the self-signed certificate."""
    try:
        print(tls.pin_of(data / "server.crt"))
    except ConfigError as error:
        print(f"meshvpn-rendezvous: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


@app.command()
def version() -> None:
    """Print the version."""
    print(meshvpn.__version__)


def main() -> None:
    """Entry point."""
    app()


async def _serve(
    listen: list[str], port2: int, data: Path, certificate: Path | None, key: Path | None, no_tls: bool
) -> None:
    if (certificate is None) != (key is None):
        raise ConfigError("--tls-cert and --tls-key", "only one of them was given", "give both or none")
    lock = _lock(data)
    context = None
    if not no_tls:
        if certificate is None or key is None:
            certificate, key = tls.ensure_certificate(data)
        context = tls.server_context(certificate, key)
    hosts = [_parse(text) for text in listen]
    port, second = hosts[0][1], port2 or hosts[0][1] + 1
    tcp = [_bind(host, number, socket.SOCK_STREAM) for host, number in hosts]
    udp = [_bind(host, number, socket.SOCK_DGRAM) for host, _ in hosts for number in (port, second)]
    store = await SqliteStore.open(data / "networks.sqlite3")
    server = Server(store, Limits(), udp_port=port, udp_port2=second)
    await server.start(tcp, udp, context)
    shown = tls.pin_of(certificate) if certificate is not None and not no_tls else "none (no TLS)"
    log.info("ready listen=%s udp=%d,%d pin=%s", ",".join(listen), port, second, shown)
    notify("READY=1")
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()
    notify("STOPPING=1")
    await server.stop()
    os.close(lock)


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); nothing happens when it did not start us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def _lock(data: Path) -> int:
    """Make the data directory ours alone."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(str(data), "another server uses it", "stop that one, or give another --data") from error
    return descriptor


def _parse(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--listen {text}", "it is not HOST:PORT", "write for example 0.0.0.0:7770 or [::]:7770")
    return host.strip("[]"), int(port)


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
