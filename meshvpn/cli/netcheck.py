"""The command `netcheck`: what the network around this host lets through, and what that means for calls."""

from __future__ import annotations

import textwrap

import typer

from .. import ipc
from ..proto.netfindings import Findings
from .client import NO_SERVER
from .common import print_json
from .server import Server, ServerPin, parse_server

WIDTH = 100
_NOT_KNOWN = "not known"


def netcheck(context: typer.Context, server: Server = None, server_pin: ServerPin = None) -> None:
    """Check NAT, firewall and ways to the rendezvous (of this host's networks, or --server); takes some seconds."""
    is_given = server is not None or server_pin is not None
    where = parse_server(server, server_pin) if is_given else None
    found = _ask(context, where)
    if context.obj.json:
        print_json(found)
    else:
        print("\n".join(lines(found)))
    if not found.findings.has_udp and found.findings.tcp_rtt is None:
        raise typer.Exit(NO_SERVER)


def lines(reply: ipc.NetcheckReply) -> list[str]:
    """What was found, then what it means."""
    found = reply.findings
    rows = [("rendezvous", f"{server.address} {_by_udp(server.rtt)}") for server in found.servers]
    rows += [
        ("by TCP", f"{_time(found.tcp_rtt, 'no answer')}, relay {_yes(found.relay_by_tcp)}"),
        ("UDP", "passes" if found.has_udp else "blocked" if found.tcp_rtt is not None else "no answer"),
        ("IPv4", _ipv4(found)),
    ]
    if found.is_translated:
        unsure = "" if found.is_mapping_sure else " (or address-dependent: a second server address would tell)"
        step = f", step {found.port_step}" if found.port_step else ""
        rows += [
            ("mapping", f"{found.mapping or _NOT_KNOWN}{unsure if found.mapping else ''}"),
            ("filtering", found.filtering or _NOT_KNOWN),
            ("ports", f"{found.ports or _NOT_KNOWN}{step}"),
            ("hairpin", _yes(found.hairpin)),
            ("port mapping", _port_mapping(found)),
        ]
    elif found.is_translated is False:
        rows.append(("filtering", found.filtering or _NOT_KNOWN))
    rows += [("MTU", _NOT_KNOWN if found.mtu is None else f"{found.mtu} to the rendezvous"), ("IPv6", _ipv6(found))]
    rows += [("problem", problem) for problem in found.problems]
    table = [f"{name:<12} : {text}" for name, text in rows]
    return [*table, "", *(line for sentence in reply.meaning for line in textwrap.wrap(sentence, WIDTH))]


def _ask(context: typer.Context, server: ipc.ServerOptions | None) -> ipc.NetcheckReply:
    reply: ipc.NetcheckReply = context.obj.client.post(
        "/v1/netcheck", ipc.NetcheckRequest(server=server), ipc.NetcheckReply
    )
    return reply


def _ipv4(found: Findings) -> str:
    local = ", ".join(found.local) or "no address"
    if found.public is None:
        return local
    return f"{found.public}, no NAT" if not found.is_translated else f"{local}, seen as {found.public} (NAT)"


def _ipv6(found: Findings) -> str:
    if found.public6 is not None:
        return f"{found.public6}, filtering {found.filtering6 or _NOT_KNOWN}"
    return "no answer by it" if found.local6 else "no address"


def _port_mapping(found: Findings) -> str:
    outer = f", outer address {found.router_host}" if found.router_host else ""
    return f"{', '.join(found.port_mapping)}{outer}" if found.port_mapping else f"none found{outer}"


def _by_udp(rtt: float | None) -> str:
    return f"by UDP {_time(rtt, 'no answer')}"


def _time(seconds: float | None, otherwise: str) -> str:
    return otherwise if seconds is None else f"{1000 * seconds:.1f} ms"


def _yes(is_so: bool | None) -> str:
    return _NOT_KNOWN if is_so is None else "yes" if is_so else "no"
