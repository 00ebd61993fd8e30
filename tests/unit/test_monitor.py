"""What the kernel reports reaches the networks: at once, once, and also when messages were lost."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from meshvpn.net import monitor
from meshvpn.net.monitor import SETTLE, NetworkMonitor, SleepMonitor


class Netlink:
    """The monitor's socket, and the kernel's end."""

    def __init__(self) -> None:
        self.kernel, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.is_overrun = False

    def bind(self, address: object) -> None:
        """Groups are not simulated."""

    def setblocking(self, flag: bool) -> None:
        self._ours.setblocking(flag)

    def fileno(self) -> int:
        return self._ours.fileno()

    def recv(self, size: int) -> bytes:
        if self.is_overrun:
            self.is_overrun = False
            raise OSError(errno.ENOBUFS, "no buffer space available")
        return self._ours.recv(size)

    def close(self) -> None:
        self._ours.close()
        self.kernel.close()


@pytest.fixture
def netlink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Netlink]:
    made = Netlink()
    names = {name: getattr(socket, name) for name in ("AF_NETLINK", "SOCK_RAW", "SOCK_CLOEXEC", "NETLINK_ROUTE")}
    monkeypatch.setattr(monitor, "socket", SimpleNamespace(socket=lambda *_: made, **names))
    yield made
    made.close()


async def test_many_messages_at_once_are_one_change_that_is_told_within_100_ms(netlink: Netlink) -> None:
    assert SETTLE <= 0.1
    told: list[int] = []
    watching = NetworkMonitor(lambda: told.append(1))
    for _ in range(20):
        netlink.kernel.send(b"message")
    await until(lambda: told)
    await asyncio.sleep(2 * SETTLE)
    assert told == [1]
    netlink.kernel.send(b"another")
    await until(lambda: len(told) == 2)
    watching.close()


async def test_an_overrun_is_a_change_too_and_what_follows_is_still_heard(netlink: Netlink) -> None:
    told: list[int] = []
    watching = NetworkMonitor(lambda: told.append(1))
    netlink.is_overrun = True
    netlink.kernel.send(b"the one that was not lost")
    await until(lambda: told)
    netlink.kernel.send(b"another")
    await until(lambda: len(told) > 1)
    watching.close()


async def test_nothing_is_told_after_the_end(netlink: Netlink) -> None:
    told: list[int] = []
    watching = NetworkMonitor(lambda: told.append(1))
    netlink.kernel.send(b"message")
    await asyncio.sleep(SETTLE / 5)
    watching.close()
    await asyncio.sleep(2 * SETTLE)
    assert told == []


async def test_a_sleep_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, looks, told = [0.0], [0], list[float]()
    clock_gettime = time.clock_gettime
    monkeypatch.setattr(monitor, "TICK", 0.01)

    def read(clock: int) -> float:
        looks[0] += 1
        return clock_gettime(clock) + (slept[0] if clock == time.CLOCK_BOOTTIME else 0.0)

    monkeypatch.setattr(time, "clock_gettime", read)
    watching = SleepMonitor(told.append)
    await until(lambda: looks[0] >= 8)
    assert told == []
    slept[0] = 3600.0
    await until(lambda: told)
    assert told == [pytest.approx(3600.0, abs=0.5)]
    watching.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait for it, within any patience."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
