# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: auto_pickle=False, autotestdict=False
"""The packet pump of a relay: forwards frames between addresses that are bound to ids, and reads nothing of them.

    frame: word 5 ‖ source id(4) ‖ destination id(4) ‖ packet

One thread: recvmmsg (UDP_GRO) → is the source id bound to where the frame came from? → is the destination id bound, in
the same network? → quota → sendmmsg, a run of frames of one size as one UDP_SEGMENT message, with the mark that it came
with. Whatever is no frame goes to Python by the bounded queue. No frame waits for another.

The rules are those of rendezvous/relay.py, the readable twin. `mutex` guards the seats: the thread holds it while it
works on a batch and never while it waits.
"""

import threading
from typing import NamedTuple

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from .bucket cimport Bucket, bucket_fill, bucket_take
from .endpoint cimport Origin, is_same_origin, origin_name, parse_origin
from .frames cimport Frames, Outgoing, frames_take, is_frame, outgoing_put
from .inbox cimport *
from .memory cimport give_block, take_block
from .outbox cimport (
    Outbox, SLOW_BYTES, Slow, outbox_close, outbox_open, outbox_put, outbox_quiet, outbox_take_slow)
from .post cimport post_open, post_send
from .sockets cimport *
from .syscalls cimport *

cdef enum:
    NETWORK = 16                # bytes of a network's uid
    SEAT_LIMIT = 131072
    SEAT_SLOTS = 262144         # open addressing, twice SEAT_LIMIT: probes stay short

cdef enum:
    DROP_TOO_SHORT, DROP_DISALLOWED_SOURCE, DROP_UNKNOWN_PEER, DROP_OVER_LIMIT, DROP_SEND_FAILED, DROP_QUEUE_FULL
    DROP_TOO_BIG, DROP_SEND_FULL_EXPEDITED, DROP_SEND_FULL_SMALL, DROP_SEND_FULL_BULK    # the last by rank
    DROP_COUNT

DROP_REASONS = (
    "too_short", "disallowed_source", "unknown_peer", "over_limit", "send_failed", "queue_full", "too_big",
    "send_full_expedited", "send_full_small", "send_full_bulk",
)
FEATURES = ("udp_gso", "udp_gro", "sendmmsg", "recvmmsg", "send_tos", "recv_tos")
MAX_SEATS = SEAT_LIMIT


class Datagram(NamedTuple):
    socket: int
    host: str
    port: int
    data: bytes


cdef struct Seat:
    uint32_t number             # 0 = free
    uint32_t account            # the seat whose quota it uses: its own, or an older one of the same member
    uint8_t network[NETWORK]
    Origin at
    Bucket bucket               # bytes


