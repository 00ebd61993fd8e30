"""Runs netcheck: asks the servers by TCP, the router for port mappings, and everybody by STUN from fresh sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec.structs import replace

from .. import ipc
from ..datagram_stream import MAX_DATAGRAM
from ..proto import pcp, stun
from ..proto.control import Welcome
from ..proto.errors import MalformedMessage, MeshError
from ..proto.netcheck import SOCKETS, Netcheck
from ..proto.netfindings import Findings
from ..proto.portmap import Router
from ..proto.transport import Address, Path
from . import interface
from .control_link import CONTROL, RELAY, connect, describe_failure, resolve
from .randomness import entropy
from .sockets import open_fresh, send_from

log = logging.getLogger(__name__)

MAX_SERVERS = 4
DEFAULT_PORT = 7770
TIME_LIMIT = 8.0
"""Seconds for one server's TCP connections, or for the router."""
ANSWER_TIME = 2.0
"""Seconds for one answer."""
ROUTER_TRIES = 3


@dataclass(frozen=True, slots=True)
class _Contact:
    """What a server showed by TCP. `udp`: its UDP addresses, said by itself or, if it was not reached, as is usual."""

    udp: tuple[Address, ...] = ()
    rtt: float | None = None
    relays: bool | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _RouterFindings:
    """The protocols that it speaks, and what it believes to be its outer address."""

    protocols: tuple[str, ...] = ()
    host: str | None = None


async def check(servers: Sequence[ipc.ServerOptions], *, ignore: frozenset[str]) -> Findings:
    """Takes 3 to 10 seconds. `ignore`: interfaces that are the mesh's own. Raises OSError."""
    contacts = await asyncio.gather(*(_contact(server) for server in servers[:MAX_SERVERS]))
    hosts = await asyncio.to_thread(interface.local_hosts, ignore=ignore)
    gateway = await asyncio.to_thread(interface.default_gateway, ignore=ignore)
    udp = [address for contact in contacts for address in contact.udp]
    machine = Netcheck(udp, hosts, entropy)
    _, router = await asyncio.gather(_Run(machine).run(), _ask_router(gateway))
    relays = [contact.relays for contact in contacts if contact.relays is not None]
    return replace(
        machine.findings(),
        tcp_rtt=min((contact.rtt for contact in contacts if contact.rtt is not None), default=None),
        relay_by_tcp=any(relays) if relays else None,
        port_mapping=list(router.protocols),
        router_host=router.host,
        problems=[contact.problem for contact in contacts if contact.problem is not None],
    )


async def _contact(server: ipc.ServerOptions) -> _Contact:
    port = urlsplit(server.url).port or DEFAULT_PORT
    try:
        hosts = await resolve(server.url)
    except MeshError as error:
        return _Contact(problem=str(error))
    usual = tuple(Address(host, number) for host in hosts for number in (port, port + 1))
    try:
        async with asyncio.timeout(TIME_LIMIT), aiohttp.ClientSession() as session:
            started = time.monotonic()
            websocket, _ = await connect(session, server.url, server.pin, CONTROL)
            rtt = time.monotonic() - started
            async with websocket:
                welcome = msgspec.msgpack.decode(await websocket.receive_bytes(), type=Welcome)
            ports = dict.fromkeys((welcome.udp_port, welcome.udp_port2))
            udp = tuple(Address(host, number) for host in hosts for number in ports)
            return _Contact(udp, rtt, await _relays(session, server))
    except (MeshError, msgspec.MsgspecError, aiohttp.ClientError, OSError, TimeoutError, TypeError) as error:
        problem = str(error) if isinstance(error, MeshError) else describe_failure(server.url, error)
        return _Contact(usual, problem=problem)


