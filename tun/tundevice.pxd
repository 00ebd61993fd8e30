# The TUN device as the engine uses it: what it can do, and writing to it. By the receive thread alone, once it is open.
#
# A device that refuses a packet for want of room is short: for a while only those have it that need it most.

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from .drops cimport DROP_NOT_IP, DROP_TUN_DOWN, DROP_TUN_FULL_EXPEDITED
from .inner cimport traffic_class
from .offload cimport Train, VNET_BYTES, train_add, train_finish, train_start
from .ranks cimport RANK_BULK, rank_of
from .syscalls cimport *

cdef extern from * nogil:
    """
    #define SHORT_SPAN 0.01
    """
    const double SHORT_SPAN     # seconds

cdef struct DeviceFeatures:
    bint vnet_hdr               # a virtio_net_hdr in front of each packet: chosen when the device is opened
    bint tun_tso                # large packets of TCP, both ways
    bint tun_uso                # of UDP

cdef struct Device:
    int fd
    DeviceFeatures features       # what is wanted and the device has
    int vnet_bytes              # in front of each packet
    uint64_t *drops
    Train train
    bint is_short
    double short_at

cdef inline bint set_offload(int fd, unsigned long kinds) noexcept nogil:
    return ioctl(fd, TUNSETOFFLOAD, kinds | TUN_F_CSUM if kinds else 0) == 0

cdef inline void device_open(Device *device, int fd, DeviceFeatures wanted, uint64_t *drops) noexcept nogil:
    # A device outlives the daemon, and with it what an earlier one asked for: that is set anew whatever it is.
    cdef ifreq request
    cdef unsigned long tcp = 0, udp = 0
    memset(&request, 0, sizeof(ifreq))
    device.fd = fd
    device.drops = drops
    if ioctl(fd, TUNGETIFF, &request) != 0:
        return
    if request.ifr_flags & IFF_VNET_HDR:
        device.features.vnet_hdr = True
        device.vnet_bytes = VNET_BYTES
        tcp = TUN_F_TSO4 | TUN_F_TSO6 if wanted.tun_tso else 0
        udp = TUN_F_USO4 | TUN_F_USO6 if wanted.tun_uso else 0
    if not set_offload(fd, tcp | udp):
        if set_offload(fd, tcp):
            udp = 0
        elif set_offload(fd, udp):
            tcp = 0
        else:
            tcp = udp = 0
    device.features.tun_tso = tcp != 0
    device.features.tun_uso = udp != 0

cdef inline void device_pretend(Device *device, int fd, DeviceFeatures wanted, uint64_t *drops) noexcept nogil:
    # The descriptor is something else that takes packets as such a device would.
    device.fd = fd
    device.drops = drops
    device.features = wanted
    device.vnet_bytes = VNET_BYTES if wanted.vnet_hdr else 0

cdef inline void note_unwritten(Device *device, const uint8_t *packet, int size, int count, int reason) noexcept nogil:
    # `size` is that of each of the packets.
    if is_shortage(reason):
        device.is_short = True
        device.short_at = monotonic()
        device.drops[DROP_TUN_FULL_EXPEDITED + rank_of(traffic_class(packet), size)] += count
    else:
        device.drops[DROP_NOT_IP if reason == EINVAL else DROP_TUN_DOWN] += count

cdef inline void write_single(Device *device, uint8_t *packet, int size) noexcept nogil:
    memset(packet - device.vnet_bytes, 0, device.vnet_bytes)
    if write(device.fd, packet - device.vnet_bytes, size + device.vnet_bytes) < 0:
        note_unwritten(device, packet, size, 1, errno)

cdef inline void device_flush(Device *device) noexcept nogil:
    cdef Train *train = &device.train
    if train.count == 1:
        write_single(device, <uint8_t *>train.vectors[1].iov_base, train.size)
    elif train.count:
        train_finish(train)
        if writev(device.fd, train.vectors, train.count + 1) < 0:
            note_unwritten(
                device, <uint8_t *>train.vectors[1].iov_base, train.header_bytes + train.gso_size, train.count, errno)
    train.count = 0

cdef inline void device_write(Device *device, uint8_t *packet, int size) noexcept nogil:
    # What is in front of a packet is its opened message's header: there is room for the device's. The packet must be
    # there until `device_flush`.
    if device.features.tun_tso or device.features.tun_uso:
        if device.train.count and train_add(&device.train, packet, size):
            return
        device_flush(device)
        if train_start(&device.train, packet, size, device.features.tun_tso, device.features.tun_uso):
            return
    write_single(device, packet, size)

cdef inline bint must_yield(Device *device, const uint8_t *packet, int size, double now) noexcept nogil:
    if now - device.short_at >= SHORT_SPAN:
        device.is_short = False
    return device.is_short and rank_of(traffic_class(packet), size) == RANK_BULK
