# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: auto_pickle=False
"""The engine as libFuzzer sees it: no threads and no device, its two ways fed from one input. Built by .ci/fuzz-native.

An input is a list of packets, all of which the engine sees as one batch:

    kind(1) ‖ a(1) ‖ b(2) ‖ length(2) ‖ that many bytes, or what is left

    DATAGRAM  from a UDP socket: a = outer mark, b = size of each datagram that the kernel joined (0: one)
    SEALED    the bytes are the inside of a transport message, sealed here so that it opens: a = mark, b = counter
    DEVICE    from the TUN device, virtio_net_hdr first
    RELAYED   like SEALED, in a relay frame; b = counter

What is behind a packet in its buffer is poisoned: reading there ends the run as reading beyond the heap would.
"""

include "engine.pyx"

from tun.control cimport add_control
from tun.copies cimport COPIES_SIGNALLING
from tun.window cimport Window

cdef extern from "<sanitizer/asan_interface.h>" nogil:
    void poison "ASAN_POISON_MEMORY_REGION" (const void *at, size_t size)
    void unpoison "ASAN_UNPOISON_MEMORY_REGION" (const void *at, size_t size)

cdef extern from * nogil:
    """
    extern int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*callback)(const uint8_t *data, size_t size));
    """
    int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*callback)(const uint8_t *, size_t) noexcept nogil)

cdef enum:
    DATAGRAM = 0
    SEALED = 1
    DEVICE = 2
    RELAYED = 3
    PREFIX = 6
    INDEX = 7
    ROOM = 16 + TAG             # what sealing adds behind a packet

cdef FuzzEngine engine = None


cdef class FuzzEngine(Engine):
    cdef void feed(self, const uint8_t *data, size_t size) noexcept nogil:
        cdef size_t length
        cdef int kind, received = 0
        self.start_anew()
        while size >= PREFIX and received < MESSAGES:
            kind = data[0] & 3
            length = data[4] | (<size_t>data[5] << 8)
            if length > size - PREFIX:
                length = size - PREFIX
            if kind == DEVICE:
                self.feed_device(data + PREFIX, <int>length)
            else:
                self.feed_message(received, kind, data, data + PREFIX, <int>length)
                received += 1
            data += PREFIX + length
            size -= PREFIX + length
        self.receive_all(received)
        self.serve_kicks()

    cdef void start_anew(self) noexcept nogil:
        # As if nothing had come before, so that one input is all that a failure needs.
        cdef Keypair *keypair = index_find(self.peers, INDEX)
        cdef Slow item
        cdef Event event
        keypair.created_at = monotonic()
        keypair.send_counter = 0
        memset(&keypair.window, 0, sizeof(Window))
        self.outbox.slow_bucket.tokens = self.outbox.slow_limit
        while outbox_take_slow(&self.outbox, &item):
            give_block(item.data)
        while outbox_take_event(&self.outbox, &event):
            pass
        memset(&self.device.train, 0, sizeof(Train))

    cdef void feed_message(self, int i, int kind, const uint8_t *prefix, const uint8_t *data, int size) noexcept nogil:
        # Into the inbox, as recvmmsg would leave it there.
        cdef uint8_t *start = self.inbox.buffers + i * MESSAGE_BYTES
        cdef uint8_t *at = start
        cdef uint64_t counter = prefix[2] | (<uint64_t>prefix[3] << 8)
        cdef uint32_t word = WORD_RELAY
        cdef int segment = 0
        cdef sockaddr_in *source = <sockaddr_in *>&self.inbox.names[i]
        unpoison(start, MESSAGE_BYTES)
        memset(&self.inbox.messages[i].msg_hdr, 0, sizeof(msghdr))
        memset(source, 0, sizeof(SocketAddress))
        source.sin_family = AF_INET
        source.sin_port = htons(7)
        source.sin_addr.s_addr = 0x0100007F
        self.inbox.messages[i].msg_hdr.msg_name = source
        self.inbox.messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_in)
        if kind == RELAYED:
            memcpy(at, &word, 4)
            memset(at + 4, 1, 8)
            at += RELAY_HEADER
        if kind == DATAGRAM:
            memcpy(at, data, size)
            at += size
            segment = <int>counter
        else:
            at += self.seal_into(at, data, size, counter)
        self.inbox.messages[i].msg_len = <unsigned int>(at - start)
        poison(at, <size_t>(start + MESSAGE_BYTES - at))
        add_control(&self.inbox.messages[i].msg_hdr, self.inbox.controls[i], AF_INET, prefix[1], 0)
        if segment:
            self.join(&self.inbox.messages[i].msg_hdr, self.inbox.controls[i], segment)

    cdef int seal_into(self, uint8_t *at, const uint8_t *data, int size, uint64_t counter) noexcept nogil:
        cdef uint32_t word = WORD_TRANSPORT, index = INDEX
        cdef int padded = (size + 15) & ~15
        memcpy(at, &word, 4)
        memcpy(at + 4, &index, 4)
        memcpy(at + 8, &counter, 8)
        memset(at + HEADER, 0, padded)
        memcpy(at + HEADER, data, size)
        seal(&self.ciphers[TRANSMIT], at + HEADER, padded, counter, index_find(self.peers, INDEX).receive_key)
        return HEADER + padded + TAG

    cdef void join(self, msghdr *message, uint8_t *control, int segment) noexcept nogil:
        cdef size_t used = message.msg_controllen
        cdef cmsghdr *header = <cmsghdr *>(control + used)
        header.cmsg_level = SOL_UDP
        header.cmsg_type = UDP_GRO
        header.cmsg_len = CMSG_LEN(sizeof(int))
        memcpy(CMSG_DATA(header), &segment, sizeof(int))
        message.msg_control = control
        message.msg_controllen = used + CMSG_SPACE(sizeof(int))

    cdef void receive_all(self, int count) noexcept nogil:
        cdef int i
        cdef double now = monotonic()
        pthread_rwlock_rdlock(&self.lock)
        for i in range(count):
            self.receive_message(0, i, now)
        device_flush(&self.device)
        post_send(&self.forwarder.outgoing.post)
        pthread_rwlock_unlock(&self.lock)

    cdef void feed_device(self, const uint8_t *data, int size) noexcept nogil:
        # Into the batch's first buffer, as read_batch would leave it there.
        cdef uint8_t *packet = self.batch.buffers + HEADER
        cdef int length = size - self.device.vnet_bytes
        if length < 0:
            return
        unpoison(self.batch.buffers, SLOT)
        memcpy(packet - self.device.vnet_bytes, data, size)
        poison(packet + length + ROOM, SLOT - HEADER - length - ROOM)
        self.batch.slots[0].size = length
        pthread_rwlock_rdlock(&self.lock)
        self.send_packets(1, monotonic())
        pthread_rwlock_unlock(&self.lock)


