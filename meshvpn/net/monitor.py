"""Tells when addresses, links or routes of this host change, and when the machine was suspended."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable

from ..proto.sleep import SleepDetector

log = logging.getLogger(__name__)

# linux/rtnetlink.h, the legacy multicast groups.
_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV4_ROUTE = 0x40
_RTMGRP_IPV6_IFADDR = 0x100
_RTMGRP_IPV6_ROUTE = 0x400
_GROUPS = _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE

SETTLE = 0.05
"""Seconds. One `ip` command or DHCP lease makes several messages; they are reported once."""

TICK = 1.0
"""Seconds between two looks at the clocks. Timers stand still in a sleep, so the first look after it comes in time."""


class NetworkMonitor:
    """Calls back, at most once each SETTLE seconds, when the kernel reports a change.

    What changed is not parsed: the receiver reads the whole state anew, which also covers messages lost by an overrun.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._pending: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, _GROUPS))
        self._loop.add_reader(self._socket, self._drain)

    def close(self) -> None:
        """Stop reporting."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self._pending is not None:
            self._pending.cancel()

    def _drain(self) -> None:
        try:
            while self._socket.recv(65536):
                pass
        except BlockingIOError:
            pass
        except OSError as error:
            # ENOBUFS: messages were lost, which is one more reason to look.
            log.debug("netlink overrun error=%s", error)
        if self._pending is None:
            self._pending = self._loop.call_later(SETTLE, self._report)

    def _report(self) -> None:
        self._pending = None
        self._on_change()


class SleepMonitor:
    """Calls back with the seconds slept, at most TICK after the machine woke."""

    def __init__(self, on_wake: Callable[[float], None]) -> None:
        self._on_wake = on_wake
        self._detector = SleepDetector()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def close(self) -> None:
        """Stop reporting."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(TICK, self._look)
        monotonic = time.clock_gettime(time.CLOCK_MONOTONIC)
        slept = self._detector.note(monotonic, time.clock_gettime(time.CLOCK_BOOTTIME))
        if slept is not None:
            self._on_wake(slept)
