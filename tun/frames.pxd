# Relay frames that go on as they came: runs of one sender's frames to one receiver as one UDP_SEGMENT message, and all
# messages of one socket as one sendmmsg. Nothing is copied: the data stays in the inbox until it was sent.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from .control cimport CONTROL_BYTES, add_control, drop_segment
from .endpoint cimport Origin, RELAY_HEADER, WORD_RELAY
from .sockets cimport Sockets
from .syscalls cimport *

cdef enum:
    OUTGOING = 256              # messages of one round of sendmmsg
    SEGMENTS = 64               # the kernel's limit in one UDP_SEGMENT message
    GSO_BYTES = 65000           # of one UDP_SEGMENT message with all headers

cdef struct Frames:
    # Of one sender to one receiver: all of `segment` bytes but the last, which may be shorter.
    uint8_t *data
    int size
    int count
    int segment
    int tos
    uint32_t source
    uint32_t destination

cdef struct Outgoing:
    const Sockets *sockets
    uint64_t *failed            # counts what the kernel refused
    mmsghdr messages[OUTGOING]
    iovec vectors[OUTGOING]
    uint8_t controls[OUTGOING][CONTROL_BYTES]
    int socket_of[OUTGOING]
    int segment_of[OUTGOING]
    int count

cdef inline bint is_frame(const uint8_t *data, int size) noexcept nogil:
    cdef uint32_t word
    if size < RELAY_HEADER:
        return False
    memcpy(&word, data, 4)
    return word == WORD_RELAY

cdef inline void frames_take(
        Frames *frames, uint8_t *data, int left, int segment, int tos, bint joins) noexcept nogil:
    # `data` begins with a frame. With `joins` those behind it that have the same header and a word of a packet, as many
    # as one UDP_SEGMENT message holds, are taken with it.
    cdef int size = segment if left > segment else left
    frames.data = data
    frames.segment = segment
    frames.tos = tos
    frames.count = 1
    memcpy(&frames.source, data + 4, 4)
    memcpy(&frames.destination, data + 8, 4)
    while (joins and left - size >= RELAY_HEADER + 4 and frames.count < SEGMENTS and size + segment <= GSO_BYTES
            and memcmp(data + size, data, RELAY_HEADER) == 0):
        size = size + segment if left - size > segment else left
        frames.count += 1
    frames.size = size
    if frames.count == 1:
        frames.segment = size

cdef inline int packets_of(const Outgoing *outgoing, int number) noexcept nogil:
    cdef int segment = outgoing.segment_of[number]
    return <int>((outgoing.vectors[number].iov_len + segment - 1) // segment)

cdef inline void send_each(Outgoing *outgoing, int number) noexcept nogil:
    cdef mmsghdr *message = &outgoing.messages[number]
    cdef iovec *vector = &outgoing.vectors[number]
    cdef size_t left = vector.iov_len, segment = outgoing.segment_of[number]
    drop_segment(&message.msg_hdr)
    while left:
        vector.iov_len = left if left < segment else segment
        left -= vector.iov_len
        if sendmmsg(outgoing.sockets.fd[outgoing.socket_of[number]], message, 1, MSG_DONTWAIT) != 1:
            outgoing.failed[0] += 1
        vector.iov_base = <uint8_t *>vector.iov_base + vector.iov_len

cdef inline void outgoing_send(Outgoing *outgoing) noexcept nogil:
    cdef int first = 0, last, done, socket, packets
    while first < outgoing.count:
        last = first + 1
        socket = outgoing.socket_of[first]
        while last < outgoing.count and outgoing.socket_of[last] == socket:
            last += 1
        done = sendmmsg(outgoing.sockets.fd[socket], &outgoing.messages[first], last - first, MSG_DONTWAIT)
        if done > 0:
            first += done
            continue
        if errno == EINTR:
            continue
        packets = packets_of(outgoing, first)
        if packets > 1 and (errno == EIO or errno == EINVAL or errno == EMSGSIZE):
            # The way to this receiver can't segment (a small MTU, no checksum offload).
            send_each(outgoing, first)
        else:
            # A full socket buffer: what is late is worth nothing to a call.
            outgoing.failed[0] += packets
        first += 1
    outgoing.count = 0

cdef inline void outgoing_put(Outgoing *outgoing, Origin *to, const Frames *frames) noexcept nogil:
    # `to` is read by `outgoing_send`, before which it must not go away.
    cdef int number = outgoing.count
    cdef mmsghdr *message = &outgoing.messages[number]
    memset(message, 0, sizeof(mmsghdr))
    outgoing.vectors[number].iov_base = frames.data
    outgoing.vectors[number].iov_len = frames.size
    message.msg_hdr.msg_name = &to.address
    message.msg_hdr.msg_namelen = to.size
    message.msg_hdr.msg_iov = &outgoing.vectors[number]
    message.msg_hdr.msg_iovlen = 1
    add_control(
        &message.msg_hdr, outgoing.controls[number], outgoing.sockets.family[to.socket], frames.tos,
        frames.segment if frames.count > 1 else 0)
    outgoing.socket_of[number] = to.socket
    outgoing.segment_of[number] = frames.segment
    outgoing.count += 1
    if outgoing.count == OUTGOING:
        outgoing_send(outgoing)
