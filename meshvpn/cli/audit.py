"""The command `events`: what happens, and what happened to a network's membership."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer

from .. import ipc
from ..proto.keys import normalise_name
from .client import USAGE, CliError
from .common import Options, print_json, route

DID = {
    "joined": "joined",
    "left": "left",
    "evict": "was evicted",
    "unban": "was unbanned",
    "passwd": "the password was changed",
    "access": "access was set",
    "approve": "was approved",
    "reject": "was rejected",
    "admin_add": "was made an admin",
    "admin_remove": "is no admin any more",
    "invite": "an invite was made",
    "revoke": "an invite was revoked",
    "delete": "the network was deleted",
}


def events(
    context: typer.Context,
    net: Annotated[str | None, typer.Argument(metavar="NET", help="the network of which to tell the history")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="with NET: then go on with what happens")] = False,
    count: Annotated[int, typer.Option("-n", "--lines", min=0, help="with NET: the newest so many; 0: all")] = 50,
) -> None:
    """Print what happens; with NET, who joined, left, was evicted.

    Without NET all events as they happen. With it the network's audit list: who did what, and when.
    """
    if net is None:
        if follow:
            raise CliError("--follow goes with a network; without one all events are followed anyway", USAGE)
        _stream(context.obj)
        return
    where = route(net, "audit")
    # Opened before the list is read: what happens in between is in both, and nothing is missed.
    news = context.obj.client.events() if follow else iter(())
    listed = context.obj.client.get(where, list[ipc.AuditView])
    shown = listed[-count:] if count else listed
    if context.obj.json and not follow:
        print_json(shown)
        return
    for entry in shown:
        _print(context.obj, entry)
    if not listed and not follow:
        print(f"nothing happened yet that this host heard of; `meshvpn list` shows who is in {net}")
    newest = listed[-1].number if listed else 0
    for entry in _audited(news, net):
        if entry.number > newest:
            _print(context.obj, entry)


def _stream(options: Options) -> None:
    for line in options.client.events():
        if options.json:
            print(line.decode(), end="", flush=True)
        else:
            event = msgspec.json.decode(line, type=ipc.EventView)
            detail = " ".join(f"{key}={value}" for key, value in event.detail.items())
            print(f"{event.at} {event.network} {event.kind} {event.peer or ''} {detail}".rstrip(), flush=True)


def _audited(lines: Iterator[bytes], net: str) -> Iterator[ipc.AuditView]:
    for line in lines:
        event = msgspec.json.decode(line, type=ipc.EventView)
        if event.audit is not None and normalise_name(event.network) == normalise_name(net):
            yield event.audit


def _print(options: Options, entry: ipc.AuditView) -> None:
    if options.json:
        print(msgspec.json.encode(entry).decode(), flush=True)
    else:
        print(text(entry), flush=True)


def text(entry: ipc.AuditView) -> str:
    """An entry, for people."""
    who = f"{entry.nick or entry.identity[:8]} ({entry.identity[:8]}) " if entry.identity else ""
    what = DID.get(entry.kind, entry.kind)
    detail = f" ({entry.detail})" if entry.detail else ""
    by = "" if entry.by_identity == entry.identity else f", by {entry.by or entry.by_identity[:8]}"
    doubt = "" if entry.is_proven else "  ! its signature does not hold"
    return f"{entry.at}  {who}{what}{detail}{by}{doubt}"
