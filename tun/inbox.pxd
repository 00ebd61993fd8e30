# Datagrams on their way in: the UDP sockets of an engine or a relay, and what one recvmmsg takes of them. A message may
# be several datagrams of one size that the kernel joined (UDP_GRO); the last may be shorter.

from libc.stdint cimport uint8_t
from libc.string cimport memset

from .control cimport CONTROL_BYTES, read_control
from .endpoint cimport Origin, SOCKET_LIMIT, SocketAddress, Sockets, take_origin
from .memory cimport give_block, take_block
from .syscalls cimport *

cdef enum:
    MESSAGES = 16               # of one recvmmsg
    MESSAGE_BYTES = 65536       # a joined message may be that long
    TURNS = 4                   # recvmmsg calls before the other sockets have theirs

cdef struct Inbox:
    uint8_t *buffers
    mmsghdr messages[MESSAGES]
    iovec vectors[MESSAGES]
    uint8_t controls[MESSAGES][CONTROL_BYTES]
    SocketAddress names[MESSAGES]

cdef struct Message:
    Origin origin
    uint8_t *data
    int size
    int segment                 # of each datagram but the last
    int tos

cdef inline bint inbox_open(Inbox *box) noexcept nogil:
    # False: no memory.
    box.buffers = <uint8_t *>take_block(MESSAGES * MESSAGE_BYTES)
    return box.buffers is not NULL

cdef inline void inbox_close(Inbox *box) noexcept nogil:
    give_block(box.buffers)

cdef inline int inbox_receive(Inbox *box, int fd) noexcept nogil:
    # How many messages there are now.
    cdef int i, count
    cdef msghdr *header
    for i in range(MESSAGES):
        box.vectors[i].iov_base = box.buffers + i * MESSAGE_BYTES
        box.vectors[i].iov_len = MESSAGE_BYTES
        header = &box.messages[i].msg_hdr
        memset(header, 0, sizeof(msghdr))
        header.msg_iov = &box.vectors[i]
        header.msg_iovlen = 1
        header.msg_name = &box.names[i]
        header.msg_namelen = sizeof(SocketAddress)
        header.msg_control = box.controls[i]
        header.msg_controllen = CONTROL_BYTES
    count = recvmmsg(fd, box.messages, MESSAGES, MSG_DONTWAIT, NULL)
    return count if count > 0 else 0

cdef inline void inbox_read(Inbox *box, int i, int socket, Message *message) noexcept nogil:
    memset(message, 0, sizeof(Message))
    message.data = box.buffers + i * MESSAGE_BYTES
    message.size = <int>box.messages[i].msg_len
    take_origin(&message.origin, socket, &box.names[i], box.messages[i].msg_hdr.msg_namelen)
    read_control(&box.messages[i].msg_hdr, &message.tos, &message.segment)
    if message.segment <= 0:
        message.segment = message.size

cdef inline int watch(pollfd *fds, const Sockets *sockets, int stop_fd) noexcept nogil:
    # For `poll`: the sockets, then what ends the thread. `fds` has SOCKET_LIMIT + 1; returns how many are filled.
    cdef int i
    for i in range(sockets.count):
        fds[i].fd = sockets.fd[i]
        fds[i].events = POLLIN
    fds[sockets.count].fd = stop_fd
    fds[sockets.count].events = POLLIN
    return sockets.count + 1

cdef inline int adopt_sockets(Sockets *sockets, object descriptors, bint gso, bint gro, bint marks) except -1:
    # Fills `sockets`, and says in them which of the wanted kernel features all of them have.
    cdef int one = 1, value = 0, family = 0, fd
    cdef socklen_t size
    if not 0 < len(descriptors) <= SOCKET_LIMIT:
        raise ValueError(f"between 1 and {SOCKET_LIMIT} sockets, not {len(descriptors)}")
    sockets.count = len(descriptors)
    sockets.has_gso, sockets.has_gro = gso, gro
    for number, descriptor in enumerate(descriptors):
        fd = descriptor
        sockets.fd[number] = fd
        size = sizeof(int)
        if getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size) != 0:
            raise OSError(errno, f"file descriptor {fd} is no socket")
        sockets.family[number] = family
        size = sizeof(int)
        if gso and getsockopt(fd, SOL_UDP, UDP_SEGMENT, &value, &size) != 0:
            sockets.has_gso = False
        if gro and setsockopt(fd, SOL_UDP, UDP_GRO, &one, sizeof(int)) != 0:
            sockets.has_gro = False
        if marks and family == AF_INET6:
            setsockopt(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, &one, sizeof(int))
        elif marks:
            setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &one, sizeof(int))
    return 0
