"""Invites: codes by which others join without the password."""

from __future__ import annotations

import re
import shlex
from typing import Annotated

import typer

from .. import ipc
from ..proto.errors import ConfigError
from ..proto.invites import MAX_TTL, MAX_USES, secret_of
from .client import USAGE, Client, CliError
from .common import Net, act, print_json, route, say
from .passwords import read_secret, reported, wipe

MIN_TTL = 60
"""Seconds: less would be over before anybody has typed it."""
_TTL = re.compile(r"([1-9]\d{0,7})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def invite(
    context: typer.Context,
    net: Net,
    uses: Annotated[int, typer.Option("--uses", min=1, max=MAX_USES, help="how many hosts may join by it")] = 1,
    ttl: Annotated[str, typer.Option("--ttl", help="how long it is good: 90m, 24h or 7d")] = "24h",
    revoke: Annotated[
        str | None, typer.Option("--revoke", metavar="INVITE", help="let nobody in by it any more")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="show the invites that may still be used")] = False,
) -> None:
    """Make a code by which a host joins without the password.

    It is good once and for a day, unless told otherwise; evicting anybody makes all codes worthless (owner or admin).
    """
    if revoke is not None and show:
        raise CliError("--list and --revoke exclude each other; give one of them", USAGE)
    if show:
        _list(context, net)
    elif revoke is not None:
        act(context.obj, f"Revoking invite {revoke} of {net}", net, "revoke", ipc.RevokeRequest(invite=revoke))
    else:
        _make(context, net, uses, parse_ttl(ttl))


def _make(context: typer.Context, net: str, uses: int, ttl: int) -> None:
    where, request = route(net, "invite"), ipc.InviteRequest(uses=uses, ttl=ttl)
    made = say(
        f"Inviting to {net}",
        lambda: context.obj.client.post(where, request, ipc.InviteReply),
        quiet=context.obj.json,
    )
    if context.obj.json:
        print_json(made)
        return
    pin = f" --server-pin {made.server.pin}" if made.server.pin else ""
    hosts = "one host" if uses == 1 else f"{uses} hosts"
    print(f"the code, for {hosts} until {made.expires_at}:\n")
    print(f"    {made.code}\n")
    print("on the other PBX type this, and the code when it is asked for:\n")
    print(f"    meshvpn join --invite --server {shlex.quote(made.server.url)}{pin}\n")
    print(f"to take it back: meshvpn invite {shlex.quote(net)} --revoke {made.invite}")
    if made.note is not None:
        print(made.note)


def _list(context: typer.Context, net: str) -> None:
    found = context.obj.client.get(route(net, "invites"), list[ipc.InviteView])
    if context.obj.json:
        print_json(found)
        return
    for entry in found:
        print(f"{entry.invite}  for {entry.uses} host{'' if entry.uses == 1 else 's'} until {entry.expires_at}")
    if not found:
        print(f"no open invites; `meshvpn invite {net}` makes one")


def parse_ttl(text: str) -> int:
    """Seconds. Raises CliError."""
    match = _TTL.fullmatch(text.strip())
    ttl = 0 if match is None else int(match[1]) * _UNITS[match[2]]
    if not MIN_TTL <= ttl <= MAX_TTL:
        raise CliError(f"--ttl {text} is no time from a minute to a year; write for example 90m, 24h or 7d", USAGE)
    return ttl


def read_invite(client: Client, file: str | None) -> bytes:
    """An invite's secret, typed in or from a file, - for standard input. Raises CliError."""
    client.check()
    code = read_secret("password", "Invite code (it is not shown): ", file)
    with reported():
        try:
            return secret_of(code.decode())
        except UnicodeDecodeError:
            raise ConfigError("invite code", "it is not valid UTF-8", "copy the whole code") from None
        finally:
            wipe(code)


def refuse_argument(net: str | None) -> None:
    """Raise CliError if an invite's code was given as an argument, which all users of this host can read."""
    try:
        secret_of(net or "")
    except ConfigError:
        return
    raise CliError(
        "an invite's code is never an argument; give --invite alone, and the code when it is asked for", USAGE
    )
