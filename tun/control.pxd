# What the kernel tells and takes beside a datagram: the outer mark (TOS), and the size of the datagrams that one
# message joins (UDP_GRO on the way in, UDP_SEGMENT on the way out).

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy

from .syscalls cimport *

cdef enum:
    CONTROL_BYTES = 128

cdef inline void read_control(msghdr *message, int *tos, int *segment) noexcept nogil:
    cdef cmsghdr *header = CMSG_FIRSTHDR(message)
    while header is not NULL:
        if header.cmsg_level == SOL_UDP and header.cmsg_type == UDP_GRO:
            memcpy(segment, CMSG_DATA(header), sizeof(int))
        elif header.cmsg_level == IPPROTO_IP and header.cmsg_type == IP_TOS:
            tos[0] = CMSG_DATA(header)[0]
        elif header.cmsg_level == IPPROTO_IPV6 and header.cmsg_type == IPV6_TCLASS:
            memcpy(tos, CMSG_DATA(header), sizeof(int))
        header = CMSG_NXTHDR(message, header)

cdef inline void add_control(msghdr *message, uint8_t *control, int family, int tos, int segment) noexcept nogil:
    # `control` has CONTROL_BYTES and lives as long as the message. `segment` 0: one datagram.
    cdef cmsghdr *header
    cdef size_t used = 0
    cdef uint16_t size = <uint16_t>segment
    if tos:
        header = <cmsghdr *>control
        if family == AF_INET6:
            header.cmsg_level = IPPROTO_IPV6
            header.cmsg_type = IPV6_TCLASS
        else:
            header.cmsg_level = IPPROTO_IP
            header.cmsg_type = IP_TOS
        header.cmsg_len = CMSG_LEN(sizeof(int))
        memcpy(CMSG_DATA(header), &tos, sizeof(int))
        used += CMSG_SPACE(sizeof(int))
    if segment:
        # Last, so that it can be cut off.
        header = <cmsghdr *>(control + used)
        header.cmsg_level = SOL_UDP
        header.cmsg_type = UDP_SEGMENT
        header.cmsg_len = CMSG_LEN(sizeof(uint16_t))
        memcpy(CMSG_DATA(header), &size, sizeof(uint16_t))
        used += CMSG_SPACE(sizeof(uint16_t))
    if used:
        message.msg_control = control
        message.msg_controllen = used

cdef inline void drop_segment(msghdr *message) noexcept nogil:
    # One datagram after all; the mark stays.
    message.msg_controllen -= CMSG_SPACE(sizeof(uint16_t))
