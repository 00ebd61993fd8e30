"""What was measured is printed at the end of the run, whether it held or not."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "tests.netns.scenarios",
    *(f"tests.netns.{kind}_scenarios" for kind in ("host", "ipv6", "mtu", "nat", "path", "server")),
)

from .scenarios import FIGURES  # noqa: E402, before it is imported its asserts are to be rewritten


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    lines = [
        str(value)
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for key, value in report.user_properties
        if key == FIGURES
    ]
    if lines:
        terminalreporter.section("what calls heard")
        for line in lines:
            terminalreporter.write_line(line)
