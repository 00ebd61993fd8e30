"""What tests measured, told at the end of the run whether it held or not."""

from __future__ import annotations

import pytest

FIGURES = "figures"
"""The property of a test (`record_property`) under which it records a line."""


def show_figures(terminal: pytest.TerminalReporter) -> None:
    """All lines, in the order in which the tests ended."""
    reports = [report for kind in ("passed", "failed") for report in terminal.stats.get(kind, ())]
    lines = [
        str(value)
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for key, value in report.user_properties
        if key == FIGURES
    ]
    if lines:
        terminal.section("what calls heard")
        for line in lines:
            terminal.write_line(line)
