# What the engine knows of a peer: its endpoints, its keypairs and their index, and the packets that wait for one.
# Twin: meshvpn/proto/dataplane.py. The rules of locking are at the top of engine.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from .arrivals cimport Arrivals
from .endpoint cimport Endpoint, Origin, is_same_origin
from .memory cimport give_block, take_block
from .window cimport WINDOW_BITS, Window

cdef enum:
    PEER_LIMIT = 4096
    STAGED_LIMIT = 512          # packets that wait for a peer's keypair: a hundred calls for 100 ms
    STAGED_BYTES = 8388608      # of all peers together
    RELAY_PATHS = 4
    INDEX_SLOTS = 32768         # open addressing, at most 3 × 4096 entries

# WireGuard whitepaper §6.1, in seconds and messages.
cdef enum:
    REKEY_AFTER_TIME = 120
    REJECT_AFTER_TIME = 180
    REKEY_ON_RECEIVE_AFTER = 165        # REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT

cdef extern from * nogil:
    """
    #define REKEY_AFTER_MESSAGES (1ULL << 60)
    #define REJECT_AFTER_MESSAGES (UINT64_MAX - (1ULL << 13))
    """
    const uint64_t REKEY_AFTER_MESSAGES
    const uint64_t REJECT_AFTER_MESSAGES

cdef struct Keypair:
    Keypair *retired            # the next in its peer's list of those that a writer may free
    Peer *peer
    uint32_t local_index
    uint32_t remote_index
    uint8_t send_key[32]
    uint8_t receive_key[32]
    bint is_initiator
    bint is_rekey_reported
    bint is_dead                # replaced; in the index until a writer removes it
    double created_at
    double received_at          # of the last packet that opened with it
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
    int copies                  # what goes to `secondary` too: copies.pxd
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
    uint64_t rx_packets, rx_bytes, tx_packets, tx_bytes
    uint64_t received_before, lost_before       # with keypairs that are gone
    double first_sent_at, first_received_at, last_authenticated_at, last_sent_at, last_received_at
    bint more_arrived
    Arrivals arrivals           # written by the receive thread alone
    double handshake_event_at
    double path_event_at
    Origin path_reported
    uint32_t relay_id
    Origin relay_paths[RELAY_PATHS]     # of another peer's frames for this one: the first is where they go on to
    int relay_path_count                # 0: nothing is relayed for this peer

cdef struct Peers:
    Peer *by_number[PEER_LIMIT + 1]
    Keypair *by_index[INDEX_SLOTS]
    uint64_t staged_bytes

# --- receiver index → keypair

cdef inline uint32_t index_slot(uint32_t local_index) noexcept nogil:
    return (local_index ^ (local_index >> 15)) & (INDEX_SLOTS - 1)

cdef inline Keypair *index_find(Peers *peers, uint32_t local_index) noexcept nogil:
    cdef uint32_t slot = index_slot(local_index)
    while peers.by_index[slot] is not NULL:
        if peers.by_index[slot].local_index == local_index:
            return peers.by_index[slot]
        slot = (slot + 1) & (INDEX_SLOTS - 1)
    return NULL

cdef inline void index_add(Peers *peers, Keypair *keypair) noexcept nogil:
    cdef uint32_t slot = index_slot(keypair.local_index)
    while peers.by_index[slot] is not NULL:
        slot = (slot + 1) & (INDEX_SLOTS - 1)
    peers.by_index[slot] = keypair

cdef inline void index_remove(Peers *peers, Keypair *keypair) noexcept nogil:
    # Later entries of the same probe run move back, so that no marks of removed entries pile up.
    cdef uint32_t hole = index_slot(keypair.local_index), probe, home
    while peers.by_index[hole] is not keypair:
        if peers.by_index[hole] is NULL:
            return
        hole = (hole + 1) & (INDEX_SLOTS - 1)
    probe = hole
    while True:
        probe = (probe + 1) & (INDEX_SLOTS - 1)
        if peers.by_index[probe] is NULL:
            break
        home = index_slot(peers.by_index[probe].local_index)
        if ((home - hole - 1) & (INDEX_SLOTS - 1)) < ((probe - hole) & (INDEX_SLOTS - 1)):
            continue
        peers.by_index[hole] = peers.by_index[probe]
        hole = probe
    peers.by_index[hole] = NULL

# --- previous, current, next

cdef inline bint is_usable_keypair(const Keypair *keypair, double now) noexcept nogil:
    return (keypair is not NULL and now - keypair.created_at < REJECT_AFTER_TIME
            and keypair.send_counter < REJECT_AFTER_MESSAGES)

cdef inline uint64_t received_of(const Keypair *keypair) noexcept nogil:
    return keypair.window.received if keypair is not NULL else 0

cdef inline uint64_t lost_of(const Keypair *keypair) noexcept nogil:
    # Counters start at 0 and each is sent once: what is missing below the greatest was lost (or is late).
    return keypair.window.greatest - keypair.window.received if keypair is not NULL else 0

