"""STUN codec: the vectors of RFC 5769, every wrong length, integrity, and the relay's user name."""

from __future__ import annotations

import hashlib
import hmac
import random
import struct
import zlib
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import stun
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.stun import AttributeType, MessageType
from meshvpn.proto.transport import Address

TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
KEY = bytes(range(32))

# RFC 5769 §2.1 to §2.4.
SAMPLE_REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74"
    "002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020"
    "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf"
)
SAMPLE_IPV4_RESPONSE = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96"
)
SAMPLE_IPV6_RESPONSE = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004c8fb0b4c"
)
SAMPLE_LONG_TERM_REQUEST = bytes.fromhex(
    "000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382afe382b90000"
    "0015001c662f2f3439396b39353464364f4c33346f4c39465354767936347341"
    "0014000b6578616d706c652e6f7267000008001 4f67024656dd64a3e02b8e0712e85c9a28ca89666".replace(" ", "")
)
SHORT_TERM_PASSWORD = b"VOkJxbRl1RmTxUk/WvJxBt"


def is_not_mapped(host: IPv4Address | IPv6Address) -> bool:
    return not (isinstance(host, IPv6Address) and host.ipv4_mapped)


def test_the_sample_request_parses_and_its_integrity_holds() -> None:
    message = stun.parse(SAMPLE_REQUEST)
    assert message.type == MessageType.REQUEST
    assert message.transaction_id == TRANSACTION
    assert message.username == "evtj:h6vY"
    assert message.attributes[AttributeType.SOFTWARE] == b"STUN test client"
    assert message.is_authentic(SHORT_TERM_PASSWORD)
    assert not message.is_authentic(SHORT_TERM_PASSWORD + b"x")


@pytest.mark.parametrize(
    ("data", "host"),
    [(SAMPLE_IPV4_RESPONSE, "192.0.2.1"), (SAMPLE_IPV6_RESPONSE, "2001:db8:1234:5678:11:2233:4455:6677")],
)
def test_the_sample_responses_give_the_mapped_address(data: bytes, host: str) -> None:
    message = stun.parse(data)
    assert message.type == MessageType.SUCCESS
    assert message.mapped_address == Address(host, 32853)
    assert message.is_authentic(SHORT_TERM_PASSWORD)


def test_the_sample_request_with_long_term_credentials_is_authentic() -> None:
    message = stun.parse(SAMPLE_LONG_TERM_REQUEST)
    user = "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"
    assert message.username == user
    key = hashlib.md5(f"{user}:example.org:TheMatrIX".encode(), usedforsecurity=False).digest()
    assert message.is_authentic(key)


def test_integrity_and_fingerprint_are_what_the_rfc_says() -> None:
    data = stun.binding_request(TRANSACTION, username="00000001:1", key=KEY)
    integrity_at = len(data) - 8 - 36
    covered = data[:2] + struct.pack(">H", integrity_at - 20 + 36) + data[4:integrity_at]
    assert data[integrity_at : integrity_at + 4] == bytes.fromhex("001c0020")  # RFC 8489 §14.6
    assert data[integrity_at + 4 : integrity_at + 36] == hmac.digest(KEY, covered, "sha256")
    assert data[-8:] == bytes.fromhex("80280004") + struct.pack(">I", zlib.crc32(data[:-8]) ^ 0x5354554E)  # §14.7


@given(
    st.binary(min_size=12, max_size=12),
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6).filter(is_not_mapped)),
    st.integers(0, 65535),
    st.one_of(st.none(), st.binary(min_size=1, max_size=64)),
)
@settings(max_examples=150, deadline=None)
def test_an_answer_says_the_address_and_port_that_were_put_in(
    transaction_id: bytes, host: object, port: int, key: bytes | None
) -> None:
    mapped = Address(str(host), port)
    message = stun.parse(stun.binding_success(transaction_id, mapped, key=key))
    assert message.transaction_id == transaction_id
    assert message.mapped_address == mapped
    assert message.is_authentic(key or b"any") == (key is not None)


def test_a_plain_mapped_address_serves_where_the_other_one_is_missing() -> None:
    data = message_of(MessageType.SUCCESS, (AttributeType.MAPPED_ADDRESS, bytes.fromhex("00018055c0000201")))
    assert stun.parse(data).mapped_address == Address("192.0.2.1", 32853)


@pytest.mark.parametrize(
    "value", ["", "0001", "0001a147e112a6", "0001a147e112a64300", "0002a147e112a643", "0003" + "00" * 18]
)
def test_a_mapped_address_of_a_wrong_length_or_family_is_none(value: str) -> None:
    data = message_of(MessageType.SUCCESS, (AttributeType.XOR_MAPPED_ADDRESS, bytes.fromhex(value)))
    assert stun.parse(data).mapped_address is None


