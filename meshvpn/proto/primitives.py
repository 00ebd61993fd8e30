"""The cryptography, by the names that the papers use, over libsodium (PyNaCl) and hashlib.

Importing nacl.bindings initialises libsodium, which selects its fast code.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from nacl import bindings
from nacl._sodium import ffi, lib
from nacl.exceptions import CryptoError

from .constants import KEY_BYTES, TAG_BYTES

_TAI64_EPOCH = 2**62 + 10
"""TAI64 label of the Unix epoch, with the ten seconds that TAI was ahead then."""
_TIMESTAMP_GRAIN = 1 << 24
"""Nanoseconds (16.8 ms). A stamp does not tell the precise time, which could betray other things (kernel driver)."""
_COUNTER_NONCE = struct.Struct("<4xQ")


def x25519_public(private_key: bytes) -> bytes:
    """The public key (32 bytes) of a private one (RFC 7748 §5). Raises ValueError for another length."""
    _check_length(private_key)
    return bindings.crypto_scalarmult_base(private_key)


def x25519(private_key: bytes, public_key: bytes) -> bytes:
    """DH(private, public) of RFC 7748; raises ValueError for a public key of low order or another length."""
    _check_length(private_key)
    _check_length(public_key)
    try:
        return bindings.crypto_scalarmult(private_key, public_key)
    except CryptoError as error:
        raise ValueError("public key of low order") from error


def blake2s(data: bytes, size: int = 32) -> bytes:
    """HASH of the paper: BLAKE2s (RFC 7693)."""
    return hashlib.blake2s(data, digest_size=size).digest()


def mac(key: bytes, data: bytes) -> bytes:
    """MAC of the paper: keyed BLAKE2s, 16 bytes (§5.4)."""
    return hashlib.blake2s(data, key=key, digest_size=16).digest()


def blake2b(data: bytes, size: int, key: bytes = b"") -> bytes:
    """BLAKE2b (RFC 7693) of 1 … 64 bytes."""
    return hashlib.blake2b(data, digest_size=size, key=key).digest()


def argon2id(secret: bytes | bytearray, salt: bytes, size: int, *, operations: int, memory: int) -> bytes:
    """Argon2id (RFC 9106), one lane, salt of 16 bytes, `memory` in bytes. Raises MemoryError.

    `secret` is read where it is. PyNaCl's own wrapper takes `bytes` only, which nobody can wipe afterwards.
    """
    if len(salt) != bindings.crypto_pwhash_SALTBYTES:
        raise ValueError("wrong length of salt")
    derived = ffi.new("unsigned char[]", size)
    algorithm = bindings.crypto_pwhash_ALG_ARGON2ID13
    if lib.crypto_pwhash(derived, size, ffi.from_buffer(secret), len(secret), salt, operations, memory, algorithm):
        raise MemoryError(f"Argon2id takes {memory >> 20} MiB")
    return bytes(ffi.buffer(derived))


def hkdf(chaining_key: bytes, material: bytes, outputs: int) -> tuple[bytes, ...]:
    """KDFn of the paper (§5.4): HKDF with HMAC-BLAKE2s, 1 to 3 outputs of 32 bytes."""
    secret = hmac.digest(chaining_key, material, "blake2s")
    derived: list[bytes] = []
    previous = b""
    for number in range(1, outputs + 1):
        previous = hmac.digest(secret, previous + bytes([number]), "blake2s")
        derived.append(previous)
    return tuple(derived)


def aead_encrypt(key: bytes, counter: int, plaintext: bytes, associated: bytes) -> bytes:
    """ChaCha20-Poly1305 (RFC 8439 §2.8) with the nonce 32 zero bits ‖ LE64(counter)."""
    return bindings.crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, associated, _COUNTER_NONCE.pack(counter), key)


def aead_decrypt(key: bytes, counter: int, ciphertext: bytes, associated: bytes) -> bytes | None:
    """The plaintext, or None if the tag is wrong or missing."""
    if len(ciphertext) < TAG_BYTES:
        return None
    try:
        return bindings.crypto_aead_chacha20poly1305_ietf_decrypt(
            ciphertext, associated, _COUNTER_NONCE.pack(counter), key
        )
    except CryptoError:
        return None


def xaead_encrypt(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """XChaCha20-Poly1305 with a 24-byte nonce."""
    return bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, associated, nonce, key)


def xaead_decrypt(key: bytes, nonce: bytes, ciphertext: bytes, associated: bytes) -> bytes | None:
    """The plaintext, or None if the tag is wrong or missing."""
    if len(ciphertext) < TAG_BYTES:
        return None
    try:
        return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, associated, nonce, key)
    except CryptoError:
        return None


def tai64n(wall_ns: int) -> bytes:
    """A TAI64N stamp (12 bytes, big-endian, so that bytes compare as times) of Unix nanoseconds, coarsened."""
    seconds, nanoseconds = divmod(wall_ns, 1_000_000_000)
    return struct.pack(">QI", _TAI64_EPOCH + seconds, nanoseconds - nanoseconds % _TIMESTAMP_GRAIN)


def is_equal(left: bytes, right: bytes) -> bool:
    """Comparison in constant time."""
    return hmac.compare_digest(left, right)


def _check_length(key: bytes) -> None:
    # PyNaCl hands the pointer on unchecked: libsodium would read past the end of a short key.
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key of {len(key)} bytes")
