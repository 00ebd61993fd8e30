"""Runs one network: feeds its node with what happens and carries out what it says. No protocol is decided here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface

from tun.device import TunDevice, open_device
from tun.engine import (
    EVENT_HANDSHAKE_WANTED,
    EVENT_KEYPAIR_CONFIRMED,
    EVENT_PATH_SEEN,
    EVENT_REKEY_WANTED,
    Engine,
    EngineEvent,
)

from ..proto.binding import StreamUnwanted, StreamWanted
from ..proto.commands import apply
from ..proto.control_session import ConnectWanted, DisconnectWanted
from ..proto.errors import MeshError
from ..proto.events import NodeEvent, PeerMtuChanged, SocketsUnwanted, SocketsWanted
from ..proto.gossip import LinkUnwanted, LinkWanted
from ..proto.keys import ula_prefix
from ..proto.node import Node
from ..proto.peer import LastKnown
from ..proto.portmap import PortMapping
from ..proto.timers import Stamps
from ..proto.traffic import Traffic
from ..proto.transport import STREAM_SOCKET, Address, Path, RelayHop
from . import interface
from .control_link import HEARTBEAT, ControlLink, ServerIdentity
from .enrolment import Enrolled
from .extra_sockets import ExtraSockets
from .gossip import GossipLinks
from .host_mtus import HostMtus
from .lan import LanDiscovery
from .portmap import PortMapDriver
from .sockets import IPV4_SOCKET, NetworkSockets, send
from .stream import RelayStream

log = logging.getLogger(__name__)

POLL_INTERVAL = 1.0
"""Seconds between two readings of the engine's figures; the timers they drive are of 10 s and more."""
FAULT_PAUSE = 1.0
"""Seconds without timers after one failed by a fault of ours: calls go on, and the log does not fill."""
DRAIN_LIMIT = 256
"""Datagrams and events taken from the engine before other work of the loop gets its turn."""
RELAY_BURST = 1.0
"""Seconds at the rate for which this member relays that it may at once."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a network lives on this host."""

    interface: str | None
    """None: the first free of mesh0, mesh1, …"""
    address: str
    address6: str
    pool: IPv4Network
    uid: bytes
    mtu: int
    engine_without: frozenset[str] = frozenset()
    """Kernel features that are left out."""


