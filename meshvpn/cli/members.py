"""The commands about the members of a network."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import ipc
from .client import USAGE, CliError
from .common import Net, PasswordFile, Peer, Weak, Yes, act, confirm
from .passwords import new_keys


def evict(
    context: typer.Context,
    net: Net,
    peer: Peer,
    new_password: Annotated[bool, typer.Option("--new-password", help="set another password at once")] = False,
    keep_password: Annotated[bool, typer.Option("--keep-password", help="ban the member only")] = False,
    password_file: PasswordFile = None,
    force: Weak = False,
    yes: Yes = False,
) -> None:
    """Put a member out for good. Unless told otherwise the password is retired: nobody joins until `passwd`."""
    if new_password and keep_password:
        raise CliError("--new-password and --keep-password exclude each other; give one of them", USAGE)
    confirm(f"Evict {peer} from {net}?", yes)
    request = ipc.EvictRequest(peer=peer, password="keep" if keep_password else "retire")
    if new_password:
        keys = new_keys(context.obj.client, net, password_file, force=force)
        request = ipc.EvictRequest(
            peer=peer,
            password="new",
            name=net,
            locator=keys.locator.hex(),
            wrap_key=keys.wrap_key.hex(),
        )
    act(context.obj, f"Evicting {peer} from {net}", net, "evict", request)


def unban(context: typer.Context, net: Net, peer: Peer) -> None:
    """Let an evicted member join again."""
    act(context.obj, f"Unbanning {peer} in {net}", net, "unban", ipc.PeerRequest(peer=peer))
