"""LAN discovery: which names are looked at and how often, which addresses are believed. Multicast: in netns."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Interface, IPv6Interface
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshvpn.net import lan
from meshvpn.net.lan import SERVICE_TYPE, LanDiscovery, parse_tag
from meshvpn.proto.transport import Address

TAG = bytes(range(16))


@pytest.mark.parametrize(
    "name",
    [
        "",
        SERVICE_TYPE,
        f".{SERVICE_TYPE}",
        f"{TAG.hex()}",
        f"{TAG.hex()}00.{SERVICE_TYPE}",
        f"{'zz' * 16}.{SERVICE_TYPE}",
        f"{TAG.hex()}._other._udp.local.",
        f"{TAG.hex()}.x.{SERVICE_TYPE}",
    ],
)
def test_names_without_a_tag_are_none_of_ours(name: str) -> None:
    assert parse_tag(name) is None


def test_a_tag_is_read_from_a_name() -> None:
    assert parse_tag(f"{TAG.hex()}.{SERVICE_TYPE}") == TAG


async def test_a_tag_is_looked_at_twice_in_a_while_and_only_so_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan, "INTERVAL", 0.01)
    discovery = LanDiscovery({0: 41000}, lambda tag, addresses: None)
    looked: list[bytes] = []

    async def resolve(tag: bytes) -> None:
        looked.append(tag)

    monkeypatch.setattr(discovery, "_resolve", resolve)
    for _ in range(50):
        discovery._handle_change(cast(Any, None), SERVICE_TYPE, f"{TAG.hex()}.{SERVICE_TYPE}", cast(Any, None))
    for number in range(10_000):
        name = number.to_bytes(16, "big").hex()
        discovery._handle_change(cast(Any, None), SERVICE_TYPE, f"{name}.{SERVICE_TYPE}", cast(Any, None))
    await asyncio.gather(*discovery._looks.values())
    assert looked.count(TAG) == 2
    assert len(looked) == 2 * lan.MAX_LOOKS
    assert discovery._looks == {}


def test_only_addresses_in_our_own_prefixes_are_believed() -> None:
    discovery = object.__new__(LanDiscovery)
    discovery._interfaces = [IPv4Interface("192.168.1.2/24"), IPv6Interface("fd00::2/64")]
    hosts = ["192.168.1.7", "192.168.2.7", "20.1.0.1", "fd00::7%eth0", "2001:db8::1", "127.0.0.1"]
    info: Any = SimpleNamespace(parsed_addresses=lambda: hosts, port=41000)
    assert discovery._addresses(info) == [Address("192.168.1.7", 41000), Address("fd00::7", 41000)]
