"""LAN discovery by multicast DNS: members in one LAN find each other without the server.

Announced is `<tag>._meshvpn._udp.local.` with our addresses and port. The tag is a keyed hash that members alone can
make, so a stranger learns that some mesh is here. What is heard is a hint: the node finds out who answers there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import TYPE_CHECKING

from ..proto.transport import Address
from .sockets import IPV4_SOCKET, IPV6_SOCKET

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

log = logging.getLogger(__name__)

SERVICE_TYPE = "_meshvpn._udp.local."
TAG_BYTES = 16
MAX_ADDRESSES = 8
"""Of one announcement."""
MAX_LOOKS = 256
"""Tags that are looked at at a time: a network has at most 254 members."""
INTERVAL = 5.0
"""Seconds between two looks at one tag, however often it is announced."""
RESOLVE_TIME_LIMIT = 3000
"""Milliseconds."""
RESTART_PAUSE = 1.0
"""Seconds for which the interfaces are left to settle."""

Interface = IPv4Interface | IPv6Interface


class LanDiscovery:
    """Announces one network's member and tells `on_found(tag, addresses)` of others, until `stop()`."""

    def __init__(self, ports: Mapping[int, int], on_found: Callable[[bytes, list[Address]], None]) -> None:
        self._port = ports[IPV4_SOCKET]
        self._has_one_port = ports.get(IPV6_SOCKET) == self._port
        self._on_found = on_found
        self._interfaces: list[Interface] = []
        self._tag: bytes | None = None
        self._announced: tuple[bytes, list[Interface]] | None = None
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._looks: dict[bytes, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_wanted = asyncio.Event()

    def follow(self, interfaces: Sequence[Interface]) -> None:
        """This host's addresses in its LANs."""
        self._interfaces = list(interfaces)
        self._wake()

    def announce(self, tag: bytes) -> None:
        """Our tag; the same again costs nothing."""
        self._tag = tag
        self._wake()

    async def stop(self) -> None:
        """Take the announcement back."""
        tasks = [*self._looks.values(), *(() if self._task is None else (self._task,))]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._close()

    def _wake(self) -> None:
        if self._tag is not None and (self._tag, self._interfaces) != self._announced:
            self._is_wanted.set()
            if self._task is None:
                self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await self._is_wanted.wait()
            self._is_wanted.clear()
            if self._tag is None or (self._tag, self._interfaces) == self._announced:
                continue
            wanted = self._announced = self._tag, self._interfaces
            try:
                await self._close()
                await self._open(*wanted)
            except OSError as error:
                log.info("members in this network segment are not looked for error=%s", error)
            await asyncio.sleep(RESTART_PAUSE)

    async def _open(self, tag: bytes, interfaces: Sequence[Interface]) -> None:
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf  # 3 MB

        hosts = [str(interface.ip) for interface in interfaces if interface.version == 4 or self._has_one_port]
        if not hosts:
            return
        self._zeroconf = AsyncZeroconf(interfaces=hosts)
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._handle_change])
        name = tag.hex()
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            f"{name}.{SERVICE_TYPE}",
            port=self._port,
            server=f"{name}.local.",
            parsed_addresses=hosts[:MAX_ADDRESSES],
        )
        # Without asking whether the name is free: a stranger who repeats it must not silence us.
        await self._zeroconf.async_register_service(info, cooperating_responders=True)

    async def _close(self) -> None:
        browser, self._browser = self._browser, None
        zeroconf, self._zeroconf = self._zeroconf, None
        if browser is not None:
            await browser.async_cancel()
        if zeroconf is not None:
            await zeroconf.async_close()

    def _handle_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        tag = parse_tag(name)
        # More of them than any network has: somebody makes them up.
        if tag is None or tag == self._tag or tag in self._looks or len(self._looks) >= MAX_LOOKS:
            return
        self._looks[tag] = asyncio.create_task(self._look(tag))

    async def _look(self, tag: bytes) -> None:
        """What is announced there, and for a while nothing more of this tag but once again at the end."""
        try:
            await self._resolve(tag)
            await asyncio.sleep(INTERVAL)
            await self._resolve(tag)
        finally:
            del self._looks[tag]

    async def _resolve(self, tag: bytes) -> None:
        from zeroconf import Error
        from zeroconf.asyncio import AsyncServiceInfo

        if self._zeroconf is None:
            return
        info = AsyncServiceInfo(SERVICE_TYPE, f"{tag.hex()}.{SERVICE_TYPE}")
        try:
            is_complete = await info.async_request(self._zeroconf.zeroconf, RESOLVE_TIME_LIMIT)
        except Error as error:  # closed meanwhile: the interfaces changed
            log.debug("announcement not looked at error=%s", type(error).__name__)
            return
        if is_complete:
            addresses = self._addresses(info)
            log.debug("heard in the lan tag=%s addresses=%s", tag.hex()[:8], ",".join(map(str, addresses)))
            if addresses:
                self._on_found(tag, addresses)

    def _addresses(self, info: AsyncServiceInfo) -> list[Address]:
        """Those in our own prefixes: an announcement must not make us send anywhere else."""
        hosts = [ip_address(host.partition("%")[0]) for host in info.parsed_addresses()[:MAX_ADDRESSES]]
        near = [host for host in hosts if any(host in interface.network for interface in self._interfaces)]
        return [Address(str(host), info.port or 0) for host in near]


def parse_tag(name: str) -> bytes | None:
    """The tag of a service name, or None if it is none of ours."""
    first, _, rest = name.partition(".")
    if rest.lower() != SERVICE_TYPE or len(first) != 2 * TAG_BYTES:
        return None
    try:
        return bytes.fromhex(first)
    except ValueError:
        return None
