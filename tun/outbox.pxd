# The two queues to Python: events, and datagrams that are not transport messages. Both are bounded; what a stranger
# sends is limited in rate too. The mutex is held for a copy only.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from .bucket cimport Bucket, bucket_fill, bucket_take
from .endpoint cimport Origin
from .memory cimport give_block, take_block
from .syscalls cimport *

cdef enum:
    EVENT_LIMIT = 4096
    SLOW_BYTES = 2048           # longest datagram for Python: disco, STUN and handshakes are shorter
    SLOW_RATE = 4096            # datagrams a second for Python; a handshake costs it about half a millisecond

cdef struct Event:
    int kind
    uint32_t peer
    uint32_t index
    Origin origin

cdef struct Slow:
    Origin origin
    int size
    uint8_t *data

cdef struct Outbox:
    int fd                      # an eventfd, readable while there is something
    pthread_mutex_t mutex
    Event *events
    int event_first, event_count
    Slow *slow
    int slow_first, slow_count, slow_limit
    Bucket slow_bucket

cdef inline bint outbox_open(Outbox *box, int slow_limit) noexcept nogil:
    # False: no memory or no descriptor; `outbox_close` cleans up either way.
    pthread_mutex_init(&box.mutex, NULL)
    box.slow_limit = slow_limit
    bucket_fill(&box.slow_bucket, SLOW_RATE, slow_limit, 0.0)
    box.events = <Event *>take_block(EVENT_LIMIT * sizeof(Event))
    box.slow = <Slow *>take_block(slow_limit * sizeof(Slow))
    box.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    return box.events is not NULL and box.slow is not NULL and box.fd >= 0

cdef inline void outbox_close(Outbox *box) noexcept nogil:
    while box.slow_count:
        give_block(box.slow[box.slow_first].data)
        box.slow_first = (box.slow_first + 1) % box.slow_limit
        box.slow_count -= 1
    give_block(box.events)
    give_block(box.slow)
    if box.fd >= 0:
        close(box.fd)
    pthread_mutex_destroy(&box.mutex)

cdef inline void outbox_quiet(Outbox *box) noexcept nogil:
    # Python looks now. What the other queue still holds must wake it again.
    cdef uint64_t value
    read(box.fd, &value, 8)
    if box.slow_count or box.event_count:
        signal_eventfd(box.fd)

cdef inline bint outbox_report(
        Outbox *box, int kind, uint32_t peer, uint32_t index, const Origin *origin) noexcept nogil:
    # False: the queue is full.
    cdef Event *event
    pthread_mutex_lock(&box.mutex)
    if box.event_count >= EVENT_LIMIT:
        pthread_mutex_unlock(&box.mutex)
        return False
    event = &box.events[(box.event_first + box.event_count) % EVENT_LIMIT]
    memset(event, 0, sizeof(Event))
    event.kind = kind
    event.peer = peer
    event.index = index
    if origin is not NULL:
        event.origin = origin[0]
    box.event_count += 1
    pthread_mutex_unlock(&box.mutex)
    signal_eventfd(box.fd)
    return True

cdef inline bint outbox_take_event(Outbox *box, Event *event) noexcept nogil:
    cdef bint has_one
    pthread_mutex_lock(&box.mutex)
    has_one = box.event_count > 0
    if has_one:
        event[0] = box.events[box.event_first]
        box.event_first = (box.event_first + 1) % EVENT_LIMIT
        box.event_count -= 1
    pthread_mutex_unlock(&box.mutex)
    return has_one

cdef inline bint outbox_put(
        Outbox *box, const Origin *origin, const uint8_t *data, int size, double now) noexcept nogil:
    # By the receive thread alone, a datagram of at most SLOW_BYTES. False: too many.
    cdef uint8_t *copy
    cdef Slow *item
    if box.slow_count >= box.slow_limit or not bucket_take(&box.slow_bucket, 1.0, now):
        return False
    copy = <uint8_t *>take_block(size)
    if copy is NULL:
        return False
    memcpy(copy, data, size)
    pthread_mutex_lock(&box.mutex)
    item = &box.slow[(box.slow_first + box.slow_count) % box.slow_limit]
    item.origin = origin[0]
    item.size = size
    item.data = copy
    box.slow_count += 1
    pthread_mutex_unlock(&box.mutex)
    signal_eventfd(box.fd)
    return True

cdef inline bint outbox_take_slow(Outbox *box, Slow *item) noexcept nogil:
    # The caller gives the data's block back.
    cdef bint has_one
    pthread_mutex_lock(&box.mutex)
    has_one = box.slow_count > 0
    if has_one:
        item[0] = box.slow[box.slow_first]
        box.slow_first = (box.slow_first + 1) % box.slow_limit
        box.slow_count -= 1
    pthread_mutex_unlock(&box.mutex)
    return has_one
