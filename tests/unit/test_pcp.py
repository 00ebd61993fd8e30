"""PCP and NAT-PMP messages, byte for byte as the RFCs draw them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto import pcp
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.pcp import Opcode, Version, announce_request, map_request, parse

NONCE = bytes(range(12))
LOCAL = "192.168.1.2"
LOCAL_MAPPED = "00000000 00000000 0000ffff c0a80102"
ANY_MAPPED = "00000000 00000000 0000ffff 00000000"
OUTSIDE_MAPPED = "00000000 00000000 0000ffff cb007105"


def test_pcp_requests_are_those_of_rfc_6887() -> None:
    assert announce_request(Version.PCP, LOCAL) == bytes.fromhex(f"02 00 0000 00000000 {LOCAL_MAPPED}")  # §7.1, §14.1
    assert map_request(Version.PCP, LOCAL, 0xA028, 0xA029, 7200, nonce=NONCE) == bytes.fromhex(
        f"02 01 0000 00001c20 {LOCAL_MAPPED}000102030405060708090a0b 11 000000 a028 a029 {ANY_MAPPED}"  # §11.1
    )
    assert map_request(Version.PCP, "2001:db8::2", 1, 0, 0, nonce=NONCE)[-16:] == bytes(16)


def test_nat_pmp_requests_are_those_of_rfc_6886() -> None:
    assert announce_request(Version.NAT_PMP, LOCAL) == bytes.fromhex("00 00")  # §3.2
    expected = bytes.fromhex("00 01 0000 a028 a029 00001c20")  # §3.3
    assert map_request(Version.NAT_PMP, LOCAL, 0xA028, 0xA029, 7200) == expected


def test_pcp_answers_are_read() -> None:
    head = "02 81 00 00 00000e10 0000002a 000000000000000000000000"  # §7.2
    data = bytes.fromhex(f"{head} 000102030405060708090a0b 11 000000 a028 c000 {OUTSIDE_MAPPED}")
    answer = parse(data)
    assert (answer.version, answer.opcode, answer.result, answer.lifetime, answer.epoch) == (2, 1, 0, 3600, 42)
    assert (answer.nonce, answer.internal_port, answer.external_port) == (NONCE, 0xA028, 0xC000)
    assert answer.external_host == "203.0.113.5"
    assert parse(data + bytes(8)) == answer, "options may follow"
    announced = parse(bytes.fromhex("02 80 00 00 00000000 00000007 000000000000000000000000"))
    assert (announced.opcode, announced.epoch) == (Opcode.ANNOUNCE, 7)


def test_nat_pmp_answers_are_read() -> None:
    answer = parse(bytes.fromhex("00 81 0000 0000002a a028 c000 00000e10"))
    assert (answer.version, answer.opcode, answer.epoch, answer.lifetime) == (0, 1, 42, 3600)
    assert (answer.internal_port, answer.external_port) == (0xA028, 0xC000)
    assert parse(bytes.fromhex("00 80 0000 0000002a cb007105")).external_host == "203.0.113.5"
    assert parse(bytes.fromhex("00 80 0003 0000002a")).result == 3, "a refusal may end there"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", DropReason.TOO_SHORT),
        ("00 80 0000 000000", DropReason.TOO_SHORT),
        ("00 80 0000 00000000 cb0071", DropReason.TOO_SHORT),
        ("00 81 0000 00000000 a028 c000 000000", DropReason.TOO_SHORT),
        ("02 80" + "00" * 21, DropReason.TOO_SHORT),
        ("02 81" + "00" * 22 + "00" * 32, DropReason.TOO_SHORT),
        ("02 80" + "00" * 23, DropReason.BAD_LENGTH),
        ("02 80" + "00" * 1102, DropReason.BAD_LENGTH),
        ("02 01" + "00" * 58, DropReason.UNKNOWN_TYPE),
        ("02 82" + "00" * 58, DropReason.UNKNOWN_TYPE),
        ("01 80" + "00" * 58, DropReason.UNKNOWN_TYPE),
        ("02 81" + "00" * 22 + "00" * 12 + "06" + "00" * 23, DropReason.UNKNOWN_TYPE),
    ],
)
def test_what_is_no_answer_is_dropped_with_its_reason(data: str, reason: DropReason) -> None:
    with pytest.raises(MalformedMessage) as caught:
        parse(bytes.fromhex(data))
    assert caught.value.reason is reason


@given(st.binary(max_size=80), st.sampled_from([b"", b"\x02\x80", b"\x02\x81", b"\x00\x80", b"\x00\x81"]))
def test_no_bytes_raise_anything_else(data: bytes, start: bytes) -> None:
    try:
        response = parse(start + data)
    except MalformedMessage:
        return
    assert response.version in tuple(Version)
    assert len(data) <= pcp.MAX_MESSAGE
