# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: auto_pickle=False, autotestdict=False
"""The packet pump of one network: WireGuard transport messages (type 4) between a TUN device and UDP sockets.

Transmit thread: read TUN → route → seal → one sendmmsg for the batch, runs of equal size as one UDP_SEGMENT message.
Receive thread:  recvmmsg (UDP_GRO) → receiver index → window → open → source check → write TUN.
No packet waits for a batch: a batch is what is there when a thread looks; but see pace.pxd for 400 calls and more.

    sockets.pxd   the UDP sockets, by number                 batch.pxd   runs of sealed packets; post.pxd sends them
    endpoint.pxd  where datagrams come from and go to        inbox.pxd   receiving them
    peers.pxd     keypairs, their index, staged packets      outbox.pxd  the two queues to Python
    routes.pxd    longest prefix match                       inner.pxd   addresses and marks of inner packets
    window.pxd    replays                                    cipher.pxd  ChaCha20-Poly1305
    arrivals.pxd  reordering, jitter, kept marks             ranks.pxd   who goes first
    tundevice.pxd what the TUN device can do, writing to it  offload.pxd its large packets
    drops.pxd, memory.pxd, syscalls.pxd

Locks and ownership
  `lock` is a readers-writer lock that prefers writers. Both threads hold it for reading while they work on a batch, and
  never while they wait; every call from Python that changes peers, routes or keys holds it for writing.
  Under the read lock the receive thread alone rotates keypairs and moves endpoints: it exchanges pointers and puts what
  it replaced on the peer's retired list, which the next writer frees. The transmit thread alone seals, so it alone owns
  send counters and staged packets; others ask it by a flag on the peer and `kick`.
  Counters and stamps are aligned words with one writer each, or stamps of which either thread's value is a good one.
  A call from Python keeps the GIL while it waits for the lock, at most for a batch, and while it has it: the threads
  here never need the GIL, and no packet waits for a Python thread that does. The outbox has its own mutex.
"""

import secrets
import threading
from typing import NamedTuple

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from .arrivals cimport arrivals_note, arrivals_note_marks
from .batch cimport BATCH, CUT, SLOT, Batch, Slot, batch_free, batch_new, batch_send
from .bucket cimport bucket_fill
from .cipher cimport *
from .copies cimport COPIES_ALL, COPIES_VOICE, is_copied
from .drops cimport *
from .endpoint cimport *
from .forward cimport *
from .frames cimport Frames, frames_take
from .inbox cimport *
from .inner cimport *
from .memory cimport blocks_count, give_block, take_block
from .offload cimport *
from .outbox cimport *
from .pace cimport Pace, pace_nap, pace_note, pace_open
from .peers cimport *
from .post cimport post_open, post_send
from .ranks cimport rank_of
from .routes cimport Route, RouteTable, check_prefix, mask_network, route_drop, route_drop_peer, route_find, route_set
from .sockets cimport *
from .syscalls cimport *
from .tundevice cimport *
from .window cimport window_accept, window_may_accept

cdef enum:
    HEADER = 16                 # type(4) receiver(4) counter(8)
    TRANSMIT = 0                # who counts drops
    RECEIVE = 1

cdef enum:
    KIND_HANDSHAKE_WANTED = 1
    KIND_REKEY_WANTED = 2
    KIND_KEYPAIR_CONFIRMED = 3
    KIND_PATH_SEEN = 4

EVENT_HANDSHAKE_WANTED = KIND_HANDSHAKE_WANTED
EVENT_REKEY_WANTED = KIND_REKEY_WANTED
EVENT_KEYPAIR_CONFIRMED = KIND_KEYPAIR_CONFIRMED
EVENT_PATH_SEEN = KIND_PATH_SEEN
FEATURES = (
    "udp_gso", "udp_gro", "sendmmsg", "recvmmsg", "send_tos", "recv_tos", "vnet_hdr", "tun_tso", "tun_uso",
)
MAX_PEERS = PEER_LIMIT
MAX_SOCKETS = SOCKET_LIMIT
DROP_REASONS = (
    "too_short", "bad_length", "unknown_index", "expired_key", "decrypt_failed", "replayed", "not_ip",
    "disallowed_source", "no_route", "no_endpoint", "no_keypair", "queue_full", "send_failed", "send_full_expedited",
    "send_full_small", "send_full_bulk", "tun_full_expedited", "tun_full_small", "tun_full_bulk", "tun_down", "too_big",
    "congested", "over_limit", "second_copy",
)

cdef double HANDSHAKE_EVENT_INTERVAL = 1.0
cdef double PATH_EVENT_INTERVAL = 0.1


class PeerStats(NamedTuple):
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    received_packets: int
    lost_packets: int
    reordered_packets: int
    duplicate_packets: int
    jitter: float
    marked_packets: int
    kept_marks: int
    first_sent_at: float
    first_received_at: float
    more_arrived: bool
    last_authenticated_at: float
    last_sent_at: float
    last_received_at: float
    keypair_created_at: float


