# Longest-prefix match: one open-addressed hash table for all prefixes, asked once for each prefix length in use,
# longest first. A mesh of hosts has one length a family, so a lookup is one probe whatever the number of peers.
# Twin: meshvpn/proto/allowedips.py.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    ROUTE_SLOTS = 16384         # twice MAX_ROUTES: probes stay short
    MAX_ROUTES = 8192

cdef struct Route:
    uint8_t network[16]
    uint8_t family              # 4, 6; 0 = free
    uint8_t length
    uint32_t peer

cdef struct RouteTable:
    uint32_t used[2][129]       # how many prefixes of each length, by family
    uint32_t count
    uint8_t lengths[2][129]     # the lengths in use, longest first
    uint32_t length_count[2]
    Route slots[ROUTE_SLOTS]

cdef inline void mask_network(uint8_t *out, const uint8_t *address, int size, int length) noexcept nogil:
    cdef int whole = length >> 3, rest = length & 7
    memset(out, 0, 16)
    memcpy(out, address, whole)
    if rest and whole < size:
        out[whole] = address[whole] & <uint8_t>(0xFF << (8 - rest))

cdef inline uint32_t route_hash(const uint8_t *network, uint8_t family, uint8_t length) noexcept nogil:
    cdef uint64_t low, high
    memcpy(&low, network, 8)
    memcpy(&high, network + 8, 8)
    low = (low ^ (high * <uint64_t>0x9E3779B97F4A7C15) ^ (<uint64_t>length << 56) ^ family)
    low *= <uint64_t>0xFF51AFD7ED558CCD
    low ^= low >> 32
    return <uint32_t>low & (ROUTE_SLOTS - 1)

cdef inline Route *route_find(RouteTable *table, const uint8_t *network, uint8_t family, uint8_t length) noexcept nogil:
    cdef uint32_t slot = route_hash(network, family, length)
    cdef Route *route
    while True:
        route = &table.slots[slot]
        if route.family == 0:
            return NULL
        if route.family == family and route.length == length and memcmp(route.network, network, 16) == 0:
            return route
        slot = (slot + 1) & (ROUTE_SLOTS - 1)

cdef inline void route_rebuild_lengths(RouteTable *table, int which) noexcept nogil:
    cdef int length
    table.length_count[which] = 0
    for length in range(128, -1, -1):
        if table.used[which][length]:
            table.lengths[which][table.length_count[which]] = <uint8_t>length
            table.length_count[which] += 1

cdef inline bint route_set(
        RouteTable *table, const uint8_t *address, uint8_t family, uint8_t length, uint32_t peer) noexcept nogil:
    # False: the table is full.
    cdef uint8_t network[16]
    cdef uint32_t slot
    cdef Route *route
    mask_network(network, address, 4 if family == 4 else 16, length)
    route = route_find(table, network, family, length)
    if route is not NULL:
        route.peer = peer
        return True
    if table.count >= MAX_ROUTES:
        return False
    slot = route_hash(network, family, length)
    while table.slots[slot].family != 0:
        slot = (slot + 1) & (ROUTE_SLOTS - 1)
    route = &table.slots[slot]
    memcpy(route.network, network, 16)
    route.family = family
    route.length = length
    route.peer = peer
    table.count += 1
    table.used[0 if family == 4 else 1][length] += 1
    route_rebuild_lengths(table, 0 if family == 4 else 1)
    return True

cdef inline void route_drop(RouteTable *table, Route *route) noexcept nogil:
    # Later entries of the same probe run move back, so that no marks of removed entries pile up.
    cdef int which = 0 if route.family == 4 else 1
    cdef uint32_t hole = <uint32_t>(route - table.slots), probe, home
    table.used[which][route.length] -= 1
    table.count -= 1
    probe = hole
    while True:
        probe = (probe + 1) & (ROUTE_SLOTS - 1)
        if table.slots[probe].family == 0:
            break
        home = route_hash(table.slots[probe].network, table.slots[probe].family, table.slots[probe].length)
        # Does the entry's home lie cyclically in (hole, probe]? Then it is reached without the hole.
        if ((home - hole - 1) & (ROUTE_SLOTS - 1)) < ((probe - hole) & (ROUTE_SLOTS - 1)):
            continue
        table.slots[hole] = table.slots[probe]
        hole = probe
    table.slots[hole].family = 0
    route_rebuild_lengths(table, which)

cdef inline void route_drop_peer(RouteTable *table, uint32_t peer) noexcept nogil:
    cdef uint32_t slot = 0
    while slot < ROUTE_SLOTS:
        if table.slots[slot].family != 0 and table.slots[slot].peer == peer:
            route_drop(table, &table.slots[slot])     # another entry may now stand here: look again
        else:
            slot += 1

cdef inline uint32_t route_lookup(RouteTable *table, const uint8_t *address, uint8_t family) noexcept nogil:
    # The peer of the longest prefix that holds the address, or 0.
    cdef int which = 0 if family == 4 else 1, size = 4 if family == 4 else 16
    cdef uint32_t i
    cdef uint8_t network[16]
    cdef Route *route
    for i in range(table.length_count[which]):
        mask_network(network, address, size, table.lengths[which][i])
        route = route_find(table, network, family, table.lengths[which][i])
        if route is not NULL:
            return route.peer
    return 0

cdef inline int check_prefix(bytes network, int length) except -1:
    if len(network) not in (4, 16) or not 0 <= length <= len(network) * 8:
        raise ValueError(f"no prefix: {len(network)} bytes, length {length}")
    return 4 if len(network) == 4 else 6
