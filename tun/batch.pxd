# Sealed packets on their way out: runs of a peer's packets with one size and mark become one UDP_SEGMENT message.

from libc.stdint cimport uint8_t, uint64_t

from .drops cimport DROP_SEND_FAILED, DROP_SEND_FULL_EXPEDITED
from .endpoint cimport Endpoint, RELAY_HEADER
from .memory cimport give_block, take_block
from .peers cimport Peer
from .post cimport Letter, Post, post_open, post_put, post_send
from .sockets cimport Sockets
from .syscalls cimport iovec

cdef enum:
    BATCH = 64                  # packets of one wake-up; also the kernel's limit of segments in one GSO message
    SLOT = 67776                # bytes of one buffer: the largest packet and what sealing adds; mostly never touched
    CUT = 9280                  # of one packet that was cut from a large one: an MTU up to 9,000
    GSO_BYTES = 65000           # of one UDP_SEGMENT message with all headers

cdef struct Slot:
    # One sealed packet.
    Peer *peer
    Endpoint *primary
    Endpoint *secondary
    uint8_t *data               # the message
    int size
    int tos
    int rank                    # who goes first where the socket is short
    bint is_sent

cdef struct Batch:
    const Sockets *sockets
    uint8_t *buffers            # BATCH × SLOT
    uint8_t *cuts               # BATCH × CUT
    Slot slots[BATCH]
    iovec vectors[4 * BATCH]
    int vector_count
    Post post                   # at most two messages a packet

cdef inline void batch_free(Batch *batch) noexcept nogil:
    if batch is not NULL:
        give_block(batch.buffers)
        give_block(batch.cuts)
        give_block(batch)

cdef inline Batch *batch_new(const Sockets *sockets, uint64_t *drops) noexcept nogil:
    cdef Batch *batch = <Batch *>take_block(sizeof(Batch))
    if batch is not NULL:
        batch.sockets = sockets
        post_open(&batch.post, sockets, &drops[DROP_SEND_FAILED], &drops[DROP_SEND_FULL_EXPEDITED])
        batch.buffers = <uint8_t *>take_block(BATCH * SLOT)
        batch.cuts = <uint8_t *>take_block(BATCH * CUT)
        if batch.buffers is NULL or batch.cuts is NULL:
            batch_free(batch)
            return NULL
    return batch

cdef inline void build_message(Batch *batch, Endpoint *to, const int *run, int length) noexcept nogil:
    cdef Slot *head = &batch.slots[run[0]]
    cdef iovec *vector = &batch.vectors[batch.vector_count]
    cdef int i, count = 0, header = RELAY_HEADER if to.to.is_relayed else 0
    cdef Letter letter
    letter.socket = to.to.socket
    letter.packets = length
    letter.segment = head.size + header
    letter.bytes = header * length
    letter.tos = head.tos
    letter.rank = head.rank
    letter.is_single = &to.is_single
    for i in range(length):
        if header:
            vector[count].iov_base = to.relay_header
            vector[count].iov_len = RELAY_HEADER
            count += 1
        vector[count].iov_base = batch.slots[run[i]].data
        vector[count].iov_len = batch.slots[run[i]].size
        letter.bytes += batch.slots[run[i]].size
        count += 1
    post_put(&batch.post, &to.to, vector, count, &letter)
    batch.vector_count += count

cdef inline void build_run(Batch *batch, int first, int count) noexcept nogil:
    # One message from `first` and the packets of the same peer that may share it: same size, TOS, rank and paths, the
    # last one may be shorter. A packet that does not fit ends the run, so nothing is reordered.
    cdef Slot *head = &batch.slots[first]
    cdef Slot *slot
    cdef int run[BATCH]
    cdef int length = 1, i, total = head.size
    run[0] = first
    head.is_sent = True
    if batch.sockets.features.udp_gso and not head.primary.is_single:
        for i in range(first + 1, count):
            slot = &batch.slots[i]
            if slot.is_sent or slot.peer is not head.peer:
                continue
            if (slot.tos != head.tos or slot.rank != head.rank or slot.size > head.size
                    or slot.primary is not head.primary or slot.secondary is not head.secondary):
                break
            if total + (length + 1) * RELAY_HEADER + slot.size > GSO_BYTES:
                break
            run[length] = i
            length += 1
            total += slot.size
            slot.is_sent = True
            if slot.size < head.size:
                break
    build_message(batch, head.primary, run, length)
    if head.secondary is not NULL:
        build_message(batch, head.secondary, run, length)

cdef inline void batch_send(Batch *batch, int count) noexcept nogil:
    # Messages are built in an order that keeps each peer's packets in sequence.
    cdef int i
    for i in range(count):
        if not batch.slots[i].is_sent:
            build_run(batch, i, count)
    post_send(&batch.post)
    batch.vector_count = 0
