"""Drives the port mapper: a socket to the router, one for its announcements, a timer, and UPnP where it must be."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..proto import pcp
from ..proto.portmap import MappingChanged, PortMapper, PortMapping, Router, UpnpWanted
from ..proto.transport import Address

if TYPE_CHECKING:
    from .upnp import UpnpMapping

log = logging.getLogger(__name__)

DELETE_TIME_LIMIT = 0.5
"""Seconds for which a router may take to end a mapping by PCP or NAT-PMP, when the daemon goes."""
DRAIN_LIMIT = 16
"""Datagrams read before other work of the loop gets its turn."""


class PortMapDriver:
    """Keeps `port` mapped at the router of the default route until `stop()`; `on_change` is told what is mapped."""

    def __init__(self, port: int, nonce: bytes, on_change: Callable[[PortMapping | None], None]) -> None:
        self._machine = PortMapper(port, nonce)
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._router: Router | None = None
        self._socket: socket.socket | None = None
        self._announcements = _open_announcements()
        if self._announcements is not None:
            self._loop.add_reader(self._announcements, self._drain, self._announcements)
        self._timer: asyncio.TimerHandle | None = None
        self._upnp: asyncio.Task[None] | None = None
        self._upnp_mapping: UpnpMapping | None = None

    @property
    def mapping(self) -> PortMapping | None:
        """What is mapped."""
        return self._machine.mapping

    def follow(self, gateway: str | None) -> None:
        """The router of the default route is this one (IPv4), or there is none."""
        router = self._connect(gateway)
        self._machine.handle_router(router, now=time.monotonic())
        self._pump()

    def doubt(self) -> None:
        """Something about the network changed."""
        self._machine.handle_doubt(now=time.monotonic())
        self._pump()

    async def stop(self) -> None:
        """End the mapping, if the router answers within a moment."""
        self._machine.handle_stop(now=time.monotonic())
        messages = self._machine.take_transmits()
        self._machine.take_events()
        if self._timer is not None:
            self._timer.cancel()
        if self._announcements is not None:
            self._loop.remove_reader(self._announcements)
            self._announcements.close()
        if self._upnp is not None:
            self._upnp.cancel()
            await asyncio.gather(self._upnp, return_exceptions=True)
        if self._upnp_mapping is not None:
            from .upnp import delete_mapping

            await delete_mapping(self._upnp_mapping)
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(DELETE_TIME_LIMIT):
                    for message in messages:
                        await self._loop.sock_sendall(self._socket, message)
                        await self._loop.sock_recv(self._socket, pcp.MAX_MESSAGE)
            self._socket.close()
            self._socket = None

    def _connect(self, gateway: str | None) -> Router | None:
        """The router, and a socket that hears it alone. The kernel says which of our addresses it knows us by."""
        sock = None if gateway is None else _open(gateway)
        router = None if sock is None or gateway is None else Router(gateway, sock.getsockname()[0])
        if router == self._router:
            if sock is not None:
                sock.close()
            return router
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        self._router, self._socket = router, sock
        if sock is not None:
            self._loop.add_reader(sock, self._drain, sock)
        return router

    def _drain(self, sock: socket.socket) -> None:
        for _ in range(DRAIN_LIMIT):
            try:
                data, source = sock.recvfrom(pcp.MAX_MESSAGE + 1)
            except BlockingIOError:
                break
            except OSError as error:  # the router has nothing on that port: ICMP says so, and time will tell anyway
                log.debug("router does not listen error=%s", error)
                break
            reason = self._machine.handle_datagram(data, Address(source[0], source[1]), now=time.monotonic())
            if reason is not None:
                log.debug("port mapping answer dropped reason=%s", reason.value)
        self._pump()

    def _pump(self) -> None:
        for message in self._machine.take_transmits():
            self._send(message)
        for event in self._machine.take_events():
            match event:
                case MappingChanged(mapping=mapping):
                    if mapping is None:
                        log.info("no port is mapped at the router any more")
                    else:
                        log.info("port mapped at the router by=%s port=%d", mapping.method.value, mapping.port)
                    self._on_change(mapping)
                case UpnpWanted():
                    self._start_upnp(event)
        if self._timer is not None:
            self._timer.cancel()
        at = self._machine.next_timeout()
        wait = 0.0 if at is None else max(0.0, at - time.monotonic())
        self._timer = None if at is None else self._loop.call_later(wait, self._handle_timer, at)

    def _send(self, message: bytes) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(message)
        except OSError as error:  # lost like any other datagram
            log.debug("nothing sent to the router error=%s", error)

    def _handle_timer(self, deadline: float) -> None:
        self._machine.handle_timeout(now=max(deadline, time.monotonic()))
        self._pump()

    def _start_upnp(self, wanted: UpnpWanted) -> None:
        if self._upnp is not None:
            self._upnp.cancel()
        self._upnp = asyncio.create_task(self._map_by_upnp(wanted))

    async def _map_by_upnp(self, wanted: UpnpWanted) -> None:
        from .upnp import add_mapping  # 3 MB that most hosts do without

        mapping = self._upnp_mapping = await add_mapping(wanted)
        if mapping is None:
            log.debug("the router maps no port")
        port, host = (None, None) if mapping is None else (mapping.external_port, mapping.host)
        self._machine.handle_upnp(port, host, now=time.monotonic())
        self._pump()


def _open(gateway: str) -> socket.socket | None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.connect((gateway, pcp.PORT))
    except OSError as error:
        log.debug("no way to the router error=%s", error)
        sock.close()
        return None
    return sock


def _open_announcements() -> socket.socket | None:
    """Hears routers that start anew; None if the port is somebody's who does not share it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((pcp.ANNOUNCE_GROUP, pcp.ANNOUNCE_PORT))
    except OSError as error:
        log.debug("routers' announcements not heard error=%s", error)
        sock.close()
        return None
    return sock
