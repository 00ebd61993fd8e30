# Messages on their way out of the sockets: all of one socket as one sendmmsg, where the kernel has it.
#
# A socket whose send buffer bulk has filled by half is short: then what is posted goes by rank, and bulk only as far as
# the buffer is less than half full, so that voice finds room and none of it waits behind more. How full it is is asked
# for once for an eighth of it in bulk; where all packets are small, never. It ends when three quarters are free.

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from .control cimport CONTROL_BYTES, add_control, drop_segment
from .endpoint cimport Origin
from .ranks cimport RANK_BULK, RANK_EXPEDITED, RANKS
from .sockets cimport SOCKET_LIMIT, Sockets
from .syscalls cimport *

cdef enum:
    POSTED = 256                # messages at once

cdef struct Room:
    # In a socket's send buffer.
    bint is_short
    int limit                   # of the buffer, in bytes; 0 = not asked for yet
    int bulk_bytes              # sent since it was last looked at

cdef struct Letter:
    # What is known of a message. Its packets are of `segment` bytes, but for the last, which may be shorter.
    int socket
    int packets
    int segment
    int bytes
    int tos
    int rank
    bint *is_single             # to set if the kernel does not segment on this way; NULL: nobody asks

cdef struct Post:
    const Sockets *sockets
    uint64_t *failed            # counts packets that the kernel refused
    uint64_t *full              # the same for want of room, by rank
    mmsghdr messages[POSTED]
    Letter letters[POSTED]
    uint8_t controls[POSTED][CONTROL_BYTES]
    int count
    Room rooms[SOCKET_LIMIT]

cdef inline void post_open(Post *post, const Sockets *sockets, uint64_t *failed, uint64_t *full) noexcept nogil:
    post.sockets = sockets
    post.failed = failed
    post.full = full

cdef inline void post_put(
        Post *post, Origin *to, iovec *vectors, int vector_count, const Letter *letter) noexcept nogil:
    # There is room: `count` is below POSTED. `to` and `vectors` (one or more a packet, or one for all) must be there
    # until `post_send`.
    cdef mmsghdr *message = &post.messages[post.count]
    memset(message, 0, sizeof(mmsghdr))
    message.msg_hdr.msg_name = &to.address
    message.msg_hdr.msg_namelen = to.size
    message.msg_hdr.msg_iov = vectors
    message.msg_hdr.msg_iovlen = vector_count
    add_control(
        &message.msg_hdr, post.controls[post.count], post.sockets.family[to.socket],
        letter.tos if post.sockets.features.send_tos else 0, letter.segment if letter.packets > 1 else 0)
    post.letters[post.count] = letter[0]
    post.count += 1

cdef inline int send_some(const Post *post, int fd, mmsghdr *messages, int count) noexcept nogil:
    # How many went, or -1 and errno for the first.
    if post.sockets.features.sendmmsg:
        return sendmmsg(fd, messages, count, MSG_DONTWAIT)
    return 1 if sendmsg(fd, &messages.msg_hdr, MSG_DONTWAIT) >= 0 else -1

cdef inline void refuse_packets(Post *post, const Letter *letter, int packets, int reason) noexcept nogil:
    if is_shortage(reason):
        post.full[letter.rank] += packets
    else:
        post.failed[0] += packets

cdef inline void send_singly(Post *post, int number) noexcept nogil:
    cdef mmsghdr *message = &post.messages[number]
    cdef const Letter *letter = &post.letters[number]
    cdef iovec *vector = message.msg_hdr.msg_iov
    cdef uint8_t *start = <uint8_t *>vector.iov_base
    cdef int i, each = <int>message.msg_hdr.msg_iovlen // letter.packets, left = letter.bytes
    drop_segment(&message.msg_hdr)
    message.msg_hdr.msg_iovlen = each if each else 1
    for i in range(letter.packets):
        if each:
            message.msg_hdr.msg_iov = vector + i * each
        else:
            vector.iov_base = start + i * letter.segment
            vector.iov_len = letter.segment if left > letter.segment else left
            left -= letter.segment
        if send_some(post, post.sockets.fd[letter.socket], message, 1) != 1:
            refuse_packets(post, letter, 1, errno)

cdef inline void handle_refusal(Post *post, int number, int reason) noexcept nogil:
    cdef const Letter *letter = &post.letters[number]
    if letter.packets > 1 and (reason == EIO or reason == EINVAL or reason == EMSGSIZE):
        # No checksum offload on this way, or a small MTU: one by one from now on, to there.
        if letter.is_single is not NULL:
            letter.is_single[0] = True
        send_singly(post, number)
    else:
        refuse_packets(post, letter, letter.packets, reason)

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

cdef inline void send_by_rank(Post *post, Room *room, int fd, int first, int last) noexcept nogil:
    # The buffer's last quarter is for expedited packets alone, the one before it for small ones too.
    cdef int rank, number, filled
    cdef const Letter *letter
    for rank in range(RANKS):
        for number in range(first, last):
            letter = &post.letters[number]
            if letter.rank != rank:
                continue
            filled = filled_bytes(fd) if rank != RANK_EXPEDITED else 0
            if filled and filled + letter.bytes > room.limit // 4 * (4 - rank):
                refuse_packets(post, letter, letter.packets, EAGAIN)
                continue
            while send_some(post, fd, &post.messages[number], 1) != 1:
                if errno != EINTR:
                    handle_refusal(post, number, errno)
                    break
    look_at_room(room, fd, 0)

cdef inline void post_send(Post *post) noexcept nogil:
    # Socket by socket; of each rank in the order of posting.
    cdef int first = 0, last, done, socket, fd, bulk_bytes
    cdef Room *room
    while first < post.count:
        socket = post.letters[first].socket
        fd = post.sockets.fd[socket]
        room = &post.rooms[socket]
        last, bulk_bytes = first, 0
        while last < post.count and post.letters[last].socket == socket:
            if post.letters[last].rank == RANK_BULK:
                bulk_bytes += post.letters[last].bytes
            last += 1
        room.bulk_bytes += bulk_bytes
        if room.bulk_bytes > room.limit // 8:
            look_at_room(room, fd, bulk_bytes)
        while first < last and not room.is_short:
            done = send_some(post, fd, &post.messages[first], last - first)
            if done > 0:
                first += done
            elif is_shortage(errno):
                look_at_room(room, fd, 0)
                room.is_short = True
            elif errno != EINTR:
                handle_refusal(post, first, errno)
                first += 1
        if first < last:
            send_by_rank(post, room, fd, first, last)
        first = last
    post.count = 0
