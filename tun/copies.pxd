# Which packets go to the secondary path too, where not all do: what a call cannot miss. Twin: meshvpn/proto/copies.py,
# which says what the classes are.

from libc.stdint cimport uint8_t

from .inner cimport traffic_class

cdef enum:
    COPIES_ALL = 0
    COPIES_SIGNALLING = 1
    COPIES_VOICE = 2

cdef enum:
    VOICE_BYTES = 400
    TCP = 6
    UDP = 17
    FRAGMENT_HEADER = 44        # RFC 8200 §4.5
    SIP = 5060                  # SIP over TLS is the next
    IAX2 = 4569
    DUNDI = 4520

cdef inline bint is_signalling_port(int port) noexcept nogil:
    return port == SIP or port == SIP + 1 or port == DUNDI

cdef inline bint is_copied(int copies, const uint8_t *packet, int size) noexcept nogil:
    # `packet` is an IP packet with at least its version's fixed header, or empty.
    cdef int dscp, protocol, at, source, destination
    cdef bint is_first = True
    if copies == COPIES_ALL or size == 0:
        return True
    dscp = traffic_class(packet) >> 2
    if dscp == 24 or dscp == 26 or dscp == 40:                              # CS3, AF31, CS5
        return True
    if copies == COPIES_VOICE and (dscp == 46 or dscp == 44):               # EF, VOICE-ADMIT
        return True
    if packet[0] >> 4 == 4:
        protocol = packet[9]
        at = (packet[0] & 15) * 4
        is_first = ((packet[6] & 0x1F) | packet[7]) == 0
    else:
        protocol = packet[6]
        at = 40
        if protocol == FRAGMENT_HEADER and size >= 48:
            protocol = packet[40]
            at = 48
            is_first = (packet[42] | (packet[43] & 0xF8)) == 0
    if protocol == UDP and (not is_first or (copies == COPIES_VOICE and size <= VOICE_BYTES)):
        return True
    if not is_first or size < at + 8 or (protocol != TCP and protocol != UDP):
        return False
    source = (packet[at] << 8) | packet[at + 1]
    destination = (packet[at + 2] << 8) | packet[at + 3]
    if is_signalling_port(source) or is_signalling_port(destination):
        return True
    return (protocol == UDP and (source == IAX2 or destination == IAX2)
            and (copies == COPIES_VOICE or (size > at + 8 and packet[at + 8] & 0x80 != 0)))
