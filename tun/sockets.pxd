# The UDP sockets of an engine or a relay, by number, and waiting for what comes on any of them (epoll: however many
# there are, a wake-up costs the same). Whoever adds or removes one excludes the threads that use them meanwhile.
# A number without a socket has a descriptor that every system call refuses.

from .syscalls cimport *

cdef enum:
    SOCKET_LIMIT = 640          # the birthday search for a port opens some hundreds
    READY = 64                  # sockets of one wake-up
    NO_SOCKET = -1

cdef struct SocketFeatures:
    # Of the kernel. Without one of them packets pass all the same, at a greater cost or without their marks.
    bint udp_gso                # UDP_SEGMENT: a message may be several datagrams of one size
    bint udp_gro                # the same on the way in
    bint sendmmsg               # several messages in a call
    bint recvmmsg
    bint send_tos               # a datagram has its packet's mark outside (DSCP and ECN)
    bint recv_tos               # the outer mark is read

cdef struct Sockets:
    int epoll_fd
    int stop_fd                 # an eventfd that ends waiting
    int fd[SOCKET_LIMIT]
    int family[SOCKET_LIMIT]
    SocketFeatures features     # what is wanted and all of them have

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

cdef inline int check_features(object without, object known) except -1:
    unknown = sorted(set(without).difference(known))
    if unknown:
        raise ValueError(f"no such feature: {', '.join(unknown)}")
    return 0

cdef inline SocketFeatures features_but(object without) except *:
    cdef SocketFeatures wanted
    wanted.udp_gso = "udp_gso" not in without
    wanted.udp_gro = "udp_gro" not in without
    wanted.sendmmsg = "sendmmsg" not in without
    wanted.recvmmsg = "recvmmsg" not in without
    wanted.send_tos = "send_tos" not in without
    wanted.recv_tos = "recv_tos" not in without
    return wanted

cdef inline bint has_option(int fd, int level, int option) noexcept nogil:
    cdef int value = 0
    cdef socklen_t size = sizeof(int)
    return getsockopt(fd, level, option, &value, &size) == 0

cdef inline bint turn_on(int fd, int level, int option) noexcept nogil:
    cdef int one = 1
    return setsockopt(fd, level, option, &one, sizeof(int)) == 0

cdef inline bint is_known_call(int result) noexcept nogil:
    # By its result with nothing to do: an old kernel does not know it, a sandbox forbids it. Other errors are the
    # socket's own.
    return result == 0 or (errno != ENOSYS and errno != EPERM)

cdef inline void probe(SocketFeatures *features, int fd, int family) noexcept nogil:
    # Takes away what this socket has not, and turns on what has to be.
    cdef bint is_6 = family == AF_INET6
    cdef int level = IPPROTO_IPV6 if is_6 else IPPROTO_IP
    features.udp_gso = features.udp_gso and has_option(fd, SOL_UDP, UDP_SEGMENT)
    features.udp_gro = features.udp_gro and turn_on(fd, SOL_UDP, UDP_GRO)
    features.sendmmsg = features.sendmmsg and is_known_call(sendmmsg(fd, NULL, 0, MSG_DONTWAIT))
    features.recvmmsg = features.recvmmsg and is_known_call(recvmmsg(fd, NULL, 0, MSG_DONTWAIT, NULL))
    features.send_tos = features.send_tos and has_option(fd, level, IPV6_TCLASS if is_6 else IP_TOS)
    features.recv_tos = features.recv_tos and turn_on(fd, level, IPV6_RECVTCLASS if is_6 else IP_RECVTOS)

cdef inline int sockets_add(Sockets *sockets, int number, int fd) except -1:
    cdef int family = 0
    cdef socklen_t size = sizeof(int)
    if not 0 <= number < SOCKET_LIMIT or is_open(sockets, number):
        raise ValueError(f"socket number {number} is in use or not between 0 and {SOCKET_LIMIT - 1}")
    if getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size) != 0:
        raise OSError(errno, f"file descriptor {fd} is no socket")
    probe(&sockets.features, fd, family)
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

cdef inline int sockets_open(Sockets *sockets, object descriptors, SocketFeatures wanted) except -1:
    # Adopts the first sockets, numbered from 0.
    cdef int fd
    if not 0 < len(descriptors) <= SOCKET_LIMIT:
        raise ValueError(f"between 1 and {SOCKET_LIMIT} sockets, not {len(descriptors)}")
    sockets.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    sockets.stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    if sockets.epoll_fd < 0 or sockets.stop_fd < 0 or watch(sockets, sockets.stop_fd, NO_SOCKET) != 0:
        raise OSError(errno, "no more memory or file descriptors")
    sockets.features = wanted
    for number, descriptor in enumerate(descriptors):
        fd = descriptor
        sockets_add(sockets, number, fd)
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
