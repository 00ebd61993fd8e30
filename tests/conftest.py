"""The fast tests first; and in CI a test that skips because something is missing is a failure."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.figures import show_figures

# How long an example takes is for the machine to say, not for a test.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

ORDER = (
    "unit", "fuzz", "cli", "bench", "rendezvous", "engine", "sim",
    "netns/test_events.py", "netns/test_wireguard_go.py", "netns", "failures",
)  # fmt: skip
"""Folders, from seconds to minutes. Where namespaces are needed, first what mostly waits: the rest runs beside it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_place)


def pytest_collection_finish() -> None:
    # Thousands of tests that live until the end need not be looked through again and again.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # Not beside the tests: where those run in other processes, this conftest is the only one that is loaded here.
    show_figures(terminalreporter)


def _place(item: pytest.Item) -> int:
    path = item.path.relative_to(Path(__file__).parent)
    return ORDER.index(str(path)) if str(path) in ORDER else ORDER.index(path.parts[0])
