"""A plain WireGuard peer made of meshvpnd's parts: runner, engine, TUN device, sockets, handshakes; no mesh around it.

    python -m tests.netns.plain_peer

The first line on standard input is a Config as JSON; `ready` is printed when it runs. Then each line is a command,
answered by one line: `status` (a Status as JSON), `rekey` (starts a handshake). The end of the input ends it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, ip_network
from typing import cast

import msgspec
import uvloop

from meshvpn.net.control_link import ControlLink
from meshvpn.net.runner import NetworkRunner, Placement
from meshvpn.net.sockets import IPV4_SOCKET, IPV6_SOCKET, open_sockets
from meshvpn.proto import messages
from meshvpn.proto.commands import AddPeer, Command, MovePeer
from meshvpn.proto.events import NodeEvent
from meshvpn.proto.node import Node
from meshvpn.proto.options import Options
from meshvpn.proto.peer import LastKnown
from meshvpn.proto.timers import Stamps
from meshvpn.proto.traffic import Traffic
from meshvpn.proto.transport import Address, Path, Transmit
from meshvpn.proto.wireguard import HandshakeGaveUp, OtherInstance, SessionEstablished, WireGuard

PEER = 1


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """One interface with one peer."""

    interface: str
    uid: bytes
    pool: str
    address: str
    address6: str
    private_key: bytes
    peer_key: bytes
    routes: list[str]
    """The inner prefixes of the peer."""
    preshared_keys: list[bytes] = []
    endpoint: tuple[str, int] | None = None
    """None: the peer has to come first."""
    keepalive: float | None = None
    port: int = 0
    mtu: int = 1400


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What happened so far."""

    drops: dict[str, int]
    """By reason: the engine's and the handshakes' together."""
    initiated: int
    """Sessions that our initiations made."""
    answered: int
    """Sessions that the peer's initiations made."""
    gave_up: int
    cookies_sent: dict[str, int]
    """Cookie replies, by the host and port that got them."""
    cookies_received: int
    rx_packets: int
    lost_packets: int


