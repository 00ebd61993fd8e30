# Foreign declarations only: what the engine calls of the C library and the kernel.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "<errno.h>" nogil:
    int errno
    enum: EAGAIN, EINTR, ENOSYS, EPERM, EIO, EINVAL, ENOBUFS, ENOMEM, EMSGSIZE

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t size)
    ssize_t write(int fd, const void *buffer, size_t size)
    int close(int fd)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    enum: POLLIN

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long first, unsigned long second, unsigned long third, unsigned long fourth)
    enum: PR_SET_TIMERSLACK

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int value, int flags)
    enum: EFD_NONBLOCK, EFD_CLOEXEC

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll_fd, epoll_event *events, int count, int timeout)
    enum: EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLIN

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int nanosleep(const timespec *span, timespec *left)
    enum: CLOCK_MONOTONIC

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int fd, const iovec *vectors, int count)

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from *:
    """
    #include <linux/if_tun.h>
    #include <linux/sockios.h>
    #include <net/if.h>
    #ifndef TUN_F_USO4
    #define TUN_F_USO4 0x20
    #define TUN_F_USO6 0x40
    #endif
    """
    struct ifreq:
        short ifr_flags
    enum: TUNGETIFF, TUNSETOFFLOAD, IFF_VNET_HDR, TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6
    enum: SIOCOUTQ

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        unsigned short sa_family
    struct sockaddr_storage:
        unsigned short ss_family
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *previous)
    unsigned char *CMSG_DATA(cmsghdr *header)
    size_t CMSG_LEN(size_t size)
    size_t CMSG_SPACE(size_t size)
    int setsockopt(int fd, int level, int option, const void *value, socklen_t size)
    int getsockopt(int fd, int level, int option, void *value, socklen_t *size)
    enum: AF_INET, AF_INET6, MSG_DONTWAIT, SOL_SOCKET, SO_DOMAIN, SO_SNDBUF

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/socket.h>
    #include <linux/udp.h>
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    #ifndef SOL_UDP
    #define SOL_UDP 17
    #endif
    """
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags) nogil
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, timespec *timeout) nogil
    ssize_t sendmsg(int fd, const msghdr *message, int flags) nogil
    ssize_t recvmsg(int fd, msghdr *message, int flags) nogil
    enum: UDP_SEGMENT, UDP_GRO, SOL_UDP

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    uint16_t htons(uint16_t value)
    uint16_t ntohs(uint16_t value)
    enum: IPPROTO_IP, IPPROTO_IPV6, IP_TOS, IP_RECVTOS, IPV6_TCLASS, IPV6_RECVTCLASS

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)
    const char *inet_ntop(int family, const void *address, char *text, socklen_t size)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_rwlock_t:
        pass
    ctypedef struct pthread_rwlockattr_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_rwlockattr_init(pthread_rwlockattr_t *attribute)
    int pthread_rwlockattr_setkind_np(pthread_rwlockattr_t *attribute, int kind)
    int pthread_rwlock_init(pthread_rwlock_t *lock, pthread_rwlockattr_t *attribute)
    int pthread_rwlock_destroy(pthread_rwlock_t *lock)
    int pthread_rwlock_rdlock(pthread_rwlock_t *lock)
    int pthread_rwlock_wrlock(pthread_rwlock_t *lock)
    int pthread_rwlock_unlock(pthread_rwlock_t *lock)
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attribute)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    enum: PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP

cdef inline bint is_shortage(int reason) noexcept nogil:
    # No room for a packet now; there may be soon.
    return reason == EAGAIN or reason == ENOBUFS or reason == ENOMEM

cdef inline void signal_eventfd(int fd) noexcept nogil:
    cdef uint64_t one = 1
    write(fd, &one, 8)

cdef inline double monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + 1e-9 * <double>now.tv_nsec
