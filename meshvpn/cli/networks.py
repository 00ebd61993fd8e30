"""The commands about a network and this host in it."""

from __future__ import annotations

import socket
from typing import Annotated

import msgspec
import typer

from .. import ipc
from ..proto.errors import ConfigError
from ..proto.keys import check_interface, check_nick, check_pool, nick_from_hostname, normalise_name
from .client import USAGE, CliError
from .common import Interface, Net, Nick, Options, PasswordFile, Weak, Yes, act, confirm, print_json, route, say
from .invites import read_invite, refuse_argument
from .passwords import join_keys, new_keys
from .server import Server, ServerPin, parse_server

Force = Annotated[bool, typer.Option("--force", help="even if the server cannot be told, because it is gone for good")]
OptionalNet = Annotated[str | None, typer.Argument(metavar="NET", help="the network's name; --invite knows it")]
ByInvite = Annotated[bool, typer.Option("--invite", help="by an invite's code, which is asked for, not the password")]


def create(
    context: typer.Context,
    net: Net,
    server: Server = None,
    server_pin: ServerPin = None,
    nick: Nick = None,
    subnet: Annotated[str | None, typer.Option(help="addresses of the network, such as 10.77.5.0/24")] = None,
    interface: Interface = None,
    password_file: PasswordFile = None,
    force: Weak = False,
) -> None:
    """Found a network; this host becomes its owner."""
    check_names(net, nick, interface, subnet)
    where = parse_server(server, server_pin)
    keys = new_keys(context.obj.client, net, password_file, force=force)
    request = ipc.CreateRequest(
        name=net,
        locator=keys.locator.hex(),
        wrap_key=keys.wrap_key.hex(),
        server=where,
        nick=nick or own_nick(),
        pool=subnet,
        interface=interface,
    )
    enter(context.obj, f"Creating network {net}", "/v1/networks", request)
    if not context.obj.json:
        print(f"keep the owner's key elsewhere too, this host may die: meshvpn owner export {net} FILE")


def join(
    context: typer.Context,
    net: OptionalNet = None,
    server: Server = None,
    server_pin: ServerPin = None,
    nick: Nick = None,
    interface: Interface = None,
    password_file: PasswordFile = None,
    invite: ByInvite = False,
) -> None:
    """Join a network by its name and password, or by an invite."""
    if net is None and not invite:
        raise CliError("missing argument 'NET'; see `meshvpn join --help`", USAGE)
    refuse_argument(net)
    check_names(net, nick, interface)
    where = parse_server(server, server_pin)
    nick = nick or own_nick()
    if invite:
        secret = read_invite(context.obj.client, password_file)
        invited = ipc.InvitedRequest(secret=secret.hex(), server=where, name=net, nick=nick, interface=interface)
        enter(context.obj, f"Joining network {net or 'by invite'}", "/v1/networks/join-by-invite", invited)
        return
    assert net is not None, "checked above"
    keys = join_keys(context.obj.client, net, password_file)
    request = ipc.JoinRequest(
        name=net,
        locator=keys.locator.hex(),
        wrap_key=keys.wrap_key.hex(),
        server=where,
        nick=nick,
        interface=interface,
    )
    enter(context.obj, f"Joining network {net}", "/v1/networks/join", request)


def leave(context: typer.Context, net: Net, force: Force = False, yes: Yes = False) -> None:
    """Leave a network for good; the owner ends it with `delete`."""
    confirm(f"Leave {net} and forget its keys?", yes)
    act(context.obj, f"Leaving network {net}", net, "leave", ipc.LeaveRequest(force=force))


def delete(context: typer.Context, net: Net, force: Force = False, yes: Yes = False) -> None:
    """End a network for everybody (owner)."""
    confirm(f"End {net} for all its members?", yes)
    act(context.obj, f"Deleting network {net}", net, "delete", ipc.LeaveRequest(force=force))


def up(context: typer.Context, net: Net) -> None:
    """Go online in a network."""
    act(context.obj, f"Going online in {net}", net, "up")


def down(context: typer.Context, net: Net) -> None:
    """Go offline in a network; it stays down after a restart too."""
    act(context.obj, f"Going offline in {net}", net, "down")


def nick(context: typer.Context, net: Net, name: Annotated[str, typer.Argument(metavar="NICK")]) -> None:
    """Take another nickname."""
    check_names(net, name)
    act(context.obj, f"Setting nickname to {name}", net, "nick", ipc.NickRequest(nick=name))


def reidentify(
    context: typer.Context, net: Net, invite: ByInvite = False, password_file: PasswordFile = None, yes: Yes = False
) -> None:
    """Become another member, with keys and address of its own.

    For a host that is a copy of another one, or whose keys may have been read. The old identity stays with whoever
    has it: evict it if that is a thief, or nobody.
    """
    check_names(net)
    confirm(f"Take a new identity and address in {net}? Whoever has the old ones keeps them.", yes)
    secret = read_invite(context.obj.client, password_file).hex() if invite else None
    request = ipc.ReidentifyRequest(secret=secret)
    enter(context.obj, f"Joining {net} as a new member", route(net, "reidentify"), request)


def enter(options: Options, doing: str, where: str, request: msgspec.Struct) -> None:
    """Have this host become a member, and tell what it is now."""
    network = say(doing, lambda: options.client.post(where, request, ipc.NetworkView), quiet=options.json)
    if options.json:
        print_json(network)
        return
    print(f"this host is {network.nick} {network.address} on {network.interface}")
    if network.is_pending:
        print(f"it waits for an admin, who has to type: meshvpn approve {network.network} {network.nick}")


def own_nick() -> str:
    """What this host is called if nothing else is said."""
    return nick_from_hostname(socket.gethostname())


def check_names(
    net: str | None, nick: str | None = None, interface: str | None = None, subnet: str | None = None
) -> None:
    """Raise CliError for what can be no network, nickname, interface or pool; None is not checked."""
    try:
        if net is not None:
            normalise_name(net)
        if nick is not None:
            check_nick(nick)
        if interface is not None:
            check_interface(interface)
        if subnet is not None:
            check_pool(subnet)
    except ConfigError as error:
        raise CliError(str(error), USAGE) from error
