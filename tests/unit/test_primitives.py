"""The cryptography against published vectors (tests/vectors/README.md), and what it does with bad input."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto import primitives
from meshvpn.proto.constants import CONSTRUCTION, IDENTIFIER
from tests.vectors import load, unhex

RFC_7748 = load("rfc7748")
RFC_7693 = load("rfc7693")
WIREGUARD_KDF = load("wireguard_kdf")

LOW_ORDER = [
    # u = 0, 1, p - 1, p, p + 1 (RFC 7748 §6.1: they give zero), and the two points of order 8 of Curve25519.
    bytes(32),
    b"\x01" + bytes(31),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


@pytest.mark.parametrize("case", RFC_7748["5.2"])
def test_x25519_gives_the_vectors_of_rfc_7748_section_5_2(case: dict[str, str]) -> None:
    vector = unhex(case)
    assert primitives.x25519(vector["scalar"], vector["u"]) == vector["output"]


@pytest.mark.parametrize("case", RFC_7748["5.2 iterated"], ids=lambda case: case["rounds"])
def test_x25519_iterated_gives_what_rfc_7748_section_5_2_says(case: dict[str, Any]) -> None:
    scalar = u = b"\x09" + bytes(31)
    for _ in range(case["rounds"]):
        scalar, u = primitives.x25519(scalar, u), scalar
    assert scalar.hex() == case["output"]


def test_x25519_gives_the_keys_of_rfc_7748_section_6_1() -> None:
    vector = unhex(RFC_7748["6.1"])
    assert primitives.x25519_public(vector["alice_private"]) == vector["alice_public"]
    assert primitives.x25519_public(vector["bob_private"]) == vector["bob_public"]
    assert primitives.x25519(vector["alice_private"], vector["bob_public"]) == vector["shared"]
    assert primitives.x25519(vector["bob_private"], vector["alice_public"]) == vector["shared"]


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_a_public_key_of_low_order_is_a_value_error(point: bytes) -> None:
    with pytest.raises(ValueError, match="low order"):
        primitives.x25519(bytes(range(32)), point)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_length_is_a_value_error(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes"):
        primitives.x25519(bytes(range(32)), bytes(size))
    with pytest.raises(ValueError, match=f"{size} bytes"):
        primitives.x25519(bytes(size), b"\x09" + bytes(31))
    with pytest.raises(ValueError, match=f"{size} bytes"):
        primitives.x25519_public(bytes(size))


def test_blake2_gives_the_vectors_of_rfc_7693_appendices_a_and_b() -> None:
    assert primitives.blake2b(bytes.fromhex(RFC_7693["A"]["data"]), 64).hex() == RFC_7693["A"]["blake2b_512"]
    assert primitives.blake2s(bytes.fromhex(RFC_7693["B"]["data"])).hex() == RFC_7693["B"]["blake2s_256"]


def test_plain_and_keyed_blake2s_give_the_digest_of_rfc_7693_appendix_e() -> None:
    digest = hashlib.blake2s()
    for size in (16, 20, 28, 32):
        for length in (0, 3, 64, 65, 255, 1024):
            data, key = self_test_sequence(length), self_test_sequence(size)
            digest.update(primitives.blake2s(data, size))
            # `mac` has the one size that the paper uses; the others stand in for the sizes between.
            keyed = hashlib.blake2s(data, key=key, digest_size=size).digest()
            digest.update(primitives.mac(key, data) if size == 16 else keyed)
    assert digest.hexdigest() == RFC_7693["E"]["blake2s_digest"]


@pytest.mark.parametrize("case", WIREGUARD_KDF["kdf"], ids=["test", "wireguard", "empty"])
@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_the_kdf_gives_the_outputs_that_wireguard_go_checks(case: dict[str, Any], outputs: int) -> None:
    derived = primitives.hkdf(bytes.fromhex(case["key"]), bytes.fromhex(case["input"]), outputs)
    assert [output.hex() for output in derived] == case["outputs"][:outputs]


def test_the_handshake_starts_from_the_constants_that_every_implementation_has() -> None:
    chaining_key = primitives.blake2s(CONSTRUCTION)
    assert chaining_key.hex() == WIREGUARD_KDF["initial_chaining_key"]
    assert primitives.blake2s(chaining_key + IDENTIFIER).hex() == WIREGUARD_KDF["initial_hash"]


@given(st.binary(max_size=64), st.binary(max_size=100))
def test_the_kdf_is_hkdf_with_the_hmac_of_rfc_2104(key: bytes, material: bytes) -> None:
    secret = hmac_blake2s(key, material)
    first = hmac_blake2s(secret, b"\x01")
    second = hmac_blake2s(secret, first + b"\x02")
    assert primitives.hkdf(key, material, 3) == (first, second, hmac_blake2s(secret, second + b"\x03"))


def test_the_aead_gives_the_vector_of_rfc_8439_appendix_a_5() -> None:
    vector = unhex(load("rfc8439")["A.5"])
    counter = int.from_bytes(vector["nonce"][4:], "little")
    sealed = primitives.aead_encrypt(vector["key"], counter, vector["plaintext"], vector["associated"])
    assert sealed == vector["ciphertext"] + vector["tag"]
    assert primitives.aead_decrypt(vector["key"], counter, sealed, vector["associated"]) == vector["plaintext"]


def test_the_extended_aead_gives_the_vector_of_its_draft() -> None:
    vector = unhex(load("xchacha")["A.3.1"])
    sealed = primitives.xaead_encrypt(vector["key"], vector["nonce"], vector["plaintext"], vector["associated"])
    assert sealed == vector["ciphertext"] + vector["tag"]
    assert primitives.xaead_decrypt(vector["key"], vector["nonce"], sealed, vector["associated"]) == vector["plaintext"]


def test_a_wrong_tag_counter_or_header_opens_to_none() -> None:
    key = bytes(range(32))
    sealed = primitives.aead_encrypt(key, 7, b"voice", b"header")
    assert primitives.aead_decrypt(key, 7, sealed, b"header") == b"voice"
    assert primitives.aead_decrypt(key, 8, sealed, b"header") is None
    assert primitives.aead_decrypt(key, 7, sealed, b"other") is None
    assert primitives.aead_decrypt(key, 7, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"header") is None


@pytest.mark.parametrize("size", range(17))
def test_what_is_too_short_for_a_tag_or_has_none_opens_to_none(size: int) -> None:
    assert primitives.aead_decrypt(bytes(32), 0, bytes(size), b"") is None
    assert primitives.xaead_decrypt(bytes(32), bytes(24), bytes(size), b"") is None


@given(st.integers(0, 2**33 * 10**9), st.integers(0, 2**33 * 10**9))
def test_stamps_compare_as_the_times_they_were_made_of_except_within_a_grain(earlier: int, later: int) -> None:
    earlier, later = sorted((earlier, later))
    assert primitives.tai64n(earlier) <= primitives.tai64n(later)
    if later - earlier >= 1 << 24:
        assert primitives.tai64n(earlier) < primitives.tai64n(later)


def test_a_stamp_is_the_tai64n_label_without_its_finest_bits() -> None:
    # 2^62 + 10 at the Unix epoch; 16.8 ms is one grain.
    assert primitives.tai64n(0).hex() == "400000000000000a00000000"
    assert primitives.tai64n(1_700_000_000_999_999_999).hex() == "400000006553f10a3b000000"


def test_equal_means_equal_bytes() -> None:
    assert primitives.is_equal(b"abc", b"abc")
    assert not primitives.is_equal(b"abc", b"abd")
    assert not primitives.is_equal(b"abc", b"ab")


def self_test_sequence(length: int) -> bytes:
    """RFC 7693 Appendix E, selftest_seq: a Fibonacci sequence's top bytes."""
    a, b = 0xDEAD4BAD * length & 0xFFFFFFFF, 1
    sequence = bytearray()
    for _ in range(length):
        a, b = b, (a + b) & 0xFFFFFFFF
        sequence.append(b >> 24)
    return bytes(sequence)


def hmac_blake2s(key: bytes, data: bytes) -> bytes:
    """RFC 2104 §2, written out; BLAKE2s has blocks of 64 bytes."""
    padded = int.from_bytes(key.ljust(64, b"\0"), "big")
    inner, outer = (
        struct.pack(">64s", (padded ^ int.from_bytes(pad * 64, "big")).to_bytes(64, "big"))
        for pad in (b"\x36", b"\x5c")
    )
    return hashlib.blake2s(outer + hashlib.blake2s(inner + data).digest()).digest()
