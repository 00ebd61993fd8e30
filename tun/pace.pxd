# When to look away. Where packets come fast, waking a thread for each costs more than all else that is done with them:
# the thread that has taken what is there sleeps for NAP before it looks again, and takes what came meanwhile together.
# Network cards do the same with interrupts. Below BUSY_RATE (400 calls at once) no packet ever waits.

from libc.stdint cimport uint64_t

from .syscalls cimport *

cdef enum:
    BUSY_RATE = 20000           # packets a second: three and more a nap
    NAP = 150000                # nanoseconds, a thousandth of what a listener notices; docs/performance.md has others
    WINDOW = 1                  # milliseconds over which packets are counted

cdef struct Pace:
    double window_at
    uint64_t packets            # since then
    bint is_busy

cdef inline void pace_open() noexcept nogil:
    # Of the calling thread: the kernel would let it sleep for 50 µs more.
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)

cdef inline void pace_note(Pace *pace, int packets, double now) noexcept nogil:
    cdef double passed = now - pace.window_at
    pace.packets += packets
    if passed >= WINDOW * 1e-3:
        pace.is_busy = pace.packets >= passed * BUSY_RATE
        pace.window_at = now
        pace.packets = 0

cdef inline void pace_nap() noexcept nogil:
    cdef timespec span
    span.tv_sec = 0
    span.tv_nsec = NAP
    nanosleep(&span, NULL)
