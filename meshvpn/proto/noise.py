"""Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (Noise specification §5, §9; WireGuard whitepaper §5.4).

    IKpsk2:
      <- s
      ...
      -> e, es, s, ss
      <- e, ee, se, psk

WireGuard is this pattern with the prologue IDENTIFIER, a timestamp as the first payload and an empty second one.
Reading never changes the state: a message that is refused leaves the handshake as it was, so a genuine one may follow,
and a response may be tried with several preshared keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import primitives
from .constants import CONSTRUCTION, IDENTIFIER, KEY_BYTES, TAG_BYTES
from .drops import DropReason
from .errors import MalformedMessage

_NO_KEY = bytes(KEY_BYTES)


@dataclass(slots=True, repr=False)
class _Symmetric:
    """SymmetricState of the Noise specification §5.2. Every key encrypts once, so the nonce is always 0."""

    chaining_key: bytes
    handshake_hash: bytes
    key: bytes = _NO_KEY

    @classmethod
    def start(cls, prologue: bytes, responder_static: bytes) -> _Symmetric:
        name = primitives.blake2s(CONSTRUCTION)
        state = cls(name, name)
        state.mix_hash(prologue)
        state.mix_hash(responder_static)  # <- s
        return state

    def copy(self) -> _Symmetric:
        return _Symmetric(self.chaining_key, self.handshake_hash, self.key)

    def mix_hash(self, data: bytes) -> None:
        self.handshake_hash = primitives.blake2s(self.handshake_hash + data)

    def mix_key(self, material: bytes) -> None:
        self.chaining_key, self.key = primitives.hkdf(self.chaining_key, material, 2)

    def mix_key_and_hash(self, material: bytes) -> None:
        self.chaining_key, temporary, self.key = primitives.hkdf(self.chaining_key, material, 3)
        self.mix_hash(temporary)

    def mix_ephemeral(self, public_key: bytes) -> None:
        # With a psk modifier the ephemeral also goes into the key (Noise specification §9.2).
        self.mix_hash(public_key)
        self.mix_key(public_key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = primitives.aead_encrypt(self.key, 0, plaintext, self.handshake_hash)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = primitives.aead_decrypt(self.key, 0, ciphertext, self.handshake_hash)
        if plaintext is None:
            raise MalformedMessage(DropReason.DECRYPT_FAILED)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        initiator_to_responder, responder_to_initiator = primitives.hkdf(self.chaining_key, b"", 2)
        return initiator_to_responder, responder_to_initiator


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """What a finished handshake gives: 32 bytes each."""

    send: bytes
    receive: bytes
    handshake_hash: bytes

    def __repr__(self) -> str:
        """Without the keys."""
        return "TransportKeys(…)"


class Initiator:
    """The side that writes message 1. `remote_static` and the keys are 32 bytes."""

    def __init__(self, static: bytes, remote_static: bytes, ephemeral: bytes, *, prologue: bytes = IDENTIFIER) -> None:
        self._static = static
        self._remote_static = remote_static
        self._ephemeral = ephemeral
        self._state = _Symmetric.start(prologue, remote_static)

    def write_message(self, payload: bytes) -> bytes:
        """Message 1: ephemeral(32) ‖ encrypted static(48) ‖ encrypted payload. Raises ValueError for a weak key."""
        state = self._state
        ephemeral = primitives.x25519_public(self._ephemeral)
        state.mix_ephemeral(ephemeral)  # e
        state.mix_key(primitives.x25519(self._ephemeral, self._remote_static))  # es
        static = state.encrypt_and_hash(primitives.x25519_public(self._static))  # s
        state.mix_key(primitives.x25519(self._static, self._remote_static))  # ss
        return ephemeral + static + state.encrypt_and_hash(payload)

    def read_message(self, message: bytes, preshared_key: bytes) -> tuple[bytes, TransportKeys]:
        """Message 2: its payload and the keys. Raises MalformedMessage (decrypt_failed)."""
        state = self._state.copy()
        ephemeral = message[:KEY_BYTES]
        state.mix_ephemeral(ephemeral)  # e
        state.mix_key(_dh(self._ephemeral, ephemeral))  # ee
        state.mix_key(_dh(self._static, ephemeral))  # se
        state.mix_key_and_hash(preshared_key)  # psk
        payload = state.decrypt_and_hash(message[KEY_BYTES:])
        send, receive = state.split()
        return payload, TransportKeys(send, receive, state.handshake_hash)


class Responder:
    """The side that reads message 1; `remote_static` then says who sent it."""

    def __init__(self, static: bytes, *, prologue: bytes = IDENTIFIER) -> None:
        self._static = static
        self._state = _Symmetric.start(prologue, primitives.x25519_public(static))
        self._remote_ephemeral = b""
        self.remote_static = b""

    def read_message(self, message: bytes) -> bytes:
        """Message 1: its payload; `remote_static` is set. Raises MalformedMessage (decrypt_failed)."""
        state = self._state.copy()
        ephemeral, static = message[:KEY_BYTES], message[KEY_BYTES : 2 * KEY_BYTES + TAG_BYTES]
        state.mix_ephemeral(ephemeral)  # e
        state.mix_key(_dh(self._static, ephemeral))  # es
        remote_static = state.decrypt_and_hash(static)  # s
        state.mix_key(_dh(self._static, remote_static))  # ss
        payload = state.decrypt_and_hash(message[2 * KEY_BYTES + TAG_BYTES :])
        self._state, self._remote_ephemeral, self.remote_static = state, ephemeral, remote_static
        return payload

    def write_message(self, payload: bytes, ephemeral: bytes, preshared_key: bytes) -> tuple[bytes, TransportKeys]:
        """Message 2: ephemeral(32) ‖ encrypted payload, and the keys. Raises MalformedMessage for a weak peer key."""
        state = self._state.copy()
        public = primitives.x25519_public(ephemeral)
        state.mix_ephemeral(public)  # e
        state.mix_key(_dh(ephemeral, self._remote_ephemeral))  # ee
        state.mix_key(_dh(ephemeral, self.remote_static))  # se
        state.mix_key_and_hash(preshared_key)  # psk
        message = public + state.encrypt_and_hash(payload)
        receive, send = state.split()
        return message, TransportKeys(send, receive, state.handshake_hash)


def _dh(private_key: bytes, public_key: bytes) -> bytes:
    try:
        return primitives.x25519(private_key, public_key)
    except ValueError as error:
        raise MalformedMessage(DropReason.DECRYPT_FAILED) from error
