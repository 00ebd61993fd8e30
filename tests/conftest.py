"""The fast tests first; and in CI a test that skips because something is missing is a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ORDER = ("unit", "fuzz", "engine", "cli", "bench", "rendezvous", "sim", "failures", "netns")
"""Folders, from seconds to minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    items.sort(key=lambda item: ORDER.index(item.path.relative_to(here).parts[0]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
