# What a TUN device with IFF_VNET_HDR saves: a large TCP segment or a train of UDP datagrams crosses it as one packet.
#
#   Super   one such packet from the device, cut into packets that fit the MTU, each with its own headers and checksums
#   Train   packets for the device, neighbours of one flow, joined into one; none waits for a packet not yet received
#
# Each packet has a virtio_net_hdr in front (Virtio 1.2 §5.1.6), its numbers in the processor's byte order.
# Sums are in the processor's byte order: the Internet checksum does not depend on it (RFC 1071 §2).

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from .syscalls cimport *

cdef enum:
    VNET_BYTES = 10
    VNET_NEEDS_CSUM = 1
    GSO_NONE = 0
    GSO_TCP4 = 1
    GSO_TCP6 = 4
    GSO_UDP = 5
    GSO_ECN = 0x80
    TCP = 6
    UDP = 17
    FIN = 0x01
    PSH = 0x08
    ACK = 0x10
    CWR = 0x80
    TRAIN_PACKETS = 64
    IP_BYTES = 65535

cdef packed struct VnetHeader:
    uint8_t flags
    uint8_t gso_type
    uint16_t header_bytes
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset

# --- numbers and sums

cdef inline int get16(const uint8_t *at) noexcept nogil:
    return (at[0] << 8) | at[1]

