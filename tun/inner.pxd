# What the engine reads and changes in an inner IP packet: addresses, length, traffic class.

from libc.stdint cimport uint8_t, uint32_t

from .routes cimport RouteTable, route_lookup

cdef enum:
    ECN = 3                     # the two bits of the traffic class
    NOT_ECT = 0
    ECT_1 = 1
    CE = 3

cdef inline int inner_version(const uint8_t *packet, int size) noexcept nogil:
    # 4 or 6 if the packet has at least that version's header, else 0.
    if size >= 20 and packet[0] >> 4 == 4:
        return 4
    if size >= 40 and packet[0] >> 4 == 6:
        return 6
    return 0

cdef inline int inner_length(const uint8_t *packet, int size) noexcept nogil:
    # The packet's own length without the padding, or 0 if it is no whole IP packet.
    cdef int version = inner_version(packet, size), length
    if version == 4:
        length = (packet[2] << 8) | packet[3]
        return length if 20 <= length <= size else 0
    if version == 6:
        length = 40 + ((packet[4] << 8) | packet[5])
        return length if length <= size else 0
    return 0

cdef inline uint32_t peer_of_source(RouteTable *routes, const uint8_t *packet) noexcept nogil:
    return route_lookup(routes, packet + 12, 4) if packet[0] >> 4 == 4 else route_lookup(routes, packet + 8, 6)

cdef inline uint32_t peer_of_destination(RouteTable *routes, const uint8_t *packet) noexcept nogil:
    return route_lookup(routes, packet + 16, 4) if packet[0] >> 4 == 4 else route_lookup(routes, packet + 24, 6)

cdef inline int traffic_class(const uint8_t *packet) noexcept nogil:
    # Copied to the outer header: RFC 2983 uniform model for DSCP, RFC 6040 normal mode for ECN.
    return packet[1] if packet[0] >> 4 == 4 else ((packet[0] & 15) << 4) | (packet[1] >> 4)

cdef inline bint mark_congestion(uint8_t *packet, int outer) noexcept nogil:
    # RFC 6040 §4.2, figure 4, where the outer field is ECT(1) or CE. False: the packet must be dropped.
    cdef int inner = traffic_class(packet) & ECN
    cdef uint32_t checksum, old
    if inner == NOT_ECT:
        return outer != CE
    if inner == CE or inner == outer:
        return True
    if packet[0] >> 4 == 6:
        packet[1] = (packet[1] & 0xCF) | <uint8_t>(outer << 4)
        return True
    old = (packet[0] << 8) | packet[1]
    packet[1] = (packet[1] & 0xFC) | <uint8_t>outer
    # RFC 1624: the header checksum follows from the change of one word.
    checksum = ~<uint32_t>((packet[10] << 8) | packet[11]) & 0xFFFF
    checksum += (~old & 0xFFFF) + <uint32_t>((packet[0] << 8) | packet[1])
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    checksum = ~checksum & 0xFFFF
    packet[10] = <uint8_t>(checksum >> 8)
    packet[11] = <uint8_t>(checksum & 0xFF)
    return True
