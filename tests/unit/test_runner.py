"""The driver of one network, where it needs no interface."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshvpn.net import interface
from meshvpn.net.runner import NetworkRunner


class Node:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []
        self.changes = 0

    def handle_local_addresses(self, hosts: list[str], ports: object, *, now: float, wall_ns: int) -> None:
        self.told.append(hosts)

    def handle_network_change(self, *, now: float, wall_ns: int) -> None:
        self.changes += 1


class Link:
    """Keeps which addresses it is told are gone."""

    def __init__(self) -> None:
        self.left: list[set[str]] = []

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