cdef inline void retire_keypair(Peer *peer, Keypair *keypair) noexcept nogil:
    if keypair is not NULL:
        keypair.is_dead = True
        keypair.retired = peer.retired_keypairs
        peer.retired_keypairs = keypair

cdef inline void retire_endpoint(Peer *peer, Endpoint *endpoint) noexcept nogil:
    if endpoint is not NULL:
        endpoint.retired = peer.retired_endpoints
        peer.retired_endpoints = endpoint

cdef inline void free_retired(Peers *peers, Peer *peer) noexcept nogil:
    # Write lock held: no thread looks at these any more.
    cdef Keypair *keypair
    cdef Endpoint *endpoint
    while peer.retired_keypairs is not NULL:
        keypair = peer.retired_keypairs
        peer.retired_keypairs = keypair.retired
        peer.received_before += keypair.window.received
        peer.lost_before += lost_of(keypair)
        index_remove(peers, keypair)
        memset(keypair, 0, sizeof(Keypair))
        give_block(keypair)
    while peer.retired_endpoints is not NULL:
        endpoint = peer.retired_endpoints
        peer.retired_endpoints = endpoint.retired
        give_block(endpoint)

cdef inline void place_keypair(Peers *peers, Peer *peer, Keypair *keypair) noexcept nogil:
    # Write lock held. WireGuard's rules for current, previous and next, but for one thing: the kernel driver
    # (add_new_keypair) drops pairs under which packets of the peer may be on their way.
    index_add(peers, keypair)
    if keypair.is_initiator:
        # Of the old ones the one stays that the peer last sent with: if both ends asked, that need not be the one that
        # we send with. `next` stays too. The peer uses it soon, or never does, and then it must displace nothing.
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
    free_retired(peers, peer)

cdef inline void confirm_next(Peer *peer) noexcept nogil:
    # The peer has our response: from now on this is what we send with.
    retire_keypair(peer, peer.previous)
    peer.previous = peer.current
    peer.current = peer.next
    peer.next = NULL
    peer.is_flush_wanted = True

cdef inline void drop_keypairs(Peers *peers, Peer *peer) noexcept nogil:
    retire_keypair(peer, peer.current)
    retire_keypair(peer, peer.previous)
    retire_keypair(peer, peer.next)
    peer.current = peer.previous = peer.next = NULL
    free_retired(peers, peer)

cdef inline void drop_endpoints(Peers *peers, Peer *peer) noexcept nogil:
    retire_endpoint(peer, peer.primary)
    retire_endpoint(peer, peer.secondary)
    peer.primary = peer.secondary = NULL
    free_retired(peers, peer)

cdef inline bint is_second_copy(const Keypair *keypair, uint64_t counter, const Origin *origin) noexcept nogil:
    # Of a counter that the window refuses: the later copy of a peer that sends on two paths comes on a known one. It is
    # not opened, so this is good for counting alone.
    cdef const Peer *peer = keypair.peer
    if keypair.window.greatest - counter > WINDOW_BITS or (peer.secondary is NULL and peer.path_reported.size == 0):
        return False
    return ((peer.primary is not NULL and is_same_origin(&peer.primary.to, origin))
            or (peer.secondary is not NULL and is_same_origin(&peer.secondary.to, origin))
            or is_same_origin(&peer.path_reported, origin))

# --- packets that wait for a keypair

cdef inline void unstage_first(Peers *peers, Peer *peer) noexcept nogil:
    cdef Staged *staged = peer.staged_first
    peer.staged_first = staged.next
    if peer.staged_first is NULL:
        peer.staged_last = NULL
    peer.staged_count -= 1
    peers.staged_bytes -= staged.size
    give_block(staged)

cdef inline int stage_packet(Peers *peers, Peer *peer, const uint8_t *packet, int size) noexcept nogil:
    # Keeps the newest packets; returns how many were dropped.
    cdef Staged *staged = NULL
    cdef int dropped = 0
    if peer.staged_count >= STAGED_LIMIT:
        unstage_first(peers, peer)
        dropped = 1
    if peers.staged_bytes + size <= STAGED_BYTES:
        staged = <Staged *>take_block(sizeof(Staged) + size)
    if staged is NULL:
        return dropped + 1
    staged.size = size
    memcpy(staged.data, packet, size)
    if peer.staged_last is NULL:
        peer.staged_first = staged
    else:
        peer.staged_last.next = staged
    peer.staged_last = staged
    peer.staged_count += 1
    peers.staged_bytes += size
    return dropped

cdef inline void free_peer(Peers *peers, Peer *peer) noexcept nogil:
    # Write lock held, and the peer is in no table.
    drop_keypairs(peers, peer)
    drop_endpoints(peers, peer)
    while peer.staged_first is not NULL:
        unstage_first(peers, peer)
    give_block(peer)