class PlainNode:
    """Takes the place of a Node: the same calls, one peer that is configured, its endpoint where it was last heard."""

    options = Options(relay=False, port_mapping=False, lan_discovery=False)

    def __init__(self, config: Config) -> None:
        self.drops: Counter[str] = Counter()
        self.initiated = self.answered = self.gave_up = self.cookies_received = 0
        self.cookies_sent: Counter[str] = Counter()
        self._wireguard = WireGuard(config.private_key, entropy=os.urandom)
        self._wireguard.add_peer(PEER, config.peer_key, config.preshared_keys)
        self._wireguard.set_persistent_keepalive(PEER, config.keepalive)
        routes = [ip_network(route) for route in config.routes]
        packed = tuple((route.network_address.packed, route.prefixlen) for route in routes)
        self._commands: list[Command] = [AddPeer(PEER, packed)]
        self._transmits: list[Transmit] = []
        self._path: Path | None = None
        if config.endpoint is not None:
            self._move(_path_to(*config.endpoint))

    def handle_start(self, known: Mapping[bytes, LastKnown], *, now: float, wall_ns: int) -> None:
        """The peer is there from the start."""

    def handle_local_addresses(
        self, hosts: Sequence[str], ports: Mapping[int, int], *, now: float, wall_ns: int
    ) -> None:
        """A plain peer tells nobody where it is."""

    def take_link_frames(self) -> list[tuple[int, bytes]]:
        """It gossips with nobody."""
        return []

    def handle_network_change(self, *, now: float, wall_ns: int) -> None:
        """It has one path, which is not chosen."""

    def prober(self, data: bytes) -> None:
        """Nobody probes its path."""

    def handle_datagram(self, data: bytes, path: Path, *, now: float, wall_ns: int) -> None:
        self.cookies_received += data[:4] == bytes([messages.TYPE_COOKIE, 0, 0, 0])
        reason = self._wireguard.handle_datagram(data, path, now=now, wall_ns=wall_ns)
        if reason is not None:
            self.drops[reason.value] += 1
        self._settle()

    def handle_handshake_wanted(self, number: int, *, now: float, wall_ns: int) -> None:
        self._wireguard.handle_handshake_wanted(number, now=now, wall_ns=wall_ns)
        self._settle()

    def handle_rekey_wanted(self, number: int, *, now: float, wall_ns: int) -> None:
        self._wireguard.handle_rekey_wanted(number, now=now, wall_ns=wall_ns)
        self._settle()

    def handle_keypair_confirmed(self, number: int, local_index: int, *, now: float, wall_ns: int) -> None:
        self._wireguard.handle_keypair_confirmed(number, local_index, now=now)
        self._settle()

    def handle_path_seen(self, number: int, path: Path, *, now: float, wall_ns: int) -> None:
        self._move(path)

    def handle_traffic(self, figures: Mapping[int, tuple[Traffic, Stamps]], *, now: float, wall_ns: int) -> None:
        for number, (_, stamps) in figures.items():
            self._wireguard.handle_stats(number, stamps, now=now, wall_ns=wall_ns)
        self._settle()

    def next_timeout(self) -> float | None:
        return self._wireguard.next_timeout()

    def handle_timeout(self, *, now: float, wall_ns: int) -> None:
        self._wireguard.handle_timeout(now=now, wall_ns=wall_ns)
        self._settle()

    def peer_numbers(self) -> list[int]:
        return [PEER]

    def take_commands(self) -> list[Command]:
        commands, self._commands = self._commands, []
        return commands

    def take_transmits(self) -> list[Transmit]:
        transmits, self._transmits = self._transmits, []
        return transmits

    def take_events(self) -> list[NodeEvent]:
        return []

    def take_control_messages(self) -> list[bytes]:
        return []

    def _settle(self) -> None:
        for event in self._wireguard.take_events():
            match event:
                case SessionEstablished():
                    self.initiated += event.is_initiator
                    self.answered += not event.is_initiator
                    self._move(event.path)
                case HandshakeGaveUp():
                    self.gave_up += 1
                case OtherInstance():
                    raise AssertionError("a plain peer expects no tag")
                case _:
                    self._commands.append(event)
        for transmit in self._wireguard.take_transmits():
            path = self._path if transmit.path is None else transmit.path
            if path is None:
                self.drops["no_endpoint"] += 1
                continue
            self.cookies_sent[str(path.remote)] += transmit.data[0] == messages.TYPE_COOKIE
            self._transmits.append(Transmit(path, transmit.data))

    def _move(self, path: Path) -> None:
        if path != self._path:
            self._path = path
            self._commands.append(MovePeer(PEER, path, None))


def _path_to(host: str, port: int) -> Path:
    address = Address(host, port)
    return Path(IPV6_SOCKET if address.is_ipv6 else IPV4_SOCKET, address)


def _status(node: PlainNode, runner: NetworkRunner) -> Status:
    assert runner.engine is not None, "it runs"
    stats = runner.engine.stats(PEER)
    return Status(
        drops={reason: count for reason, count in (node.drops + Counter(runner.engine.drops())).items() if count},
        initiated=node.initiated,
        answered=node.answered,
        gave_up=node.gave_up,
        cookies_sent=+node.cookies_sent,
        cookies_received=node.cookies_received,
        rx_packets=stats.rx_packets,
        lost_packets=stats.lost_packets,
    )


async def _serve(config: Config, lines: asyncio.StreamReader) -> None:
    node, sockets = PlainNode(config), open_sockets(config.port)
    place = Placement(
        config.interface, config.address, config.address6, IPv4Network(config.pool), config.uid, config.mtu
    )
    link = ControlLink("", None, cast(NetworkRunner, None))  # never opened: there is no rendezvous
    runner = NetworkRunner(cast(Node, node), link, sockets, place, on_event=lambda event: None)
    try:
        await runner.start({}, None)
        _say(f"ready {runner.ports[IPV4_SOCKET]}".encode())
        while line := await lines.readline():
            if line == b"status\n":
                _say(msgspec.json.encode(_status(node, runner)))
            elif line == b"rekey\n":
                runner.act(lambda node, now, wall_ns: node.handle_rekey_wanted(PEER, now=now, wall_ns=wall_ns))
                _say(b"done")
    finally:
        await runner.stop(keep_device=False)


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.flush()


async def main() -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await _serve(msgspec.json.decode(await lines.readline(), type=Config), lines)


if __name__ == "__main__":
    uvloop.run(main())
