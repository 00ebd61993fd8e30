from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes, resource
from meshvpn.dumps import forbid_dumps
forbid_dumps()
PR_GET_DUMPABLE = 3
print(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE), resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_a_program_that_forbids_dumps_leaves_none() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "0 (0, 0)\n"
