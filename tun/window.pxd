# The sliding window against replays (RFC 6479): a ring of bits larger than the window, so that moving forward only
# clears whole words. Twin: meshvpn/proto/replay.py.

from libc.stdint cimport uint64_t
from libc.string cimport memset

cdef enum:
    WINDOW_BITS = 8192
    RING_WORDS = 256            # 16,384 bits: a power of two above the window

cdef struct Window:
    uint64_t greatest           # the greatest counter accepted, plus one; 0 = none yet
    uint64_t received           # how many were accepted
    uint64_t ring[RING_WORDS]

cdef inline void window_reset(Window *window) noexcept nogil:
    memset(window, 0, sizeof(Window))

cdef inline bint window_may_accept(const Window *window, uint64_t counter) noexcept nogil:
    # Cheap test before the AEAD; changes nothing.
    if counter >= window.greatest:
        return True
    if window.greatest - counter > WINDOW_BITS:
        return False
    return (window.ring[(counter >> 6) & (RING_WORDS - 1)] >> (counter & 63)) & 1 == 0

cdef inline bint window_accept(Window *window, uint64_t counter) noexcept nogil:
    # Call only for an authenticated packet. False: seen before, or older than the window.
    cdef uint64_t word, last
    if not window_may_accept(window, counter):
        return False
    if counter >= window.greatest:
        # Words between the last greatest counter's and this one's are from an earlier round of the ring.
        last = (window.greatest - 1) >> 6 if window.greatest else 0
        word = counter >> 6
        if window.greatest == 0:
            last = word
        if word - last >= RING_WORDS:
            memset(window.ring, 0, sizeof(window.ring))
        else:
            while last < word:
                last += 1
                window.ring[last & (RING_WORDS - 1)] = 0
        window.greatest = counter + 1
    window.ring[(counter >> 6) & (RING_WORDS - 1)] |= (<uint64_t>1) << (counter & 63)
    window.received += 1
    return True
