"""`admin …` and `owner …`: who else may change a network, and the owner's key outside of this host."""

from __future__ import annotations

import base64
import os
from typing import Annotated

import typer

from .. import ipc
from ..proto.ownerfile import MAX_FILE, SALT, derive_key, salt_of
from . import show
from .client import REFUSED, USAGE, CliError
from .common import Interface, Net, Nick, Peer, Weak, act, print_json, route, say
from .networks import check_names, enter, own_nick
from .passwords import new_secret, read_secret, reported, wipe
from .server import Server, ServerPin, parse_server

admin = typer.Typer(help="Appoint members who may evict, approve, invite as the owner does.")
owner = typer.Typer(help="Keep the owner's key elsewhere: this host may die, the network not.")

File = Annotated[str, typer.Argument(metavar="FILE", help="the exported key")]
PassphraseFile = Annotated[
    str | None, typer.Option("--passphrase-file", help="file with the passphrase, or - for stdin")
]


@admin.command("add")
def add_admin(context: typer.Context, net: Net, peer: Peer) -> None:
    """Make a member an admin (owner).

    It may evict, unban, approve, reject, invite, and set password and access, from its own PBX.
    """
    act(context.obj, f"Making {peer} an admin of {net}", net, "admin-add", ipc.PeerRequest(peer=peer))


@admin.command("remove")
def remove_admin(context: typer.Context, net: Net, peer: Peer) -> None:
    """Make an admin a member like any other (owner). What it did stays."""
    act(context.obj, f"Taking admin rights in {net} from {peer}", net, "admin-remove", ipc.PeerRequest(peer=peer))


@admin.command("list")
def list_admins(context: typer.Context, net: Net) -> None:
    """Show who may change the network."""
    found = context.obj.client.get(route(net, "admins"), list[ipc.AdminView])
    if context.obj.json:
        print_json(found)
        return
    rows = [
        [view.role, view.identity[:8], f"{view.nick or '-'}{' (this host)' if view.is_here else ''}"] for view in found
    ]
    print("\n".join(show.columns(rows)))


@owner.command("export")
def export_owner(
    context: typer.Context, net: Net, file: File, passphrase_file: PassphraseFile = None, force: Weak = False
) -> None:
    """Write the owner's key to a new file, under a passphrase.

    Whoever has both owns the network. The key stays here, too.
    """
    check_names(net)
    if os.path.lexists(file):
        raise CliError(f"{file} is there already; give another name", REFUSED)
    passphrase = new_secret(context.obj.client, "passphrase", [net], passphrase_file, force=force)
    salt = os.urandom(SALT)
    key = _derive(passphrase, salt)
    where, request = route(net, "export-owner"), ipc.ExportRequest(salt=salt.hex(), key=key.hex())
    doing = f"Exporting the owner's key of {net}"

    def export() -> ipc.Reply:
        _write_new(file, base64.b64decode(context.obj.client.post(where, request, ipc.OwnerFile).file))
        return ipc.Reply(message=f"written to {file}")

    reply = say(doing, export, quiet=context.obj.json)
    if context.obj.json:
        print_json(reply)
    else:
        print(f"{file} and the passphrase own {net}: keep them apart, and away from this host")
        print("to use them: meshvpn owner import FILE, on any host")


@owner.command("import")
def import_owner(
    context: typer.Context,
    file: File,
    server: Server = None,
    server_pin: ServerPin = None,
    nick: Nick = None,
    interface: Interface = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Own a network by an exported key, on this host.

    A host that is not in the network joins it by that, even if its password is not known any more.
    """
    check_names(None, nick, interface)
    where = None if server is None and server_pin is None else parse_server(server, server_pin)
    context.obj.client.check()
    content = _read(file)
    with reported():
        salt = salt_of(content)
    key = _derive(read_secret("passphrase", "Passphrase: ", passphrase_file), salt)
    request = ipc.ImportRequest(
        file=base64.b64encode(content).decode(),
        key=key.hex(),
        server=where,
        nick=nick or own_nick(),
        interface=interface,
    )
    enter(context.obj, f"Importing the owner's key from {file}", "/v1/networks/import", request)


def _derive(passphrase: bytearray, salt: bytes) -> bytes:
    with reported():
        try:
            return derive_key(passphrase, salt)
        finally:
            wipe(passphrase)


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(MAX_FILE + 1)
    except OSError as error:
        raise CliError(f"{file} cannot be read ({_why(error)})", USAGE) from error


def _write_new(file: str, content: bytes) -> None:
    """Write a file that must not be there yet, for this user alone, so that it survives a crash. Raises CliError."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CliError(f"{file} cannot be made ({_why(error)}); give another name", REFUSED) from error
    try:
        with os.fdopen(descriptor, "wb") as output:
            output.write(content)
            output.flush()
            os.fsync(descriptor)
    except OSError as error:
        os.unlink(file)
        raise CliError(f"{file} cannot be written ({_why(error)}); nothing is left of it", REFUSED) from error


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