def test_an_address_that_hides_an_ipv4_one_in_ipv6_is_none() -> None:
    data = stun.binding_success(TRANSACTION, Address("::ffff:192.0.2.1", 5))
    assert stun.parse(data).mapped_address is None


def test_an_error_carries_class_and_number() -> None:
    message = stun.parse(stun.binding_error(TRANSACTION, 401))
    assert message.type == MessageType.ERROR
    assert message.attributes[AttributeType.ERROR_CODE] == b"\0\0\x04\x01"  # RFC 8489 §14.8
    assert message.mapped_address is None


def test_a_stranger_gets_no_more_bytes_back_than_he_sent() -> None:
    asked = len(stun.binding_request(TRANSACTION, username="00000001:1", key=KEY))
    assert len(stun.binding_error(TRANSACTION, 401)) <= asked
    plain = len(stun.binding_request(TRANSACTION))
    assert len(stun.binding_success(TRANSACTION, Address("192.0.2.1", 1))) <= plain
    assert len(stun.binding_success(TRANSACTION, Address("2001:db8::1", 1))) <= plain


def test_neither_does_a_member_that_binds_its_address_to_the_relay() -> None:
    asked = len(stun.binding_request(TRANSACTION, username="00000001:1", key=KEY))
    assert len(stun.binding_success(TRANSACTION, Address("2001:db8::1", 1), key=KEY)) <= asked


@pytest.mark.parametrize("data", [SAMPLE_REQUEST, SAMPLE_IPV4_RESPONSE, SAMPLE_IPV6_RESPONSE, SAMPLE_LONG_TERM_REQUEST])
def test_every_truncation_is_rejected(data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises(MalformedMessage):
            stun.parse(data[:size])


@pytest.mark.parametrize("data", [SAMPLE_REQUEST, SAMPLE_IPV4_RESPONSE], ids=["request", "response"])
def test_every_flipped_bit_is_noticed(data: bytes) -> None:
    fingerprint = range((len(data) - 8) * 8, len(data) * 8)
    for position in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        try:
            message = stun.parse(bytes(damaged))
        except MalformedMessage:
            continue
        # What hides the fingerprint (its type, an earlier attribute's length) breaks the integrity or lies behind.
        assert position in fingerprint or not message.is_authentic(SHORT_TERM_PASSWORD)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", DropReason.TOO_SHORT),
        (SAMPLE_REQUEST[:19], DropReason.TOO_SHORT),
        (b"\x40" + SAMPLE_REQUEST[1:], DropReason.UNKNOWN_TYPE),
        (SAMPLE_REQUEST[:4] + b"\0\0\0\0" + SAMPLE_REQUEST[8:], DropReason.UNKNOWN_TYPE),
        (SAMPLE_REQUEST + b"\0\0\0\0", DropReason.BAD_LENGTH),
        (SAMPLE_REQUEST[:-4] + b"\0\0\0\0", DropReason.MALFORMED),
    ],
)
def test_each_kind_of_damage_has_its_name(data: bytes, reason: DropReason) -> None:
    with pytest.raises(MalformedMessage) as caught:
        stun.parse(data)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "kind", [AttributeType.MESSAGE_INTEGRITY, AttributeType.MESSAGE_INTEGRITY_SHA256, AttributeType.FINGERPRINT]
)
@pytest.mark.parametrize("size", [0, 1, 3, 8, 16, 19, 21, 28, 31, 33, 64])
def test_integrity_and_fingerprint_of_a_wrong_length_are_rejected(kind: AttributeType, size: int) -> None:
    with pytest.raises(MalformedMessage):
        stun.parse(message_of(MessageType.REQUEST, (kind, bytes(size))))


def test_what_follows_the_integrity_attribute_is_ignored() -> None:
    data = with_attribute(stun.binding_request(TRANSACTION, username="00000001:1", key=KEY)[:-8], 0x0001, b"abcd")
    message = stun.parse(data)
    assert AttributeType.MAPPED_ADDRESS not in message.attributes
    assert message.is_authentic(KEY)


def test_the_first_of_two_equal_attributes_counts() -> None:
    data = message_of(MessageType.REQUEST, (AttributeType.USERNAME, b"first"), (AttributeType.USERNAME, b"second"))
    assert stun.parse(data).username == "first"


