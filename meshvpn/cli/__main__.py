"""The command `meshvpn`."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from typer.exceptions import TyperException

import meshvpn

from .. import ipc
from ..dumps import forbid_dumps
from ..usage import usage_line
from . import admins, audit, invites, members, netcheck, networks, ping, views
from .client import REFUSED, USAGE, Client, CliError
from .common import Options

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

INTERRUPTED = 130


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


COMMANDS: dict[str, Callable[..., None]] = {
    "create": networks.create,
    "join": networks.join,
    "leave": networks.leave,
    "delete": networks.delete,
    "up": networks.up,
    "down": networks.down,
    "nick": networks.nick,
    "reidentify": networks.reidentify,
    "passwd": members.passwd,
    "access": members.access,
    "invite": invites.invite,
    "approve": members.approve,
    "reject": members.reject,
    "evict": members.evict,
    "unban": members.unban,
    "list": views.list_networks,
    "peers": views.peers,
    "status": views.status,
    "ping": ping.ping,
    "netcheck": netcheck.netcheck,
    "events": audit.events,
}
GROUPS = {"admin": admins.admin, "owner": admins.owner}
HAMACHIS_WORDS = {
    "do-join": "join",
    "go-online": "up",
    "go-offline": "down",
    "set-nick": "nick",
    "set-pass": "passwd",
    "set-access": "access",
}

for name, command in COMMANDS.items():
    app.command(name)(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)
for word, name in HAMACHIS_WORDS.items():
    app.command(word, hidden=True)(COMMANDS[name])


def main() -> None:
    """Entry point: one line for each failure, never a traceback for what the user can mend."""
    forbid_dumps()
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


if __name__ == "__main__":
    main()
