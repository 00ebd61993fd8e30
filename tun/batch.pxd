# Sealed packets on their way out: runs of a peer's packets with one size and mark become one UDP_SEGMENT message, and
# all messages of one socket one sendmmsg.

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from .control cimport CONTROL_BYTES, add_control, drop_segment
from .drops cimport DROP_SEND_FAILED
from .endpoint cimport Endpoint, RELAY_HEADER
from .memory cimport give_block, take_block
from .peers cimport Peer
from .sockets cimport Sockets
from .syscalls cimport *

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
    bint is_sent

cdef struct Batch:
    const Sockets *sockets
    uint64_t *drops
    uint8_t *buffers            # BATCH × SLOT
    uint8_t *cuts               # BATCH × CUT
    Slot slots[BATCH]
    mmsghdr messages[2 * BATCH]
    iovec vectors[4 * BATCH]
    uint8_t controls[2 * BATCH][CONTROL_BYTES]
    Endpoint *endpoint_of[2 * BATCH]        # of each message
    int packets_of[2 * BATCH]
    int message_count
    int vector_count

cdef inline void batch_free(Batch *batch) noexcept nogil:
    if batch is not NULL:
        give_block(batch.buffers)
        give_block(batch.cuts)
        give_block(batch)

cdef inline Batch *batch_new(const Sockets *sockets, uint64_t *drops) noexcept nogil:
    cdef Batch *batch = <Batch *>take_block(sizeof(Batch))
    if batch is not NULL:
        batch.sockets = sockets
        batch.drops = drops
        batch.buffers = <uint8_t *>take_block(BATCH * SLOT)
        batch.cuts = <uint8_t *>take_block(BATCH * CUT)
        if batch.buffers is NULL or batch.cuts is NULL:
            batch_free(batch)
            return NULL
    return batch

cdef inline void build_message(Batch *batch, Endpoint *to, const int *run, int length) noexcept nogil:
    cdef mmsghdr *message = &batch.messages[batch.message_count]
    cdef Slot *head = &batch.slots[run[0]]
    cdef iovec *vector = &batch.vectors[batch.vector_count]
    cdef int i, count = 0, segment = head.size + (RELAY_HEADER if to.to.is_relayed else 0)
    for i in range(length):
        if to.to.is_relayed:
            vector[count].iov_base = to.relay_header
            vector[count].iov_len = RELAY_HEADER
            count += 1
        vector[count].iov_base = batch.slots[run[i]].data
        vector[count].iov_len = batch.slots[run[i]].size
        count += 1
    memset(message, 0, sizeof(mmsghdr))
    message.msg_hdr.msg_name = &to.to.address
    message.msg_hdr.msg_namelen = to.to.size
    message.msg_hdr.msg_iov = vector
    message.msg_hdr.msg_iovlen = count
    add_control(
        &message.msg_hdr, batch.controls[batch.message_count], batch.sockets.family[to.to.socket], head.tos,
        segment if length > 1 else 0)
    batch.endpoint_of[batch.message_count] = to
    batch.packets_of[batch.message_count] = length
    batch.message_count += 1
    batch.vector_count += count

cdef inline void build_run(Batch *batch, int first, int count) noexcept nogil:
    # One message from `first` and the packets of the same peer that may share it: same size, TOS and paths, the last
    # one may be shorter. A packet that does not fit ends the run, so nothing is reordered.
    cdef Slot *head = &batch.slots[first]
    cdef Slot *slot
    cdef int run[BATCH]
    cdef int length = 1, i, total = head.size
    run[0] = first
    head.is_sent = True
    if batch.sockets.has_gso and not head.primary.is_single:
        for i in range(first + 1, count):
            slot = &batch.slots[i]
            if slot.is_sent or slot.peer is not head.peer:
                continue
            if (slot.tos != head.tos or slot.size > head.size or slot.primary is not head.primary
                    or slot.secondary is not head.secondary):
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

cdef inline void send_singly(Batch *batch, int number) noexcept nogil:
    cdef mmsghdr single
    cdef mmsghdr *whole = &batch.messages[number]
    cdef int each = <int>(whole.msg_hdr.msg_iovlen // batch.packets_of[number]), i
    for i in range(batch.packets_of[number]):
        single = whole[0]
        single.msg_hdr.msg_iov = whole.msg_hdr.msg_iov + i * each
        single.msg_hdr.msg_iovlen = each
        drop_segment(&single.msg_hdr)
        if sendmmsg(batch.sockets.fd[batch.endpoint_of[number].to.socket], &single, 1, MSG_DONTWAIT) != 1:
            batch.drops[DROP_SEND_FAILED] += 1

cdef inline void send_messages(Batch *batch) noexcept nogil:
    cdef int first = 0, last, done, socket
    while first < batch.message_count:
        last = first + 1
        socket = batch.endpoint_of[first].to.socket
        while last < batch.message_count and batch.endpoint_of[last].to.socket == socket:
            last += 1
        done = sendmmsg(batch.sockets.fd[socket], &batch.messages[first], last - first, MSG_DONTWAIT)
        if done > 0:
            first += done
            continue
        if errno == EINTR:
            continue
        if batch.packets_of[first] > 1 and (errno == EIO or errno == EINVAL or errno == EMSGSIZE):
            # No checksum offload on this way, or a small MTU: one by one from now on, to there.
            batch.endpoint_of[first].is_single = True
            send_singly(batch, first)
        else:
            batch.drops[DROP_SEND_FAILED] += batch.packets_of[first]
        first += 1
    batch.message_count = batch.vector_count = 0

cdef inline void batch_send(Batch *batch, int count) noexcept nogil:
    # Messages are built in an order that keeps each peer's packets in sequence, then sent socket by socket.
    cdef int i
    for i in range(count):
        if not batch.slots[i].is_sent:
            build_run(batch, i, count)
    send_messages(batch)
