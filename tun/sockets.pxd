# The UDP sockets of an engine or a relay, by number, and waiting for what comes on any of them (epoll: however many
# there are, a wake-up costs the same). Whoever adds or removes one excludes the threads that use them meanwhile.
# A number without a socket has a descriptor that every system call refuses.

from .syscalls cimport *

cdef enum:
    SOCKET_LIMIT = 640          # the birthday search for a port opens some hundreds
    READY = 64                  # sockets of one wake-up
    NO_SOCKET = -1

cdef struct Sockets:
    int epoll_fd
    int stop_fd                 # an eventfd that ends waiting
    int fd[SOCKET_LIMIT]
    int family[SOCKET_LIMIT]
    bint has_gso                # those of the start, all of them: UDP_SEGMENT
    bint has_gro
    bint has_marks              # the outer TOS is asked for

cdef inline void sockets_clear(Sockets *sockets) noexcept nogil:
    # Before anything can fail, so that `sockets_close` may follow whatever happens.
    cdef int i
    sockets.epoll_fd = sockets.stop_fd = NO_SOCKET
    for i in range(SOCKET_LIMIT):
        sockets.fd[i] = NO_SOCKET

cdef inline void sockets_close(Sockets *sockets) noexcept nogil:
    # The UDP sockets are others' to close.
    if sockets.epoll_fd >= 0:
        close(sockets.epoll_fd)
    if sockets.stop_fd >= 0:
        close(sockets.stop_fd)

cdef inline bint is_open(const Sockets *sockets, int number) noexcept nogil:
    return 0 <= number < SOCKET_LIMIT and sockets.fd[number] != NO_SOCKET

cdef inline int watch(Sockets *sockets, int fd, int number) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.u64 = number
    return epoll_ctl(sockets.epoll_fd, EPOLL_CTL_ADD, fd, &event)

cdef inline int sockets_add(Sockets *sockets, int number, int fd) except -1:
    cdef int one = 1, family = 0
    cdef socklen_t size = sizeof(int)
    if not 0 <= number < SOCKET_LIMIT or is_open(sockets, number):
        raise ValueError(f"socket number {number} is in use or not between 0 and {SOCKET_LIMIT - 1}")
    if getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size) != 0:
        raise OSError(errno, f"file descriptor {fd} is no socket")
    if sockets.has_gro and setsockopt(fd, SOL_UDP, UDP_GRO, &one, sizeof(int)) != 0:
        sockets.has_gro = False
    if sockets.has_marks and family == AF_INET6:
        setsockopt(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, &one, sizeof(int))
    elif sockets.has_marks:
        setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &one, sizeof(int))
    if watch(sockets, fd, number) != 0:
        raise OSError(errno, f"file descriptor {fd} cannot be waited for")
    sockets.fd[number] = fd
    sockets.family[number] = family
    return 0

cdef inline bint sockets_remove(Sockets *sockets, int number) noexcept nogil:
    # False: there is none. Nothing is done with its descriptor any more, which the owner may close.
    if not is_open(sockets, number):
        return False
    epoll_ctl(sockets.epoll_fd, EPOLL_CTL_DEL, sockets.fd[number], NULL)
    sockets.fd[number] = NO_SOCKET
    return True

cdef inline int sockets_open(Sockets *sockets, object descriptors, bint gso, bint gro, bint marks) except -1:
    # Adopts the first sockets, numbered from 0, and says which of the wanted kernel features all of them have.
    cdef int value = 0, fd
    cdef socklen_t size
    if not 0 < len(descriptors) <= SOCKET_LIMIT:
        raise ValueError(f"between 1 and {SOCKET_LIMIT} sockets, not {len(descriptors)}")
    sockets.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    sockets.stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    if sockets.epoll_fd < 0 or sockets.stop_fd < 0 or watch(sockets, sockets.stop_fd, NO_SOCKET) != 0:
        raise OSError(errno, "no more memory or file descriptors")
    sockets.has_gso, sockets.has_gro, sockets.has_marks = gso, gro, marks
    for number, descriptor in enumerate(descriptors):
        fd = descriptor
        sockets_add(sockets, number, fd)
        size = sizeof(int)
        if gso and getsockopt(fd, SOL_UDP, UDP_SEGMENT, &value, &size) != 0:
            sockets.has_gso = False
    return 0

cdef inline int sockets_wait(Sockets *sockets, int *numbers) noexcept nogil:
    # Which sockets have something, after one has or somebody called `sockets_interrupt`. `numbers` has READY.
    cdef epoll_event events[READY]
    cdef int i, found = 0, count = epoll_wait(sockets.epoll_fd, events, READY, -1)
    for i in range(count):
        if <int>events[i].data.u64 != NO_SOCKET:
            numbers[found] = <int>events[i].data.u64
            found += 1
    return found

cdef inline void sockets_interrupt(Sockets *sockets) noexcept nogil:
    signal_eventfd(sockets.stop_fd)

cdef inline void sockets_resume(Sockets *sockets) noexcept nogil:
    # Waiting is possible again.
    cdef uint64_t value
    read(sockets.stop_fd, &value, 8)
