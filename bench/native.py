"""The C programs of the benchmark, compiled when they are older than their source."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
_FLAGS = ("-O2", "-Wall", "-Wextra", "-pthread")


def program(name: str) -> str:
    """The path of a compiled program. Raises CalledProcessError."""
    source, binary = HERE / f"{name}.c", HERE / "bin" / name
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        binary.parent.mkdir(exist_ok=True)
        subprocess.run(["gcc", *_FLAGS, "-o", str(binary), str(source), "-lm"], check=True)
    return str(binary)
