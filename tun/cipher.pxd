# ChaCha20-Poly1305 (RFC 8439 §2.8, no associated data) with the functions of PyNaCl's own libsodium.
#
# libsodium's AEAD makes the authentication key's block and a message's last blocks one by one, which costs more than
# all else where messages are short. Here the keystream of a whole message is asked for at once, in lengths that its
# vector code likes. Long messages, and a libsodium that hides the parts, use the AEAD itself; the bytes are the same,
# and a test compares them.

from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

cdef enum:
    KEYSTREAM_BYTES = 9728      # for messages of an MTU of 9,000
    BLOCK = 64
    TAG = 16

ctypedef int (*aead_encrypt_t)(
    unsigned char *c, unsigned long long *clen, const unsigned char *m, unsigned long long mlen,
    const unsigned char *ad, unsigned long long adlen, const unsigned char *nsec,
    const unsigned char *npub, const unsigned char *k) noexcept nogil
ctypedef int (*aead_decrypt_t)(
    unsigned char *m, unsigned long long *mlen, unsigned char *nsec, const unsigned char *c,
    unsigned long long clen, const unsigned char *ad, unsigned long long adlen,
    const unsigned char *npub, const unsigned char *k) noexcept nogil
ctypedef int (*keystream_t)(
    unsigned char *c, unsigned long long clen, const unsigned char *n, const unsigned char *k) noexcept nogil
ctypedef int (*authenticate_t)(
    unsigned char *out, const unsigned char *m, unsigned long long mlen, const unsigned char *k) noexcept nogil
ctypedef int (*verify_t)(const unsigned char *x, const unsigned char *y) noexcept nogil

cdef struct Sodium:
    aead_encrypt_t aead_encrypt
    aead_decrypt_t aead_decrypt
    keystream_t keystream       # NULL: it and the next two are hidden
    authenticate_t authenticate
    verify_t verify
    bint makes_eight            # its vector code makes eight blocks at once, not four

cdef inline int load_sodium(Sodium *sodium) except -1:
    # Importing nacl.bindings runs sodium_init, without which libsodium uses its slow reference code.
    import ctypes

    import nacl._sodium
    import nacl.bindings

    ffi, lib = nacl._sodium.ffi, nacl._sodium.lib
    sodium.aead_encrypt = <aead_encrypt_t><uintptr_t>int(ffi.cast(
        "uintptr_t", ffi.addressof(lib, "crypto_aead_chacha20poly1305_ietf_encrypt")))
    sodium.aead_decrypt = <aead_decrypt_t><uintptr_t>int(ffi.cast(
        "uintptr_t", ffi.addressof(lib, "crypto_aead_chacha20poly1305_ietf_decrypt")))
    # PyNaCl has no names for the parts, but its library may show them.
    try:
        library = ctypes.CDLL(nacl._sodium.__file__)
        keystream, authenticate, verify = [
            ctypes.cast(library[name], ctypes.c_void_p).value
            for name in ("crypto_stream_chacha20_ietf", "crypto_onetimeauth_poly1305", "crypto_verify_16")]
        sodium.makes_eight = library.sodium_runtime_has_avx2()
    except (OSError, AttributeError):
        return 0
    sodium.keystream = <keystream_t><uintptr_t>keystream
    sodium.authenticate = <authenticate_t><uintptr_t>authenticate
    sodium.verify = <verify_t><uintptr_t>verify
    return 0

cdef struct Cipher:
    # Of one thread.
    const Sodium *sodium
    uint8_t keystream[KEYSTREAM_BYTES]

cdef inline void make_nonce(uint8_t *nonce, uint64_t counter) noexcept nogil:
    memset(nonce, 0, 4)
    memcpy(nonce + 4, &counter, 8)

cdef inline void make_keystream(Cipher *cipher, int size, const uint8_t *nonce, const uint8_t *key) noexcept nogil:
    # The first block's half is the authentication key. Eight blocks at once cost less than four and a single one, four
    # less than three single ones.
    cdef int blocks = (size + 2 * BLOCK - 1) // BLOCK
    if cipher.sodium.makes_eight and blocks & 7 > 4:
        blocks = (blocks + 7) & ~7
    elif blocks & 3 == 3:
        blocks += 1
    cipher.sodium.keystream(cipher.keystream, blocks * BLOCK, nonce, key)

cdef inline void add_keystream(const Cipher *cipher, uint8_t *data, int size) noexcept nogil:
    # `size` is a multiple of 16.
    cdef int at = 0
    cdef uint64_t left[2]
    cdef uint64_t right[2]
    while at < size:
        memcpy(left, data + at, 16)
        memcpy(right, cipher.keystream + BLOCK + at, 16)
        left[0] ^= right[0]
        left[1] ^= right[1]
        memcpy(data + at, left, 16)
        at += 16

cdef inline void make_tag(const Cipher *cipher, uint8_t *tag, uint8_t *data, int size) noexcept nogil:
    # Overwrites the 16 bytes behind `data`, where the lengths belong that are authenticated too.
    cdef uint64_t lengths[2]
    lengths[0] = 0
    lengths[1] = size
    memcpy(data + size, lengths, 16)
    cipher.sodium.authenticate(tag, data, size + 16, cipher.keystream)

cdef inline void seal(Cipher *cipher, uint8_t *data, int size, uint64_t counter, const uint8_t *key) noexcept nogil:
    # In place; `size` is a multiple of 16, and the tag goes behind it.
    cdef uint8_t nonce[12]
    cdef uint8_t tag[TAG]
    make_nonce(nonce, counter)
    if cipher.sodium.keystream is NULL or size > KEYSTREAM_BYTES - 8 * BLOCK:
        cipher.sodium.aead_encrypt(data, NULL, data, size, NULL, 0, NULL, nonce, key)
        return
    make_keystream(cipher, size, nonce, key)
    add_keystream(cipher, data, size)
    make_tag(cipher, tag, data, size)
    memcpy(data + size, tag, TAG)

cdef inline bint unseal(Cipher *cipher, uint8_t *data, int size, uint64_t counter, const uint8_t *key) noexcept nogil:
    # In place; `size` bytes, then the tag. False, and nothing opened: not authentic.
    cdef uint8_t nonce[12]
    cdef uint8_t tag[TAG]
    cdef uint8_t expected[TAG]
    make_nonce(nonce, counter)
    # What is no multiple of 16, which WireGuard sends at the edge of the MTU only, goes by the AEAD too.
    if cipher.sodium.keystream is NULL or size > KEYSTREAM_BYTES - 8 * BLOCK or size & 15:
        return cipher.sodium.aead_decrypt(data, NULL, NULL, data, size + TAG, NULL, 0, nonce, key) == 0
    memcpy(tag, data + size, TAG)
    make_keystream(cipher, size, nonce, key)
    make_tag(cipher, expected, data, size)
    if cipher.sodium.verify(tag, expected) != 0:
        return False
    add_keystream(cipher, data, size)
    return True