class NetworkRunner:
    """One network that is up. `start()`, then events come by `on_event` until `stop()`."""

    def __init__(
        self,
        node: Node,
        link: ControlLink,
        sockets: NetworkSockets,
        placement: Placement,
        *,
        on_event: Callable[[NodeEvent], None],
    ) -> None:
        self.node = node
        self.link = link
        self.placement = placement
        self.server_error: MeshError | None = None
        self.device: TunDevice | None = None
        self.engine: Engine | None = None
        self._sockets = sockets
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._extra = ExtraSockets(self._loop, self._handle_extra)
        self._timer: asyncio.TimerHandle | None = None
        self._poll: asyncio.TimerHandle | None = None
        self._refresh: asyncio.Task[None] | None = None
        self._refresh_again = False
        self._port_map: PortMapDriver | None = None
        self._lan: LanDiscovery | None = None
        self._host_mtus: HostMtus | None = None
        self.links: GossipLinks | None = None
        self._rests_until = float("-inf")
        self._stream: RelayStream | None = None
        self._surroundings: tuple[list[str], list[str]] | None = None

    @property
    def ports(self) -> Mapping[int, int]:
        """Local UDP ports by socket number."""
        return self._sockets.ports

    async def start(self, last_known: Mapping[bytes, LastKnown], enrolled: Enrolled | None) -> None:
        """Create the interface, start the engine, bring up the peers, connect (or go on with what `enrolled` opened).

        Raises TunError, OSError, ConfigError.
        """
        place = self.placement
        # The hold comes before the device: from here on nothing for the mesh leaves by another route.
        await asyncio.to_thread(interface.hold_prefixes, self._prefixes())
        taken = frozenset(await asyncio.to_thread(interface.interface_names))
        self.device = open_device(place.interface, taken=taken, vnet_hdr="vnet_hdr" not in place.engine_without)
        await asyncio.to_thread(
            interface.configure,
            self.device.name,
            [
                IPv4Interface(f"{place.address}/{place.pool.prefixlen}"),
                IPv6Interface(f"{place.address6}/64"),
            ],
            place.mtu,
        )
        await asyncio.to_thread(interface.clear_host_mtus, self.device.name)
        self._host_mtus = HostMtus(self.device.name)
        descriptors = [sock.fileno() for sock in self._sockets.numbered().values()]
        self.engine = Engine(self.device.fd, descriptors, without=place.engine_without)
        if self.node.options.relay:
            self.engine.set_relaying(self.node.options.relay_rate, self.node.options.relay_rate * RELAY_BURST)
        self.engine.start()
        self._loop.add_reader(self.engine.slow_fd, self._drain_engine)
        if self.node.options.port_mapping:
            nonce = self.node.port_mapping_nonce
            self._port_map = PortMapDriver(self.ports[IPV4_SOCKET], nonce, self._handle_port_mapping)
        self._poll = self._loop.call_later(POLL_INTERVAL, self._read_figures)
        if self.node.options.lan_discovery:
            self._lan = LanDiscovery(self.ports, self._handle_lan)
        await self.refresh_addresses()
        self.links = GossipLinks(place.address, self.device.name, self)
        await self.links.start()
        if enrolled is not None:
            hosts = enrolled.server.hosts
            self.node.handle_adopted(enrolled.attached, hosts, now=_now(), wall_ns=_wall_ns())
        self.node.handle_start(last_known, now=_now(), wall_ns=_wall_ns())
        self._pump()
        if enrolled is not None:
            enrolled.hand_over(self)

    async def stop(self, *, keep_device: bool) -> None:
        """Stop. With `keep_device` the interface and its addresses stay, so that Asterisk does not notice."""
        for timer in (self._timer, self._poll):
            if timer is not None:
                timer.cancel()
        if self._refresh is not None:
            self._refresh.cancel()
        if self._port_map is not None:
            await self._port_map.stop()
            self._port_map = None
        if self._lan is not None:
            await self._lan.stop()
            self._lan = None
        if self.links is not None:
            await self.links.stop()
            self.links = None
        await self.link.close()
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        if self._host_mtus is not None:
            await self._host_mtus.stop()
            self._host_mtus = None
        if self.engine is not None:
            self._loop.remove_reader(self.engine.slow_fd)
            await asyncio.to_thread(self.engine.stop)
            self.engine = None
        self._extra.close_all()
        self._sockets.close()
        if self.device is not None:
            if not keep_device:
                self.device.remove()
            self.device.close()
            self.device = None
        if not keep_device:
            await asyncio.to_thread(interface.release_prefixes, self._prefixes())

    def handle_network_change(self) -> None:
        """The kernel reported a change: look what the addresses are now."""
        if self._refresh is not None and not self._refresh.done():
            self._refresh_again = True
            return
        self._refresh = asyncio.create_task(self._follow_network())

    def handle_wake(self, slept: float) -> None:
        """The machine was suspended for these seconds."""
        log.info("the machine slept for %.0f s", slept)
        if slept >= HEARTBEAT:
            self.link.cut()  # nobody knows yet whether it is dead, and a new one costs less than to wait for that
        self.node.handle_wake(slept, now=_now(), wall_ns=_wall_ns())
        self._pump()
        self.handle_network_change()

    async def refresh_addresses(self) -> None:
        """Tell the node this host's addresses, and whether they or the way to the world are others than before."""
        hosts = await asyncio.to_thread(interface.local_hosts, ignore=self._mesh_interfaces())
        ways = await asyncio.to_thread(interface.default_routes)
        self.node.handle_local_addresses(hosts, self.ports, now=_now(), wall_ns=_wall_ns())
        # Most of what the kernel reports changes neither, our own routes among it: no path is doubted for that.
        if self._surroundings not in (None, (hosts, ways)):
            log.info("this host's addresses or routes changed")
            log.debug("network is hosts=%s routes=%s", ",".join(hosts), ",".join(ways))
            self.node.handle_network_change(now=_now(), wall_ns=_wall_ns())
            if self._port_map is not None:
                self._port_map.doubt()
        if self._surroundings is not None:
            self.link.leave(set(self._surroundings[0]) - set(hosts))
        self._surroundings = hosts, ways
        if self._lan is not None:
            self._lan.follow(await asyncio.to_thread(interface.lan_addresses, ignore=self._mesh_interfaces()))
        if self._port_map is not None:
            self._port_map.follow(await asyncio.to_thread(interface.default_gateway, ignore=self._mesh_interfaces()))
        self._pump()

    def act(self, action: Callable[[Node, float, int], int | None]) -> int | None:
        """Do what the user asked for: `action(node, now, wall_ns)` gives the request's number."""
        rid = action(self.node, _now(), _wall_ns())
        # Drained in the loop's next turn, so that the caller can first register the number it waits for.
        self._loop.call_soon(self._pump)
        return rid

    # --- the control link's callbacks ---------------------------------------------------------------------------

    def handle_open(self, server: ServerIdentity) -> None:
        """The control connection is open."""
        self.server_error = None
        self.node.handle_connected(server.hosts, now=_now(), wall_ns=_wall_ns())
        self._pump()

    def handle_message(self, data: bytes) -> None:
        """A message of the rendezvous."""
        self.node.handle_control_message(data, now=_now(), wall_ns=_wall_ns())
        self._pump()

    def handle_closed(self, reason: MeshError | None) -> None:
        """The control connection ended or could not be opened."""
        if reason is not None:
            self.server_error = reason
        self.node.handle_disconnected(now=_now(), wall_ns=_wall_ns())
        self._pump()

    # --- the relay stream's --------------------------------------------------------------------------------------

    def handle_stream_open(self, address: Address) -> None:
        """What socket 2 sends to this address goes by the stream."""
        self.node.handle_stream_open(address, now=_now(), wall_ns=_wall_ns())
        self._pump()

    def handle_stream_closed(self) -> None:
        """It ended, or could not be opened."""
        self.node.handle_stream_closed(now=_now(), wall_ns=_wall_ns())
        self._pump()

    # --- gossip's links ------------------------------------------------------------------------------------------

    def handle_link(self, address: str) -> int | None:
        """A stream came through the tunnel; its number, or None: it is not wanted."""
        link = self.node.handle_link(address, now=_now(), wall_ns=_wall_ns())
        self._pump()
        return link

    def handle_link_open(self, link: int) -> None:
        """One that was wanted is open."""
        self.node.handle_link_open(link, now=_now(), wall_ns=_wall_ns())
        self._pump()

    def handle_link_closed(self, link: int) -> None:
        """It ended, or could not be opened."""
        self.node.handle_link_closed(link, now=_now(), wall_ns=_wall_ns())
        self._pump()

    def handle_link_frame(self, link: int, data: bytes) -> None:
        """One message."""
        self.node.handle_link_frame(link, data, now=_now(), wall_ns=_wall_ns())
        self._pump()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _handle_port_mapping(self, mapping: PortMapping | None) -> None:
        self.node.handle_port_mapping(mapping, now=_now(), wall_ns=_wall_ns())
        self._pump()

    def _handle_lan(self, tag: bytes, addresses: list[Address]) -> None:
        self.node.handle_lan(tag, addresses, now=_now(), wall_ns=_wall_ns())
        self._pump()

    def _prefixes(self) -> list[interface.Network]:
        return [self.placement.pool, ula_prefix(self.placement.uid)]

    def _mesh_interfaces(self) -> frozenset[str]:
        return frozenset({self.device.name}) if self.device is not None else frozenset()

    async def _follow_network(self) -> None:
        while True:
            self._refresh_again = False
            try:
                await self.refresh_addresses()
            except OSError as error:
                log.warning("addresses not read, waiting for the next change error=%s", error)
            if not self._refresh_again:
                return

    def _drain_engine(self) -> None:
        if self.engine is None:
            return
        now, wall_ns = _now(), _wall_ns()
        for event in self.engine.take_events(DRAIN_LIMIT):
            self._handle_engine_event(event, now, wall_ns)
        for item in self.engine.take_datagrams(DRAIN_LIMIT):
            path = _path(item.socket, item.host, item.port, item.is_relayed, item.relay_source, item.relay_destination)
            self._handle_datagram(self.engine, item.data, path, now, wall_ns)
        self._pump()

    def _handle_extra(self, number: int, data: bytes, host: str, port: int) -> None:
        if self.engine is None:
            return
        self._handle_datagram(self.engine, data, Path(number, Address(host, port)), _now(), _wall_ns())
        self._pump()

    def _handle_datagram(self, engine: Engine, data: bytes, path: Path, now: float, wall_ns: int) -> None:
        if (number := self.node.prober(data)) is not None:
            self.node.handle_traffic({number: _figures(engine, number)}, now=now, wall_ns=wall_ns)
        self.node.handle_datagram(data, path, now=now, wall_ns=wall_ns)

    def _handle_engine_event(self, event: EngineEvent, now: float, wall_ns: int) -> None:
        if event.kind == EVENT_HANDSHAKE_WANTED:
            self.node.handle_handshake_wanted(event.peer, now=now, wall_ns=wall_ns)
        elif event.kind == EVENT_REKEY_WANTED:
            self.node.handle_rekey_wanted(event.peer, now=now, wall_ns=wall_ns)
        elif event.kind == EVENT_KEYPAIR_CONFIRMED:
            self.node.handle_keypair_confirmed(event.peer, event.local_index, now=now, wall_ns=wall_ns)
        elif event.kind == EVENT_PATH_SEEN:
            path = _path(
                event.socket, event.host, event.port, event.is_relayed, event.relay_source, event.relay_destination
            )
            self.node.handle_path_seen(event.peer, path, now=now, wall_ns=wall_ns)

    def _read_figures(self) -> None:
        self._poll = self._loop.call_later(POLL_INTERVAL, self._read_figures)
        if self.engine is None:
            return
        figures = {number: _figures(self.engine, number) for number in self.node.peer_numbers()}
        self.node.handle_traffic(figures, now=_now(), wall_ns=_wall_ns())
        self._pump()

    def _pump(self) -> None:
        """Carry out what the node said, then arm its next timeout: after a fault too, or it would stand still."""
        if self.engine is None:
            return
        try:
            self._carry_out(self.engine)
        finally:
            self._arm()

    def _carry_out(self, engine: Engine) -> None:
        for command in self.node.take_commands():
            apply(command, engine, descriptor=self._extra.adopt)
        for transmit in self.node.take_transmits():
            send(self._sockets, transmit, extra=self._extra.get(transmit.path.socket))
        if self.links is not None:
            for link, frame in self.node.take_link_frames():
                self.links.send(link, frame)
        events = self.node.take_events()
        opened: dict[int, dict[int, int]] = {}
        for event in events:
            if isinstance(event, ConnectWanted):
                self.link.open()
            elif isinstance(event, DisconnectWanted):
                self.link.cut()
            elif isinstance(event, PeerMtuChanged) and self._host_mtus is not None:
                self._host_mtus.set(event.member.address, event.member.address6, event.mtu)
            elif isinstance(event, SocketsWanted):
                opened[event.tag] = self._extra.open(event.count)
            elif isinstance(event, SocketsUnwanted):
                self._extra.close(event.numbers, engine)
            elif isinstance(event, LinkWanted) and self.links is not None:
                self.links.open(event.link, event.address)
            elif isinstance(event, LinkUnwanted) and self.links is not None:
                self.links.close(event.link)
            elif isinstance(event, StreamWanted):
                self._open_stream(engine)
            elif isinstance(event, StreamUnwanted) and self._stream is not None:
                self._stream.close()
        for message in self.node.take_control_messages():
            self.link.send(message)
        for event in events:
            self._on_event(event)
        if self._lan is not None:
            self._lan.announce(self.node.lan_tag)
        if opened:
            for tag, ports in opened.items():
                self.node.handle_sockets_opened(tag, ports, now=_now(), wall_ns=_wall_ns())
            self._carry_out(engine)

    def _open_stream(self, engine: Engine) -> None:
        if self._stream is None:
            try:
                stream = RelayStream(self.link.url, self)
            except OSError as error:
                log.warning("no socket for the relay by TCP error=%s", error)
                self._loop.call_soon(self.handle_stream_closed)
                return
            engine.add_socket(STREAM_SOCKET, stream.socket.fileno())
            self._stream, self._sockets.stream = stream, stream.socket
        self._stream.open(self.link.pin)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        at = self.node.next_timeout()
        wait = 0.0 if at is None else max(0.0, at - _now(), self._rests_until - _now())
        self._timer = None if at is None else self._loop.call_later(wait, self._handle_timer, at)

    def _handle_timer(self, deadline: float) -> None:
        # The later of deadline and clock: a loop may fire a hair early.
        try:
            self.node.handle_timeout(now=max(deadline, _now()), wall_ns=_wall_ns())
        except Exception:
            self._rests_until = _now() + FAULT_PAUSE  # what failed is due again at once
            raise
        finally:
            self._pump()


def _figures(engine: Engine, number: int) -> tuple[Traffic, Stamps]:
    stats = engine.stats(number)
    return (
        Traffic(
            rx_packets=stats.rx_packets,
            tx_packets=stats.tx_packets,
            rx_bytes=stats.rx_bytes,
            tx_bytes=stats.tx_bytes,
            received_packets=stats.received_packets,
            lost_packets=stats.lost_packets,
            reordered_packets=stats.reordered_packets,
            duplicate_packets=stats.duplicate_packets,
            jitter=stats.jitter,
            marked_packets=stats.marked_packets,
            kept_marks=stats.kept_marks,
        ),
        Stamps(
            first_sent_at=stats.first_sent_at,
            first_received_at=stats.first_received_at,
            more_arrived=stats.more_arrived,
            last_authenticated_at=stats.last_authenticated_at,
            last_sent_at=stats.last_sent_at,
        ),
    )


def _path(socket: int, host: str, port: int, is_relayed: bool, source: int, destination: int) -> Path:
    relay = RelayHop(local_id=destination, remote_id=source) if is_relayed else None
    return Path(socket, Address(host, port), relay)


def _now() -> float:
    return time.monotonic()


def _wall_ns() -> int:
    return time.time_ns()
