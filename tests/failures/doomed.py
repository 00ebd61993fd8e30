"""Ends this process by SIGKILL when it is about to make its Nth call that changes files.

As a program: `python -m tests.failures.doomed N …` is meshvpnd with the arguments …, doomed from its start.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

CALLS = frozenset({"open", "write", "flush", "fsync", "rename", "unlink", "mkdir", "rmdir", "chmod", "close"})


def doom(number: int) -> None:
    """Die at the Nth call from here on, before it is made; 0 is the next one."""
    left = number

    def look(frame: FrameType, event: str, function: object) -> None:
        nonlocal left
        if event == "c_call" and getattr(function, "__name__", "") in CALLS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(look)


if __name__ == "__main__":
    from meshvpn.daemon import main

    doom(int(sys.argv[1]))
    sys.argv = ["meshvpnd", *sys.argv[2:]]
    main()
