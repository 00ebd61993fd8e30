"""The C programs of the benchmark."""

from __future__ import annotations

from pathlib import Path

from tests.netns.native import compiled

HERE = Path(__file__).resolve().parent


def program(name: str) -> str:
    """The path of a compiled program. Raises CalledProcessError."""
    return compiled(HERE / f"{name}.c")
