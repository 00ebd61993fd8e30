"""C programs beside their source, compiled when they are older than it."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

_FLAGS = ("-O2", "-Wall", "-Wextra", "-pthread")


def compiled(source: Path) -> str:
    """The path of the program, in `bin`. Raises CalledProcessError."""
    binary = source.parent / "bin" / source.stem
    binary.parent.mkdir(exist_ok=True)
    with (binary.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # threads and other runs want it too
        if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["gcc", *_FLAGS, "-o", str(binary), str(source), "-lm"], check=True)
    return str(binary)
