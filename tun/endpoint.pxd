# Where a datagram came from, and where one goes: a local socket, a remote address, and perhaps a relay in between.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from .sockets cimport Sockets
from .syscalls cimport *

cdef enum:
    RELAY_HEADER = 12           # word 5 (4), source id (4), destination id (4)
    WORD_TRANSPORT = 4          # first words of a datagram
    WORD_RELAY = 5

cdef struct SocketAddress:
    uint8_t bytes[28]           # a sockaddr_in or sockaddr_in6

cdef struct Origin:
    int socket
    socklen_t size
    SocketAddress address
    bint is_relayed
    uint32_t relay_source       # of a frame that comes from there
    uint32_t relay_destination

cdef struct Endpoint:
    Endpoint *retired           # the next in a peer's list of those that a writer may free
    Origin to
    uint8_t relay_header[RELAY_HEADER]
    bint is_single              # the kernel does not segment on this way: one packet a message

cdef inline bint is_same_origin(const Origin *left, const Origin *right) noexcept nogil:
    return (left.socket == right.socket and left.is_relayed == right.is_relayed
            and left.relay_source == right.relay_source and left.relay_destination == right.relay_destination
            and memcmp(&left.address, &right.address, sizeof(SocketAddress)) == 0)

cdef inline void point_back(Endpoint *endpoint, const Origin *origin) noexcept nogil:
    # Send to where a datagram came from, through the same relay: its destination id there is ours.
    cdef uint32_t word = WORD_RELAY
    endpoint.to = origin[0]
    if origin.is_relayed:
        memcpy(endpoint.relay_header, &word, 4)
        memcpy(endpoint.relay_header + 4, &origin.relay_destination, 4)
        memcpy(endpoint.relay_header + 8, &origin.relay_source, 4)

cdef inline bint parse_origin(
        Origin *origin, const Sockets *sockets, int socket, const char *host, uint16_t port) noexcept nogil:
    # False: not a numeric address of the socket's family.
    cdef sockaddr_in *v4 = <sockaddr_in *>&origin.address
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>&origin.address
    memset(origin, 0, sizeof(Origin))
    origin.socket = socket
    if sockets.family[socket] == AF_INET6:
        origin.size = sizeof(sockaddr_in6)
        v6.sin6_family = AF_INET6
        v6.sin6_port = htons(port)
        return inet_pton(AF_INET6, host, &v6.sin6_addr) == 1
    origin.size = sizeof(sockaddr_in)
    v4.sin_family = AF_INET
    v4.sin_port = htons(port)
    return inet_pton(AF_INET, host, &v4.sin_addr) == 1

cdef inline void take_origin(
        Origin *origin, int socket, const SocketAddress *address, socklen_t size) noexcept nogil:
    # Of a datagram just received, without what would make equal origins differ.
    origin.socket = socket
    origin.size = size
    origin.address = address[0]
    origin.is_relayed = False
    origin.relay_source = origin.relay_destination = 0
    if (<const sockaddr *>address).sa_family == AF_INET6:
        (<sockaddr_in6 *>&origin.address).sin6_flowinfo = 0
    else:
        memset(&origin.address.bytes[8], 0, 20)

cdef inline tuple origin_name(const Origin *origin):
    cdef char text[64]
    cdef const sockaddr *address = <const sockaddr *>&origin.address
    if address.sa_family == AF_INET6:
        inet_ntop(AF_INET6, &(<const sockaddr_in6 *>address).sin6_addr, text, sizeof(text))
        return text.decode(), ntohs((<const sockaddr_in6 *>address).sin6_port)
    inet_ntop(AF_INET, &(<const sockaddr_in *>address).sin_addr, text, sizeof(text))
    return text.decode(), ntohs((<const sockaddr_in *>address).sin_port)
