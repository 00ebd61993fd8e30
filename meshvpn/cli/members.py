"""The commands about who is a member of a network."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from .. import ipc
from .client import USAGE, CliError
from .common import Net, PasswordFile, Peer, Weak, Yes, act, confirm
from .networks import check_names
from .passwords import new_keys


class Access(StrEnum):
    """Who may join; the last four are Hamachi's words."""

    OPEN = "open"
    APPROVE = "approve"
    LOCKED = "locked"
    AUTO = "auto"
    MANUAL = "manual"
    LOCK = "lock"
    UNLOCK = "unlock"


_MEANS = {
    Access.AUTO: Access.OPEN,
    Access.UNLOCK: Access.OPEN,
    Access.MANUAL: Access.APPROVE,
    Access.LOCK: Access.LOCKED,
}


def evict(
    context: typer.Context,
    net: Net,
    peer: Peer,
    new_password: Annotated[bool, typer.Option("--new-password", help="set another password at once")] = False,
    keep_password: Annotated[
        bool, typer.Option("--keep-password", help="ban the member only; it may tell the password to others")
    ] = False,
    password_file: PasswordFile = None,
    force: Weak = False,
    yes: Yes = False,
) -> None:
    """Put a member out for good (owner or admin). What it knew is worthless from then on.

    Unless told otherwise the password is retired too: nobody joins until `passwd` sets another one.
    """
    if new_password and keep_password:
        raise CliError("--new-password and --keep-password exclude each other; give one of them", USAGE)
    fate = "" if new_password or keep_password else " and retire the password"
    confirm(f"Evict {peer} from {net}{fate}?", yes)
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
    """Let an evicted member join again (owner or admin); it needs the password or an invite."""
    act(context.obj, f"Unbanning {peer} in {net}", net, "unban", ipc.PeerRequest(peer=peer))


def passwd(context: typer.Context, net: Net, password_file: PasswordFile = None, force: Weak = False) -> None:
    """Set another password for joining (owner or admin).

    Members and calls do not notice, and nobody joins by the old one.
    """
    check_names(net)
    keys = new_keys(context.obj.client, net, password_file, force=force)
    request = ipc.PasswordRequest(name=net, locator=keys.locator.hex(), wrap_key=keys.wrap_key.hex())
    act(context.obj, f"Changing the password of {net}", net, "passwd", request)


def access(
    context: typer.Context,
    net: Net,
    mode: Annotated[Access, typer.Argument(metavar="open|approve|locked", help="who may join", show_choices=False)],
) -> None:
    """Say who may join (owner or admin).

    open: whoever knows the password; approve: only whom an admin approves; locked: nobody. Members stay.
    """
    mode = _MEANS.get(mode, mode)
    act(context.obj, f"Setting access to {net} to {mode}", net, "access", ipc.AccessRequest(access=mode))


def approve(context: typer.Context, net: Net, peer: Peer) -> None:
    """Let in who waits for it, `?` in the list (owner or admin)."""
    act(context.obj, f"Approving {peer} in {net}", net, "approve", ipc.PeerRequest(peer=peer))


def reject(context: typer.Context, net: Net, peer: Peer) -> None:
    """Send away who waits to be approved, for good (owner or admin)."""
    act(context.obj, f"Rejecting {peer} in {net}", net, "reject", ipc.PeerRequest(peer=peer))
