# Why a packet was not forwarded, in the order of meshvpn.proto.drops.DropReason (a test compares the names).

from libc.stdint cimport uint64_t

cdef enum:
    DROP_TOO_SHORT, DROP_BAD_LENGTH, DROP_UNKNOWN_INDEX, DROP_EXPIRED_KEY, DROP_DECRYPT_FAILED, DROP_REPLAYED
    DROP_NOT_IP, DROP_DISALLOWED_SOURCE, DROP_NO_ROUTE, DROP_NO_ENDPOINT, DROP_NO_KEYPAIR, DROP_QUEUE_FULL
    DROP_SEND_FAILED, DROP_TUN_FULL, DROP_TOO_BIG, DROP_CONGESTED
    DROP_COUNT

ctypedef uint64_t Drops[DROP_COUNT]
