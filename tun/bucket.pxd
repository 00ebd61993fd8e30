# A token bucket: full at first, refilled at a rate up to a burst. Twin: meshvpn/proto/buckets.py.

cdef struct Bucket:
    double rate                 # tokens a second
    double burst
    double tokens
    double at                   # monotonic seconds, of `tokens`

cdef inline void bucket_fill(Bucket *bucket, double rate, double burst, double now) noexcept nogil:
    bucket.rate = rate
    bucket.burst = bucket.tokens = burst
    bucket.at = now

cdef inline bint bucket_take(Bucket *bucket, double amount, double now) noexcept nogil:
    # False, and nothing is taken, if there are not enough.
    bucket.tokens += (now - bucket.at) * bucket.rate
    if bucket.tokens > bucket.burst:
        bucket.tokens = bucket.burst
    bucket.at = now
    if bucket.tokens < amount:
        return False
    bucket.tokens -= amount
    return True
