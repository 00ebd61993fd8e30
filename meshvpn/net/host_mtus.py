"""The kernel's routes to members whose paths carry smaller packets only: programs are told, and nothing vanishes.

TCP takes its segments from a route's MTU, large UDP packets are fragmented to it inside the tunnel, and what must not
be fragmented is refused with the size that would do, to programs here as to hosts that this one routes for.
"""

from __future__ import annotations

import asyncio
import logging

from ..proto.errors import ConfigError
from ..proto.path_mtu import IPV6_FLOOR
from . import interface

log = logging.getLogger(__name__)

RETRY = 5.0
"""Seconds to the next try after the kernel refused a route."""


class HostMtus:
    """Of the members on one interface. Changes are carried out one after the other, in a worker thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._wanted: dict[str, int | None] = {}
        self._task: asyncio.Task[None] | None = None

    def set(self, address: str, address6: str, mtu: int | None) -> None:
        """Packets of so many bytes reach the member, None: of as many as the interface takes.

        To IPv6 no link may offer less than 1,280.
        """
        self._wanted[address] = mtu
        self._wanted[address6] = None if mtu is None else max(mtu, IPV6_FLOOR)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Change nothing any more. The routes end with the interface, or are taken away at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _follow(self) -> None:
        while self._wanted:
            batch, self._wanted = self._wanted, {}
            try:
                await asyncio.to_thread(interface.set_host_mtus, self._name, batch)
            except (OSError, ConfigError) as error:
                log.warning("routes to members not changed, large packets may be lost error=%s", error)
                self._wanted = batch | self._wanted
                await asyncio.sleep(RETRY)