cdef inline void put16(uint8_t *at, int value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value

cdef inline uint32_t get32(const uint8_t *at) noexcept nogil:
    return (<uint32_t>at[0] << 24) | (<uint32_t>at[1] << 16) | (<uint32_t>at[2] << 8) | at[3]

cdef inline void put32(uint8_t *at, uint32_t value) noexcept nogil:
    put16(at, <int>(value >> 16))
    put16(at + 2, <int>(value & 0xFFFF))

cdef inline uint64_t add_words(uint64_t total, const uint8_t *data, int size) noexcept nogil:
    cdef uint64_t word
    while size >= 8:
        memcpy(&word, data, 8)
        total += <uint32_t>word + (word >> 32)
        data += 8
        size -= 8
    word = 0
    memcpy(&word, data, size)
    return total + <uint32_t>word + (word >> 32)

cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    total = <uint64_t><uint32_t>total + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>total

cdef inline void put_sum(uint8_t *at, uint64_t total, bint is_udp) noexcept nogil:
    cdef uint16_t value = <uint16_t>~fold(total)
    if is_udp and value == 0:
        value = 0xFFFF          # 0 says that there is none (RFC 768)
    memcpy(at, &value, 2)

cdef inline uint64_t pseudo_sum(const uint8_t *packet, int protocol, int size) noexcept nogil:
    # Of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1); `size` is that of the TCP or UDP part.
    cdef uint8_t rest[8]
    put32(rest, <uint32_t>size)
    put32(rest + 4, <uint32_t>protocol)
    return add_words(
        add_words(0, packet + 12, 8) if packet[0] >> 4 == 4 else add_words(0, packet + 8, 32), rest, 8)

cdef inline void put_ip_length(uint8_t *packet, int ip_bytes, int size) noexcept nogil:
    # Of the whole packet, and the header checksum that follows from it.
    if packet[0] >> 4 == 6:
        put16(packet + 4, size - 40)
        return
    put16(packet + 2, size)
    packet[10] = packet[11] = 0
    put_sum(packet + 10, add_words(0, packet, ip_bytes), False)

cdef inline bint complete_checksum(const VnetHeader *vnet, uint8_t *packet, int size) noexcept nogil:
    # The kernel left the sum of the pseudo-header in the field. False: it contradicts itself.
    cdef int start = vnet.csum_start, field = vnet.csum_start + vnet.csum_offset
    if not vnet.flags & VNET_NEEDS_CSUM:
        return True
    if field + 2 > size:
        return False
    put_sum(packet + field, add_words(0, packet + start, size - start), vnet.csum_offset == 6)
    return True

# --- from the device

cdef struct Super:
    uint8_t *packet
    int size
    int ip_bytes                # of its IP header, with extensions
    int header_bytes            # of both headers
    int gso_size                # payload of each packet but the last
    bint is_tcp
    int at                      # payload cut off so far
    int number                  # of packets cut off so far

cdef inline bint super_open(Super *big, const VnetHeader *vnet, uint8_t *packet, int size) noexcept nogil:
    # False: it contradicts itself.
    memset(big, 0, sizeof(Super))
    big.packet = packet
    big.size = size
    big.ip_bytes = vnet.csum_start
    big.gso_size = vnet.gso_size
    big.is_tcp = (vnet.gso_type & ~GSO_ECN) != GSO_UDP
    if not vnet.flags & VNET_NEEDS_CSUM or big.gso_size == 0 or big.ip_bytes < 20 or big.ip_bytes + 20 > size:
        return False
    big.header_bytes = big.ip_bytes + ((packet[big.ip_bytes + 12] >> 4) * 4 if big.is_tcp else 8)
    return big.header_bytes < size and (not big.is_tcp or big.header_bytes >= big.ip_bytes + 20)

cdef inline int super_next_size(const Super *big) noexcept nogil:
    # Of the next packet; 0: there is none.
    cdef int rest = big.size - big.header_bytes - big.at
    return 0 if rest <= 0 else big.header_bytes + (big.gso_size if rest > big.gso_size else rest)

cdef inline void super_cut(Super *big, uint8_t *out) noexcept nogil:
    # Writes the next packet.
    cdef int size = super_next_size(big), payload = size - big.header_bytes
    cdef uint8_t *head = out + big.ip_bytes
    memcpy(out, big.packet, big.header_bytes)
    memcpy(out + big.header_bytes, big.packet + big.header_bytes + big.at, payload)
    if out[0] >> 4 == 4:
        put16(out + 4, get16(out + 4) + big.number)
    put_ip_length(out, big.ip_bytes, size)
    if big.is_tcp:
        put32(head + 4, get32(head + 4) + <uint32_t>big.at)
        if big.number:
            head[13] &= <uint8_t>~CWR
        if big.at + payload < big.size - big.header_bytes:
            head[13] &= <uint8_t>~(FIN | PSH)
        head[16] = head[17] = 0
        put_sum(head + 16, add_words(
            pseudo_sum(out, TCP, size - big.ip_bytes), head, size - big.ip_bytes), False)
    else:
        put16(head + 4, size - big.ip_bytes)
        head[6] = head[7] = 0
        put_sum(head + 6, add_words(
            pseudo_sum(out, UDP, size - big.ip_bytes), head, size - big.ip_bytes), True)
    big.at += payload
    big.number += 1

# --- for the device

cdef struct Train:
    int count                   # of packets; 0: there is no train
    int size                    # of the IP packet that they become
    int ip_bytes
    int header_bytes
    int gso_size
    uint32_t next_sequence
    bint is_tcp
    bint is_verified            # the first packet's checksum
    bint is_closed              # nothing may follow
    VnetHeader vnet
    iovec vectors[TRAIN_PACKETS + 1]

cdef inline bint is_sum_right(const uint8_t *packet, int size, int ip_bytes, int protocol) noexcept nogil:
    return fold(add_words(
        pseudo_sum(packet, protocol, size - ip_bytes), packet + ip_bytes, size - ip_bytes)) == 0xFFFF

cdef inline bint train_start(Train *train, uint8_t *packet, int size, bint joins_tcp, bint joins_udp) noexcept nogil:
    # False: this packet never has company. `packet` is an IP packet of `size` bytes by its own account.
    cdef int version = packet[0] >> 4, protocol
    cdef uint8_t *head
    if version == 4:
        if packet[0] & 15 != 5 or packet[6] & 0x3F or packet[7]:
            return False        # options, or a fragment
        protocol = packet[9]
        train.ip_bytes = 20
    else:
        protocol = packet[6]
        train.ip_bytes = 40
    head = packet + train.ip_bytes
    if protocol == TCP and joins_tcp and size > train.ip_bytes + 20:
        train.header_bytes = train.ip_bytes + (head[12] >> 4) * 4
        if train.header_bytes < train.ip_bytes + 20 or head[13] & ~PSH != ACK:
            return False
        train.is_closed = head[13] & PSH != 0
        train.next_sequence = get32(head + 4) + <uint32_t>(size - train.header_bytes)
    elif protocol == UDP and joins_udp and size > train.ip_bytes + 8:
        train.header_bytes = train.ip_bytes + 8
        if get16(head + 4) != size - train.ip_bytes or get16(head + 6) == 0:
            return False
        train.is_closed = False
    else:
        return False
    if train.header_bytes >= size or train.is_closed:
        return False
    train.is_tcp = protocol == TCP
    train.is_verified = False
    train.gso_size = size - train.header_bytes
    train.size = size
    train.count = 1
    train.vectors[1].iov_base = packet
    train.vectors[1].iov_len = size
    return True

cdef inline bint is_same_flow(const Train *train, const uint8_t *packet, int size) noexcept nogil:
    # Headers equal but for lengths, checksums, sequence and the push flag; the sequence is the next.
    cdef const uint8_t *first = <const uint8_t *>train.vectors[1].iov_base
    cdef const uint8_t *left = first + train.ip_bytes
    cdef const uint8_t *right = packet + train.ip_bytes
    if size <= train.header_bytes or packet[0] != first[0]:
        return False
    if train.ip_bytes == 20:
        if packet[1] != first[1] or memcmp(packet + 6, first + 6, 4) != 0 or memcmp(packet + 12, first + 12, 8) != 0:
            return False
    elif memcmp(packet, first, 4) != 0 or memcmp(packet + 6, first + 6, 34) != 0:
        return False
    if memcmp(left, right, 4) != 0:
        return False
    if not train.is_tcp:
        return get16(right + 4) == size - train.ip_bytes and get16(right + 6) != 0
    return (get32(right + 4) == train.next_sequence and memcmp(left + 8, right + 8, 5) == 0
            and right[13] & ~PSH == ACK and memcmp(left + 14, right + 14, 2) == 0
            and memcmp(left + 20, right + 20, train.header_bytes - train.ip_bytes - 20) == 0)

cdef inline bint train_add(Train *train, uint8_t *packet, int size) noexcept nogil:
    # False: it belongs to another train. A wrong checksum must stay wrong, so what is joined is verified.
    cdef uint8_t *first = <uint8_t *>train.vectors[1].iov_base
    cdef int payload = size - train.header_bytes, protocol = TCP if train.is_tcp else UDP
    if train.count == TRAIN_PACKETS or train.is_closed or payload > train.gso_size or train.size + payload > IP_BYTES:
        return False
    if not is_same_flow(train, packet, size):
        return False
    if not train.is_verified:
        if not is_sum_right(first, train.size, train.ip_bytes, protocol):
            return False
        train.is_verified = True
    if not is_sum_right(packet, size, train.ip_bytes, protocol):
        return False
    train.count += 1
    train.size += payload
    train.vectors[train.count].iov_base = packet + train.header_bytes
    train.vectors[train.count].iov_len = payload
    train.is_closed = payload < train.gso_size
    if train.is_tcp:
        train.next_sequence += <uint32_t>payload
        if packet[train.ip_bytes + 13] & PSH:
            first[train.ip_bytes + 13] |= PSH
            train.is_closed = True
    return True

cdef inline void train_finish(Train *train) noexcept nogil:
    # Makes the headers of the one packet that several become: `vectors` is then what to write, `count` + 1 pieces.
    cdef uint8_t *first = <uint8_t *>train.vectors[1].iov_base
    cdef uint8_t *head = first + train.ip_bytes
    cdef int protocol = TCP if train.is_tcp else UDP
    cdef uint16_t value
    memset(&train.vnet, 0, sizeof(VnetHeader))
    train.vectors[0].iov_base = &train.vnet
    train.vectors[0].iov_len = VNET_BYTES
    put_ip_length(first, train.ip_bytes, train.size)
    if not train.is_tcp:
        put16(head + 4, train.size - train.ip_bytes)
    train.vnet.flags = VNET_NEEDS_CSUM
    train.vnet.gso_type = GSO_UDP if not train.is_tcp else GSO_TCP4 if train.ip_bytes == 20 else GSO_TCP6
    train.vnet.header_bytes = <uint16_t>train.header_bytes
    train.vnet.gso_size = <uint16_t>train.gso_size
    train.vnet.csum_start = <uint16_t>train.ip_bytes
    train.vnet.csum_offset = 16 if train.is_tcp else 6
    value = fold(pseudo_sum(first, protocol, train.size - train.ip_bytes))
    memcpy(head + train.vnet.csum_offset, &value, 2)
