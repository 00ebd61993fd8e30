"""Published vectors: the RFC and section stand beside each."""

from __future__ import annotations

from meshvpn.proto import primitives


def test_x25519_gives_the_first_vector_of_rfc_7748_section_5_2() -> None:
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    expected = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert primitives.x25519(scalar, point).hex() == expected


def test_x25519_gives_bobs_public_key_of_rfc_7748_section_6_1() -> None:
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    expected = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert primitives.x25519_public(bob).hex() == expected


def test_blake2s_gives_the_vector_of_rfc_7693_appendix_b() -> None:
    expected = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
    assert primitives.blake2s(b"abc").hex() == expected


def test_a_wrong_tag_counter_or_header_opens_to_none() -> None:
    key = bytes(range(32))
    sealed = primitives.aead_encrypt(key, 7, b"voice", b"header")
    assert primitives.aead_decrypt(key, 7, sealed, b"header") == b"voice"
    assert primitives.aead_decrypt(key, 8, sealed, b"header") is None
    assert primitives.aead_decrypt(key, 7, sealed, b"other") is None
    assert primitives.aead_decrypt(key, 7, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"header") is None
