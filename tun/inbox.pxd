# Datagrams on their way in: what one recvmmsg takes of a socket, or several calls where the kernel has none. A message
# may be several datagrams of one size that the kernel joined (UDP_GRO); the last may be shorter.

from libc.stdint cimport uint8_t
from libc.string cimport memset

from .control cimport CONTROL_BYTES, read_control
from .endpoint cimport Origin, SocketAddress, take_origin
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

cdef inline int receive_singly(Inbox *box, int fd) noexcept nogil:
    cdef int count = 0
    cdef ssize_t size
    while count < MESSAGES:
        size = recvmsg(fd, &box.messages[count].msg_hdr, MSG_DONTWAIT)
        if size < 0:
            break
        box.messages[count].msg_len = <unsigned int>size
        count += 1
    return count

cdef inline int inbox_receive(Inbox *box, int fd, bint has_recvmmsg) noexcept nogil:
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
    if not has_recvmmsg:
        return receive_singly(box, fd)
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
