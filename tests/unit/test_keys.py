"""Names, keys and what is derived from them: fixed values, hostile input, and no secret in any text."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl import bindings

from meshvpn.proto import keys
from meshvpn.proto.charter import EpochGrant, Settings
from meshvpn.proto.control import RelayGrant
from meshvpn.proto.epochs import EpochKey
from meshvpn.proto.errors import ConfigError
from meshvpn.proto.keys import Identity, NetworkKeys
from meshvpn.proto.signed import DOMAIN_ENVELOPE, DOMAIN_RECORD, Signed

from .torsion import TorsionIdentity

SEED = bytes(range(32))
SEED_PUBLIC = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
UID = bytes(range(16))
unhurried = settings(deadline=None)
"""A loaded machine is no failure."""
few = settings(deadline=None, max_examples=20)


def entropy(seed: int = 1) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


# Name and password.


@pytest.mark.parametrize(
    ("name", "password", "derived"),
    [
        # Computed with OpenSSL's Argon2id (1 lane, 3 passes, 131,072 KiB) and hashlib's BLAKE2b; RFC 9106, RFC 7693.
        (
            "sales",
            "correct horse battery staple",
            "a827413e8d9e60dbe1a8a50a641470413fcae7c3998e27178f2fa73e1f80c568"
            "bcfd37fc1a29ca0ae16ab7168f558c2342b92b132ab47336d76b5138c61c9074",
        ),
        (
            "  BÜRO-München ",
            "pässwörd",
            "725533789d444b1e4915056e8c2bfa136bd9e1f3e0f8345423a3aa3f385a5cc7"
            "2de92f46d8269a166eee74cfe1521f88252cea57842004d9c838403b25f3e516",
        ),
    ],
)
def test_name_and_password_give_the_keys_that_another_library_computes(name: str, password: str, derived: str) -> None:
    network = keys.derive_network_keys(name, password)
    assert (network.locator + network.wrap_key).hex() == derived


@pytest.mark.parametrize(
    ("spelling", "normal"),
    [
        ("Sales", "sales"),
        ("\u00a0STRASSE\t", "strasse"),
        ("Straße", "strasse"),
        ("\ufb01liale", "filiale"),  # a ligature
        ("Bu\u0308ro", "b\u00fcro"),  # a combining mark
        ("\uff21\uff22\uff23", "abc"),  # full width
        ("two words", "two words"),
        ("x" * 64, "x" * 64),
    ],
)
def test_spellings_that_look_alike_are_one_name(spelling: str, normal: str) -> None:
    assert keys.normalise_name(spelling) == normal


@unhurried
@given(st.text(max_size=80))
def test_a_normal_name_stays_as_it_is(text: str) -> None:
    try:
        normal = keys.normalise_name(text)
    except ConfigError:
        return
    assert 1 <= len(normal) <= keys.MAX_NAME
    assert keys.normalise_name(normal) == normal


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "empty"),
        (" \t ", "empty"),
        ("x" * 65, "65 characters"),
        ("x" * 300, "300 characters"),
        ("\ufdfa" * 4, "72 characters"),  # one character that NFKC writes as eighteen
        ("a\x00b", "control"),
        ("a\x1b[31mb", "control"),
        ("a\nb", "control"),
        ("a\u202eb", "control"),  # right-to-left override
        ("a\udcffb", "control"),  # what is left of a byte that is no UTF-8
    ],
)
def test_a_name_that_cannot_be_used_is_explained(name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        keys.normalise_name(name)


@pytest.mark.parametrize("password", ["x", " ", "x" * 1024, "é" * 512])
def test_any_other_password_is_good(password: str) -> None:
    keys.check_password(password)


@pytest.mark.parametrize(
    ("password", "problem"),
    [("", "empty"), ("x" * 1025, "1024 bytes"), ("é" * 513, "1024 bytes"), ("p\udce9ss-secret", "UTF-8")],
)
def test_a_password_that_cannot_be_used_is_explained_without_showing_it(password: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        keys.check_password(password)
    assert "secret" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_nothing_that_holds_a_secret_shows_it() -> None:
    secret = b"\xabSECRETSECRETSECRETSECRETSECRETS\xab"
    holders: list[object] = [
        NetworkKeys(secret, secret),
        Identity(secret[:32]),
        EpochKey(1, secret),
        EpochGrant(UID, 1, secret),
        Settings("net", secret),
        RelayGrant(1, secret),
    ]
    for holder in holders:
        for text in (repr(holder), str(holder), f"{holder}", f"{[holder]!r}"):
            assert "SECRET" not in text
            assert secret.hex() not in text


# Signatures.


def test_an_identity_is_the_key_pair_of_its_seed() -> None:
    assert Identity(SEED).public.hex() == SEED_PUBLIC  # RFC 8032 §5.1.5, computed with OpenSSL


def test_a_signature_holds_for_its_signer_domain_and_body_only() -> None:
    signed = Identity(SEED).sign(DOMAIN_RECORD, b"body")
    other = Identity(bytes(32)).public
    assert keys.verify(signed, DOMAIN_RECORD)
    assert not keys.verify(signed, DOMAIN_ENVELOPE)
    assert not keys.verify(Signed(b"bodY", signed.signer, signed.signature), DOMAIN_RECORD)
    assert not keys.verify(Signed(signed.body, other, signed.signature), DOMAIN_RECORD)
    assert not keys.verify(Signed(signed.body, signed.signer, bytes(64)), DOMAIN_RECORD)


@unhurried
@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_rubbish_never_verifies_and_never_raises(body: bytes, signer: bytes, signature: bytes) -> None:
    assert not keys.verify(Signed(body, signer, signature), DOMAIN_RECORD)


def test_an_identity_that_nobody_can_seal_to_is_none_although_its_signatures_verify() -> None:
    odd = TorsionIdentity()
    assert keys.verify(odd.sign(DOMAIN_RECORD, b"body"), DOMAIN_RECORD)
    assert not keys.is_identity(odd.public)
    assert keys.is_identity(Identity(SEED).public)


@unhurried
@given(st.binary(max_size=40))
def test_asking_whether_bytes_are_keys_never_raises(data: bytes) -> None:
    keys.is_identity(data)
    keys.is_exchange_key(data)


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"", bytes(31), bytes(33)])
def test_keys_of_low_order_or_wrong_length_are_no_exchange_keys(key: bytes) -> None:
    assert not keys.is_exchange_key(key)
    assert keys.is_exchange_key(b"\x09" + bytes(31))


# Sealing.


def test_libsodium_opens_a_sealed_box_made_here() -> None:
    identity = Identity(SEED)
    sealed = keys.seal_to_identity(identity.public, b"epoch key", entropy())
    assert identity.open_sealed(sealed) == b"epoch key"
    public = bindings.crypto_sign_ed25519_pk_to_curve25519(identity.public)
    secret = bindings.crypto_sign_ed25519_sk_to_curve25519(SEED + identity.public)
    assert bindings.crypto_box_seal_open(sealed, public, secret) == b"epoch key"


def test_a_sealed_box_made_by_libsodium_is_opened_here() -> None:
    identity = Identity(SEED)
    public = bindings.crypto_sign_ed25519_pk_to_curve25519(identity.public)
    assert identity.open_sealed(bindings.crypto_box_seal(b"text", public)) == b"text"


def test_a_sealed_box_depends_on_the_given_randomness_alone() -> None:
    public = Identity(SEED).public
    assert keys.seal_to_identity(public, b"x", entropy(1)) == keys.seal_to_identity(public, b"x", entropy(1))
    assert keys.seal_to_identity(public, b"x", entropy(1)) != keys.seal_to_identity(public, b"x", entropy(2))


def test_nobody_else_opens_a_sealed_box() -> None:
    sealed = keys.seal_to_identity(Identity(SEED).public, b"epoch key", entropy())
    assert Identity(bytes(32)).open_sealed(sealed) is None
    assert Identity(SEED).open_sealed(sealed[:-1] + bytes([sealed[-1] ^ 1])) is None


@pytest.mark.parametrize("public", [bytes(32), b"short", TorsionIdentity().public])
def test_sealing_to_what_is_no_identity_is_a_value_error(public: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        keys.seal_to_identity(public, b"x", entropy())


@unhurried
@given(st.binary(max_size=120))
def test_opening_rubbish_gives_none(data: bytes) -> None:
    assert Identity(SEED).open_sealed(data) is None
    assert keys.open_secret(SEED, data) is None


@unhurried
@given(st.binary(max_size=64), st.integers(min_value=0, max_value=10_000))
def test_a_secret_opens_with_its_key_and_not_when_touched(plaintext: bytes, position: int) -> None:
    sealed = keys.seal_secret(SEED, plaintext, entropy())
    assert keys.open_secret(SEED, sealed) == plaintext
    assert keys.open_secret(bytes(32), sealed) is None
    touched = bytearray(sealed)
    touched[position % len(sealed)] ^= 1
    assert keys.open_secret(SEED, bytes(touched)) is None


def test_both_ends_of_a_pair_have_the_same_preshared_key_and_no_other_pair_or_epoch_has_it() -> None:
    a, b, c = (bytes([number]) * 32 for number in (1, 2, 3))
    psk = keys.pair_psk(SEED, a, b)
    # BLAKE2b-32(key = 00 01 … 1f, "meshvpn psk v1" ‖ a ‖ b) by hashlib (RFC 7693)
    assert psk.hex() == "0cf719f07492eadd0498f3a42cae5cd55a740c083313af281630b489999bbe19"
    assert psk == keys.pair_psk(SEED, b, a)
    assert len({psk, keys.pair_psk(SEED, a, c), keys.pair_psk(bytes(32), a, b)}) == 3


# Names of hosts and interfaces.


@pytest.mark.parametrize("nick", ["a", "pbx-2", "PBX_Berlin.hq", "0", "x" * 32])
def test_a_nickname_fit_for_dns_and_asterisk_is_kept(nick: str) -> None:
    assert keys.check_nick(nick) == nick


@pytest.mark.parametrize(
    "nick", ["", "x" * 33, "-a", "a-", ".a", "a_", "a b", "a]", "a\n", "a/b", "ä", "a\x00", "\u0661", "a;b", "a=b"]
)
def test_any_other_nickname_is_refused(nick: str) -> None:
    with pytest.raises(ConfigError, match="nickname"):
        keys.check_nick(nick)


@unhurried
@given(st.text(max_size=60))
def test_every_host_name_gives_a_valid_nickname(hostname: str) -> None:
    keys.check_nick(keys.nick_from_hostname(hostname))


@pytest.mark.parametrize(
    ("hostname", "nick"),
    [("pbx1.example.org", "pbx1"), ("my host", "my-host"), ("", "pbx"), ("...", "pbx"), ("x" * 31 + "-y", "x" * 31)],
)
def test_the_nickname_is_like_the_host_name(hostname: str, nick: str) -> None:
    assert keys.nick_from_hostname(hostname) == nick


@pytest.mark.parametrize("name", ["mesh0", "a", "x" * 15, "vpn.1", "a_b-c"])
def test_a_name_that_linux_takes_is_an_interface_name(name: str) -> None:
    assert keys.check_interface(name) == name


@pytest.mark.parametrize("name", ["", "x" * 16, ".", "..", "a/b", "a b", "a:1", "ä", "a\n", "mesh%d"])
def test_any_other_interface_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="interface"):
        keys.check_interface(name)


# Addresses.


def test_the_ipv6_prefix_and_addresses_follow_from_the_keys() -> None:
    prefix = keys.ula_prefix(UID)
    assert prefix == IPv6Network("fd00:102:304:506::/64")
    address = keys.address6(UID, bytes(32))
    assert address in prefix
    assert str(address) == "fd00:102:304:506:c50d:124a:8aaf:41a1"
    assert keys.address6(UID, SEED) != address


def test_the_uid_is_the_hash_of_the_owner() -> None:
    assert keys.network_uid(bytes(32)).hex() == "ff0f22492f44bac4c4b30ae58d0e8daa"


@few
@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_a_picked_pool_overlaps_nothing_and_passes_the_check(seed: int) -> None:
    taken = [IPv4Network("10.0.0.0/9"), IPv4Network("10.128.0.0/10"), IPv4Network("192.168.0.0/16")]
    pool = keys.pick_pool(taken, entropy(seed))
    assert pool.prefixlen == 24
    assert pool.subnet_of(IPv4Network("10.192.0.0/10"))
    assert keys.check_pool(str(pool)) == pool


def test_picked_pools_differ_from_network_to_network() -> None:
    assert len({keys.pick_pool([], entropy(seed)) for seed in range(100)}) > 90


def test_the_last_free_pool_is_found_and_then_there_is_none() -> None:
    everything_else = [
        network
        for network in IPv4Network("10.0.0.0/8").address_exclude(IPv4Network("10.77.5.0/24"))
        if network.prefixlen < 32
    ]
    assert keys.pick_pool(everything_else, entropy()) == IPv4Network("10.77.5.0/24")
    with pytest.raises(ConfigError, match="in use"):
        keys.pick_pool([IPv4Network("10.0.0.0/8")], entropy())


@pytest.mark.parametrize("cidr", ["10.0.0.0/8", "10.77.5.0/24", "172.16.0.0/12", "192.168.1.0/30"])
def test_a_private_pool_is_accepted(cidr: str) -> None:
    assert keys.check_pool(cidr) == IPv4Network(cidr)


@pytest.mark.parametrize(
    ("cidr", "problem"),
    [
        ("5.0.0.0/8", "not private"),
        ("25.0.0.0/8", "not private"),
        ("100.64.0.0/10", "not private"),
        ("172.0.0.0/8", "not private"),
        ("8.8.8.0/24", "not private"),
        ("127.0.0.0/8", "not private"),
        ("169.254.0.0/16", "not private"),
        ("224.0.0.0/8", "not private"),
        ("0.0.0.0/0", "size"),
        ("10.0.0.0/7", "10.0.0.0/7"),
        ("10.0.0.0/31", "size"),
        ("10.0.0.1/32", "size"),
        ("10.0.0.1/24", "host bits"),
        ("fd00::/64", "fd00"),
        ("", "address pool"),
        ("10.0.0.0/99", "99"),
    ],
)
def test_any_other_pool_is_refused_with_its_reason(cidr: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        keys.check_pool(cidr)


def test_a_members_number_at_other_members_depends_on_it_and_the_network_and_is_never_0() -> None:
    digest = hashlib.blake2b(b"meshvpn relay id v1" + b"i" * 32, digest_size=4, key=UID).digest()
    assert keys.member_relay_id(UID, b"i" * 32) == int.from_bytes(digest, "little")
    numbers = {keys.member_relay_id(bytes([uid]) * 16, bytes([who]) * 32) for uid in range(20) for who in range(20)}
    assert len(numbers) == 400
    assert 0 not in numbers
