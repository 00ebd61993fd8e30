"""A kernel that has not everything: a seccomp filter refuses what a feature of the engine asks for, as old ones do."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
LOAD, EQUALS, HAS_BITS, RETURN = 0x20, 0x15, 0x45, 0x06
"""Of classic BPF (linux/bpf_common.h): ld, jeq, jset, ret."""
ALLOW, ERROR = 0x7FFF0000, 0x00050000
SENDMMSG, RECVMMSG, SETSOCKOPT, GETSOCKOPT, IOCTL = (
    (307, 299, 54, 55, 16) if platform.machine() == "x86_64" else (269, 243, 208, 209, 29)
)
SOL_IP, SOL_UDP, IP_TOS, IP_RECVTOS, UDP_SEGMENT, UDP_GRO = 0, 17, 1, 13, 103, 104
TUNSETOFFLOAD, TUN_TSO, TUN_USO = 0x400454D0, 0x06, 0x60


@dataclass(frozen=True, slots=True)
class Refusal:
    """Of a call. `equal`: values of its arguments by place; `bits`: some are set in the argument."""

    call: int
    reason: int
    equal: tuple[tuple[int, int], ...] = ()
    bits: tuple[tuple[int, int], ...] = ()

    def program(self) -> list[tuple[int, int, int, int]]:
        """Falls through if the call is another."""
        tests = [(0, EQUALS, self.call)]  # struct seccomp_data: nr, arch, instruction pointer, arguments of 8 bytes
        tests += [(16 + 8 * place, EQUALS, value) for place, value in self.equal]
        tests += [(16 + 8 * place, HAS_BITS, value) for place, value in self.bits]
        steps: list[tuple[int, int, int, int]] = []
        for number, (offset, test, value) in enumerate(tests):
            steps += [(LOAD, 0, 0, offset), (test, 0, 2 * (len(tests) - number) - 1, value)]
        return [*steps, (RETURN, 0, 0, ERROR | self.reason)]


REFUSALS = {
    "udp_gso": Refusal(GETSOCKOPT, errno.ENOPROTOOPT, ((1, SOL_UDP), (2, UDP_SEGMENT))),
    "udp_gro": Refusal(SETSOCKOPT, errno.ENOPROTOOPT, ((1, SOL_UDP), (2, UDP_GRO))),
    "sendmmsg": Refusal(SENDMMSG, errno.ENOSYS),
    "recvmmsg": Refusal(RECVMMSG, errno.EPERM),
    "send_tos": Refusal(GETSOCKOPT, errno.ENOPROTOOPT, ((1, SOL_IP), (2, IP_TOS))),
    "recv_tos": Refusal(SETSOCKOPT, errno.ENOPROTOOPT, ((1, SOL_IP), (2, IP_RECVTOS))),
    "tun_tso": Refusal(IOCTL, errno.EINVAL, ((1, TUNSETOFFLOAD),), ((2, TUN_TSO),)),
    "tun_uso": Refusal(IOCTL, errno.EINVAL, ((1, TUNSETOFFLOAD),), ((2, TUN_USO),)),
}


def refused(names: Collection[str], action: Callable[[], None]) -> None:
    """Do it in a thread for which, and for whose threads, the kernel lacks these features; raises what it raises."""

    def run() -> None:
        _filter([step for name in names for step in REFUSALS[name].program()] + [(RETURN, 0, 0, ALLOW)])
        action()

    with ThreadPoolExecutor(1) as executor:
        executor.submit(run).result()


def _filter(steps: list[tuple[int, int, int, int]]) -> None:
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    program = struct.pack("@HP", len(steps), ctypes.addressof(buffer := ctypes.create_string_buffer(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, MODE_FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), f"no filter of {len(buffer)} bytes")
