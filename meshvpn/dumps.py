"""Keeps the memory of a program that holds keys from files and from other programs."""

from __future__ import annotations

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4  # linux/prctl.h; Python does not name it


def forbid_dumps() -> None:
    """No core dump, and none of /proc/PID/mem, ptrace(2) for others of the same user (prctl(2), PR_SET_DUMPABLE).

    Raises OSError.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