def test_a_message_without_integrity_is_never_authentic() -> None:
    assert not stun.parse(stun.binding_request(TRANSACTION)).is_authentic(b"")


def test_a_flood_of_attributes_is_rejected() -> None:
    most = [(0x8022, b"")] * stun.MAX_ATTRIBUTES
    stun.parse(message_of(MessageType.REQUEST, *most))
    with pytest.raises(MalformedMessage):
        stun.parse(message_of(MessageType.REQUEST, *most, (0x8022, b"")))


def test_a_user_name_that_is_no_text_is_none() -> None:
    assert stun.parse(message_of(MessageType.REQUEST, (AttributeType.USERNAME, b"\xff\xfe"))).username is None


def test_is_stun_tells_it_from_everything_else_on_the_socket() -> None:
    assert stun.is_stun(SAMPLE_REQUEST)
    assert not stun.is_stun(SAMPLE_REQUEST[:19])
    for first in (b"\x01\0\0\0", b"\x02\0\0\0", b"\x03\0\0\0", b"\x04\0\0\0", b"\x05\0\0\0", b"MVds"):
        assert not stun.is_stun(first + bytes(200))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**62))
@settings(max_examples=100)
def test_the_relay_user_name_is_read_back(relay_id: int, counter: int) -> None:
    assert stun.parse_relay_username(stun.relay_username(relay_id, counter)) == (relay_id, counter)


OTHER_SPELLINGS = [
    *("", ":", "0000000a", "0000000a:", ":1", "000000a:1", "0000000a:-1", "0000000a:1 ", "0000000a:1:2"),
    *("0x00000a:1", "1_2_3_45:1", " 000000a:1", "+000000a:1", "-000000a:1", "0000000A:1", "0000000a:01"),
    *("0000000a:١", "١٢٣٤٥٦٧٨:1", "0000000a:1_0", "0000000a:" + "9" * 30),
]


@pytest.mark.parametrize("name", OTHER_SPELLINGS)
def test_a_relay_user_name_in_any_other_spelling_is_refused(name: str) -> None:
    assert stun.parse_relay_username(name) is None


@given(st.text(max_size=40))
@settings(max_examples=200)
def test_any_text_is_a_relay_user_name_or_none(name: str) -> None:
    parsed = stun.parse_relay_username(name)
    assert parsed is None or stun.relay_username(*parsed) == name


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_arbitrary_bytes_parse_or_are_malformed(data: bytes) -> None:
    parse_quietly(data)


def test_damaged_messages_parse_or_are_malformed() -> None:
    source = random.Random(1)
    for data in (SAMPLE_REQUEST, SAMPLE_IPV6_RESPONSE, stun.binding_request(TRANSACTION, username="a", key=KEY)):
        unsealed = data[:-8]
        for _ in range(1500):
            damaged = bytearray(unsealed)
            for _ in range(source.randint(1, 4)):
                damaged[source.randrange(len(damaged))] = source.randrange(256)
            damaged[2:8] = struct.pack(">HI", len(damaged) - 20, stun.MAGIC_COOKIE)
            parse_quietly(bytes(damaged))


@pytest.mark.parametrize("size", [0, 52, 60, 64, 72, 1472])
@pytest.mark.parametrize("other_port", [True, False])
def test_a_request_is_as_large_as_it_is_asked_to_be_and_never_shorter_than_the_answer(
    size: int, other_port: bool
) -> None:
    data = stun.binding_request(TRANSACTION, other_port=other_port, size=size)
    message = stun.parse(data)
    assert message.wants_other_port is other_port
    least = 60 if other_port else 52
    assert len(data) == (size if size >= least + 4 else least)
    assert len(data) >= len(stun.binding_success(TRANSACTION, Address("2001:db8::1", 1)))


def parse_quietly(data: bytes) -> None:
    try:
        message = stun.parse(data)
    except MalformedMessage:
        return
    assert message.raw == data
    message.is_authentic(KEY)
    assert message.username is None or isinstance(message.username, str)
    assert message.mapped_address is None or isinstance(message.mapped_address, Address)


def message_of(kind: MessageType, *attributes: tuple[int, bytes]) -> bytes:
    data = struct.pack(">HHI", kind, 0, stun.MAGIC_COOKIE) + TRANSACTION
    for number, value in attributes:
        data = with_attribute(data, number, value)
    return data


def with_attribute(data: bytes, number: int, value: bytes) -> bytes:
    longer = data + struct.pack(">HH", number, len(value)) + value + bytes(-len(value) % 4)
    return longer[:2] + struct.pack(">H", len(longer) - 20) + longer[4:]
