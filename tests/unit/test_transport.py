"""Addresses, paths and the relay frame."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshvpn.proto.transport import RELAY_HEADER, RELAY_WORD, Address, Path, RelayHop

IPV4, IPV6 = Address("192.0.2.1", 7770), Address("2001:db8::1", 7770)


def test_addresses_are_written_as_people_write_them() -> None:
    assert str(IPV4) == "192.0.2.1:7770"
    assert str(IPV6) == "[2001:db8::1]:7770"
    assert IPV6.is_ipv6
    assert not IPV4.is_ipv6


def test_a_path_is_direct_unless_a_relay_is_in_between() -> None:
    direct, relayed = Path(0, IPV4), Path(0, IPV4, RelayHop(1, 2))
    assert direct.is_direct
    assert not relayed.is_direct
    assert str(direct) == "192.0.2.1:7770"
    assert str(relayed) == "relay 192.0.2.1:7770"


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_the_relay_header_says_the_word_the_source_and_the_destination(local: int, remote: int) -> None:
    header = RelayHop(local, remote).header()
    assert header == b"\x05\0\0\0" + local.to_bytes(4, "little") + remote.to_bytes(4, "little")
    assert RELAY_HEADER.unpack(header) == (RELAY_WORD, local, remote)
