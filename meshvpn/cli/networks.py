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
from .common import Net, Options, PasswordFile, Weak, Yes, act, confirm, print_json, say
from .passwords import join_keys, new_keys
from .server import parse_server

Server = Annotated[str | None, typer.Option("--server", help="rendezvous: HOST, HOST:PORT or a URL")]
ServerPin = Annotated[str | None, typer.Option("--server-pin", help="sha256:… of the server's certificate")]
Nick = Annotated[str | None, typer.Option("--nick", help="this host's name in the network")]
Interface = Annotated[str | None, typer.Option("--interface", help="name of the network interface")]


Force = Annotated[bool, typer.Option("--force", help="even if the server cannot be told, because it is gone for good")]


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
    _check(net, nick, interface, subnet)
    where = parse_server(server, server_pin)
    keys = new_keys(context.obj.client, net, password_file, force=force)
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


def join(
    context: typer.Context,
    net: Net,
    server: Server = None,
    server_pin: ServerPin = None,
    nick: Nick = None,
    interface: Interface = None,
    password_file: PasswordFile = None,
) -> None:
    """Join a network by its name and password."""
    _check(net, nick, interface)
    where = parse_server(server, server_pin)
    keys = join_keys(context.obj.client, net, password_file)
    request = ipc.JoinRequest(
        name=net,
        locator=keys.locator.hex(),
        wrap_key=keys.wrap_key.hex(),
        server=where,
        nick=nick or nick_from_hostname(socket.gethostname()),
        interface=interface,
    )
    _enter(context.obj, f"Joining network {net}", "/v1/networks/join", request)


def leave(context: typer.Context, net: Net, force: Force = False, yes: Yes = False) -> None:
    """Leave a network for good; the owner ends it with `delete`."""
    confirm(f"Leave {net} and forget its keys?", yes)
    _end(context.obj, f"Leaving network {net}", net, "leave", force=force)


def delete(context: typer.Context, net: Net, force: Force = False, yes: Yes = False) -> None:
    """End a network for everybody (owner)."""
    confirm(f"End {net} for all its members?", yes)
    _end(context.obj, f"Deleting network {net}", net, "delete", force=force)


def up(context: typer.Context, net: Net) -> None:
    """Go online in a network."""
    act(context.obj, f"Going online in {net}", net, "up")


def down(context: typer.Context, net: Net) -> None:
    """Go offline in a network; it stays down after a restart too."""
    act(context.obj, f"Going offline in {net}", net, "down")


def nick(context: typer.Context, net: Net, name: Annotated[str, typer.Argument(metavar="NICK")]) -> None:
    """Take another nickname."""
    _check(net, name)
    act(context.obj, f"Setting nickname to {name}", net, "nick", ipc.NickRequest(nick=name))


def passwd(context: typer.Context, net: Net, password_file: PasswordFile = None, force: Weak = False) -> None:
    """Set another password for joining. Members and calls do not notice."""
    _check(net)
    keys = new_keys(context.obj.client, net, password_file, force=force)
    request = ipc.PasswordRequest(name=net, locator=keys.locator.hex(), wrap_key=keys.wrap_key.hex())
    act(context.obj, f"Changing the password of {net}", net, "passwd", request)


def _end(options: Options, doing: str, net: str, action: str, *, force: bool) -> None:
    reply = act(options, doing, net, action, ipc.LeaveRequest(force=force))
    if force and not options.json:
        print(reply.message)


def _enter(options: Options, doing: str, route: str, request: msgspec.Struct) -> None:
    network = say(doing, lambda: options.client.post(route, request, ipc.NetworkView), quiet=options.json)
    if options.json:
        print_json(network)
    else:
        print(f"this host is {network.nick} {network.address} on {network.interface}")


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
