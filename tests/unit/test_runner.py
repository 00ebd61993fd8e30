"""The driver of one network, where it needs no interface."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshvpn.net import interface
from meshvpn.net import runner as module
from meshvpn.net.runner import NetworkRunner


class Node:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []
        self.changes = 0
        self.slept: list[float] = []

    def handle_wake(self, slept: float, *, now: float, wall_ns: int) -> None:
        self.slept.append(slept)

    def handle_local_addresses(self, hosts: list[str], ports: object, *, now: float, wall_ns: int) -> None:
        self.told.append(hosts)

    def handle_network_change(self, *, now: float, wall_ns: int) -> None:
        self.changes += 1


class Link:
    """Keeps which addresses it is told are gone."""

    def __init__(self) -> None:
        self.left: list[set[str]] = []
        self.is_cut = False

    def cut(self) -> None:
        self.is_cut = True

    def leave(self, hosts: set[str]) -> None:
        self.left.append(hosts)


def make_runner(node: Node, link: Link | None = None) -> NetworkRunner:
    stub: Any = SimpleNamespace(ports={})
    return NetworkRunner(cast(Any, node), cast(Any, link or Link()), stub, stub, on_event=lambda event: None)


async def look(runner: NetworkRunner) -> None:
    runner.handle_network_change()
    assert runner._refresh is not None
    await runner._refresh


async def test_addresses_that_cannot_be_read_are_reported_and_read_at_the_next_change(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Any] = [OSError(24, "too many open files"), ["192.0.2.1"]]

    def local_hosts(*, ignore: frozenset[str]) -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return cast("list[str]", answer)

    monkeypatch.setattr(interface, "local_hosts", local_hosts)
    node = Node()
    runner = make_runner(node)
    for _ in range(2):
        await look(runner)
    assert "too many open files" in caplog.text
    assert node.told == [["192.0.2.1"]]


async def test_paths_are_doubted_when_addresses_or_the_way_to_the_world_change_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts, routes = ["192.0.2.1"], ["192.0.2.254 eth0 0"]
    monkeypatch.setattr(interface, "local_hosts", lambda *, ignore: list(hosts))
    monkeypatch.setattr(interface, "default_routes", lambda: list(routes))
    node = Node()
    link = Link()
    runner = make_runner(node, link)
    changes: list[int] = []
    for more_routes, hosts_left in ((0, 1), (0, 1), (1, 1), (1, 1), (1, 0)):
        routes[1:] = ["198.51.100.254 eth1 100"][:more_routes]
        del hosts[hosts_left:]
        await look(runner)
        changes.append(node.changes)
    assert changes == [0, 0, 1, 1, 2]
    assert [gone for gone in link.left if gone] == [{"192.0.2.1"}]


async def test_a_fault_of_ours_stops_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, faults = make_runner(Node()), 3
    monkeypatch.setattr(module, "FAULT_PAUSE", 0.01)
    fired: list[float] = []

    class Faulty:
        """Its first timeouts fail; it is due at once, always."""

        def next_timeout(self) -> float | None:
            return 0.0 if len(fired) < 2 * faults else None

        def handle_timeout(self, *, now: float, wall_ns: int) -> None:
            fired.append(now)
            if len(fired) <= faults:
                raise RuntimeError("a fault")

    reported: list[BaseException] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
    runner.node, runner.engine = cast(Any, Faulty()), cast(Any, object())
    monkeypatch.setattr(runner, "_carry_out", lambda engine: None)
    runner._pump()
    for _ in range(2000):
        if len(fired) < 2 * faults:
            await asyncio.sleep(0.005)
    assert len(reported) == faults
    assert all(later - earlier >= 0.009 for earlier, later in pairwise(fired[: faults + 1]))


async def test_what_cannot_be_carried_out_leaves_the_timer_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    runner = make_runner(node)
    runner.engine = cast(Any, object())
    monkeypatch.setattr(node, "next_timeout", lambda: 1e9, raising=False)

    def fail(engine: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(runner, "_carry_out", fail)
    with pytest.raises(OSError, match="no space"):
        runner._pump()
    assert runner._timer is not None
    runner._timer.cancel()


@pytest.mark.parametrize(("slept", "is_cut"), [(2.0, False), (60.0, True)])
async def test_after_a_long_sleep_the_control_connection_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, slept: float, is_cut: bool
) -> None:
    node, link = Node(), Link()
    runner = make_runner(node, link)
    monkeypatch.setattr(interface, "local_hosts", lambda *, ignore: [])
    monkeypatch.setattr(interface, "default_routes", list)
    runner.handle_wake(slept)
    assert (node.slept, link.is_cut) == ([slept], is_cut)
    assert runner._refresh is not None
    await runner._refresh
    assert node.told == [[]]
