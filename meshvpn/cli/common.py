"""What the commands have in common: their arguments, and how they ask the daemon and tell what came of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar
from urllib.parse import quote

import msgspec
import typer

from .. import ipc
from ..proto.errors import ConfigError
from ..proto.keys import normalise_name
from .client import REFUSED, USAGE, Client, CliError
from .passwords import is_terminal

T = TypeVar("T")


@dataclass(slots=True)
class Options:
    """What stands before the command."""

    client: Client
    json: bool


Net = Annotated[str, typer.Argument(metavar="NET", help="the network's name")]
Peer = Annotated[str, typer.Argument(metavar="PEER", help="nickname, address, or the first digits of the identity")]
PasswordFile = Annotated[str | None, typer.Option("--password-file", help="file with the password, or - for stdin")]
Weak = Annotated[bool, typer.Option("--force", help="take a password that is easily guessed")]
Interface = Annotated[str | None, typer.Option("--interface", help="name of the network interface")]
Nick = Annotated[str | None, typer.Option("--nick", help="this host's name in the network")]
Yes = Annotated[
    bool, typer.Option("--yes", help="do not ask; nobody is asked either when standard input is no terminal")
]


def act(options: Options, doing: str, net: str, action: str, body: msgspec.Struct | None = None) -> ipc.Reply:
    """Have something done to a network."""
    where = route(net, action)
    reply = say(doing, lambda: options.client.post(where, body, ipc.Reply), quiet=options.json)
    tell(options, reply)
    return reply


def tell(options: Options, reply: ipc.Reply) -> None:
    """What is to be known besides `.. ok`."""
    if options.json:
        print_json(reply)
    elif reply.note is not None:
        print(reply.note)


def route(net: str, action: str) -> str:
    """Where the daemon is asked about a network. Raises CliError if no network can be called that."""
    try:
        normalise_name(net)
    except ConfigError as error:
        raise CliError(str(error), USAGE) from error
    return f"/v1/networks/{quote(net, safe='')}/{action}"


def say(doing: str, call: Callable[[], T], *, quiet: bool) -> T:
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


def confirm(question: str, yes: bool) -> None:
    """Ask a person, if one sits there, whether it is meant. Raises CliError if it is not."""
    if yes or not is_terminal(sys.stdin):
        return
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CliError("not done", REFUSED)


def print_json(value: object) -> None:
    """As a program reads it."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
