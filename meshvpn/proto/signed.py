"""A signed blob: bytes, who signed them, the signature. The bytes are kept as they came, so nothing is re-encoded."""

from __future__ import annotations

import msgspec


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """`signature` is Ed25519 (RFC 8032) by `signer` over `domain ‖ body`; the domain says what kind of body it is."""

    body: bytes
    signer: bytes  # 32 bytes, Ed25519 public key
    signature: bytes  # 64 bytes


DOMAIN_CHARTER = b"meshvpn charter v1\0"
DOMAIN_ADMINS = b"meshvpn admins v1\0"
DOMAIN_RECORD = b"meshvpn record v1\0"
DOMAIN_ENVELOPE = b"meshvpn envelope v1\0"
DOMAIN_APPROVAL = b"meshvpn approval v1\0"
DOMAIN_LEAVE = b"meshvpn leave v1\0"
DOMAIN_SESSION = b"meshvpn session v1\0"
DOMAIN_ACT = b"meshvpn act v1\0"
DOMAIN_INVITATION = b"meshvpn invitation v1\0"
