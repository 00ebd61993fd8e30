"""Routes to members are set in a worker thread; what the kernel refuses is tried again."""

from __future__ import annotations

import asyncio
import threading

import pytest

from meshvpn.net import host_mtus, interface
from meshvpn.net.host_mtus import HostMtus


class Kernel:
    """Takes routes, but the first `refusals` times."""

    def __init__(self, refusals: int = 0) -> None:
        self.routes: dict[str, int] = {}
        self.refusals = refusals
        self.calls = 0
        self.is_called = threading.Event()

    def set_host_mtus(self, name: str, mtus: dict[str, int | None]) -> None:
        assert name == "mesh0"
        self.calls += 1
        self.is_called.set()
        if self.calls <= self.refusals:
            raise OSError("no buffer space")
        for host, mtu in mtus.items():
            self.routes.pop(host, None)
            if mtu is not None:
                self.routes[host] = mtu


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel()
    monkeypatch.setattr(interface, "set_host_mtus", found.set_host_mtus)
    monkeypatch.setattr(host_mtus, "RETRY", 0.0)
    return found


async def test_ipv6_gets_what_it_must_have_and_a_limit_goes_as_it_came(kernel: Kernel) -> None:
    routes = HostMtus("mesh0")
    routes.set("10.7.0.2", "fd00::2", 1216)
    await settled(routes)
    assert kernel.routes == {"10.7.0.2": 1216, "fd00::2": 1280}
    routes.set("10.7.0.2", "fd00::2", None)
    await settled(routes)
    assert kernel.routes == {}


async def test_what_the_kernel_refuses_is_tried_again_unless_something_newer_holds(kernel: Kernel) -> None:
    kernel.refusals = 2
    routes = HostMtus("mesh0")
    routes.set("10.7.0.2", "fd00::2", 1216)
    routes.set("10.7.0.3", "fd00::3", 1328)
    await asyncio.to_thread(kernel.is_called.wait, 10.0)
    routes.set("10.7.0.2", "fd00::2", 1312)
    await settled(routes)
    assert kernel.routes == {"10.7.0.2": 1312, "fd00::2": 1312, "10.7.0.3": 1328, "fd00::3": 1328}


async def test_nothing_is_changed_after_the_end(kernel: Kernel) -> None:
    kernel.refusals = 10**6
    routes = HostMtus("mesh0")
    routes.set("10.7.0.2", "fd00::2", 1216)
    await asyncio.to_thread(kernel.is_called.wait, 10.0)
    await routes.stop()
    calls = kernel.calls
    for _ in range(100):
        await asyncio.sleep(0)
    assert kernel.calls == calls


async def settled(routes: HostMtus) -> None:
    assert routes._task is not None
    await routes._task