cdef int run_one(const uint8_t *data, size_t size) noexcept nogil:
    engine.feed(data, size)
    return 0


def open_engine(tun_fd, sockets):
    """An engine with a peer that has a keypair (receiver index 7), 10.77.0.2 and fd00::2 behind it, and one without.

    Frames from the one to the other (relay ids 1 and 2) are forwarded.
    """
    global engine
    engine = FuzzEngine(tun_fd, sockets, vnet_hdr=True)
    for number, host, host6 in ((1, "0a4d0002", "fd" + 29 * "0" + "2"), (2, "0a4d0003", "fd" + 29 * "0" + "3")):
        engine.add_peer(number)
        engine.add_route(bytes.fromhex(host), 32, number)
        engine.add_route(bytes.fromhex(host6), 128, number)
        engine.set_endpoint(
            number, 0, "127.0.0.1", 9, secondary=(0, "127.0.0.1", 9, b""), copies=COPIES_SIGNALLING)
        engine.set_relay_paths(number, number, [(0, "127.0.0.1", 7)])
    engine.set_relaying(1e12, 1e12)
    engine.install_keypair(
        1, local_index=INDEX, remote_index=8, send_key=bytes(32), receive_key=bytes(range(32)), is_initiator=True,
        created_at=monotonic())
    return engine


def feed(bytes data):
    """One input, outside libFuzzer."""
    engine.feed(<const uint8_t *>data, len(data))


def run(arguments):
    """Hand over to libFuzzer, which ends the process."""
    cdef char *words[64]
    cdef char **list_of = words
    cdef int count = len(arguments)
    kept = [argument.encode() for argument in arguments[:63]]
    for number, word in enumerate(kept):
        words[number] = word
    words[len(kept)] = NULL
    with nogil:
        LLVMFuzzerRunDriver(&count, &list_of, run_one)
