# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The packet pump of one network: WireGuard transport messages (type 4) between a TUN device and UDP sockets.

Transmit thread: read TUN → route → seal → one sendmmsg for the batch, runs of equal size as one UDP_SEGMENT message.
Receive thread:  recvmmsg (UDP_GRO) → receiver index → window → open → source check → write TUN.
No packet waits for a batch: a batch is what is there when a thread looks.

Locks and ownership
  `lock` is a readers-writer lock that prefers writers. Both threads hold it for reading while they work on a batch, and
  never while they wait; every call from Python that changes peers, routes or keys holds it for writing.
  Under the read lock the receive thread alone rotates keypairs and moves endpoints: it exchanges pointers and puts what
  it replaced on the peer's retired list, which the next writer frees. The transmit thread alone seals, so it alone owns
  send counters and staged packets; others ask it by a flag on the peer and `kick`.
  Counters and stamps are aligned words with one writer each, or stamps of which either thread's value is a good one.
  `queue_mutex` guards the two queues to Python and is held for a copy only.
"""

import threading
from typing import NamedTuple

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from .routes cimport RouteTable, route_drop, route_drop_peer, route_find, route_lookup, route_set, mask_network, Route
from .window cimport Window, window_accept, window_may_accept
from .syscalls cimport *

import nacl.bindings  # runs sodium_init, without which libsodium uses its slow reference code
import nacl._sodium

cdef enum:
    PEER_LIMIT = 4096
    SOCKET_LIMIT = 64
    BATCH = 64                  # packets of one wake-up; also the kernel's limit of segments in one GSO message
    SLOT = 9216                 # bytes of one packet buffer: an MTU up to 9,000 and what sealing adds
    MESSAGES = 16               # UDP messages of one recvmmsg
    MESSAGE_BYTES = 65536       # a GRO message may be that long
    CONTROL_BYTES = 128
    HEADER = 16                 # type(4) receiver(4) counter(8)
    TAG = 16
    RELAY_HEADER = 12
    STAGED_LIMIT = 512          # packets that wait for a peer's keypair: a hundred calls for 100 ms
    STAGED_BYTES = 8388608      # of all peers together
    SLOW_BYTES = 2048           # longest datagram for Python: disco, STUN and handshakes are shorter
    SLOW_RATE = 4096            # datagrams a second for Python; a handshake costs it about half a millisecond
    EVENT_LIMIT = 4096
    INDEX_SLOTS = 32768         # open addressing, at most 3 × 4096 entries
    GSO_BYTES = 65000           # of one UDP_SEGMENT message with all headers

cdef enum:
    KIND_HANDSHAKE_WANTED = 1
    KIND_REKEY_WANTED = 2
    KIND_KEYPAIR_CONFIRMED = 3
    KIND_PATH_SEEN = 4

cdef enum:
    DROP_TOO_SHORT, DROP_BAD_LENGTH, DROP_UNKNOWN_INDEX, DROP_EXPIRED_KEY, DROP_DECRYPT_FAILED, DROP_REPLAYED
    DROP_NOT_IP, DROP_DISALLOWED_SOURCE, DROP_NO_ROUTE, DROP_NO_ENDPOINT, DROP_NO_KEYPAIR, DROP_QUEUE_FULL
    DROP_SEND_FAILED, DROP_TUN_FULL, DROP_TOO_BIG, DROP_CONGESTED
    DROP_COUNT

EVENT_HANDSHAKE_WANTED = KIND_HANDSHAKE_WANTED
EVENT_REKEY_WANTED = KIND_REKEY_WANTED
EVENT_KEYPAIR_CONFIRMED = KIND_KEYPAIR_CONFIRMED
EVENT_PATH_SEEN = KIND_PATH_SEEN
MAX_PEERS = PEER_LIMIT
MAX_SOCKETS = SOCKET_LIMIT
DROP_REASONS = (
    "too_short", "bad_length", "unknown_index", "expired_key", "decrypt_failed", "replayed", "not_ip",
    "disallowed_source", "no_route", "no_endpoint", "no_keypair", "queue_full", "send_failed", "tun_full", "too_big",
    "congested",
)

# WireGuard whitepaper §6.1, in seconds and messages.
cdef double REKEY_AFTER_TIME = 120.0
cdef double REJECT_AFTER_TIME = 180.0
cdef double REKEY_ON_RECEIVE_AFTER = 165.0      # REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
cdef uint64_t REKEY_AFTER_MESSAGES = <uint64_t>1 << 60
cdef uint64_t REJECT_AFTER_MESSAGES = <uint64_t>0xFFFFFFFFFFFFFFFF - (1 << 13)
cdef double HANDSHAKE_EVENT_INTERVAL = 1.0
cdef double PATH_EVENT_INTERVAL = 0.1


class PeerStats(NamedTuple):
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    lost_packets: int
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


cdef struct SocketAddress:
    uint8_t bytes[28]           # a sockaddr_in or sockaddr_in6


cdef struct Origin:
    # Where a datagram came from, or where one goes.
    int socket
    socklen_t size
    SocketAddress address
    bint is_relayed
    uint32_t relay_source
    uint32_t relay_destination


cdef struct Endpoint:
    Endpoint *retired
    Origin to
    uint8_t relay_header[RELAY_HEADER]


cdef struct Keypair:
    Keypair *retired
    Peer *peer
    uint32_t local_index
    uint32_t remote_index
    uint8_t send_key[32]
    uint8_t receive_key[32]
    bint is_initiator
    bint is_rekey_reported
    bint is_dead                # replaced; in the index until a writer removes it
    double created_at
    double received_at
    uint64_t send_counter
    Window window


cdef struct Staged:
    Staged *next
    int size
    uint8_t data[1]


cdef struct Peer:
    uint32_t number
    bint roams
    Endpoint *primary
    Endpoint *secondary
    Endpoint *retired_endpoints
    Keypair *current
    Keypair *previous
    Keypair *next
    Keypair *retired_keypairs
    Staged *staged_first
    Staged *staged_last
    int staged_count
    bint is_flush_wanted
    bint is_keepalive_wanted
    uint64_t rx_packets, rx_bytes, tx_packets, tx_bytes, lost_before
    double first_sent_at, first_received_at, last_authenticated_at, last_sent_at, last_received_at
    bint more_arrived
    double handshake_event_at
    double path_event_at
    Origin path_reported


cdef struct Event:
    int kind
    uint32_t peer
    uint32_t index
    Origin origin


cdef struct Slow:
    Origin origin
    int size
    uint8_t *data


cdef struct Slot:
    # One sealed packet of the batch.
    Peer *peer
    Endpoint *primary
    Endpoint *secondary
    int offset                  # where the message starts in the slot's buffer
    int size                    # of the message
    int tos
    bint is_sent


cdef aead_encrypt_t seal = NULL
cdef aead_decrypt_t unseal = NULL


cdef void load_sodium() except *:
    global seal, unseal
    ffi, lib = nacl._sodium.ffi, nacl._sodium.lib
    seal = <aead_encrypt_t><uintptr_t>int(ffi.cast(
        "uintptr_t", ffi.addressof(lib, "crypto_aead_chacha20poly1305_ietf_encrypt")))
    unseal = <aead_decrypt_t><uintptr_t>int(ffi.cast(
        "uintptr_t", ffi.addressof(lib, "crypto_aead_chacha20poly1305_ietf_decrypt")))


load_sodium()


cdef class Engine:
    cdef int tun_fd
    cdef int sockets[SOCKET_LIMIT]
    cdef int socket_family[SOCKET_LIMIT]
    cdef int socket_count
    cdef int kick_fd, receive_stop_fd, slow_event_fd
    cdef bint is_running
    cdef bint has_gso, has_gro, copies_dscp
    cdef int tun_error
    cdef object threads
    cdef pthread_rwlock_t lock
    cdef pthread_mutex_t queue_mutex
    cdef RouteTable *routes
    cdef Peer *peers[PEER_LIMIT + 1]
    cdef Keypair **index
    cdef uint64_t drop_counts[2][DROP_COUNT]     # by thread: 0 transmit (and Python), 1 receive
    cdef Event *events
    cdef int event_first, event_count
    cdef Slow *slow
    cdef int slow_first, slow_count, slow_limit
    cdef double slow_tokens, slow_at
    cdef uint64_t staged_bytes
    cdef uint8_t *tx_buffers
    cdef Slot *slots
    cdef mmsghdr *tx_messages
    cdef iovec *tx_vectors
    cdef uint8_t *tx_controls
    cdef int *tx_first                           # first slot of each message, and how many it carries
    cdef int *tx_packets
    cdef uint8_t *rx_buffers
    cdef mmsghdr *rx_messages
    cdef iovec *rx_vectors
    cdef uint8_t *rx_controls
    cdef SocketAddress *rx_names
    cdef bint has_kicks

    def __cinit__(self, int tun_fd, sockets, *, int slow_queue=1024, bint gso=True, bint gro=True, bint copy_dscp=True):
        cdef pthread_rwlockattr_t attribute
        self.kick_fd = self.receive_stop_fd = self.slow_event_fd = -1
        pthread_rwlockattr_init(&attribute)
        pthread_rwlockattr_setkind_np(&attribute, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP)
        pthread_rwlock_init(&self.lock, &attribute)
        pthread_mutex_init(&self.queue_mutex, NULL)
        if not 0 < len(sockets) <= SOCKET_LIMIT:
            raise ValueError(f"between 1 and {SOCKET_LIMIT} sockets, not {len(sockets)}")
        if not 0 < slow_queue <= 65536:
            raise ValueError("slow_queue must be between 1 and 65536")
        self.tun_fd = tun_fd
        self.slow_limit = slow_queue
        self.slow_tokens = slow_queue
        self.copies_dscp = copy_dscp
        self.threads = []
        self.allocate()
        self.set_up_sockets(sockets, gso, gro)
        self.kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.receive_stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.slow_event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.kick_fd < 0 or self.receive_stop_fd < 0 or self.slow_event_fd < 0:
            raise OSError("no more file descriptors")

    cdef int allocate(self) except -1:
        self.routes = <RouteTable *>calloc(1, sizeof(RouteTable))
        self.index = <Keypair **>calloc(INDEX_SLOTS, sizeof(Keypair *))
        self.events = <Event *>calloc(EVENT_LIMIT, sizeof(Event))
        self.slow = <Slow *>calloc(self.slow_limit, sizeof(Slow))
        self.tx_buffers = <uint8_t *>malloc(BATCH * SLOT)
        self.slots = <Slot *>calloc(BATCH, sizeof(Slot))
        self.tx_messages = <mmsghdr *>calloc(2 * BATCH, sizeof(mmsghdr))
        self.tx_vectors = <iovec *>calloc(4 * BATCH, sizeof(iovec))
        self.tx_controls = <uint8_t *>calloc(2 * BATCH, CONTROL_BYTES)
        self.tx_first = <int *>calloc(2 * BATCH, sizeof(int))
        self.tx_packets = <int *>calloc(2 * BATCH, sizeof(int))
        self.rx_buffers = <uint8_t *>malloc(MESSAGES * MESSAGE_BYTES)
        self.rx_messages = <mmsghdr *>calloc(MESSAGES, sizeof(mmsghdr))
        self.rx_vectors = <iovec *>calloc(MESSAGES, sizeof(iovec))
        self.rx_controls = <uint8_t *>calloc(MESSAGES, CONTROL_BYTES)
        self.rx_names = <SocketAddress *>calloc(MESSAGES, sizeof(SocketAddress))
        if (not self.routes or not self.index or not self.events or not self.slow or not self.tx_buffers
                or not self.slots or not self.tx_messages or not self.tx_vectors or not self.tx_controls
                or not self.tx_first or not self.tx_packets or not self.rx_buffers or not self.rx_messages
                or not self.rx_vectors or not self.rx_controls or not self.rx_names):
            raise MemoryError()
        return 0

    cdef int set_up_sockets(self, sockets, bint gso, bint gro) except -1:
        cdef int one = 1, value = 0, family = 0, fd
        cdef socklen_t size
        self.socket_count = len(sockets)
        self.has_gso = gso
        self.has_gro = gro
        for number, descriptor in enumerate(sockets):
            fd = descriptor
            self.sockets[number] = fd
            size = sizeof(int)
            if getsockopt(fd, 1, 39, &family, &size) != 0:      # SOL_SOCKET, SO_DOMAIN
                raise OSError(errno, f"file descriptor {fd} is no socket")
            self.socket_family[number] = family
            size = sizeof(int)
            if gso and getsockopt(fd, SOL_UDP, UDP_SEGMENT, &value, &size) != 0:
                self.has_gso = False
            if gro and setsockopt(fd, SOL_UDP, UDP_GRO, &one, sizeof(int)) != 0:
                self.has_gro = False
            if self.copies_dscp:
                if family == AF_INET6:
                    setsockopt(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, &one, sizeof(int))
                else:
                    setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &one, sizeof(int))
        return 0

    def __dealloc__(self):
        cdef int number
        cdef bint was_complete = self.routes is not NULL
        # The threads hold a reference to this object: they have ended.
        if was_complete and self.index is not NULL and self.events is not NULL and self.slow is not NULL:
            for number in range(1, PEER_LIMIT + 1):
                if self.peers[number] is not NULL:
                    self.free_peer(self.peers[number])
            while self.slow_count:
                free(self.slow[self.slow_first].data)
                self.slow_first = (self.slow_first + 1) % self.slow_limit
                self.slow_count -= 1
        free(self.routes)
        free(self.index)
        free(self.events)
        free(self.slow)
        free(self.tx_buffers)
        free(self.slots)
        free(self.tx_messages)
        free(self.tx_vectors)
        free(self.tx_controls)
        free(self.tx_first)
        free(self.tx_packets)
        free(self.rx_buffers)
        free(self.rx_messages)
        free(self.rx_vectors)
        free(self.rx_controls)
        free(self.rx_names)
        for number in (self.kick_fd, self.receive_stop_fd, self.slow_event_fd):
            if number >= 0:
                close(number)
        pthread_rwlock_destroy(&self.lock)
        pthread_mutex_destroy(&self.queue_mutex)

    # --- called from Python -------------------------------------------------------------------------------------

    def start(self):
        if self.threads:
            raise RuntimeError("the engine runs already")
        self.is_running = True
        self.threads = [
            threading.Thread(target=self.transmit_thread, name="engine-tx", daemon=True),
            threading.Thread(target=self.receive_thread, name="engine-rx", daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.is_running = False
        signal_eventfd(self.kick_fd)
        signal_eventfd(self.receive_stop_fd)
        threads, self.threads = self.threads, []
        for thread in threads:
            thread.join()

    def transmit_thread(self):
        with nogil:
            self.transmit_loop()

    def receive_thread(self):
        with nogil:
            self.receive_loop()

    @property
    def slow_fd(self):
        return self.slow_event_fd

    @property
    def error(self):
        """The errno that ended a thread (the TUN device is gone), or 0."""
        return self.tun_error

    @property
    def features(self):
        return {
            "udp_gso": bool(self.has_gso),
            "udp_gro": bool(self.has_gro),
            "sendmmsg": True,
            "dscp": bool(self.copies_dscp),
        }

    def add_peer(self, int peer, *, bint roams=False):
        cdef Peer *entry
        if not 0 < peer <= PEER_LIMIT or self.peers[peer] is not NULL:
            raise ValueError(f"peer number {peer} is in use or not between 1 and {PEER_LIMIT}")
        entry = <Peer *>calloc(1, sizeof(Peer))
        if entry is NULL:
            raise MemoryError()
        entry.number = peer
        entry.roams = roams
        entry.handshake_event_at = entry.path_event_at = -1e9
        self.lock_for_change()
        self.peers[peer] = entry
        pthread_rwlock_unlock(&self.lock)

    def remove_peer(self, int peer):
        cdef Peer *entry = self.get_peer(peer)
        self.lock_for_change()
        self.peers[peer] = NULL
        route_drop_peer(self.routes, peer)
        self.free_peer(entry)
        pthread_rwlock_unlock(&self.lock)

    def add_route(self, bytes network, int length, int peer):
        cdef bint done
        self.get_peer(peer)
        family = check_prefix(network, length)
        self.lock_for_change()
        done = route_set(self.routes, <const uint8_t *>network, family, length, peer)
        pthread_rwlock_unlock(&self.lock)
        if not done:
            raise ValueError("the route table is full")

    def remove_route(self, bytes network, int length):
        cdef uint8_t masked[16]
        cdef Route *route
        family = check_prefix(network, length)
        mask_network(masked, <const uint8_t *>network, 4 if family == 4 else 16, length)
        self.lock_for_change()
        route = route_find(self.routes, masked, family, length)
        if route is not NULL:
            route_drop(self.routes, route)
        pthread_rwlock_unlock(&self.lock)

    def set_endpoint(self, int peer, int socket, str host, int port, bytes relay_header=b"", *, secondary=None):
        cdef Peer *entry = self.get_peer(peer)
        cdef Endpoint *first = self.make_endpoint(socket, host, port, relay_header)
        cdef Endpoint *second = NULL
        if secondary is not None:
            try:
                number, name, udp_port, header = secondary
                second = self.make_endpoint(number, name, udp_port, header)
            except (ValueError, TypeError):
                free(first)
                raise
        self.lock_for_change()
        retire_endpoint(entry, entry.primary)
        retire_endpoint(entry, entry.secondary)
        entry.primary = first
        entry.secondary = second
        free_retired(self, entry)
        if entry.staged_count:
            entry.is_flush_wanted = True
        pthread_rwlock_unlock(&self.lock)
        self.kick()

    def clear_endpoint(self, int peer):
        cdef Peer *entry = self.get_peer(peer)
        self.lock_for_change()
        retire_endpoint(entry, entry.primary)
        retire_endpoint(entry, entry.secondary)
        entry.primary = entry.secondary = NULL
        free_retired(self, entry)
        pthread_rwlock_unlock(&self.lock)

    def install_keypair(
            self, int peer, *, uint32_t local_index, uint32_t remote_index, bytes send_key, bytes receive_key,
            bint is_initiator, double created_at):
        cdef Peer *entry = self.get_peer(peer)
        cdef Keypair *keypair
        cdef bint done
        if len(send_key) != 32 or len(receive_key) != 32 or local_index == 0:
            raise ValueError("keys are 32 bytes, an index is not 0")
        keypair = <Keypair *>calloc(1, sizeof(Keypair))
        if keypair is NULL:
            raise MemoryError()
        keypair.peer = entry
        keypair.local_index = local_index
        keypair.remote_index = remote_index
        memcpy(keypair.send_key, <const uint8_t *>send_key, 32)
        memcpy(keypair.receive_key, <const uint8_t *>receive_key, 32)
        keypair.is_initiator = is_initiator
        keypair.created_at = created_at
        self.lock_for_change()
        done = self.index_find(local_index) is NULL
        if done:
            self.index_add(keypair)
            self.place_keypair(entry, keypair)
        pthread_rwlock_unlock(&self.lock)
        if not done:
            free(keypair)
            raise ValueError("the local index is in use")
        if is_initiator:
            self.kick()

    def forget_keypairs(self, int peer):
        cdef Peer *entry = self.get_peer(peer)
        self.lock_for_change()
        self.drop_keypairs(entry)
        pthread_rwlock_unlock(&self.lock)

    def send_keepalive(self, int peer):
        cdef Peer *entry = self.get_peer(peer)
        cdef double now = monotonic()
        cdef bint is_usable
        self.lock_for_change()
        is_usable = entry.primary is not NULL and is_usable_keypair(entry.current, now)
        if is_usable:
            entry.is_keepalive_wanted = True
        pthread_rwlock_unlock(&self.lock)
        if is_usable:
            self.kick()
        return bool(is_usable)

    def stats(self, int peer):
        cdef Peer *entry = self.get_peer(peer)
        cdef uint64_t lost
        cdef double created_at
        pthread_rwlock_rdlock(&self.lock)
        lost = entry.lost_before + lost_of(entry.current) + lost_of(entry.previous) + lost_of(entry.next)
        created_at = entry.current.created_at if entry.current is not NULL else 0.0
        result = PeerStats(
            entry.rx_packets, entry.rx_bytes, entry.tx_packets, entry.tx_bytes, lost,
            entry.first_sent_at, entry.first_received_at, bool(entry.more_arrived), entry.last_authenticated_at,
            entry.last_sent_at, entry.last_received_at, created_at)
        pthread_rwlock_unlock(&self.lock)
        return result

    def take_datagrams(self, int limit=256):
        cdef Slow item
        taken = []
        self.clear_slow_event()
        while len(taken) < limit:
            pthread_mutex_lock(&self.queue_mutex)
            if self.slow_count == 0:
                pthread_mutex_unlock(&self.queue_mutex)
                return taken
            item = self.slow[self.slow_first]
            self.slow_first = (self.slow_first + 1) % self.slow_limit
            self.slow_count -= 1
            pthread_mutex_unlock(&self.queue_mutex)
            data = item.data[:item.size]
            free(item.data)
            host, port = origin_name(&item.origin)
            taken.append(Datagram(
                item.origin.socket, host, port, item.origin.relay_source, item.origin.relay_destination,
                bool(item.origin.is_relayed), data))
        signal_eventfd(self.slow_event_fd)
        return taken

    def take_events(self, int limit=256):
        cdef Event item
        taken = []
        self.clear_slow_event()
        while len(taken) < limit:
            pthread_mutex_lock(&self.queue_mutex)
            if self.event_count == 0:
                pthread_mutex_unlock(&self.queue_mutex)
                return taken
            item = self.events[self.event_first]
            self.event_first = (self.event_first + 1) % EVENT_LIMIT
            self.event_count -= 1
            pthread_mutex_unlock(&self.queue_mutex)
            host, port = origin_name(&item.origin) if item.kind == KIND_PATH_SEEN else ("", 0)
            taken.append(EngineEvent(
                item.kind, item.peer, item.index, item.origin.socket, host, port, item.origin.relay_source,
                item.origin.relay_destination, bool(item.origin.is_relayed)))
        signal_eventfd(self.slow_event_fd)
        return taken

    def drops(self):
        return {
            name: self.drop_counts[0][number] + self.drop_counts[1][number]
            for number, name in enumerate(DROP_REASONS)
        }

    # --- under the write lock -----------------------------------------------------------------------------------

    cdef void lock_for_change(self) noexcept:
        with nogil:
            pthread_rwlock_wrlock(&self.lock)

    cdef Peer *get_peer(self, int peer) except NULL:
        if not 0 < peer <= PEER_LIMIT or self.peers[peer] is NULL:
            raise ValueError(f"no peer {peer}")
        return self.peers[peer]

    cdef Endpoint *make_endpoint(self, int socket, str host, int port, bytes relay_header) except NULL:
        cdef Endpoint *endpoint
        cdef sockaddr_in *v4
        cdef sockaddr_in6 *v6
        cdef int done
        if not 0 <= socket < self.socket_count or not 0 < port < 65536 or len(relay_header) not in (0, RELAY_HEADER):
            raise ValueError(f"no such socket, port or relay header: {socket}, {port}, {len(relay_header)} bytes")
        endpoint = <Endpoint *>calloc(1, sizeof(Endpoint))
        if endpoint is NULL:
            raise MemoryError()
        text = host.encode()
        endpoint.to.socket = socket
        if self.socket_family[socket] == AF_INET6:
            v6 = <sockaddr_in6 *>&endpoint.to.address
            v6.sin6_family = AF_INET6
            v6.sin6_port = htons(<uint16_t>port)
            done = inet_pton(AF_INET6, <const char *>text, &v6.sin6_addr)
            endpoint.to.size = sizeof(sockaddr_in6)
        else:
            v4 = <sockaddr_in *>&endpoint.to.address
            v4.sin_family = AF_INET
            v4.sin_port = htons(<uint16_t>port)
            done = inet_pton(AF_INET, <const char *>text, &v4.sin_addr)
            endpoint.to.size = sizeof(sockaddr_in)
        if done != 1:
            free(endpoint)
            raise ValueError(f"{host} is no address of the socket's family")
        if relay_header:
            memcpy(endpoint.relay_header, <const uint8_t *>relay_header, RELAY_HEADER)
            endpoint.to.is_relayed = True
            # What comes back has our id as destination and the peer's as source.
            memcpy(&endpoint.to.relay_destination, endpoint.relay_header + 4, 4)
            memcpy(&endpoint.to.relay_source, endpoint.relay_header + 8, 4)
        return endpoint

    cdef void place_keypair(self, Peer *peer, Keypair *keypair) noexcept nogil:
        # WireGuard's rules for current, previous and next, but for one thing: the kernel driver (add_new_keypair) drops
        # pairs under which packets of the peer may be on their way.
        if keypair.is_initiator:
            # Of the old ones the one stays that the peer last sent with: if both ends asked, that need not be the one
            # that we send with. `next` stays too. The peer uses it soon, or never does, and then it must displace
            # nothing.
            if (peer.previous is not NULL and peer.current is not NULL
                    and peer.previous.received_at > peer.current.received_at):
                retire_keypair(peer, peer.current)
            else:
                retire_keypair(peer, peer.previous)
                peer.previous = peer.current
            peer.current = keypair
            peer.is_flush_wanted = True
        else:
            # `previous` stays: it may be what the peer still sends with. If there is none, that may be `next`.
            if peer.previous is NULL:
                peer.previous = peer.next
            else:
                retire_keypair(peer, peer.next)
            peer.next = keypair
        peer.handshake_event_at = -1e9
        peer.first_sent_at = 0.0  # a handshake message of the peer is an answer too
        free_retired(self, peer)

    cdef void drop_keypairs(self, Peer *peer) noexcept nogil:
        retire_keypair(peer, peer.current)
        retire_keypair(peer, peer.previous)
        retire_keypair(peer, peer.next)
        peer.current = peer.previous = peer.next = NULL
        free_retired(self, peer)

    cdef void free_peer(self, Peer *peer) noexcept nogil:
        cdef Staged *staged
        self.drop_keypairs(peer)
        retire_endpoint(peer, peer.primary)
        retire_endpoint(peer, peer.secondary)
        free_retired(self, peer)
        while peer.staged_first is not NULL:
            staged = peer.staged_first
            peer.staged_first = staged.next
            self.staged_bytes -= staged.size
            free(staged)
        free(peer)

    cdef Keypair *index_find(self, uint32_t local_index) noexcept nogil:
        cdef uint32_t slot = index_slot(local_index)
        while self.index[slot] is not NULL:
            if self.index[slot].local_index == local_index:
                return self.index[slot]
            slot = (slot + 1) & (INDEX_SLOTS - 1)
        return NULL

    cdef void index_add(self, Keypair *keypair) noexcept nogil:
        cdef uint32_t slot = index_slot(keypair.local_index)
        while self.index[slot] is not NULL:
            slot = (slot + 1) & (INDEX_SLOTS - 1)
        self.index[slot] = keypair

    cdef void index_remove(self, Keypair *keypair) noexcept nogil:
        cdef uint32_t hole = index_slot(keypair.local_index), probe, home
        while self.index[hole] is not keypair:
            if self.index[hole] is NULL:
                return
            hole = (hole + 1) & (INDEX_SLOTS - 1)
        probe = hole
        while True:
            probe = (probe + 1) & (INDEX_SLOTS - 1)
            if self.index[probe] is NULL:
                break
            home = index_slot(self.index[probe].local_index)
            if ((home - hole - 1) & (INDEX_SLOTS - 1)) < ((probe - hole) & (INDEX_SLOTS - 1)):
                continue
            self.index[hole] = self.index[probe]
            hole = probe
        self.index[hole] = NULL

    # --- queues to Python ---------------------------------------------------------------------------------------

    cdef void kick(self) noexcept nogil:
        self.has_kicks = True
        signal_eventfd(self.kick_fd)

    cdef void clear_slow_event(self) noexcept:
        cdef uint64_t value
        read(self.slow_event_fd, &value, 8)
        # What the other queue still holds must wake the loop again.
        if self.slow_count or self.event_count:
            signal_eventfd(self.slow_event_fd)

    cdef void report(self, int kind, uint32_t peer, uint32_t local_index, Origin *origin, int thread) noexcept nogil:
        cdef Event *event
        pthread_mutex_lock(&self.queue_mutex)
        if self.event_count < EVENT_LIMIT:
            event = &self.events[(self.event_first + self.event_count) % EVENT_LIMIT]
            memset(event, 0, sizeof(Event))
            event.kind = kind
            event.peer = peer
            event.index = local_index
            if origin is not NULL:
                event.origin = origin[0]
            self.event_count += 1
        else:
            self.drop_counts[thread][DROP_QUEUE_FULL] += 1
        pthread_mutex_unlock(&self.queue_mutex)
        signal_eventfd(self.slow_event_fd)

    cdef void hand_to_python(self, Origin *origin, const uint8_t *data, int size, double now) noexcept nogil:
        cdef uint8_t *copy
        cdef Slow *item
        if size > SLOW_BYTES:
            self.drop_counts[1][DROP_TOO_BIG] += 1
            return
        self.slow_tokens += (now - self.slow_at) * SLOW_RATE
        if self.slow_tokens > self.slow_limit:
            self.slow_tokens = self.slow_limit
        self.slow_at = now
        if self.slow_tokens < 1 or self.slow_count >= self.slow_limit:
            self.drop_counts[1][DROP_QUEUE_FULL] += 1
            return
        copy = <uint8_t *>malloc(size)
        if copy is NULL:
            self.drop_counts[1][DROP_QUEUE_FULL] += 1
            return
        memcpy(copy, data, size)
        self.slow_tokens -= 1
        pthread_mutex_lock(&self.queue_mutex)
        item = &self.slow[(self.slow_first + self.slow_count) % self.slow_limit]
        item.origin = origin[0]
        item.size = size
        item.data = copy
        self.slow_count += 1
        pthread_mutex_unlock(&self.queue_mutex)
        signal_eventfd(self.slow_event_fd)

    # --- transmit thread ----------------------------------------------------------------------------------------

    cdef void transmit_loop(self) noexcept nogil:
        cdef pollfd fds[2]
        cdef int count
        cdef uint64_t value
        fds[0].fd = self.tun_fd
        fds[1].fd = self.kick_fd
        fds[0].events = fds[1].events = POLLIN
        while self.is_running:
            if self.has_kicks:
                read(self.kick_fd, &value, 8)
                self.has_kicks = False
                self.serve_kicks()
            count = self.read_batch()
            if count < 0:
                return
            if count == 0:
                poll(fds, 2, -1)
                continue
            pthread_rwlock_rdlock(&self.lock)
            count = self.seal_batch(count, monotonic())
            self.send_batch(count)
            pthread_rwlock_unlock(&self.lock)

    cdef int read_batch(self) noexcept nogil:
        # Packets read into the slots' buffers, behind room for the header; -1 when the device is gone.
        cdef int count = 0
        cdef ssize_t size
        while count < BATCH:
            size = read(self.tun_fd, self.tx_buffers + count * SLOT + HEADER, SLOT - HEADER - TAG - 16)
            if size < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN or count:
                    return count
                self.tun_error = errno
                signal_eventfd(self.slow_event_fd)
                return -1
            if size == 0:
                return count if count else -1
            self.slots[count].offset = 0
            self.slots[count].size = <int>size
            count += 1
        return count

    cdef int seal_batch(self, int count, double now) noexcept nogil:
        # Seals in place; slots that are dropped or staged disappear. Returns how many are left.
        cdef int i, kept = 0
        cdef uint8_t *buffer
        cdef Peer *peer
        for i in range(count):
            buffer = self.tx_buffers + i * SLOT
            peer = self.route_packet(buffer + HEADER, self.slots[i].size)
            if peer is NULL:
                continue
            if not is_usable_keypair(peer.current, now):
                self.stage(peer, buffer + HEADER, self.slots[i].size, now)
                continue
            if self.seal_packet(peer, buffer, self.slots[i].size, now, &self.slots[kept], i):
                kept += 1
        return kept

    cdef Peer *route_packet(self, const uint8_t *packet, int size) noexcept nogil:
        cdef uint32_t number
        if size >= 20 and packet[0] >> 4 == 4:
            number = route_lookup(self.routes, packet + 16, 4)
        elif size >= 40 and packet[0] >> 4 == 6:
            number = route_lookup(self.routes, packet + 24, 6)
        else:
            self.drop_counts[0][DROP_NOT_IP] += 1
            return NULL
        if number == 0:
            self.drop_counts[0][DROP_NO_ROUTE] += 1
            return NULL
        return self.peers[number]

    cdef bint seal_packet(
            self, Peer *peer, uint8_t *buffer, int size, double now, Slot *slot, int position) noexcept nogil:
        # `buffer` holds HEADER free bytes, then the packet. Fills `slot`; False: dropped.
        cdef Keypair *keypair = peer.current
        cdef uint64_t counter
        cdef uint8_t nonce[12]
        cdef int padded = (size + 15) & ~15
        if peer.primary is NULL:
            self.drop_counts[0][DROP_NO_ENDPOINT] += 1
            return False
        counter = keypair.send_counter
        keypair.send_counter += 1
        slot.peer = peer
        slot.primary = peer.primary
        slot.secondary = peer.secondary
        slot.tos = self.outer_tos(buffer + HEADER, size)
        memset(buffer + HEADER + size, 0, padded - size)
        buffer[0] = 4
        buffer[1] = buffer[2] = buffer[3] = 0
        memcpy(buffer + 4, &keypair.remote_index, 4)
        memcpy(buffer + 8, &counter, 8)
        memset(nonce, 0, 4)
        memcpy(nonce + 4, &counter, 8)
        seal(buffer + HEADER, NULL, buffer + HEADER, padded, NULL, 0, NULL, nonce, keypair.send_key)
        slot.offset = position * SLOT
        slot.size = HEADER + padded + TAG
        slot.is_sent = False
        self.note_sent(peer, keypair, size, now)
        return True

    cdef int outer_tos(self, const uint8_t *packet, int size) noexcept nogil:
        # RFC 2983 uniform model for DSCP, RFC 6040 normal mode for ECN: both are copied.
        if not self.copies_dscp or size == 0:
            return 0
        if packet[0] >> 4 == 4:
            return packet[1]
        return ((packet[0] & 15) << 4) | (packet[1] >> 4)

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
            self.report(KIND_REKEY_WANTED, peer.number, 0, NULL, 0)

    cdef void stage(self, Peer *peer, const uint8_t *packet, int size, double now) noexcept nogil:
        # Keep the newest packets until there is a keypair, and ask for one.
        cdef Staged *staged
        if now - peer.handshake_event_at >= HANDSHAKE_EVENT_INTERVAL:
            peer.handshake_event_at = now
            self.report(KIND_HANDSHAKE_WANTED, peer.number, 0, NULL, 0)
        if peer.staged_count >= STAGED_LIMIT:
            self.unstage_first(peer)
            self.drop_counts[0][DROP_NO_KEYPAIR] += 1
        staged = NULL
        if self.staged_bytes + size <= STAGED_BYTES:
            staged = <Staged *>malloc(sizeof(Staged) + size)
        if staged is NULL:
            self.drop_counts[0][DROP_NO_KEYPAIR] += 1
            return
        staged.next = NULL
        staged.size = size
        memcpy(staged.data, packet, size)
        if peer.staged_last is NULL:
            peer.staged_first = staged
        else:
            peer.staged_last.next = staged
        peer.staged_last = staged
        peer.staged_count += 1
        self.staged_bytes += size

    cdef void unstage_first(self, Peer *peer) noexcept nogil:
        cdef Staged *staged = peer.staged_first
        peer.staged_first = staged.next
        if peer.staged_first is NULL:
            peer.staged_last = NULL
        peer.staged_count -= 1
        self.staged_bytes -= staged.size
        free(staged)

    cdef void serve_kicks(self) noexcept nogil:
        # Staged packets whose keypair came, and keepalives that Python asked for.
        cdef int number
        cdef Peer *peer
        pthread_rwlock_rdlock(&self.lock)
        for number in range(1, PEER_LIMIT + 1):
            peer = self.peers[number]
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
        cdef int count
        cdef uint8_t *buffer
        cdef double now = monotonic()
        while peer.staged_first is not NULL and peer.primary is not NULL and is_usable_keypair(peer.current, now):
            count = 0
            while peer.staged_first is not NULL and count < BATCH:
                buffer = self.tx_buffers + count * SLOT
                memcpy(buffer + HEADER, peer.staged_first.data, peer.staged_first.size)
                if self.seal_packet(peer, buffer, peer.staged_first.size, now, &self.slots[count], count):
                    count += 1
                self.unstage_first(peer)
            self.send_batch(count)

    cdef void send_empty(self, Peer *peer) noexcept nogil:
        cdef double now = monotonic()
        cdef bint again = peer.more_arrived
        if peer.primary is NULL or not is_usable_keypair(peer.current, now):
            return
        if self.seal_packet(peer, self.tx_buffers, 0, now, &self.slots[0], 0):
            self.send_batch(1)
            if again:
                # Kernel driver: a keepalive is followed by another if more data came while it was pending.
                peer.first_received_at = now

    cdef void send_batch(self, int count) noexcept nogil:
        # Build the messages in an order that keeps each peer's packets in sequence, then send socket by socket.
        cdef int i, messages = 0, vectors = 0
        for i in range(count):
            if not self.slots[i].is_sent:
                self.build_run(i, count, &messages, &vectors)
                if messages > 2 * BATCH - 2 or vectors > 4 * BATCH - 4 * (count - i):
                    self.send_messages(messages)
                    messages = vectors = 0
        self.send_messages(messages)

    cdef void build_run(self, int first, int count, int *messages, int *vectors) noexcept nogil:
        # One message from `first` and the packets of the same peer that may share it: same size and TOS, the last
        # one may be shorter. A packet that does not fit ends the run, so nothing is reordered.
        cdef Slot *head = &self.slots[first]
        cdef Slot *slot
        cdef int run[BATCH]
        cdef int length = 1, i, total = head.size
        run[0] = first
        head.is_sent = True
        if self.has_gso:
            for i in range(first + 1, count):
                slot = &self.slots[i]
                if slot.is_sent or slot.peer is not head.peer:
                    continue
                if slot.tos != head.tos or slot.size > head.size or slot.primary is not head.primary:
                    break
                if total + (length + 1) * RELAY_HEADER + slot.size > GSO_BYTES:
                    break
                run[length] = i
                length += 1
                total += slot.size
                slot.is_sent = True
                if slot.size < head.size:
                    break
        self.build_message(head.primary, run, length, messages, vectors)
        if head.secondary is not NULL:
            self.build_message(head.secondary, run, length, messages, vectors)

    cdef void build_message(
            self, Endpoint *to, int *run, int length, int *messages, int *vectors) noexcept nogil:
        cdef mmsghdr *message = &self.tx_messages[messages[0]]
        cdef Slot *head = &self.slots[run[0]]
        cdef iovec *vector = &self.tx_vectors[vectors[0]]
        cdef int i, count = 0, segment = head.size + (RELAY_HEADER if to.to.is_relayed else 0)
        for i in range(length):
            if to.to.is_relayed:
                vector[count].iov_base = to.relay_header
                vector[count].iov_len = RELAY_HEADER
                count += 1
            vector[count].iov_base = self.tx_buffers + self.slots[run[i]].offset
            vector[count].iov_len = self.slots[run[i]].size
            count += 1
        memset(message, 0, sizeof(mmsghdr))
        message.msg_hdr.msg_name = &to.to.address
        message.msg_hdr.msg_namelen = to.to.size
        message.msg_hdr.msg_iov = vector
        message.msg_hdr.msg_iovlen = count
        self.add_control(message, self.tx_controls + messages[0] * CONTROL_BYTES, to, head.tos, segment, length)
        self.tx_first[messages[0]] = to.to.socket
        self.tx_packets[messages[0]] = length
        messages[0] += 1
        vectors[0] += count

    cdef void add_control(
            self, mmsghdr *message, uint8_t *control, Endpoint *to, int tos, int segment, int length) noexcept nogil:
        cdef cmsghdr *header
        cdef size_t used = 0
        cdef uint16_t size = <uint16_t>segment
        message.msg_hdr.msg_control = control
        message.msg_hdr.msg_controllen = CONTROL_BYTES
        header = CMSG_FIRSTHDR(&message.msg_hdr)
        if tos:
            if self.socket_family[to.to.socket] == AF_INET6:
                header.cmsg_level = IPPROTO_IPV6
                header.cmsg_type = IPV6_TCLASS
            else:
                header.cmsg_level = IPPROTO_IP
                header.cmsg_type = IP_TOS
            header.cmsg_len = CMSG_LEN(sizeof(int))
            memcpy(CMSG_DATA(header), &tos, sizeof(int))
            used += CMSG_SPACE(sizeof(int))
            header = <cmsghdr *>(control + used)
        if length > 1:
            header.cmsg_level = SOL_UDP
            header.cmsg_type = UDP_SEGMENT
            header.cmsg_len = CMSG_LEN(sizeof(uint16_t))
            memcpy(CMSG_DATA(header), &size, sizeof(uint16_t))
            used += CMSG_SPACE(sizeof(uint16_t))
        message.msg_hdr.msg_controllen = used
        if used == 0:
            message.msg_hdr.msg_control = NULL

    cdef void send_messages(self, int count) noexcept nogil:
        # tx_first holds the socket of each message here.
        cdef int first = 0, last, done
        while first < count:
            last = first + 1
            while last < count and self.tx_first[last] == self.tx_first[first]:
                last += 1
            done = sendmmsg(self.sockets[self.tx_first[first]], &self.tx_messages[first], last - first, MSG_DONTWAIT)
            if done > 0:
                first += done
                continue
            if errno == EINTR:
                continue
            if self.tx_packets[first] > 1 and (errno == EIO or errno == EINVAL or errno == EMSGSIZE):
                # This route's device can't segment (no checksum offload, or a small MTU): one by one from now on.
                self.has_gso = False
                self.send_singly(first)
            else:
                self.drop_counts[0][DROP_SEND_FAILED] += self.tx_packets[first]
            first += 1

    cdef void send_singly(self, int message) noexcept nogil:
        cdef mmsghdr single
        cdef mmsghdr *whole = &self.tx_messages[message]
        cdef int per = <int>(whole.msg_hdr.msg_iovlen // self.tx_packets[message]), i
        for i in range(self.tx_packets[message]):
            single = whole[0]
            single.msg_hdr.msg_iov = whole.msg_hdr.msg_iov + i * per
            single.msg_hdr.msg_iovlen = per
            single.msg_hdr.msg_control = NULL
            single.msg_hdr.msg_controllen = 0
            if sendmmsg(self.sockets[self.tx_first[message]], &single, 1, MSG_DONTWAIT) != 1:
                self.drop_counts[0][DROP_SEND_FAILED] += 1

    # --- receive thread -----------------------------------------------------------------------------------------

    cdef void receive_loop(self) noexcept nogil:
        cdef pollfd fds[SOCKET_LIMIT + 1]
        cdef int i, count
        for i in range(self.socket_count):
            fds[i].fd = self.sockets[i]
            fds[i].events = POLLIN
        fds[self.socket_count].fd = self.receive_stop_fd
        fds[self.socket_count].events = POLLIN
        while self.is_running:
            poll(fds, self.socket_count + 1, -1)
            for i in range(self.socket_count):
                if fds[i].revents & POLLNVAL:
                    fds[i].fd = -1
                elif fds[i].revents:
                    # Bounded, so that one busy socket does not starve the others.
                    for _ in range(4):
                        count = self.receive_batch(i)
                        if count < MESSAGES:
                            break

    cdef int receive_batch(self, int number) noexcept nogil:
        cdef int i, count
        cdef double now
        for i in range(MESSAGES):
            memset(&self.rx_messages[i], 0, sizeof(mmsghdr))
            self.rx_vectors[i].iov_base = self.rx_buffers + i * MESSAGE_BYTES
            self.rx_vectors[i].iov_len = MESSAGE_BYTES
            self.rx_messages[i].msg_hdr.msg_iov = &self.rx_vectors[i]
            self.rx_messages[i].msg_hdr.msg_iovlen = 1
            self.rx_messages[i].msg_hdr.msg_name = &self.rx_names[i]
            self.rx_messages[i].msg_hdr.msg_namelen = sizeof(SocketAddress)
            self.rx_messages[i].msg_hdr.msg_control = self.rx_controls + i * CONTROL_BYTES
            self.rx_messages[i].msg_hdr.msg_controllen = CONTROL_BYTES
        count = recvmmsg(self.sockets[number], self.rx_messages, MESSAGES, MSG_DONTWAIT, NULL)
        if count <= 0:
            return 0
        now = monotonic()
        pthread_rwlock_rdlock(&self.lock)
        for i in range(count):
            self.receive_message(number, i, now)
        pthread_rwlock_unlock(&self.lock)
        return count

    cdef void receive_message(self, int number, int i, double now) noexcept nogil:
        # A message may be several datagrams of one size that GRO joined; the last may be shorter.
        cdef Origin origin
        cdef int tos = 0, segment = 0, size = <int>self.rx_messages[i].msg_len, start = 0, part
        cdef uint8_t *data = self.rx_buffers + i * MESSAGE_BYTES
        memset(&origin, 0, sizeof(Origin))
        origin.socket = number
        origin.size = self.rx_messages[i].msg_hdr.msg_namelen
        origin.address = self.rx_names[i]
        if (<sockaddr *>&origin.address).sa_family == AF_INET6:
            (<sockaddr_in6 *>&origin.address).sin6_flowinfo = 0
        else:
            memset(&origin.address.bytes[8], 0, 20)
        read_control(&self.rx_messages[i].msg_hdr, &tos, &segment)
        if segment <= 0:
            segment = size
        if size == 0:
            self.drop_counts[1][DROP_TOO_SHORT] += 1
        while start < size:
            part = segment if size - start > segment else size - start
            self.receive_datagram(&origin, data + start, part, tos, now)
            start += part

    cdef void receive_datagram(self, Origin *origin, uint8_t *data, int size, int tos, double now) noexcept nogil:
        cdef uint32_t word
        if size < 4:
            self.drop_counts[1][DROP_TOO_SHORT] += 1
            return
        memcpy(&word, data, 4)
        origin.is_relayed = word == 5
        origin.relay_source = origin.relay_destination = 0
        if word == 5:
            if size < RELAY_HEADER + 4:
                self.drop_counts[1][DROP_TOO_SHORT] += 1
                return
            memcpy(&origin.relay_source, data + 4, 4)
            memcpy(&origin.relay_destination, data + 8, 4)
            data += RELAY_HEADER
            size -= RELAY_HEADER
            memcpy(&word, data, 4)
        if word == 4:
            self.open_packet(origin, data, size, tos, now)
        else:
            self.hand_to_python(origin, data, size, now)

    cdef void open_packet(self, Origin *origin, uint8_t *data, int size, int tos, double now) noexcept nogil:
        cdef uint32_t local_index
        cdef uint64_t counter
        cdef uint8_t nonce[12]
        cdef Keypair *keypair
        cdef uint64_t *drops = self.drop_counts[1]
        if size < HEADER + TAG:
            drops[DROP_TOO_SHORT] += 1
            return
        if size & 15:
            drops[DROP_BAD_LENGTH] += 1
            return
        memcpy(&local_index, data + 4, 4)
        memcpy(&counter, data + 8, 8)
        keypair = self.index_find(local_index)
        if keypair is NULL or keypair.is_dead:
            drops[DROP_UNKNOWN_INDEX] += 1
            return
        if now - keypair.created_at >= REJECT_AFTER_TIME or counter >= REJECT_AFTER_MESSAGES:
            drops[DROP_EXPIRED_KEY] += 1
            return
        if not window_may_accept(&keypair.window, counter):
            drops[DROP_REPLAYED] += 1
            return
        memset(nonce, 0, 4)
        memcpy(nonce + 4, &counter, 8)
        if unseal(data + HEADER, NULL, NULL, data + HEADER, size - HEADER, NULL, 0, nonce, keypair.receive_key) != 0:
            drops[DROP_DECRYPT_FAILED] += 1
            return
        window_accept(&keypair.window, counter)
        self.deliver(origin, keypair, data + HEADER, size - HEADER - TAG, tos, now)

    cdef void deliver(
            self, Origin *origin, Keypair *keypair, uint8_t *packet, int size, int tos, double now) noexcept nogil:
        cdef Peer *peer = keypair.peer
        cdef int length
        self.note_received(origin, keypair, peer, size, now)
        if size == 0:
            return
        length = inner_length(packet, size)
        if length == 0:
            self.drop_counts[1][DROP_NOT_IP] += 1
            return
        if packet[0] >> 4 == 4:
            if route_lookup(self.routes, packet + 12, 4) != peer.number:
                self.drop_counts[1][DROP_DISALLOWED_SOURCE] += 1
                return
        elif route_lookup(self.routes, packet + 8, 6) != peer.number:
            self.drop_counts[1][DROP_DISALLOWED_SOURCE] += 1
            return
        if (tos & 3) == 3 and not mark_congestion(packet):
            self.drop_counts[1][DROP_CONGESTED] += 1
            return
        peer.rx_packets += 1
        peer.rx_bytes += length
        if write(self.tun_fd, packet, length) != length:
            self.drop_counts[1][DROP_NOT_IP if errno == EINVAL else DROP_TUN_FULL] += 1

    cdef void note_received(self, Origin *origin, Keypair *keypair, Peer *peer, int size, double now) noexcept nogil:
        peer.last_authenticated_at = peer.last_received_at = keypair.received_at = now
        peer.first_sent_at = 0.0
        if size:
            if peer.first_received_at == 0.0:
                peer.first_received_at = now
            else:
                peer.more_arrived = True
        if keypair is peer.next:
            # The peer has our response: from now on this is what we send with.
            retire_keypair(peer, peer.previous)
            peer.previous = peer.current
            peer.current = keypair
            peer.next = NULL
            peer.is_flush_wanted = True
            self.report(KIND_KEYPAIR_CONFIRMED, peer.number, keypair.local_index, NULL, 1)
            self.kick()
        if (keypair is peer.current and keypair.is_initiator and not keypair.is_rekey_reported
                and now - keypair.created_at >= REKEY_ON_RECEIVE_AFTER):
            keypair.is_rekey_reported = True
            self.report(KIND_REKEY_WANTED, peer.number, 0, NULL, 1)
        if peer.primary is NULL or not is_same_origin(&peer.primary.to, origin):
            self.note_path(peer, origin, now)

    cdef void note_path(self, Peer *peer, Origin *origin, double now) noexcept nogil:
        cdef Endpoint *endpoint
        if peer.roams:
            endpoint = <Endpoint *>calloc(1, sizeof(Endpoint))
            if endpoint is not NULL:
                endpoint.to = origin[0]
                retire_endpoint(peer, peer.primary)
                peer.primary = endpoint
            return
        if peer.secondary is not NULL and is_same_origin(&peer.secondary.to, origin):
            return
        if is_same_origin(&peer.path_reported, origin) and now - peer.path_event_at < PATH_EVENT_INTERVAL:
            return
        if now - peer.path_event_at < PATH_EVENT_INTERVAL / 10:
            return      # packets alternate between two other paths
        peer.path_reported = origin[0]
        peer.path_event_at = now
        self.report(KIND_PATH_SEEN, peer.number, 0, origin, 1)


# --- steps without an engine ------------------------------------------------------------------------------------


cdef int check_prefix(bytes network, int length) except -1:
    if len(network) not in (4, 16) or not 0 <= length <= len(network) * 8:
        raise ValueError(f"no prefix: {len(network)} bytes, length {length}")
    return 4 if len(network) == 4 else 6


cdef tuple origin_name(Origin *origin):
    cdef char text[64]
    cdef sockaddr *address = <sockaddr *>&origin.address
    if address.sa_family == AF_INET6:
        inet_ntop(AF_INET6, &(<sockaddr_in6 *>address).sin6_addr, text, sizeof(text))
        return text.decode(), ntohs((<sockaddr_in6 *>address).sin6_port)
    inet_ntop(AF_INET, &(<sockaddr_in *>address).sin_addr, text, sizeof(text))
    return text.decode(), ntohs((<sockaddr_in *>address).sin_port)


cdef void signal_eventfd(int fd) noexcept nogil:
    cdef uint64_t one = 1
    write(fd, &one, 8)


cdef inline uint32_t index_slot(uint32_t local_index) noexcept nogil:
    return (local_index ^ (local_index >> 15)) & (INDEX_SLOTS - 1)


cdef inline bint is_usable_keypair(Keypair *keypair, double now) noexcept nogil:
    return (keypair is not NULL and now - keypair.created_at < REJECT_AFTER_TIME
            and keypair.send_counter < REJECT_AFTER_MESSAGES)


cdef inline bint is_same_origin(Origin *left, Origin *right) noexcept nogil:
    return (left.socket == right.socket and left.is_relayed == right.is_relayed
            and left.relay_source == right.relay_source and left.relay_destination == right.relay_destination
            and memcmp(&left.address, &right.address, sizeof(SocketAddress)) == 0)


cdef uint64_t lost_of(Keypair *keypair) noexcept nogil:
    # Counters start at 0 and each is sent once: what is missing below the greatest was lost (or is late).
    return keypair.window.greatest - keypair.window.received if keypair is not NULL else 0


cdef void retire_keypair(Peer *peer, Keypair *keypair) noexcept nogil:
    if keypair is not NULL:
        keypair.is_dead = True
        keypair.retired = peer.retired_keypairs
        peer.retired_keypairs = keypair


cdef void retire_endpoint(Peer *peer, Endpoint *endpoint) noexcept nogil:
    if endpoint is not NULL:
        endpoint.retired = peer.retired_endpoints
        peer.retired_endpoints = endpoint


cdef void free_retired(Engine engine, Peer *peer) noexcept nogil:
    # Write lock held: no thread looks at these any more.
    cdef Keypair *keypair
    cdef Endpoint *endpoint
    while peer.retired_keypairs is not NULL:
        keypair = peer.retired_keypairs
        peer.retired_keypairs = keypair.retired
        peer.lost_before += lost_of(keypair)
        engine.index_remove(keypair)
        memset(keypair, 0, sizeof(Keypair))
        free(keypair)
    while peer.retired_endpoints is not NULL:
        endpoint = peer.retired_endpoints
        peer.retired_endpoints = endpoint.retired
        free(endpoint)


cdef void read_control(msghdr *message, int *tos, int *segment) noexcept nogil:
    cdef cmsghdr *header = CMSG_FIRSTHDR(message)
    while header is not NULL:
        if header.cmsg_level == SOL_UDP and header.cmsg_type == UDP_GRO:
            memcpy(segment, CMSG_DATA(header), sizeof(int))
        elif header.cmsg_level == IPPROTO_IP and header.cmsg_type == IP_TOS:
            tos[0] = CMSG_DATA(header)[0]
        elif header.cmsg_level == IPPROTO_IPV6 and header.cmsg_type == IPV6_TCLASS:
            memcpy(tos, CMSG_DATA(header), sizeof(int))
        header = CMSG_NXTHDR(message, header)


cdef int inner_length(const uint8_t *packet, int size) noexcept nogil:
    # The packet's own length without the padding, or 0 if it is no whole IP packet.
    cdef int length
    if size >= 20 and packet[0] >> 4 == 4:
        length = (packet[2] << 8) | packet[3]
        return length if 20 <= length <= size else 0
    if size >= 40 and packet[0] >> 4 == 6:
        length = 40 + ((packet[4] << 8) | packet[5])
        return length if length <= size else 0
    return 0


cdef bint mark_congestion(uint8_t *packet) noexcept nogil:
    # RFC 6040 §4.2: the outer header says that congestion was experienced. False: the packet must be dropped.
    cdef uint32_t checksum, old
    if packet[0] >> 4 == 6:
        if (packet[1] >> 4) & 3 == 0:
            return False
        packet[1] |= 0x30
        return True
    if packet[1] & 3 == 0:
        return False
    if packet[1] & 3 != 3:
        old = (packet[0] << 8) | packet[1]
        packet[1] |= 3
        # RFC 1624: the header checksum follows from the change of one word.
        checksum = ~<uint32_t>((packet[10] << 8) | packet[11]) & 0xFFFF
        checksum += (~old & 0xFFFF) + <uint32_t>((packet[0] << 8) | packet[1])
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
        checksum = ~checksum & 0xFFFF
        packet[10] = <uint8_t>(checksum >> 8)
        packet[11] = <uint8_t>(checksum & 0xFF)
    return True