class Datagram(NamedTuple):
    socket: int
    host: str
    port: int
    relay_source: int
    relay_destination: int
    is_relayed: bool
    data: bytes


class EngineEvent(NamedTuple):
    kind: int
    peer: int
    local_index: int
    socket: int
    host: str
    port: int
    relay_source: int
    relay_destination: int
    is_relayed: bool


cdef Sodium sodium


load_sodium(&sodium)


cdef class Engine:
    cdef Sockets sockets
    cdef Device device
    cdef int tun_error
    cdef int kick_fd
    cdef bint is_running, has_kicks
    cdef bint is_drained                         # of the transmit thread: the device had no more
    cdef bint has_retired                        # of the receive thread: endpoints that a roaming peer left
    cdef list threads
    cdef pthread_rwlock_t lock
    cdef RouteTable *routes
    cdef Peers *peers
    cdef Outbox outbox
    cdef Drops drop_counts[2]
    cdef Cipher ciphers[2]
    cdef Batch *batch
    cdef Inbox inbox
    cdef Forwarder forwarder

    def __cinit__(self, int tun_fd, sockets, *, int slow_queue=1024, without=frozenset(), vnet_hdr=None):
        cdef pthread_rwlockattr_t attribute
        cdef DeviceFeatures wanted
        self.kick_fd = self.outbox.fd = -1
        sockets_clear(&self.sockets)
        pthread_rwlockattr_init(&attribute)
        pthread_rwlockattr_setkind_np(&attribute, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP)
        pthread_rwlock_init(&self.lock, &attribute)
        if not 0 < slow_queue <= 65536:
            raise ValueError("slow_queue must be between 1 and 65536")
        check_features(without, FEATURES)
        self.threads = []
        self.ciphers[TRANSMIT].sodium = self.ciphers[RECEIVE].sodium = &sodium
        self.routes = <RouteTable *>take_block(sizeof(RouteTable))
        self.peers = <Peers *>take_block(sizeof(Peers))
        self.batch = batch_new(&self.sockets, self.drop_counts[TRANSMIT])
        if not inbox_open(&self.inbox) or not self.routes or not self.peers or not self.batch:
            raise MemoryError()
        wanted.vnet_hdr = "vnet_hdr" not in without and vnet_hdr is not False
        wanted.tun_tso = wanted.vnet_hdr and "tun_tso" not in without
        wanted.tun_uso = wanted.vnet_hdr and "tun_uso" not in without
        if vnet_hdr is None:
            device_open(&self.device, tun_fd, wanted, self.drop_counts[RECEIVE])
        else:
            device_pretend(&self.device, tun_fd, wanted, self.drop_counts[RECEIVE])
        sockets_open(&self.sockets, sockets, features_but(without))
        self.forwarder.seed = secrets.randbits(64) | 1
        post_open(
            &self.forwarder.outgoing.post, &self.sockets, &self.drop_counts[RECEIVE][DROP_SEND_FAILED],
            &self.drop_counts[RECEIVE][DROP_SEND_FULL_EXPEDITED])
        self.kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if not outbox_open(&self.outbox, slow_queue) or self.kick_fd < 0:
            raise OSError("no more memory or file descriptors")

    def __dealloc__(self):
        cdef int number
        # The threads hold a reference to this object: they have ended.
        if self.peers is not NULL:
            for number in range(1, PEER_LIMIT + 1):
                if self.peers.by_number[number] is not NULL:
                    free_peer(self.peers, self.peers.by_number[number])
        give_block(self.routes)
        give_block(self.peers)
        inbox_close(&self.inbox)
        batch_free(self.batch)
        outbox_close(&self.outbox)
        sockets_close(&self.sockets)
        if self.kick_fd >= 0:
            close(self.kick_fd)
        pthread_rwlock_destroy(&self.lock)
        memset(self.ciphers, 0, sizeof(self.ciphers))

    # --- called from Python -------------------------------------------------------------------------------------

    def start(self):
        if self.threads:
            raise RuntimeError("the engine runs already")
        sockets_resume(&self.sockets)
        self.is_running = True
        self.threads = [
            threading.Thread(target=_transmit, args=(self,), name="engine-tx", daemon=True),
            threading.Thread(target=_receive, args=(self,), name="engine-rx", daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.is_running = False
        signal_eventfd(self.kick_fd)
        sockets_interrupt(&self.sockets)
        threads, self.threads = self.threads, []
        for thread in threads:
            thread.join()

    @property
    def slow_fd(self):
        return self.outbox.fd

    @property
    def error(self):
        return self.tun_error

    @property
    def features(self):
        return {**self.sockets.features, **self.device.features}

    def add_socket(self, int number, int fd):
        pthread_rwlock_wrlock(&self.lock)
        try:
            sockets_add(&self.sockets, number, fd)
        finally:
            pthread_rwlock_unlock(&self.lock)

    def remove_socket(self, int number):
        cdef bint is_found
        pthread_rwlock_wrlock(&self.lock)
        is_found = sockets_remove(&self.sockets, number)
        pthread_rwlock_unlock(&self.lock)
        if not is_found:
            raise ValueError(f"no socket {number}")

    def add_peer(self, int peer, *, bint roams=False):
        cdef bint is_free
        cdef Peer *entry = <Peer *>take_block(sizeof(Peer))
        if entry is NULL:
            raise MemoryError()
        entry.number = peer
        entry.roams = roams
        entry.handshake_event_at = entry.path_event_at = -1e9
        pthread_rwlock_wrlock(&self.lock)
        is_free = 0 < peer <= PEER_LIMIT and self.peers.by_number[peer] is NULL
        if is_free:
            self.peers.by_number[peer] = entry
        pthread_rwlock_unlock(&self.lock)
        if not is_free:
            give_block(entry)
            raise ValueError(f"peer number {peer} is in use or not between 1 and {PEER_LIMIT}")

    def remove_peer(self, int peer):
        cdef Peer *entry = self.lock_peer(peer)
        self.peers.by_number[peer] = NULL
        route_drop_peer(self.routes, peer)
        id_remove(&self.forwarder, entry)
        free_peer(self.peers, entry)
        pthread_rwlock_unlock(&self.lock)

    def add_route(self, bytes network, int length, int peer):
        cdef bint done
        family = check_prefix(network, length)
        self.lock_peer(peer)
        done = route_set(self.routes, <const uint8_t *>network, family, length, peer)
        pthread_rwlock_unlock(&self.lock)
        if not done:
            raise ValueError("the route table is full")

    def remove_route(self, bytes network, int length):
        cdef uint8_t masked[16]
        cdef Route *route
        family = check_prefix(network, length)
        mask_network(masked, <const uint8_t *>network, 4 if family == 4 else 16, length)
        pthread_rwlock_wrlock(&self.lock)
        route = route_find(self.routes, masked, family, length)
        if route is not NULL:
            route_drop(self.routes, route)
        pthread_rwlock_unlock(&self.lock)

    def set_endpoint(
            self, int peer, int socket, str host, int port, bytes relay_header=b"", *, secondary=None,
            int copies=COPIES_ALL):
        cdef Peer *entry
        cdef Endpoint *first = self.make_endpoint(socket, host, port, relay_header)
        cdef Endpoint *second = NULL
        try:
            if not COPIES_ALL <= copies <= COPIES_VOICE:
                raise ValueError(f"no class of copies: {copies}")
            if secondary is not None:
                number, name, udp_port, header = secondary
                second = self.make_endpoint(number, name, udp_port, header)
            entry = self.lock_peer(peer)
        except (ValueError, TypeError):
            give_block(first)
            give_block(second)
            raise
        drop_endpoints(self.peers, entry)
        entry.primary = first
        entry.secondary = second
        entry.copies = copies
        if entry.staged_count:
            entry.is_flush_wanted = True
        pthread_rwlock_unlock(&self.lock)
        self.kick()

    def set_relaying(self, double byte_rate, double byte_burst):
        if byte_rate < 0 or byte_burst < 0:
            raise ValueError("rate and burst are not below 0")
        pthread_rwlock_wrlock(&self.lock)
        self.forwarder.is_on = byte_rate > 0
        bucket_fill(&self.forwarder.bucket, byte_rate, byte_burst, monotonic())
        pthread_rwlock_unlock(&self.lock)

    def set_relay_paths(self, int peer, uint32_t relay_id, paths):
        cdef Origin origins[RELAY_PATHS]
        cdef Peer *entry
        cdef Peer *holder
        cdef int i, count = len(paths)
        if count > RELAY_PATHS or relay_id == 0:
            raise ValueError(f"{count} relay paths (at most {RELAY_PATHS}), or relay id 0")
        for i in range(count):
            number, host, port = paths[i]
            self.parse(&origins[i], number, host, port)
        entry = self.lock_peer(peer)
        id_remove(&self.forwarder, entry)
        holder = id_find(&self.forwarder, relay_id)
        entry.relay_id = relay_id
        entry.relay_path_count = count if holder is NULL else 0
        for i in range(entry.relay_path_count):
            entry.relay_paths[i] = origins[i]
        if entry.relay_path_count:
            id_add(&self.forwarder, entry)
        pthread_rwlock_unlock(&self.lock)
        return holder is NULL

    def relayed(self):
        return self.forwarder.packets, self.forwarder.bytes

    def clear_endpoint(self, int peer):
        cdef Peer *entry = self.lock_peer(peer)
        drop_endpoints(self.peers, entry)
        pthread_rwlock_unlock(&self.lock)

    def install_keypair(
            self, int peer, *, uint32_t local_index, uint32_t remote_index, bytes send_key, bytes receive_key,
            bint is_initiator, double created_at):
        cdef Peer *entry
        cdef Keypair *keypair
        cdef bint is_free
        if len(send_key) != 32 or len(receive_key) != 32 or local_index == 0:
            raise ValueError("keys are 32 bytes, an index is not 0")
        keypair = <Keypair *>take_block(sizeof(Keypair))
        if keypair is NULL:
            raise MemoryError()
        keypair.local_index = local_index
        keypair.remote_index = remote_index
        keypair.is_initiator = is_initiator
        keypair.created_at = created_at
        try:
            entry = self.lock_peer(peer)
        except ValueError:
            give_block(keypair)
            raise
        is_free = index_find(self.peers, local_index) is NULL
        if is_free:
            keypair.peer = entry
            memcpy(keypair.send_key, <const uint8_t *>send_key, 32)
            memcpy(keypair.receive_key, <const uint8_t *>receive_key, 32)
            place_keypair(self.peers, entry, keypair)
        pthread_rwlock_unlock(&self.lock)
        if not is_free:
            give_block(keypair)
            raise ValueError("the local index is in use")
        if is_initiator:
            self.kick()

    def forget_keypairs(self, int peer):
        cdef Peer *entry = self.lock_peer(peer)
        drop_keypairs(self.peers, entry)
        pthread_rwlock_unlock(&self.lock)

    def send_keepalive(self, int peer):
        cdef Peer *entry = self.lock_peer(peer)
        cdef bint is_usable = entry.primary is not NULL and is_usable_keypair(entry.current, monotonic())
        if is_usable:
            entry.is_keepalive_wanted = True
        pthread_rwlock_unlock(&self.lock)
        if is_usable:
            self.kick()
        return bool(is_usable)

    def stats(self, int peer):
        cdef Peer *entry = self.lock_peer(peer)
        cdef Peer copy
        cdef uint64_t received, lost
        cdef double created_at
        free_retired(self.peers, entry)         # so that each keypair is counted once
        copy = entry[0]
        received = received_of(entry.current) + received_of(entry.previous) + received_of(entry.next)
        lost = lost_of(entry.current) + lost_of(entry.previous) + lost_of(entry.next)
        created_at = entry.current.created_at if entry.current is not NULL else 0.0
        pthread_rwlock_unlock(&self.lock)
        return PeerStats(
            copy.rx_packets, copy.rx_bytes, copy.tx_packets, copy.tx_bytes, copy.received_before + received,
            copy.lost_before + lost, copy.arrivals.reordered_packets, copy.arrivals.duplicate_packets,
            copy.arrivals.jitter, copy.arrivals.marked_packets, copy.arrivals.kept_marks, copy.first_sent_at,
            copy.first_received_at, bool(copy.more_arrived), copy.last_authenticated_at,
            copy.last_sent_at, copy.last_received_at, created_at)

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
            taken.append(Datagram(
                item.origin.socket, host, port, item.origin.relay_source, item.origin.relay_destination,
                bool(item.origin.is_relayed), data))
        signal_eventfd(self.outbox.fd)
        return taken

    def take_events(self, int limit=256):
        cdef Event item
        taken = []
        outbox_quiet(&self.outbox)
        while len(taken) < limit:
            if not outbox_take_event(&self.outbox, &item):
                return taken
            host, port = origin_name(&item.origin) if item.kind == KIND_PATH_SEEN else ("", 0)
            taken.append(EngineEvent(
                item.kind, item.peer, item.index, item.origin.socket, host, port, item.origin.relay_source,
                item.origin.relay_destination, bool(item.origin.is_relayed)))
        signal_eventfd(self.outbox.fd)
        return taken

    def drops(self):
        return {
            name: self.drop_counts[TRANSMIT][number] + self.drop_counts[RECEIVE][number]
            for number, name in enumerate(DROP_REASONS)
        }

    cdef Peer *lock_peer(self, int peer) except NULL:
        # A peer is looked up under the lock, for another Python thread may remove it.
        pthread_rwlock_wrlock(&self.lock)
        if 0 < peer <= PEER_LIMIT and self.peers.by_number[peer] is not NULL:
            return self.peers.by_number[peer]
        pthread_rwlock_unlock(&self.lock)
        raise ValueError(f"no peer {peer}")

    cdef Endpoint *make_endpoint(self, int socket, str host, int port, bytes relay_header) except NULL:
        cdef Endpoint *endpoint
        cdef Origin origin
        self.parse(&origin, socket, host, port)
        if len(relay_header) not in (0, RELAY_HEADER):
            raise ValueError(f"no relay header for a socket's path: {len(relay_header)} bytes")
        endpoint = <Endpoint *>take_block(sizeof(Endpoint))
        if endpoint is NULL:
            raise MemoryError()
        endpoint.to = origin
        if relay_header:
            # What comes back has our id as destination and the peer's as source.
            endpoint.to.is_relayed = True
            memcpy(&endpoint.to.relay_destination, <const uint8_t *>relay_header + 4, 4)
            memcpy(&endpoint.to.relay_source, <const uint8_t *>relay_header + 8, 4)
            point_back(endpoint, &endpoint.to)
        return endpoint

    cdef int parse(self, Origin *origin, int socket, str host, int port) except -1:
        if not is_open(&self.sockets, socket) or not 0 < port < 65536:
            raise ValueError(f"no such socket or port: {socket}, {port}")
        text = host.encode()
        if not parse_origin(origin, &self.sockets, socket, <const char *>text, <uint16_t>port):
            raise ValueError(f"{host} is no address of the socket's family")
        return 0

    cdef void kick(self) noexcept nogil:
        # The transmit thread sends what is staged, and keepalives. The flag is what counts: it is seen without a system
        # call. The descriptor only ends a poll, and is set after the flag.
        self.has_kicks = True
        signal_eventfd(self.kick_fd)

    cdef void report(self, int kind, uint32_t peer, uint32_t local_index, Origin *origin, int thread) noexcept nogil:
        if not outbox_report(&self.outbox, kind, peer, local_index, origin):
            self.drop_counts[thread][DROP_QUEUE_FULL] += 1

    # --- transmit thread ----------------------------------------------------------------------------------------

    cdef void transmit_loop(self) noexcept nogil:
        # Where packets come one by one, the first is sent before the device is asked for a second.
        cdef pollfd fds[2]
        cdef int count, burst = 0, limit = BATCH
        cdef uint64_t value
        cdef double now
        cdef Pace pace
        cdef bint is_rested = False
        memset(&pace, 0, sizeof(Pace))
        pace_open()
        fds[0].revents = fds[1].revents = 0
        fds[0].fd = self.device.fd
        fds[1].fd = self.kick_fd
        fds[0].events = fds[1].events = POLLIN
        while True:
            if fds[1].revents:
                fds[1].revents = 0
                read(self.kick_fd, &value, 8)
            # After the kick is taken: it may have been that of `stop`, which comes once.
            if not self.is_running:
                return
            if self.has_kicks:
                self.has_kicks = False
                self.serve_kicks()
            count = self.read_batch(limit)
            if count < 0:
                return
            if count:
                now = monotonic()
                pthread_rwlock_rdlock(&self.lock)
                self.send_packets(count, now)
                pthread_rwlock_unlock(&self.lock)
                pace_note(&pace, count, now)
                is_rested = False
            burst += count
            limit = BATCH
            if not self.is_drained:
                continue
            if pace.is_busy and not is_rested:
                burst = 0
                is_rested = True
                pace_nap()
                continue
            limit = 1 if burst == 1 else BATCH
            burst = 0
            is_rested = False
            poll(fds, 2, -1)

    cdef int read_batch(self, int limit) noexcept nogil:
        # Packets read into the batch's buffers, behind room for the header; -1 when the device is gone. A large packet
        # is the last of its batch.
        cdef int count = 0, extra = self.device.vnet_bytes
        cdef uint8_t *buffer
        cdef ssize_t size
        self.is_drained = False
        while count < limit:
            buffer = self.batch.buffers + count * SLOT
            size = read(self.device.fd, buffer + HEADER - extra, SLOT - HEADER - TAG - 16 + extra)
            if size < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN:
                    self.is_drained = True
                    return count
                if count:
                    return count
                self.tun_error = errno
                signal_eventfd(self.outbox.fd)
                return -1
            if size == 0:
                return count if count else -1
            self.batch.slots[count].size = <int>size - extra
            count += 1
            if extra and (<VnetHeader *>(buffer + HEADER - extra)).gso_type != GSO_NONE:
                return count
        return count

    cdef void send_packets(self, int count, double now) noexcept nogil:
        # Seals in place; what is dropped or staged leaves no gap.
        cdef int i, size, kept = 0
        cdef uint8_t *packet
        cdef VnetHeader *vnet
        for i in range(count):
            packet = self.batch.buffers + i * SLOT + HEADER
            size = self.batch.slots[i].size
            if self.device.vnet_bytes and size > 0:
                vnet = <VnetHeader *>(packet - VNET_BYTES)
                if vnet.gso_type != GSO_NONE:
                    batch_send(self.batch, kept)
                    self.send_super(vnet, packet, size, now)
                    return
                if not complete_checksum(vnet, packet, size):
                    size = 0
            kept += self.send_packet(self.route_packet(packet, size), packet - HEADER, size, now, kept)
        batch_send(self.batch, kept)

    cdef void send_super(self, VnetHeader *vnet, uint8_t *packet, int size, double now) noexcept nogil:
        cdef Super big
        cdef int kept = 0, next_size
        cdef uint8_t *buffer
        cdef Peer *peer
        if not super_open(&big, vnet, packet, size):
            self.drop_counts[TRANSMIT][DROP_NOT_IP] += 1
            return
        peer = self.route_packet(packet, size)
        if big.header_bytes + big.gso_size > CUT - HEADER - TAG - 16:
            self.drop_counts[TRANSMIT][DROP_TOO_BIG] += 1
            return
        next_size = super_next_size(&big)
        while peer is not NULL and next_size:
            buffer = self.batch.cuts + kept * CUT
            super_cut(&big, buffer + HEADER)
            kept += self.send_packet(peer, buffer, next_size, now, kept)
            if kept == BATCH:
                batch_send(self.batch, kept)
                kept = 0
            next_size = super_next_size(&big)
        batch_send(self.batch, kept)

    cdef bint send_packet(self, Peer *peer, uint8_t *buffer, int size, double now, int slot) noexcept nogil:
        # True: it is sealed and in its slot.
        if peer is NULL:
            return False
        if not is_usable_keypair(peer.current, now):
            self.stage(peer, buffer + HEADER, size, now)
            return False
        if peer.staged_first is not NULL and peer.primary is not NULL:
            # Its keypair has just come, and those that waited for it are still here: none is overtaken.
            self.drop_counts[TRANSMIT][DROP_NO_KEYPAIR] += stage_packet(self.peers, peer, buffer + HEADER, size)
            peer.is_flush_wanted = True
            self.kick()
            return False
        return self.seal_packet(peer, buffer, size, now, &self.batch.slots[slot])

    cdef Peer *route_packet(self, const uint8_t *packet, int size) noexcept nogil:
        cdef uint32_t number
        if inner_version(packet, size) == 0:
            self.drop_counts[TRANSMIT][DROP_NOT_IP] += 1
            return NULL
        number = peer_of_destination(self.routes, packet)
        if number == 0:
            self.drop_counts[TRANSMIT][DROP_NO_ROUTE] += 1
            return NULL
        return self.peers.by_number[number]

    cdef bint seal_packet(self, Peer *peer, uint8_t *buffer, int size, double now, Slot *slot) noexcept nogil:
        # `buffer` holds HEADER free bytes, then the packet. Fills `slot`; False: dropped.
        cdef Keypair *keypair = peer.current
        cdef uint64_t counter
        cdef int padded = (size + 15) & ~15, mark
        if peer.primary is NULL:
            self.drop_counts[TRANSMIT][DROP_NO_ENDPOINT] += 1
            return False
        counter = keypair.send_counter
        keypair.send_counter += 1
        slot.peer = peer
        slot.primary = peer.primary
        slot.secondary = peer.secondary
        if slot.secondary is not NULL and not is_copied(peer.copies, buffer + HEADER, size):
            slot.secondary = NULL
        mark = traffic_class(buffer + HEADER) if size else 0
        slot.tos = mark if self.sockets.features.send_tos else 0
        slot.rank = rank_of(mark, size)
        memset(buffer + HEADER + size, 0, padded - size)
        buffer[0] = 4
        buffer[1] = buffer[2] = buffer[3] = 0
        memcpy(buffer + 4, &keypair.remote_index, 4)
        memcpy(buffer + 8, &counter, 8)
        seal(&self.ciphers[TRANSMIT], buffer + HEADER, padded, counter, keypair.send_key)
        slot.data = buffer
        slot.size = HEADER + padded + TAG
        slot.is_sent = False
        self.note_sent(peer, keypair, size, now)
        return True

    cdef void note_sent(self, Peer *peer, Keypair *keypair, int size, double now) noexcept nogil:
        peer.tx_packets += 1
        peer.tx_bytes += size
        peer.last_sent_at = now
        peer.first_received_at = 0.0
        peer.more_arrived = False
        if size and peer.first_sent_at == 0.0:
            peer.first_sent_at = now
        if not keypair.is_rekey_reported and (
                keypair.send_counter >= REKEY_AFTER_MESSAGES
                or (keypair.is_initiator and now - keypair.created_at >= REKEY_AFTER_TIME)):
            keypair.is_rekey_reported = True
            self.report(KIND_REKEY_WANTED, peer.number, 0, NULL, TRANSMIT)

    cdef void stage(self, Peer *peer, const uint8_t *packet, int size, double now) noexcept nogil:
        if now - peer.handshake_event_at >= HANDSHAKE_EVENT_INTERVAL:
            peer.handshake_event_at = now
            self.report(KIND_HANDSHAKE_WANTED, peer.number, 0, NULL, TRANSMIT)
        self.drop_counts[TRANSMIT][DROP_NO_KEYPAIR] += stage_packet(self.peers, peer, packet, size)

    cdef void serve_kicks(self) noexcept nogil:
        # Staged packets whose keypair came, and keepalives that Python asked for.
        cdef int number
        cdef Peer *peer
        pthread_rwlock_rdlock(&self.lock)
        for number in range(1, PEER_LIMIT + 1):
            peer = self.peers.by_number[number]
            if peer is NULL:
                continue
            if peer.is_flush_wanted:
                peer.is_flush_wanted = False
                self.flush(peer)
            if peer.is_keepalive_wanted:
                peer.is_keepalive_wanted = False
                self.send_empty(peer)
        pthread_rwlock_unlock(&self.lock)

    cdef void flush(self, Peer *peer) noexcept nogil:
        cdef int count, size
        cdef uint8_t *buffer
        cdef double now = monotonic()
        while peer.staged_first is not NULL and peer.primary is not NULL and is_usable_keypair(peer.current, now):
            count = 0
            while peer.staged_first is not NULL and count < BATCH:
                size = peer.staged_first.size
                buffer = self.batch.cuts + count * CUT
                memcpy(buffer + HEADER, peer.staged_first.data, size)
                if self.seal_packet(peer, buffer, size, now, &self.batch.slots[count]):
                    count += 1
                unstage_first(self.peers, peer)
            batch_send(self.batch, count)

    cdef void send_empty(self, Peer *peer) noexcept nogil:
        cdef double now = monotonic()
        cdef bint again = peer.more_arrived
        if peer.primary is NULL or not is_usable_keypair(peer.current, now):
            return
        if self.seal_packet(peer, self.batch.cuts, 0, now, &self.batch.slots[0]):
            batch_send(self.batch, 1)
            if again:
                # Kernel driver: a keepalive is followed by another if more data came while it was pending.
                peer.first_received_at = now

    # --- receive thread -----------------------------------------------------------------------------------------

    cdef void receive_loop(self) noexcept nogil:
        cdef int numbers[READY]
        cdef int i
        while self.is_running:
            for i in range(sockets_wait(&self.sockets, numbers)):
                for _ in range(TURNS):
                    if self.receive_batch(numbers[i]) < MESSAGES:
                        break

    cdef int receive_batch(self, int number) noexcept nogil:
        # The lock is taken before the socket is touched: it may have been removed since it was waited for.
        cdef int i, count
        cdef double now
        pthread_rwlock_rdlock(&self.lock)
        count = inbox_receive(&self.inbox, self.sockets.fd[number], self.sockets.features.recvmmsg)
        now = monotonic()
        for i in range(count):
            self.receive_message(number, i, now)
        device_flush(&self.device)
        post_send(&self.forwarder.outgoing.post)
        pthread_rwlock_unlock(&self.lock)
        if self.has_retired:
            self.free_all_retired()
        return count

    cdef void free_all_retired(self) noexcept nogil:
        # A peer that roams with every packet must not fill the memory until Python changes something.
        cdef int number
        self.has_retired = False
        pthread_rwlock_wrlock(&self.lock)
        for number in range(1, PEER_LIMIT + 1):
            if self.peers.by_number[number] is not NULL:
                free_retired(self.peers, self.peers.by_number[number])
        pthread_rwlock_unlock(&self.lock)

    cdef void receive_message(self, int number, int i, double now) noexcept nogil:
        cdef Message message
        cdef int start = 0, part
        inbox_read(&self.inbox, i, number, &message)
        if message.size == 0:
            self.drop_counts[RECEIVE][DROP_TOO_SHORT] += 1
        while start < message.size:
            part = self.forward_frames(&message, start, now) if self.forwarder.is_on else 0
            if part == 0:
                part = message.segment if message.size - start > message.segment else message.size - start
                self.receive_datagram(&message.origin, message.data + start, part, message.tos, now)
            start += part

    cdef int forward_frames(self, Message *message, int start, double now) noexcept nogil:
        # Bytes of the frames for another member at `start`; 0: there are none.
        cdef Frames frames
        cdef uint8_t *data = message.data + start
        cdef int left = message.size - start
        cdef Peer *receiver = receiver_of(&self.forwarder, data, left if left < message.segment else message.segment)
        if receiver is NULL:
            return 0
        frames_take(&frames, data, left, message.segment, message.tos, self.sockets.features.udp_gso)
        forward(&self.forwarder, &frames, receiver, &message.origin, now, self.drop_counts[RECEIVE])
        return frames.size

    cdef void receive_datagram(self, Origin *origin, uint8_t *data, int size, int tos, double now) noexcept nogil:
        cdef uint32_t word
        if size < 4:
            self.drop_counts[RECEIVE][DROP_TOO_SHORT] += 1
            return
        memcpy(&word, data, 4)
        origin.is_relayed = word == WORD_RELAY
        origin.relay_source = origin.relay_destination = 0
        if origin.is_relayed:
            if size < RELAY_HEADER + 4:
                self.drop_counts[RECEIVE][DROP_TOO_SHORT] += 1
                return
            memcpy(&origin.relay_source, data + 4, 4)
            memcpy(&origin.relay_destination, data + 8, 4)
            data += RELAY_HEADER
            size -= RELAY_HEADER
            memcpy(&word, data, 4)
        if word == WORD_TRANSPORT:
            self.open_packet(origin, data, size, tos, now)
        elif size > SLOW_BYTES:
            self.drop_counts[RECEIVE][DROP_TOO_BIG] += 1
        elif not outbox_put(&self.outbox, origin, data, size, now):
            self.drop_counts[RECEIVE][DROP_QUEUE_FULL] += 1

    cdef void open_packet(self, Origin *origin, uint8_t *data, int size, int tos, double now) noexcept nogil:
        cdef uint32_t local_index
        cdef uint64_t counter
        cdef Keypair *keypair
        cdef uint64_t *drops = self.drop_counts[RECEIVE]
        if size < HEADER + TAG:
            drops[DROP_TOO_SHORT] += 1
            return
        memcpy(&local_index, data + 4, 4)
        memcpy(&counter, data + 8, 8)
        keypair = index_find(self.peers, local_index)
        if keypair is NULL or keypair.is_dead:
            drops[DROP_UNKNOWN_INDEX] += 1
            return
        if now - keypair.created_at >= REJECT_AFTER_TIME or counter >= REJECT_AFTER_MESSAGES:
            drops[DROP_EXPIRED_KEY] += 1
            return
        if not window_may_accept(&keypair.window, counter):
            drops[DROP_SECOND_COPY if is_second_copy(keypair, counter, origin) else DROP_REPLAYED] += 1
            keypair.peer.arrivals.duplicate_packets += 1
            return
        if not unseal(&self.ciphers[RECEIVE], data + HEADER, size - HEADER - TAG, counter, keypair.receive_key):
            drops[DROP_DECRYPT_FAILED] += 1
            return
        arrivals_note(&keypair.peer.arrivals, local_index, counter, keypair.window.greatest, now)
        window_accept(&keypair.window, counter)
        self.deliver(origin, keypair, data + HEADER, size - HEADER - TAG, tos, now)

    cdef void deliver(
            self, Origin *origin, Keypair *keypair, uint8_t *packet, int size, int tos, double now) noexcept nogil:
        cdef Peer *peer = keypair.peer
        cdef uint64_t *drops = self.drop_counts[RECEIVE]
        cdef int length
        self.note_received(origin, keypair, peer, size, now)
        if size == 0:
            return
        length = inner_length(packet, size)
        if length == 0:
            drops[DROP_NOT_IP] += 1
            return
        if peer_of_source(self.routes, packet) != peer.number:
            drops[DROP_DISALLOWED_SOURCE] += 1
            return
        if tos & ECT_1 and not mark_congestion(packet, tos & ECN):
            drops[DROP_CONGESTED] += 1
            return
        peer.rx_packets += 1
        peer.rx_bytes += length
        if self.sockets.features.recv_tos:
            arrivals_note_marks(&peer.arrivals, traffic_class(packet), tos)
        if self.device.is_short and must_yield(&self.device, packet, length, now):
            drops[DROP_TUN_FULL_BULK] += 1
            return
        device_write(&self.device, packet, length)

    cdef void note_received(self, Origin *origin, Keypair *keypair, Peer *peer, int size, double now) noexcept nogil:
        peer.last_authenticated_at = peer.last_received_at = keypair.received_at = now
        peer.first_sent_at = 0.0
        if size:
            if peer.first_received_at == 0.0:
                peer.first_received_at = now
            else:
                peer.more_arrived = True
        if keypair is peer.next:
            confirm_next(peer)
            self.report(KIND_KEYPAIR_CONFIRMED, peer.number, keypair.local_index, NULL, RECEIVE)
            self.kick()
        if (keypair is peer.current and keypair.is_initiator and not keypair.is_rekey_reported
                and now - keypair.created_at >= REKEY_ON_RECEIVE_AFTER):
            keypair.is_rekey_reported = True
            self.report(KIND_REKEY_WANTED, peer.number, 0, NULL, RECEIVE)
        if peer.primary is NULL or not is_same_origin(&peer.primary.to, origin):
            self.note_path(peer, origin, now)

    cdef void note_path(self, Peer *peer, Origin *origin, double now) noexcept nogil:
        cdef Endpoint *endpoint
        if peer.roams:
            endpoint = <Endpoint *>take_block(sizeof(Endpoint))
            if endpoint is not NULL:
                point_back(endpoint, origin)
                retire_endpoint(peer, peer.primary)
                peer.primary = endpoint
                self.has_retired = True
            return
        if peer.secondary is not NULL and is_same_origin(&peer.secondary.to, origin):
            return
        if is_same_origin(&peer.path_reported, origin) and now - peer.path_event_at < PATH_EVENT_INTERVAL:
            return
        if now - peer.path_event_at < PATH_EVENT_INTERVAL / 10:
            return      # packets alternate between two other paths
        peer.path_reported = origin[0]
        peer.path_event_at = now
        self.report(KIND_PATH_SEEN, peer.number, 0, origin, RECEIVE)


def _transmit(Engine engine):
    with nogil:
        engine.transmit_loop()


def _receive(Engine engine):
    with nogil:
        engine.receive_loop()


def memory_blocks():
    """Blocks of memory that all engines hold."""
    return blocks_count
