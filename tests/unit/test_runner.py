"""The driver of one network, where it needs no interface."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshvpn.net import interface
from meshvpn.net.runner import NetworkRunner


async def test_addresses_that_cannot_be_read_are_reported_and_read_at_the_next_change(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Any] = [OSError(24, "too many open files"), ["192.0.2.1"]]
    told: list[list[str]] = []

    def local_hosts(*, ignore: frozenset[str]) -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return cast("list[str]", answer)

    monkeypatch.setattr(interface, "local_hosts", local_hosts)
    node = SimpleNamespace(handle_local_addresses=lambda hosts, ports, *, now, wall_ns: told.append(hosts))
    stub: Any = SimpleNamespace(ports={})
    runner = NetworkRunner(cast(Any, node), stub, stub, stub, on_event=lambda event: None)
    for _ in range(2):
        runner.handle_network_change()
        assert runner._refresh is not None
        await runner._refresh
    assert "too many open files" in caplog.text
    assert told == [["192.0.2.1"]]
