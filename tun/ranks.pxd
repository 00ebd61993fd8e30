# Who goes first where there is no room for all.

cdef enum Rank:
    RANK_EXPEDITED
    RANK_SMALL
    RANK_BULK
    RANKS

cdef enum:
    SMALL_BYTES = 400           # of an inner packet: 20 ms of any voice codec, or an acknowledgement
    DSCP_CS3 = 24
    DSCP_AF31 = 26
    DSCP_CS5 = 40

cdef inline int rank_of(int mark, int size) noexcept nogil:
    # RFC 4594 §2.3: CS5 is signalling, EF (with RFC 5865's VOICE-ADMIT) telephony, CS6 and CS7 the network's control.
    # Cisco's phones mark signalling as CS3, older ones as AF31.
    cdef int dscp = mark >> 2
    if dscp >= DSCP_CS5 or dscp == DSCP_CS3 or dscp == DSCP_AF31:
        return RANK_EXPEDITED
    return RANK_SMALL if size <= SMALL_BYTES else RANK_BULK
