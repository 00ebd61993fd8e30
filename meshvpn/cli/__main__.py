"""The command `meshvpn`."""

from __future__ import annotations

import errno
import io
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar
from urllib.parse import quote

import msgspec
import typer
from typer.exceptions import TyperException

import meshvpn

from .. import ipc
from ..proto.errors import ConfigError
from ..proto.keys import check_interface, check_nick, check_pool, nick_from_hostname, normalise_name
from ..usage import usage_line
from . import show
from .client import REFUSED, USAGE, Client, CliError
from .passwords import is_terminal, read_keys
from .server import parse_server

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

T = TypeVar("T")
INTERRUPTED = 130


@dataclass(slots=True)
class Options:
    """What stands before the command."""

    client: Client
    json: bool


Server = Annotated[str | None, typer.Option("--server", help="rendezvous: HOST, HOST:PORT or a URL")]
ServerPin = Annotated[str | None, typer.Option("--server-pin", help="sha256:… of the server's certificate")]
Nick = Annotated[str | None, typer.Option("--nick", help="this host's name in the network")]
Interface = Annotated[str | None, typer.Option("--interface", help="name of the network interface")]
PasswordFile = Annotated[str | None, typer.Option("--password-file", help="file with the password, or - for stdin")]
Yes = Annotated[
    bool, typer.Option("--yes", help="do not ask; nobody is asked either when standard input is no terminal")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"meshvpn {meshvpn.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    socket_path: Annotated[
        str, typer.Option("--socket", envvar=ipc.SOCKET_ENVIRONMENT, help="the daemon's socket")
    ] = ipc.DEFAULT_SOCKET,
    json: Annotated[bool, typer.Option("--json", help="print JSON; may also stand after the command")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Join Asterisk PBXs into one private, encrypted network."""
    context.obj = Options(Client(socket_path), json)


@app.command()
def create(
    context: typer.Context,
    net: str,
    server: Server = None,
    server_pin: ServerPin = None,
    nick: Nick = None,
    subnet: Annotated[str | None, typer.Option(help="addresses of the network, such as 10.77.5.0/24")] = None,
    interface: Interface = None,
    password_file: PasswordFile = None,
) -> None:
    """Found a network; this host becomes its owner."""
    _check(net, nick, interface, subnet)
    where = parse_server(server, server_pin)
    keys = read_keys(context.obj.client, net, password_file, is_new=True)
    request = ipc.CreateRequest(
        name=net,
        locator=keys.locator.hex(),
        wrap_key=keys.wrap_key.hex(),
        server=where,
        nick=nick or nick_from_hostname(socket.gethostname()),
        pool=subnet,
        interface=interface,
    )
    _enter(context.obj, f"Creating network {net}", "/v1/networks", request)


@app.command()
def join(
    context: typer.Context,
    net: str,
    server: Server = None,
    server_pin: ServerPin = None,
    nick: Nick = None,
    interface: Interface = None,
    password_file: PasswordFile = None,
) -> None:
    """Join a network by its name and password."""
    _check(net, nick, interface)
    where = parse_server(server, server_pin)
    keys = read_keys(context.obj.client, net, password_file, is_new=False)
    request = ipc.JoinRequest(
        name=net,
        locator=keys.locator.hex(),
        wrap_key=keys.wrap_key.hex(),
        server=where,
        nick=nick or nick_from_hostname(socket.gethostname()),
        interface=interface,
    )
    _enter(context.obj, f"Joining network {net}", "/v1/networks/join", request)


@app.command()
def leave(context: typer.Context, net: str, yes: Yes = False) -> None:
    """Leave a network for good; the owner ends it with `delete`."""
    _confirm(f"Leave {net} and forget its keys?", yes)
    _act(context.obj, f"Leaving network {net}", net, "leave")


@app.command()
def delete(context: typer.Context, net: str, yes: Yes = False) -> None:
    """End a network for everybody (owner)."""
    _confirm(f"End {net} for all its members?", yes)
    _act(context.obj, f"Deleting network {net}", net, "delete")


@app.command()
def up(context: typer.Context, net: str) -> None:
    """Go online in a network."""
    _act(context.obj, f"Going online in {net}", net, "up")


@app.command()
def down(context: typer.Context, net: str) -> None:
    """Go offline in a network; it stays down after a restart too."""
    _act(context.obj, f"Going offline in {net}", net, "down")


@app.command()
def nick(context: typer.Context, net: str, name: str) -> None:
    """Take another nickname."""
    _check(net, name)
    _act(context.obj, f"Setting nickname to {name}", net, "nick", ipc.NickRequest(nick=name))


@app.command()
def evict(
    context: typer.Context,
    net: str,
    peer: str,
    new_password: Annotated[bool, typer.Option("--new-password", help="set another password at once")] = False,
    keep_password: Annotated[bool, typer.Option("--keep-password", help="ban the member only")] = False,
    password_file: PasswordFile = None,
    yes: Yes = False,
) -> None:
    """Put a member out for good. Unless told otherwise the password is retired: nobody joins until `passwd`."""
    if new_password and keep_password:
        raise CliError("--new-password and --keep-password exclude each other; give one of them", USAGE)
    _confirm(f"Evict {peer} from {net}?", yes)
    request = ipc.EvictRequest(peer=peer, password="keep" if keep_password else "retire")
    if new_password:
        keys = read_keys(context.obj.client, net, password_file, is_new=True)
        request = ipc.EvictRequest(
            peer=peer,
            password="new",
            name=net,
            locator=keys.locator.hex(),
            wrap_key=keys.wrap_key.hex(),
        )
    _act(context.obj, f"Evicting {peer} from {net}", net, "evict", request)


@app.command()
def unban(context: typer.Context, net: str, peer: str) -> None:
    """Let an evicted member join again."""
    _act(context.obj, f"Unbanning {peer} in {net}", net, "unban", ipc.PeerRequest(peer=peer))


@app.command()
def passwd(context: typer.Context, net: str, password_file: PasswordFile = None) -> None:
    """Set the password for who joins from now on; members and calls do not notice."""
    _check(net)
    keys = read_keys(context.obj.client, net, password_file, is_new=True)
    request = ipc.PasswordRequest(name=net, locator=keys.locator.hex(), wrap_key=keys.wrap_key.hex())
    _act(context.obj, f"Changing the password of {net}", net, "passwd", request)


@app.command(name="list")
def list_networks(context: typer.Context) -> None:
    """Show networks and members. Markers: * online, x unreachable, ? waits for approval, ! needs attention."""
    networks = context.obj.client.get("/v1/networks", list[ipc.NetworkView])
    if context.obj.json:
        _print_json(networks)
        return
    for network in networks:
        print("\n".join(show.network_lines(network)))
    if not networks:
        print("no networks; `meshvpn create NET` founds one, `meshvpn join NET` joins one")


@app.command()
def peers(context: typer.Context, net: str) -> None:
    """Show one row a member: path, quality, traffic."""
    found = context.obj.client.get(f"/v1/networks/{_quoted(net)}/peers", list[ipc.PeerView])
    if context.obj.json:
        _print_json(found)
    else:
        print("\n".join(show.columns(show.peer_rows(found))))


@app.command()
def status(context: typer.Context) -> None:
    """Show the daemon."""
    found = context.obj.client.get("/v1/status", ipc.Status)
    if context.obj.json:
        _print_json(found)
        return
    print(f"version    : {found.version}\npid        : {found.pid}\nuptime     : {found.uptime_s:.0f} s")
    for server in found.servers:
        detail = f" ({server.detail})" if server.detail else ""
        print(f"network    : {server.network} on {server.url}, {server.state}{detail}")
    for name, features in found.engine.items():
        print(f"engine     : {name} {' '.join(key for key, is_on in features.items() if is_on)}")
    for problem in found.problems:
        print(f"problem    : {problem}")


@app.command()
def ping(
    context: typer.Context,
    net: str,
    peer: str,
    count: Annotated[int, typer.Option("-c", "--count", min=1, max=1000, help="how many")] = 4,
) -> None:
    """Measure the round trip to a member on the path in use."""
    replies: list[ipc.PingReply] = []
    for number in range(count):
        started = time.monotonic()
        request = ipc.PingRequest(peer=peer)
        reply = context.obj.client.post(f"/v1/networks/{_quoted(net)}/ping", request, ipc.PingReply)
        replies.append(reply)
        if not context.obj.json:
            answer = "no answer" if reply.rtt_ms is None else f"{reply.rtt_ms:.2f} ms"
            print(f"{reply.nick} ({reply.address}) {reply.path}: {answer}", flush=True)
        if number + 1 < count and reply.rtt_ms is not None:
            time.sleep(max(0.0, 1.0 - (time.monotonic() - started)))  # one a second, like ping
    if context.obj.json:
        _print_json(replies)
    if all(reply.rtt_ms is None for reply in replies):
        raise typer.Exit(REFUSED)


@app.command()
def events(context: typer.Context) -> None:
    """Print what happens as it happens."""
    for line in context.obj.client.events():
        if context.obj.json:
            print(line.decode(), end="", flush=True)
        else:
            event = msgspec.json.decode(line, type=ipc.EventView)
            detail = " ".join(f"{key}={value}" for key, value in event.detail.items())
            print(f"{event.at} {event.network} {event.kind} {event.peer or ''} {detail}".rstrip(), flush=True)


# Hamachi's words for the same.
app.command(name="go-online", hidden=True)(up)
app.command(name="go-offline", hidden=True)(down)
app.command(name="set-nick", hidden=True)(nick)
app.command(name="set-pass", hidden=True)(passwd)


def main() -> None:
    """Entry point: one line for each failure, never a traceback for what the user can mend."""
    try:
        status = _run(sys.argv[1:])
    except CliError as error:
        status = _fail(str(error), error.status)
    except TyperException as error:
        status = _fail(usage_line(error, "meshvpn"), USAGE)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except OSError as error:  # of standard output: what else fails is a CliError
        # So that the interpreter does not try again, and fail aloud, when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        is_pipe = error.errno == errno.EPIPE
        why = (error.strerror or str(error)).lower()
        status = REFUSED if is_pipe else _fail(f"standard output cannot be written ({why})", REFUSED)
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a nickname that the terminal's encoding does not have
    try:
        "".join(arguments).encode()
    except UnicodeEncodeError as error:
        raise CliError("the arguments are not valid UTF-8; check the terminal's encoding", USAGE) from error
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in options:
        arguments.remove("--json")
        arguments.insert(0, "--json")
    status = app(arguments or ["--help"], prog_name="meshvpn", standalone_mode=False)
    if sys.stdout is not None:
        sys.stdout.flush()
    return USAGE if not arguments else int(status or 0)


def _fail(message: str, status: int) -> int:
    print(f"meshvpn: {message}", file=sys.stderr)
    return status


def _enter(options: Options, doing: str, route: str, request: msgspec.Struct) -> None:
    network = _said(doing, lambda: options.client.post(route, request, ipc.NetworkView), quiet=options.json)
    if options.json:
        _print_json(network)
    else:
        print(f"this host is {network.nick} {network.address} on {network.interface}")


def _act(options: Options, doing: str, net: str, action: str, body: msgspec.Struct | None = None) -> None:
    route = f"/v1/networks/{_quoted(net)}/{action}"
    reply = _said(doing, lambda: options.client.post(route, body, ipc.Reply), quiet=options.json)
    if options.json:
        _print_json(reply)


def _said(doing: str, call: Callable[[], T], *, quiet: bool) -> T:
    """Hamachi's words: `Joining network piaf-vpn .. ok`, or `.. failed, reason` on stderr."""
    is_watched = not quiet and is_terminal(sys.stderr)
    if is_watched:
        print(f"{doing} .. ", end="", file=sys.stderr, flush=True)
    try:
        result = call()
    except CliError as error:
        raise CliError(f"{doing} .. failed, {error}", error.status) from error
    finally:
        if is_watched:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    if not quiet:
        print(f"{doing} .. ok")
    return result


def _check(net: str, nick: str | None = None, interface: str | None = None, subnet: str | None = None) -> None:
    try:
        normalise_name(net)
        if nick is not None:
            check_nick(nick)
        if interface is not None:
            check_interface(interface)
        if subnet is not None:
            check_pool(subnet)
    except ConfigError as error:
        raise CliError(str(error), USAGE) from error


def _confirm(question: str, yes: bool) -> None:
    if yes or not is_terminal(sys.stdin):
        return
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CliError("not done", REFUSED)


def _quoted(net: str) -> str:
    return quote(net, safe="")


def _print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


if __name__ == "__main__":
    main()
