"""The handshake of the WireGuard whitepaper (§5.4.1 to §5.4.5), written out with its names, on OpenSSL and hashlib.

Shares no code with meshvpn.proto, so that a mistake has to be made twice to go unnoticed. For tests only: nothing is
constant-time, and what does not decrypt raises.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"


def dh_public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def dh(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def hash_(data: bytes) -> bytes:
    return hashlib.blake2s(data).digest()


def mac(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2s(data, key=key, digest_size=16).digest()


def kdf(n: int, key: bytes, data: bytes) -> tuple[bytes, ...]:
    t0 = hmac.new(key, data, hashlib.blake2s).digest()
    t1 = hmac.new(t0, b"\x01", hashlib.blake2s).digest()
    t2 = hmac.new(t0, t1 + b"\x02", hashlib.blake2s).digest()
    t3 = hmac.new(t0, t2 + b"\x03", hashlib.blake2s).digest()
    return (t1, t2, t3)[:n]


def nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "little")


def seal(key: bytes, counter: int, plaintext: bytes, authenticated: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(nonce(counter), plaintext, authenticated)


def open_(key: bytes, counter: int, ciphertext: bytes, authenticated: bytes) -> bytes:
    return ChaCha20Poly1305(key).decrypt(nonce(counter), ciphertext, authenticated)


def with_macs(message: bytes, receiver_public: bytes, cookie: bytes = b"") -> bytes:
    """§5.4.4."""
    mac1 = mac(hash_(b"mac1----" + receiver_public), message)
    mac2 = mac(cookie, message + mac1) if cookie else bytes(16)
    return message + mac1 + mac2


@dataclass
class Session:
    """§5.4.5, from the initiator's end."""

    initiator_send: bytes
    initiator_receive: bytes


class Transcript:
    """Everything both ends know when all private keys are known: computes both messages and the session."""

    def __init__(
        self,
        *,
        initiator_static: bytes,
        initiator_ephemeral: bytes,
        responder_static: bytes,
        responder_ephemeral: bytes,
        preshared_key: bytes,
    ) -> None:
        self.si, self.ei = initiator_static, initiator_ephemeral
        self.sr, self.er = responder_static, responder_ephemeral
        self.q = preshared_key

    def initiation(self, sender: int, timestamp: bytes) -> bytes:
        """§5.4.2: First Message: Initiator to Responder."""
        sr_public = dh_public(self.sr)
        c = hash_(CONSTRUCTION)
        h = hash_(c + IDENTIFIER)
        h = hash_(h + sr_public)
        ephemeral = dh_public(self.ei)
        (c,) = kdf(1, c, ephemeral)
        h = hash_(h + ephemeral)
        c, k = kdf(2, c, dh(self.ei, sr_public))
        static = seal(k, 0, dh_public(self.si), h)
        h = hash_(h + static)
        c, k = kdf(2, c, dh(self.si, sr_public))
        sealed_timestamp = seal(k, 0, timestamp, h)
        self.h, self.c = hash_(h + sealed_timestamp), c
        message = b"\x01\0\0\0" + sender.to_bytes(4, "little") + ephemeral + static + sealed_timestamp
        return with_macs(message, sr_public)

    def response(self, sender: int, receiver: int) -> bytes:
        """§5.4.3: Second Message: Responder to Initiator; after `initiation`."""
        ephemeral = dh_public(self.er)
        (c,) = kdf(1, self.c, ephemeral)
        h = hash_(self.h + ephemeral)
        (c,) = kdf(1, c, dh(self.er, dh_public(self.ei)))
        (c,) = kdf(1, c, dh(self.er, dh_public(self.si)))
        c, t, k = kdf(3, c, self.q)
        h = hash_(h + t)
        empty = seal(k, 0, b"", h)
        self.h, self.c = hash_(h + empty), c
        message = b"\x02\0\0\0" + sender.to_bytes(4, "little") + receiver.to_bytes(4, "little") + ephemeral + empty
        return with_macs(message, dh_public(self.si))

    def session(self) -> Session:
        """§5.4.5: Data Keys Derivation; after `response`."""
        send, receive = kdf(2, self.c, b"")
        return Session(send, receive)

    def transport(self, key: bytes, counter: int, receiver: int, packet: bytes) -> bytes:
        """§5.4.6: Subsequent Messages: Transport Data Messages."""
        padded = packet + bytes(-len(packet) % 16)
        header = b"\x04\0\0\0" + receiver.to_bytes(4, "little") + counter.to_bytes(8, "little")
        return header + seal(key, counter, padded, b"")
