"""An Ed25519 identity outside the prime-order group: its signatures verify, but it has no X25519 form."""

from __future__ import annotations

import hashlib

from nacl import bindings
from nacl.exceptions import CryptoError

from meshvpn.proto.signed import Signed

_ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 8032 §5.1
_ORDER_EIGHT = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
"""A point of order 8, from the list of small-order encodings in libsodium's blocklist."""


class TorsionIdentity:
    """public = scalar·B + a point of order 8. A signature holds if the hash is a multiple of 8: one of eight tries."""

    def __init__(self, seed: bytes = b"torsion") -> None:
        self._scalar = int.from_bytes(hashlib.sha512(seed).digest(), "little") % _ORDER
        point = bindings.crypto_scalarmult_ed25519_base_noclamp(self._scalar.to_bytes(32, "little"))
        self.public = bindings.crypto_core_ed25519_add(point, _ORDER_EIGHT)

    def sign(self, domain: bytes, body: bytes) -> Signed:
        message = domain + body
        for attempt in range(1000):
            signature = self._try(message, attempt)
            try:
                bindings.crypto_sign_open(signature + message, self.public)
            except CryptoError:
                continue
            return Signed(body, self.public, signature)
        raise AssertionError("one of eight attempts succeeds")

    def _try(self, message: bytes, attempt: int) -> bytes:
        nonce = hashlib.sha512(attempt.to_bytes(4, "big") + message).digest()
        random_scalar = int.from_bytes(nonce, "little") % _ORDER
        commitment = bindings.crypto_scalarmult_ed25519_base_noclamp(random_scalar.to_bytes(32, "little"))
        challenge = hashlib.sha512(commitment + self.public + message).digest()
        response = (random_scalar + int.from_bytes(challenge, "little") * self._scalar) % _ORDER
        return commitment + response.to_bytes(32, "little")
