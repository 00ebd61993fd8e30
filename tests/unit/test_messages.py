"""The layout of WireGuard's messages 1 to 3 (whitepaper §5.4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto import messages
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.messages import CookieReply, Initiation, Response

indices = st.integers(0, 2**32 - 1)


def sized(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


any_message = st.one_of(
    st.builds(Initiation, indices, sized(108), sized(16), sized(16)),
    st.builds(Response, indices, indices, sized(48), sized(16), sized(16)),
    st.builds(CookieReply, indices, sized(24), sized(32)),
)
SIZES = {Initiation: 148, Response: 92, CookieReply: 64}


@given(any_message)
def test_a_message_is_read_back_as_it_was_written(message: Initiation | Response | CookieReply) -> None:
    data = message.encode()
    assert len(data) == SIZES[type(message)]
    assert messages.parse(data) == message


@given(st.sampled_from([(1, 148), (2, 92), (3, 64)]), st.data())
def test_whatever_has_a_type_and_its_length_is_written_back_as_it_was_read(
    layout: tuple[int, int], data: st.DataObject
) -> None:
    kind, size = layout
    raw = bytes([kind, 0, 0, 0]) + data.draw(sized(size - 4))
    assert messages.parse(raw).encode() == raw


def test_the_fields_stand_where_the_paper_puts_them() -> None:
    initiation = Initiation(0x04030201, b"n" * 108, b"1" * 16, b"2" * 16).encode()
    assert initiation == b"\1\0\0\0\1\2\3\4" + b"n" * 108 + b"1" * 16 + b"2" * 16
    response = Response(0x04030201, 0x08070605, b"n" * 48, b"1" * 16, b"2" * 16).encode()
    assert response == b"\2\0\0\0\1\2\3\4\5\6\7\x08" + b"n" * 48 + b"1" * 16 + b"2" * 16
    assert CookieReply(0x04030201, b"n" * 24, b"c" * 32).encode() == b"\3\0\0\0\1\2\3\4" + b"n" * 24 + b"c" * 32


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_any_other_length_is_refused(kind: int) -> None:
    right = {1: 148, 2: 92, 3: 64}[kind]
    for size in range(4, 200):
        if size != right:
            assert reason_of(bytes([kind, 0, 0, 0]).ljust(size, b"x")) is DropReason.BAD_LENGTH


@pytest.mark.parametrize("size", range(4))
def test_what_has_no_type_is_too_short(size: int) -> None:
    assert reason_of(b"\1\0\0\0"[:size]) is DropReason.TOO_SHORT


@given(st.integers(0, 2**32 - 1).filter(lambda word: word not in (1, 2, 3)), st.sampled_from([64, 92, 148]))
def test_any_other_first_word_is_another_protocol(word: int, size: int) -> None:
    assert reason_of(word.to_bytes(4, "little").ljust(size, b"\0")) is DropReason.UNKNOWN_TYPE


def reason_of(data: bytes) -> DropReason | None:
    try:
        messages.parse(data)
    except MalformedMessage as error:
        return error.reason
    return None