async def _relays(session: aiohttp.ClientSession, server: ipc.ServerOptions) -> bool:
    """Does a datagram come back through the server's relay by WebSocket?"""
    request = stun.binding_request(entropy(12))
    try:
        async with asyncio.timeout(ANSWER_TIME):
            websocket, _ = await connect(session, server.url, server.pin, RELAY)
            async with websocket:
                await websocket.send_bytes(request)
                answer = stun.parse((await websocket.receive_bytes())[:MAX_DATAGRAM])
        return answer.transaction_id == stun.parse(request).transaction_id
    except (MeshError, MalformedMessage, aiohttp.ClientError, OSError, TimeoutError, TypeError) as error:
        log.info("netcheck: no relay by tcp server=%s error=%s", server.url, error)
        return False


class _Run:
    """Drives the machine on sockets of its own."""

    def __init__(self, machine: Netcheck) -> None:
        self._machine = machine
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._sockets: dict[int, socket.socket] = {}

    async def run(self) -> None:
        """Until it is done."""
        try:
            for number in SOCKETS:
                if (sock := open_fresh(is_ipv6=bool(number % 2))) is not None:
                    self._sockets[number] = sock
                    self._loop.add_reader(sock, self._reader(number, sock))
            ports = {number: sock.getsockname()[1] for number, sock in self._sockets.items()}
            self._machine.handle_start(ports, now=time.monotonic())
            self._pump()
            await self._done
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for sock in self._sockets.values():
                self._loop.remove_reader(sock)
                sock.close()

    def _reader(self, number: int, sock: socket.socket) -> Callable[[], None]:
        def read() -> None:
            try:
                data, source = sock.recvfrom(MAX_DATAGRAM)
            except OSError as error:  # an ICMP message, which proves nothing
                log.debug("netcheck: nothing received error=%s", error)
                return
            path = Path(number, Address(source[0], source[1]))
            reason = self._machine.handle_datagram(data, path, now=time.monotonic())
            if reason is not None:
                log.debug("netcheck: datagram dropped reason=%s", reason.value)
            self._pump()

        return read

    def _pump(self) -> None:
        for transmit in self._machine.take_transmits():
            send_from(self._sockets[transmit.path.socket], transmit)
        if self._timer is not None:
            self._timer.cancel()
        at = self._machine.next_timeout()
        if at is not None:
            self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._handle_timer, at)
        elif not self._done.done():
            self._done.set_result(None)

    def _handle_timer(self, deadline: float) -> None:
        self._machine.handle_timeout(now=max(deadline, time.monotonic()))
        self._pump()


async def _ask_router(gateway: str | None) -> _RouterFindings:
    """Which protocols for port mappings it speaks; nothing is mapped."""
    if gateway is None:
        return _RouterFindings()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with sock:
        try:
            sock.connect((gateway, pcp.PORT))
        except OSError as error:
            log.debug("netcheck: no way to the router error=%s", error)
            return _RouterFindings()
        router = Router(gateway, sock.getsockname()[0])
        answers = [await _ask_for(sock, router, version) for version in pcp.Version]
        from .upnp import find_router  # 3 MB that most commands do without

        upnp = await find_router(router)
    found = {"PCP": answers[0], "NAT-PMP": answers[1]}
    protocols = [name for name, answer in found.items() if answer is not None and answer.result == pcp.SUCCESS]
    told = [answer.external_host for answer in answers if answer is not None and answer.external_host]
    if upnp is not None:
        protocols.append("UPnP")
        told += [upnp.host] if upnp.host else []
    return _RouterFindings(tuple(protocols), told[0] if told else None)


async def _ask_for(sock: socket.socket, router: Router, version: pcp.Version) -> pcp.Response | None:
    """The router's answer in one protocol, if it speaks it."""
    loop = asyncio.get_running_loop()
    for _ in range(ROUTER_TRIES):
        try:
            async with asyncio.timeout(ANSWER_TIME / ROUTER_TRIES):
                await loop.sock_sendall(sock, pcp.announce_request(version, router.local))
                while True:
                    answer = pcp.parse(await loop.sock_recv(sock, pcp.MAX_MESSAGE))
                    if answer.version is version and answer.opcode is pcp.Opcode.ANNOUNCE:
                        return answer
        except (TimeoutError, OSError, MalformedMessage) as error:
            log.debug("netcheck: router does not speak %s error=%s", version.name, type(error).__name__)
    return None
