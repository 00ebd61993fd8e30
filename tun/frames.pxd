# Relay frames that go on as they came: runs of one sender's frames to one receiver as one UDP_SEGMENT message. Nothing
# is copied: the data stays in the inbox until it was sent. Nothing is read: a frame's rank follows from its outer mark
# and from the size that the packet in it has.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy

from .endpoint cimport Origin, RELAY_HEADER, WORD_RELAY
from .post cimport POSTED, Letter, Post, post_put, post_send
from .ranks cimport rank_of
from .syscalls cimport iovec

cdef enum:
    SEGMENTS = 64               # the kernel's limit in one UDP_SEGMENT message
    GSO_BYTES = 65000           # of one UDP_SEGMENT message with all headers
    SEALED_BYTES = 32           # what sealing adds to a padded packet: a header of 16 bytes and a tag of 16

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
    iovec vectors[POSTED]
    Post post

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

cdef inline void outgoing_put(Outgoing *outgoing, Origin *to, const Frames *frames) noexcept nogil:
    # `to` is read by `post_send`, before which it must not go away.
    cdef iovec *vector = &outgoing.vectors[outgoing.post.count]
    cdef Letter letter
    vector.iov_base = frames.data
    vector.iov_len = frames.size
    letter.socket = to.socket
    letter.packets = frames.count
    letter.segment = frames.segment
    letter.bytes = frames.size
    letter.tos = frames.tos
    letter.rank = rank_of(frames.tos, frames.segment - RELAY_HEADER - SEALED_BYTES)
    letter.is_single = NULL
    post_put(&outgoing.post, to, vector, 1, &letter)
    if outgoing.post.count == POSTED:
        post_send(&outgoing.post)
