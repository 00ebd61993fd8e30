"""Echo requests as ICMP has them, and which reply counts."""

from __future__ import annotations

import struct

import pytest

from meshvpn.cli.echo import Echo, is_reply, request
from meshvpn.cli.ping import Tally


def test_a_request_has_a_checksum_that_adds_up() -> None:
    for payload in (b"", b"ab", b"\xff" * 172, bytes(range(172))):
        words = struct.unpack(f"!{4 + len(payload) // 2}H", request(7, 65535, payload))
        total = sum(words)
        total = (total >> 16) + (total & 0xFFFF)
        assert (total >> 16) + (total & 0xFFFF) == 0xFFFF
    # As Windows sends it, identifier 1, sequence 9: the checksum in many a capture.
    assert request(1, 9, b"abcdefghijklmnopqrstuvwabcdefghi")[:8].hex() == "08004d5200010009"


@pytest.mark.parametrize(
    ("data", "is_ours"),
    [
        (struct.pack("!BBHHH", 0, 0, 0, 5, 3) + b"secret", True),
        (struct.pack("!BBHHH", 8, 0, 0, 5, 3) + b"secret", False),
        (struct.pack("!BBHHH", 0, 1, 0, 5, 3) + b"secret", False),
        (struct.pack("!BBHHH", 0, 0, 0, 5, 4) + b"secret", False),
        (struct.pack("!BBHHH", 0, 0, 0, 5, 3) + b"another", False),
        (b"\0" * 7, False),
        (b"", False),
    ],
)
def test_only_the_reply_to_this_request_counts(data: bytes, is_ours: bool) -> None:
    assert is_reply(data, 3, b"secret") is is_ours


def test_an_echo_comes_back_and_none_is_waited_for_in_vain() -> None:
    echo = Echo("127.0.0.1")
    assert [0 < (echo.round_trip(2.0) or 0) < 2 for _ in range(3)] == [True] * 3
    assert echo.round_trip(0.0) is None
    assert 0 < (echo.round_trip(2.0) or 0) < 2  # the late one does not count for this
    echo.close()


def test_a_tally_tells_loss_of_round_trips_and_jitter_of_what_came() -> None:
    tally = Tally([10.0, None, 14.0, 12.0])
    assert (tally.mean, tally.jitter, tally.loss) == (12.0, 3.0, 0.25)
    assert tally.r is not None
    assert tally.r < (Tally([12.0]).r or 0)
    assert (Tally([None]).mean, Tally([None]).jitter, Tally([None]).loss, Tally([None]).r) == (None, None, 1.0, None)
