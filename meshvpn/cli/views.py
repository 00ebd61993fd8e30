"""The commands that change nothing: what there is, how well it is reached, what happens."""

from __future__ import annotations

import typer

from .. import ipc
from . import show
from .common import Net, print_json, route


def list_networks(context: typer.Context) -> None:
    """Show networks and members. Markers: * online, x unreachable, ? waits for approval, ! needs attention."""
    networks = context.obj.client.get("/v1/networks", list[ipc.NetworkView])
    if context.obj.json:
        print_json(networks)
        return
    for network in networks:
        print("\n".join(show.network_lines(network)))
    if not networks:
        print("no networks; `meshvpn create NET` founds one, `meshvpn join NET` joins one")


def peers(context: typer.Context, net: Net) -> None:
    """Show each member: path and why, loss to and from it, jitter, R and MOS, whether EF marks survive."""
    found = context.obj.client.get(route(net, "peers"), list[ipc.PeerView])
    if context.obj.json:
        print_json(found)
    else:
        print("\n".join(show.peer_lines(found)))


def status(context: typer.Context) -> None:
    """Show the daemon."""
    found = context.obj.client.get("/v1/status", ipc.Status)
    if context.obj.json:
        print_json(found)
        return
    print(f"version    : {found.version}\npid        : {found.pid}\nuptime     : {found.uptime_s:.0f} s")
    for server in found.servers:
        detail = f" ({server.detail})" if server.detail else ""
        print(f"network    : {server.network} on {server.url}, {server.state}{detail}")
    for name, features in found.engine.items():
        print(f"engine     : {name} {show.features(features)}")
    for name, count in found.relayed.items():
        if count:
            print(f"relayed    : {name} {show.amount(count)} for other members")
    for name, gossip in found.gossip.items():
        if gossip.problem is not None:
            print(f"gossip     : {name} members cannot tell this host news: {gossip.problem}")
        if gossip.silent:
            nicks = ", ".join(gossip.silent)
            print(f"gossip     : {name} {nicks} cannot be told news (a firewall there? TCP port {gossip.port})")
    print(f"config     : {found.config_file or 'none, the defaults hold'}")
    for name, config in found.config.items():
        print(f"settings   : {name} {show.settings(config)}")
    for problem in found.problems:
        print(f"problem    : {problem}")
