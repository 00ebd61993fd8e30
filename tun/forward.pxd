# A member that relays for two others: whose frames it forwards, from where and to where, and how many. A frame goes on
# unchanged and unread, to one address, if both ids are peers' with a proven direct path and it came from an address
# of its source's. Twin: meshvpn/proto/dataplane.py. The receive thread uses it under the engine's lock, writers change
# it.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from .bucket cimport Bucket, bucket_take
from .drops cimport DROP_DISALLOWED_SOURCE, DROP_OVER_LIMIT, DROP_TOO_BIG, DROP_TOO_SHORT
from .endpoint cimport Origin, RELAY_HEADER, SocketAddress
from .frames cimport Frames, Outgoing, is_frame, outgoing_put
from .peers cimport PEER_LIMIT, Peer

cdef enum:
    ID_SLOTS = 8192             # open addressing, twice PEER_LIMIT
    ID_BITS = 13
    FRAME_BYTES = 9292          # longest frame: a sealed packet of the largest MTU (batch.pxd) and the header

cdef struct Forwarder:
    bint is_on
    Bucket bucket               # bytes
    uint64_t packets
    uint64_t bytes
    uint64_t seed               # odd and secret: members choose their ids, but not where they stand
    Peer *by_id[ID_SLOTS]
    Outgoing outgoing

cdef inline uint32_t id_slot(const Forwarder *forwarder, uint32_t relay_id) noexcept nogil:
    return <uint32_t>((relay_id * forwarder.seed) >> (64 - ID_BITS))

cdef inline Peer *id_find(const Forwarder *forwarder, uint32_t relay_id) noexcept nogil:
    cdef uint32_t slot = id_slot(forwarder, relay_id)
    while forwarder.by_id[slot] is not NULL:
        if forwarder.by_id[slot].relay_id == relay_id:
            return forwarder.by_id[slot]
        slot = (slot + 1) & (ID_SLOTS - 1)
    return NULL

cdef inline void id_add(Forwarder *forwarder, Peer *peer) noexcept nogil:
    cdef uint32_t slot = id_slot(forwarder, peer.relay_id)
    while forwarder.by_id[slot] is not NULL:
        slot = (slot + 1) & (ID_SLOTS - 1)
    forwarder.by_id[slot] = peer

cdef inline void id_remove(Forwarder *forwarder, Peer *peer) noexcept nogil:
    # As index_remove (peers.pxd). A peer that is not there changes nothing.
    cdef uint32_t hole = id_slot(forwarder, peer.relay_id), probe, home
    while forwarder.by_id[hole] is not peer:
        if forwarder.by_id[hole] is NULL:
            return
        hole = (hole + 1) & (ID_SLOTS - 1)
    probe = hole
    while True:
        probe = (probe + 1) & (ID_SLOTS - 1)
        if forwarder.by_id[probe] is NULL:
            break
        home = id_slot(forwarder, forwarder.by_id[probe].relay_id)
        if ((home - hole - 1) & (ID_SLOTS - 1)) < ((probe - hole) & (ID_SLOTS - 1)):
            continue
        forwarder.by_id[hole] = forwarder.by_id[probe]
        hole = probe
    forwarder.by_id[hole] = NULL

cdef inline bint is_from(const Peer *peer, const Origin *origin) noexcept nogil:
    cdef int i
    for i in range(peer.relay_path_count):
        if memcmp(&peer.relay_paths[i].address, &origin.address, sizeof(SocketAddress)) == 0:
            return True
    return False

cdef inline Peer *receiver_of(const Forwarder *forwarder, const uint8_t *data, int size) noexcept nogil:
    # NULL: it is no frame for another member, so ours.
    cdef uint32_t destination
    if not is_frame(data, size):
        return NULL
    memcpy(&destination, data + 8, 4)
    return id_find(forwarder, destination)

cdef inline void forward(
        Forwarder *forwarder, const Frames *frames, Peer *destination, const Origin *origin, double now,
        uint64_t *drops) noexcept nogil:
    cdef Peer *source = id_find(forwarder, frames.source)
    if frames.size < RELAY_HEADER + 4:
        drops[DROP_TOO_SHORT] += frames.count
    elif source is NULL or source is destination or not is_from(source, origin):
        drops[DROP_DISALLOWED_SOURCE] += frames.count
    elif frames.segment > FRAME_BYTES:
        drops[DROP_TOO_BIG] += frames.count
    elif not bucket_take(&forwarder.bucket, frames.size, now):
        drops[DROP_OVER_LIMIT] += frames.count
    else:
        forwarder.packets += frames.count
        forwarder.bytes += frames.size
        outgoing_put(&forwarder.outgoing, &destination.relay_paths[0], frames)
