# Sealed packets on their way out: runs of a peer's packets with one size and mark become one UDP_SEGMENT message, and
# all messages of one socket one sendmmsg.
#
# A socket whose send buffer bulk has filled by half is short: then each batch goes by rank, and bulk only as far as the
# buffer is less than half full, so that voice finds room and none of it waits behind more. How full it is is asked for
# once for an eighth of it in bulk; where all packets are small, never. It ends when three quarters are free.

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from .control cimport CONTROL_BYTES, add_control, drop_segment
from .drops cimport DROP_SEND_FAILED, DROP_SEND_FULL_EXPEDITED
from .endpoint cimport Endpoint, RELAY_HEADER
from .inner cimport RANK_BULK, RANK_EXPEDITED, RANKS
from .memory cimport give_block, take_block
from .peers cimport Peer
from .sockets cimport SOCKET_LIMIT, Sockets
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
    int rank                    # who goes first where the socket is short
    bint is_sent

cdef struct Room:
    # In a socket's send buffer.
    bint is_short
    int limit                   # of the buffer, in bytes; 0 = not asked for yet
    int bulk_bytes              # sent since it was last looked at

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
    int rank_of[2 * BATCH]
    int bytes_of[2 * BATCH]
    Room rooms[SOCKET_LIMIT]
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
    cdef int i, count = 0, size = 0, segment = head.size + (RELAY_HEADER if to.to.is_relayed else 0)
    for i in range(length):
        if to.to.is_relayed:
            vector[count].iov_base = to.relay_header
            vector[count].iov_len = RELAY_HEADER
            count += 1
        vector[count].iov_base = batch.slots[run[i]].data
        vector[count].iov_len = batch.slots[run[i]].size
        size += batch.slots[run[i]].size
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
    batch.rank_of[batch.message_count] = head.rank
    batch.bytes_of[batch.message_count] = size
    batch.message_count += 1
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
    if batch.sockets.has_gso and not head.primary.is_single:
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

cdef inline void refuse_message(Batch *batch, int number, int packets, int reason) noexcept nogil:
    batch.drops[
        DROP_SEND_FULL_EXPEDITED + batch.rank_of[number] if is_shortage(reason) else DROP_SEND_FAILED] += packets

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
            refuse_message(batch, number, 1, errno)

cdef inline void handle_refusal(Batch *batch, int number, int reason) noexcept nogil:
    if batch.packets_of[number] > 1 and (reason == EIO or reason == EINVAL or reason == EMSGSIZE):
        # No checksum offload on this way, or a small MTU: one by one from now on, to there.
        batch.endpoint_of[number].is_single = True
        send_singly(batch, number)
    else:
        refuse_message(batch, number, batch.packets_of[number], reason)

cdef inline int filled_bytes(int fd) noexcept nogil:
    # Of the socket's send buffer, as the kernel counts them: 0 also where it does not say.
    cdef int filled = 0
    ioctl(fd, SIOCOUTQ, &filled)
    return filled

cdef inline void look_at_room(Room *room, int fd, int bulk_bytes) noexcept nogil:
    # `bulk_bytes` are about to be sent.
    cdef socklen_t size = sizeof(int)
    getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room.limit, &size)
    room.bulk_bytes = 0
    room.is_short = filled_bytes(fd) + bulk_bytes > room.limit // (4 if room.is_short else 2)

cdef inline void send_by_rank(Batch *batch, Room *room, int fd, int first, int last) noexcept nogil:
    # The buffer's last quarter is for expedited packets alone, the one before it for small ones too.
    cdef int rank, number, filled
    for rank in range(RANKS):
        for number in range(first, last):
            if batch.rank_of[number] != rank:
                continue
            filled = filled_bytes(fd) if rank != RANK_EXPEDITED else 0
            if filled and filled + batch.bytes_of[number] > room.limit // 4 * (4 - rank):
                refuse_message(batch, number, batch.packets_of[number], EAGAIN)
                continue
            while sendmmsg(fd, &batch.messages[number], 1, MSG_DONTWAIT) != 1:
                if errno != EINTR:
                    handle_refusal(batch, number, errno)
                    break
    look_at_room(room, fd, 0)

cdef inline void send_messages(Batch *batch) noexcept nogil:
    cdef int first = 0, last, done, socket, fd, bulk_bytes
    cdef Room *room
    while first < batch.message_count:
        socket = batch.endpoint_of[first].to.socket
        fd = batch.sockets.fd[socket]
        room = &batch.rooms[socket]
        last, bulk_bytes = first, 0
        while last < batch.message_count and batch.endpoint_of[last].to.socket == socket:
            if batch.rank_of[last] == RANK_BULK:
                bulk_bytes += batch.bytes_of[last]
            last += 1
        room.bulk_bytes += bulk_bytes
        if room.bulk_bytes > room.limit // 8:
            look_at_room(room, fd, bulk_bytes)
        while first < last and not room.is_short:
            done = sendmmsg(fd, &batch.messages[first], last - first, MSG_DONTWAIT)
            if done > 0:
                first += done
            elif is_shortage(errno):
                look_at_room(room, fd, 0)
                room.is_short = True
            elif errno != EINTR:
                handle_refusal(batch, first, errno)
                first += 1
        if first < last:
            send_by_rank(batch, room, fd, first, last)
        first = last
    batch.message_count = batch.vector_count = 0

cdef inline void batch_send(Batch *batch, int count) noexcept nogil:
    # Messages are built in an order that keeps each peer's packets in sequence, then sent socket by socket.
    cdef int i
    for i in range(count):
        if not batch.slots[i].is_sent:
            build_run(batch, i, count)
    send_messages(batch)
