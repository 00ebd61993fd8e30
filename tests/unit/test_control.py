"""Control messages: what is written is read back, and nothing that arrives raises anything but MalformedMessage."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshvpn.proto import control
from meshvpn.proto.charter import MAX_EVICTED, Charter
from meshvpn.proto.control import MAX_MEMBERS, MAX_MESSAGE, MemberEntry, PresenceEntry, RelayGrant
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.signed import Signed

REQUESTS: tuple[type[Any], ...] = typing.get_args(control.Request)
RESPONSES: tuple[type[Any], ...] = typing.get_args(control.Response)
WELCOME = control.Welcome(version=1, nonce=bytes(32), observed_host="", udp_port=1, udp_port2=2, software="")
ATTACHED = control.Attached(
    rid=1, address="10.0.0.1", charter=Signed(b"", b"", b""), members=[], online=[], relay=RelayGrant(1, bytes(32))
)
unhurried = settings(deadline=None)


def _values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    if typing.get_origin(annotation) is list:
        return st.lists(_values(typing.get_args(annotation)[0]), max_size=3)
    if typing.get_origin(annotation) is typing.Annotated:
        meta = annotation.__metadata__[0]
        return st.integers(min_value=meta.ge, max_value=meta.le)
    if alternatives := typing.get_args(annotation):
        return st.one_of([_values(alternative) for alternative in alternatives])
    if annotation in (Signed, MemberEntry, PresenceEntry, RelayGrant):
        return messages(annotation)
    known: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(min_value=-(2**63), max_value=2**64 - 1),
        str: st.text(max_size=20),
        bytes: st.binary(max_size=40),
        type(None): st.none(),
    }
    return known[annotation]


def messages(kind: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        kind, **{name: _values(hint) for name, hint in typing.get_type_hints(kind, include_extras=True).items()}
    )


any_request: st.SearchStrategy[control.Request] = st.one_of([messages(kind) for kind in REQUESTS])
any_response: st.SearchStrategy[control.Response] = st.one_of([messages(kind) for kind in RESPONSES])
any_object = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=10,
)


@unhurried
@given(any_request)
def test_a_request_is_read_back_as_it_was_written(message: control.Request) -> None:
    assert control.decode_request(control.encode(message)) == message


@unhurried
@given(any_response)
def test_a_response_is_read_back_as_it_was_written(message: control.Response) -> None:
    assert control.decode_response(control.encode(message)) == message


@unhurried
@given(any_request, any_response)
def test_neither_side_takes_the_messages_of_its_own_side(request: control.Request, response: control.Response) -> None:
    with pytest.raises(MalformedMessage):
        control.decode_response(control.encode(request))
    with pytest.raises(MalformedMessage):
        control.decode_request(control.encode(response))


def test_every_message_has_a_tag_of_its_own() -> None:
    tags = [kind.__struct_config__.tag for kind in (*REQUESTS, *RESPONSES)]
    assert len(set(tags)) == len(tags)


@unhurried
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x80")
@example(b"\x81\xa1t\xa4join")
@example(b"\xc1")
@example(b"\x81\xa1t\xc4\x04join")
def test_rubbish_is_malformed_and_nothing_else(data: bytes) -> None:
    _decode_both(data)


@unhurried
@given(any_object)
def test_other_msgpack_is_malformed_and_nothing_else(value: Any) -> None:
    _decode_both(msgspec.msgpack.encode(value))


@unhurried
@given(any_request | any_response, st.data())
def test_a_damaged_message_is_read_as_something_or_malformed(
    message: control.Request | control.Response, data: st.DataObject
) -> None:
    encoded = bytearray(control.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    _decode_both(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1t", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
def test_deep_nesting_and_enormous_counts_are_malformed(opening: bytes) -> None:
    data = opening * (MAX_MESSAGE // len(opening) - 1)
    for decode in (control.decode_request, control.decode_response):
        with pytest.raises(MalformedMessage) as caught:
            decode(data)
        assert caught.value.reason is DropReason.MALFORMED


def test_deep_nesting_in_a_field_that_nobody_knows_is_malformed() -> None:
    field = b"\x91" * 100_000 + b"\xc0"
    data = b"\x83\xa1t\xa4done\xa3rid\x01\xa1x" + field
    with pytest.raises(MalformedMessage):
        control.decode_response(data)


def test_a_message_may_have_the_largest_size_and_not_a_byte_more() -> None:
    empty = len(control.encode(control.Signal(to=b"", payload=b""))) + 3  # bin32 has three bytes more than bin8
    message = control.Signal(to=b"", payload=bytes(MAX_MESSAGE - empty))
    data = control.encode(message)
    assert len(data) == MAX_MESSAGE
    assert control.decode_request(data) == message
    with pytest.raises(MalformedMessage) as caught:
        control.decode_request(data + b"\0")
    assert caught.value.reason is DropReason.OVER_LIMIT
    with pytest.raises(MalformedMessage) as caught:
        control.decode_response(bytes(MAX_MESSAGE + 1))
    assert caught.value.reason is DropReason.OVER_LIMIT


def test_a_field_of_a_later_version_is_passed_over() -> None:
    data = msgspec.msgpack.encode({"t": "done", "rid": 7, "invented_later": [1, 2, 3]})
    assert control.decode_response(data) == control.Done(rid=7)


def test_a_full_network_fits_into_its_messages_whatever_its_members_publish() -> None:
    key, signature = bytes(32), bytes(64)
    grants = {number.to_bytes(32, "big"): bytes(110) for number in range(MAX_MEMBERS)}
    bans = {number.to_bytes(32, "big"): 2**53 for number in range(MAX_EVICTED)}
    charter = Charter(
        format=1,
        owner=key,
        version=2**53,
        issued_at=2**53,
        locator=key,
        pool="192.168.100.0/24",
        access="approve",
        epoch=2**53,
        evicted=bans,
        unbanned=bans,
        admins=Signed(bytes(64 * 34 + 40), key, signature),
        sealed=bytes(400),
        wrap=bytes(150),
        grants=grants,
    )
    body = msgspec.msgpack.encode(charter)
    assert len(body) <= control.MAX_CHARTER
    signed = Signed(bytes(control.MAX_CHARTER), key, signature)
    envelope = Signed(bytes(control.MAX_ENVELOPE), key, signature)
    entry = MemberEntry(key, "192.168.100.100", envelope, Signed(bytes(control.MAX_APPROVAL - 96), key, signature))
    online = [PresenceEntry(key, 2**32)] * MAX_MEMBERS
    for message in (
        control.CharterChanged(charter=signed, members=[entry] * MAX_MEMBERS),
        control.PutCharter(rid=2**63, charter=signed, envelopes=[envelope] * MAX_MEMBERS),
        control.Attached(
            rid=2**63,
            address="192.168.100.100",
            charter=signed,
            members=[entry] * MAX_MEMBERS,
            online=online,
            relay=RelayGrant(2**32, key),
        ),
    ):
        assert len(control.encode(message)) <= MAX_MESSAGE


def _decode_both(data: bytes) -> None:
    reasons = []
    for decode in (control.decode_request, control.decode_response):
        try:
            decode(data)
        except MalformedMessage as error:
            reasons.append(error.reason)
    assert set(reasons) <= {DropReason.MALFORMED}


@pytest.mark.parametrize(
    "message",
    [
        control.Presence(entry=PresenceEntry(bytes(32), 1 << 32)),
        control.Presence(entry=PresenceEntry(bytes(32), -1)),
        msgspec.structs.replace(ATTACHED, relay=RelayGrant(1 << 32, bytes(32))),
        msgspec.structs.replace(WELCOME, udp_port=0),
        msgspec.structs.replace(WELCOME, udp_port2=65536),
    ],
)
def test_a_number_that_fits_into_no_packet_is_malformed(message: control.Response) -> None:
    with pytest.raises(MalformedMessage):
        control.decode_response(control.encode(message))
