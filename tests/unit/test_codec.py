"""msgpack from outside: one exception, one form, no surprises from values of any type."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto.codec import decode
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.signed import Signed


class Loose(msgspec.Struct, frozen=True, array_like=True):
    """As a record: a field that takes anything."""

    name: str
    facts: dict[str, Any] = {}


SIGNED = msgspec.msgpack.Decoder(Signed)
LOOSE = msgspec.msgpack.Decoder(Loose)
LIMIT = 4096


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=40), st.binary(max_size=80))
def test_what_is_written_is_read_back_and_nothing_may_follow_it(body: bytes, signer: bytes, signature: bytes) -> None:
    signed = Signed(body, signer, signature)
    data = msgspec.msgpack.encode(signed)
    assert decode(SIGNED, data, limit=LIMIT) == signed
    assert reason_of(SIGNED, data + b"\xc0") is DropReason.MALFORMED
    for size in range(0, len(data), 7):
        assert reason_of(SIGNED, data[:size]) is DropReason.MALFORMED


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_rubbish_is_a_value_or_malformed(data: bytes) -> None:
    for decoder in (SIGNED, LOOSE):
        assert reason_of(decoder, data) in (None, DropReason.MALFORMED)
        assert reason_of(decoder, b"\x92\xa1a\x81\xa1k" + data) in (None, DropReason.MALFORMED)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"\x81\x80\x01", id="a map as a key"),
        pytest.param(b"\x81\x91\x80\x01", id="a list with a map in it as a key"),
        pytest.param(b"\x81\x93\x01\x02\x03\x01", id="a list as a key"),
        pytest.param(b"\x81\xc4\x01\x61\x01", id="bytes as a key"),
        pytest.param(b"\x81\xcb\x7f\xf8\0\0\0\0\0\0\x01", id="not a number as a key"),
        pytest.param(b"\xc7\x0c\xff" + b"\xff" * 12, id="a time that does not exist"),
        pytest.param(b"\xd7\xff" + b"\xff" * 8, id="nanoseconds that do not exist"),
        pytest.param(b"\xd6\xff" + b"\xff" * 4, id="a time in 2106"),
        pytest.param(b"\xc7\x05\xff" + bytes(5), id="a time of a length that does not exist"),
        pytest.param(b"\xc7\x03\x2aabc", id="an extension type"),
        pytest.param(b"\xa2\xff\xfe", id="text that is not UTF-8"),
        pytest.param(b"\xa3\xed\xa0\x80", id="half of a surrogate pair"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="four thousand million items"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="four thousand million pairs"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="four gigabytes"),
        pytest.param(b"\x91" * 3000, id="three thousand lists"),
        pytest.param(b"\x81\xa1a" * 1000, id="a thousand maps"),
        pytest.param(b"\xc1", id="the byte that means nothing"),
    ],
)
def test_values_that_python_may_choke_on_are_read_or_malformed(value: bytes) -> None:
    assert reason_of(LOOSE, b"\x92\xa1a\x81\xa1k" + value) in (None, DropReason.MALFORMED)


def test_one_byte_more_than_the_limit_is_not_even_looked_at() -> None:
    data = msgspec.msgpack.encode(Signed(b"", b"", b""))
    assert decode(SIGNED, data, limit=len(data)) == Signed(b"", b"", b"")
    with pytest.raises(MalformedMessage) as caught:
        decode(SIGNED, data, limit=len(data) - 1)
    assert caught.value.reason is DropReason.OVER_LIMIT


def test_a_field_that_a_later_version_adds_at_the_end_is_passed_over() -> None:
    assert decode(SIGNED, msgspec.msgpack.encode([b"b", b"s", b"g", {"later": 1}]), limit=LIMIT) == Signed(
        b"b", b"s", b"g"
    )


@pytest.mark.parametrize("value", [[b"b", b"s"], [b"b", b"s", None], [b"b", b"s", "text"], {"body": b"b"}, 7, None])
def test_a_missing_field_or_one_of_another_type_is_malformed(value: object) -> None:
    assert reason_of(SIGNED, msgspec.msgpack.encode(value)) is DropReason.MALFORMED


def reason_of(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> DropReason | None:
    try:
        decode(decoder, data, limit=LIMIT)
    except MalformedMessage as error:
        return error.reason
    return None