cdef class RelayPump:
    cdef Sockets sockets
    cdef bint is_running
    cdef object thread
    cdef pthread_mutex_t mutex
    cdef Seat *seats
    cdef int seat_count
    cdef double byte_rate, byte_burst
    cdef uint64_t drop_counts[DROP_COUNT]
    cdef uint64_t packet_count, byte_count
    cdef Outbox outbox
    cdef Inbox inbox
    cdef Outgoing outgoing

    def __cinit__(
            self, sockets, *, double byte_rate, double byte_burst, int slow_queue=4096, without=frozenset()):
        self.outbox.fd = -1
        sockets_clear(&self.sockets)
        pthread_mutex_init(&self.mutex, NULL)
        if not 0 < slow_queue <= 65536 or byte_rate <= 0 or byte_burst <= 0:
            raise ValueError("slow_queue must be between 1 and 65536, rate and burst above 0")
        check_features(without, FEATURES)
        self.byte_rate, self.byte_burst = byte_rate, byte_burst
        post_open(
            &self.outgoing.post, &self.sockets, &self.drop_counts[DROP_SEND_FAILED],
            &self.drop_counts[DROP_SEND_FULL_EXPEDITED])
        self.seats = <Seat *>take_block(SEAT_SLOTS * sizeof(Seat))
        if not outbox_open(&self.outbox, slow_queue) or not inbox_open(&self.inbox) or not self.seats:
            raise OSError("no more memory or file descriptors")
        sockets_open(&self.sockets, sockets, features_but(without))

    def __dealloc__(self):
        outbox_close(&self.outbox)
        give_block(self.seats)
        inbox_close(&self.inbox)
        sockets_close(&self.sockets)
        pthread_mutex_destroy(&self.mutex)

    # --- called from Python -------------------------------------------------------------------------------------

    def start(self):
        if self.thread is not None:
            raise RuntimeError("the pump runs already")
        sockets_resume(&self.sockets)
        self.is_running = True
        self.thread = threading.Thread(target=_run, args=(self,), name="relay", daemon=True)
        self.thread.start()

    def stop(self):
        self.is_running = False
        sockets_interrupt(&self.sockets)
        thread, self.thread = self.thread, None
        if thread is not None:
            thread.join()

    @property
    def slow_fd(self):
        return self.outbox.fd

    @property
    def features(self):
        return self.sockets.features

    def bind(self, uint32_t seat, bytes network, int socket, str host, uint16_t port, *, uint32_t account=0):
        cdef Origin origin
        cdef Seat *entry
        text = host.encode()
        if seat == 0 or len(network) != NETWORK or not is_open(&self.sockets, socket):
            raise ValueError(f"no seat {seat}, no socket {socket}, or a network of {len(network)} bytes")
        if not parse_origin(&origin, &self.sockets, socket, <const char *>text, port):
            raise ValueError(f"{host} is no address of the socket's family")
        self.hold()
        entry = self.find(seat)
        if entry.number == 0:
            if self.seat_count >= SEAT_LIMIT:
                pthread_mutex_unlock(&self.mutex)
                raise ValueError("all seats are taken")
            self.seat_count += 1
            entry.number = seat
            bucket_fill(&entry.bucket, self.byte_rate, self.byte_burst, monotonic())
        entry.account = account or seat
        memcpy(entry.network, <const uint8_t *>network, NETWORK)
        entry.at = origin
        pthread_mutex_unlock(&self.mutex)

    def unbind(self, uint32_t seat):
        cdef Seat *entry
        self.hold()
        entry = self.find(seat)
        if entry.number != 0:
            self.seat_count -= 1
            self.remove(entry)
        pthread_mutex_unlock(&self.mutex)

    def take_datagrams(self, int limit=256):
        cdef Slow item
        taken = []
        outbox_quiet(&self.outbox)
        while len(taken) < limit:
            if not outbox_take_slow(&self.outbox, &item):
                return taken
            data = item.data[:item.size]
            give_block(item.data)
            host, port = origin_name(&item.origin)
            taken.append(Datagram(item.origin.socket, host, port, data))
        signal_eventfd(self.outbox.fd)
        return taken

    def forwarded(self):
        return self.packet_count, self.byte_count

    def drops(self):
        return {name: self.drop_counts[number] for number, name in enumerate(DROP_REASONS)}

    # --- seats, under the mutex ---------------------------------------------------------------------------------

    cdef void hold(self) noexcept:
        with nogil:
            pthread_mutex_lock(&self.mutex)

    cdef Seat *find(self, uint32_t number) noexcept nogil:
        # The seat, or the free slot where it would stand. Numbers are random: they are their own hash.
        cdef uint32_t slot = number & (SEAT_SLOTS - 1)
        while self.seats[slot].number != 0 and self.seats[slot].number != number:
            slot = (slot + 1) & (SEAT_SLOTS - 1)
        return &self.seats[slot]

    cdef void remove(self, Seat *seat) noexcept nogil:
        # Later seats of the same probe run move back, so that no marks of removed ones pile up.
        cdef uint32_t hole = <uint32_t>(seat - self.seats), probe = hole, home
        while True:
            probe = (probe + 1) & (SEAT_SLOTS - 1)
            if self.seats[probe].number == 0:
                break
            home = self.seats[probe].number & (SEAT_SLOTS - 1)
            # Does its home lie cyclically in (hole, probe]? Then it is reached without the hole.
            if ((home - hole - 1) & (SEAT_SLOTS - 1)) < ((probe - hole) & (SEAT_SLOTS - 1)):
                continue
            self.seats[hole] = self.seats[probe]
            hole = probe
        memset(&self.seats[hole], 0, sizeof(Seat))

    cdef bint spend(self, Seat *sender, int size, double now) noexcept nogil:
        cdef Seat *seat = self.find(sender.account)
        if seat.number == 0:
            seat = sender
        return bucket_take(&seat.bucket, size, now)

    # --- the thread ---------------------------------------------------------------------------------------------

    cdef void receive_loop(self) noexcept nogil:
        cdef int numbers[READY]
        cdef int i
        while self.is_running:
            for i in range(sockets_wait(&self.sockets, numbers)):
                for _ in range(TURNS):
                    if self.receive_batch(numbers[i]) < MESSAGES:
                        break

    cdef int receive_batch(self, int socket) noexcept nogil:
        cdef int i, count = inbox_receive(&self.inbox, self.sockets.fd[socket], self.sockets.features.recvmmsg)
        cdef double now
        if count == 0:
            return 0
        now = monotonic()
        pthread_mutex_lock(&self.mutex)
        for i in range(count):
            self.relay_message(socket, i, now)
        post_send(&self.outgoing.post)
        pthread_mutex_unlock(&self.mutex)
        return count

    cdef void relay_message(self, int socket, int i, double now) noexcept nogil:
        # Frames of one sender to one receiver that came together go on together.
        cdef Message message
        cdef uint8_t *data
        cdef int left, size
        cdef Frames frames
        inbox_read(&self.inbox, i, socket, &message)
        data, left = message.data, message.size
        if left == 0:
            self.drop_counts[DROP_TOO_SHORT] += 1
        while left:
            size = message.segment if left > message.segment else left
            if not is_frame(data, size):
                self.hand_to_python(&message.origin, data, size, now)
            else:
                frames_take(&frames, data, left, message.segment, message.tos, self.sockets.features.udp_gso)
                self.forward(&message.origin, &frames, now)
                size = frames.size
            data += size
            left -= size

    cdef void forward(self, Origin *origin, const Frames *frames, double now) noexcept nogil:
        cdef Seat *sender = self.find(frames.source)
        cdef Seat *receiver
        if frames.source == 0 or sender.number == 0 or not is_same_origin(&sender.at, origin):
            self.drop_counts[DROP_DISALLOWED_SOURCE] += frames.count
            return
        receiver = self.find(frames.destination)
        if frames.destination == 0 or receiver.number == 0 or memcmp(receiver.network, sender.network, NETWORK) != 0:
            self.drop_counts[DROP_UNKNOWN_PEER] += frames.count
            return
        if not self.spend(sender, frames.size, now):
            self.drop_counts[DROP_OVER_LIMIT] += frames.count
            return
        self.packet_count += frames.count
        self.byte_count += frames.size
        outgoing_put(&self.outgoing, &receiver.at, frames)

    cdef void hand_to_python(self, Origin *origin, uint8_t *data, int size, double now) noexcept nogil:
        if size > SLOW_BYTES:
            self.drop_counts[DROP_TOO_BIG] += 1
        elif not outbox_put(&self.outbox, origin, data, size, now):
            self.drop_counts[DROP_QUEUE_FULL] += 1


# --- steps without a pump -----------------------------------------------------------------------------------------


def _run(RelayPump pump):
    with nogil:
        pump.receive_loop()
