# How a peer's packets arrive, from their counters and the time of each look at the socket: nothing of the other end's
# clock. Twin: meshvpn/proto/arrivals.py, which says what the figures mean.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    JITTER_GAIN = 16            # RFC 3550 §6.4.1

cdef extern from * nogil:
    """
    #define SILENCE 0.2
    """
    const double SILENCE        # seconds; a longer pause is a stream's end

cdef struct Arrivals:
    uint64_t reordered_packets
    uint64_t duplicate_packets
    uint64_t marked_packets
    uint64_t kept_marks
    double jitter               # seconds
    double spacing              # seconds from one packet sent to the next; 0.0 = not known
    uint32_t index              # the keypair of the last sample, its counter and time
    uint64_t counter
    double sampled_at

cdef inline void arrivals_note(
        Arrivals *arrivals, uint32_t index, uint64_t counter, uint64_t expected, double now) noexcept nogil:
    # An authentic packet; `expected` is the keypair's greatest counter so far, plus one.
    cdef double elapsed = now - arrivals.sampled_at, spacing, deviation
    if counter < expected:
        arrivals.reordered_packets += 1
        return
    if index == arrivals.index and elapsed <= 0.0:
        return
    if index != arrivals.index or counter <= arrivals.counter or elapsed > SILENCE:
        arrivals.spacing = 0.0
    else:
        spacing = elapsed / <double>(counter - arrivals.counter)
        if arrivals.spacing == 0.0:
            arrivals.spacing = spacing
        else:
            deviation = elapsed - arrivals.spacing * <double>(counter - arrivals.counter)
            arrivals.jitter += ((deviation if deviation > 0.0 else -deviation) - arrivals.jitter) / JITTER_GAIN
            arrivals.spacing += (spacing - arrivals.spacing) / JITTER_GAIN
    arrivals.index = index
    arrivals.counter = counter
    arrivals.sampled_at = now

cdef inline void arrivals_note_marks(Arrivals *arrivals, int inner, int outer) noexcept nogil:
    # Traffic classes of a packet and of the datagram that brought it.
    if inner >> 2:
        arrivals.marked_packets += 1
        arrivals.kept_marks += inner >> 2 == outer >> 2
