"""The port mapper in virtual time: which method it takes, how it keeps a mapping, what a router cannot make it do."""

from __future__ import annotations

import struct

import pytest

from meshvpn.proto import pcp, portmap
from meshvpn.proto.drops import DropReason
from meshvpn.proto.pcp import Version
from meshvpn.proto.portmap import MappingChanged, Method, PortMapper, PortMapping, Router, UpnpWanted
from meshvpn.proto.transport import Address

ROUTER = Router("192.168.1.1", "192.168.1.2")
SOURCE = Address("192.168.1.1", pcp.PORT)
NONCE = bytes(range(12))
PORT = 41000
OUTSIDE = bytes([203, 0, 113, 5])
MAPPED = bytes(10) + b"\xff\xff" + OUTSIDE


class FakeRouter:
    """Answers as routers do. `refusals` are result codes by version; versions not in `speaks` get no answer."""

    def __init__(self, *speaks: Version) -> None:
        self.speaks = set(speaks)
        self.refusals: dict[Version, int] = {}
        self.started_at = -1000.0
        self.lifetime = 7200
        self.external_port = 50000
        self.is_mapped = False
        self.requests: list[tuple[float, bytes]] = []

    def answer(self, data: bytes, now: float) -> bytes | None:
        self.requests.append((now, data))
        version = Version(data[0])
        if version not in self.speaks:
            return None
        epoch = int(now - self.started_at)
        result = self.refusals.get(version, 0)
        if version is Version.NAT_PMP:
            if data[1] == 0:
                return struct.pack(">BBHI4s", 0, 128, 0, epoch, OUTSIDE)
            self._note(struct.unpack(">I", data[8:])[0], result)
            return struct.pack(">BBHIHHI", 0, 129, result, epoch, PORT, self.external_port, self._granted(data[8:]))
        head = struct.pack(">BBxBII12x", 2, 0x80 | data[1], result if data[1] else 0, self._granted(data[4:8]), epoch)
        if data[1] == 0:
            return head
        self._note(struct.unpack(">I", data[4:8])[0], result)
        return head + data[24:42] + struct.pack(">H", self.external_port) + MAPPED

    def _granted(self, lifetime: bytes) -> int:
        return min(self.lifetime, int(struct.unpack(">I", lifetime)[0]))

    def _note(self, lifetime: int, result: int) -> None:
        if result == 0:
            self.is_mapped = lifetime > 0

    def restart(self, now: float) -> None:
        self.started_at, self.is_mapped = now, False


class World:
    """A mapper and its router, 1 ms apart."""

    def __init__(self, router: FakeRouter, *, upnp: int | None = None) -> None:
        self.router = router
        self.upnp = upnp
        self.mapper = PortMapper(PORT, NONCE)
        self.now = 0.0
        self.wanted: list[float] = []
        self.changes: list[PortMapping | None] = []
        self.mapper.handle_router(ROUTER, now=0.0)
        self.drain()

    def drain(self) -> None:
        while transmits := self.mapper.take_transmits():
            for data in transmits:
                if (answer := self.router.answer(data, self.now)) is not None:
                    assert self.mapper.handle_datagram(answer, SOURCE, now=self.now) is None
        for event in self.mapper.take_events():
            match event:
                case MappingChanged(mapping=mapping):
                    self.changes.append(mapping)
                case UpnpWanted():
                    self.wanted.append(self.now)
                    self.mapper.handle_upnp(self.upnp, None if self.upnp is None else "203.0.113.5", now=self.now)
                    self.drain()

    def run(self, until: float) -> None:
        steps = 0
        while (at := self.mapper.next_timeout()) is not None and at <= until:
            self.now = max(self.now, at)
            self.mapper.handle_timeout(now=self.now)
            self.drain()
            steps += 1
            assert steps < 100_000, "it never comes to rest"
        self.now = until

    def announce(self, version: Version = Version.NAT_PMP) -> DropReason | None:
        epoch = int(self.now - self.router.started_at)
        form = (
            (">BBHI4s", 0, 128, 0, epoch, OUTSIDE)
            if version is Version.NAT_PMP
            else (">BBxBII12x", 2, 128, 0, 0, epoch)
        )
        reason = self.mapper.handle_datagram(struct.pack(*form), SOURCE, now=self.now)
        self.drain()
        return reason


@pytest.mark.parametrize(
    ("speaks", "method", "host"),
    [
        ((Version.PCP, Version.NAT_PMP), Method.PCP, "203.0.113.5"),
        ((Version.PCP,), Method.PCP, "203.0.113.5"),
        ((Version.NAT_PMP,), Method.NAT_PMP, "203.0.113.5"),
    ],
)
def test_the_best_that_the_router_speaks_is_taken_within_a_quarter_second(
    speaks: tuple[Version, ...], method: Method, host: str
) -> None:
    world = World(FakeRouter(*speaks))
    world.run(0.25)
    assert world.changes == [PortMapping(method, 50000, host)]
    assert world.wanted == []


def test_upnp_is_wanted_only_where_neither_answers_and_is_renewed() -> None:
    world = World(FakeRouter(), upnp=50001)
    world.run(sum(portmap.TRIES))
    assert world.changes == [PortMapping(Method.UPNP, 50001, "203.0.113.5")]
    assert len(world.router.requests) == 2 * len(portmap.TRIES)
    world.run(3600.0)
    assert world.wanted == pytest.approx([1.75 + n * portmap.UPNP_INTERVAL for n in range(6)])
    assert len(world.changes) == 1


def test_a_router_that_gives_nothing_is_asked_ever_more_seldom() -> None:
    world = World(FakeRouter())
    world.run(6 * 3600.0)
    assert world.changes == []
    gaps = [later - earlier for earlier, later in zip(world.wanted, world.wanted[1:], strict=False)]
    assert gaps[:3] == pytest.approx([61.75, 301.75, 1801.75])
    assert max(gaps) == pytest.approx(1801.75)


@pytest.mark.parametrize("code", [2, 3, 7, 8, 10, 255])
def test_a_refusal_leads_to_the_next_method_and_then_to_a_pause(code: int) -> None:
    router = FakeRouter(Version.PCP, Version.NAT_PMP)
    router.refusals = {Version.PCP: code, Version.NAT_PMP: 3}
    world = World(router)
    world.run(30.0)
    assert world.changes == []
    assert len(world.wanted) == 1
    assert not router.is_mapped


def test_a_mapping_is_renewed_at_half_its_lease_and_not_reported_again() -> None:
    world = World(FakeRouter(Version.PCP))
    world.run(4 * 3600.0 + 1)
    renewals = [at for at, data in world.router.requests if data[1] == 1]
    assert renewals == pytest.approx([0.0, 3600.0, 7200.0, 10800.0, 14400.0])
    assert len(world.changes) == 1


def test_no_lease_makes_it_renew_more_often_than_each_half_minute() -> None:
    world = World(router := FakeRouter(Version.PCP))
    router.lifetime = 1
    world.mapper.handle_router(None, now=0.0)
    world.mapper.handle_router(ROUTER, now=0.0)
    world.drain()
    router.requests.clear()
    world.run(3600.0)
    assert len([at for at, data in router.requests if data[1] == 1]) <= 3600 / portmap.MIN_RENEWAL + 1


@pytest.mark.parametrize("version", list(Version))
def test_a_router_that_was_started_anew_gets_the_mapping_again_within_a_minute(version: Version) -> None:
    world = World(router := FakeRouter(version))
    world.run(1000.0)
    router.restart(1000.0)
    router.external_port = 50007
    world.run(1000.0 + portmap.CHECK_INTERVAL)
    assert router.is_mapped
    assert [change.port for change in world.changes if change is not None] == [50000, 50007]


def test_its_announcement_brings_the_mapping_back_at_once() -> None:
    world = World(router := FakeRouter(Version.PCP, Version.NAT_PMP))
    world.run(1000.0)
    world.announce()
    world.run(1001.0)
    router.restart(1001.0)
    assert world.announce() is None
    world.run(1001.0)
    assert router.is_mapped


def test_forged_announcements_make_it_renew_each_few_seconds_at_most() -> None:
    world = World(router := FakeRouter(Version.PCP, Version.NAT_PMP))
    world.run(100.0)
    router.requests.clear()
    for step in range(10_000):
        router.started_at = 100.0 if step % 2 else -100_000.0
        world.announce()
        world.run(100.0 + step / 100)
    assert len(router.requests) <= 100 / portmap.MIN_CHECK * 2 + 4


def test_a_router_that_falls_silent_keeps_the_mapping_until_the_lease_is_over() -> None:
    world = World(router := FakeRouter(Version.PCP))
    world.run(10.0)
    router.speaks.clear()
    world.run(7100.0)
    assert len(world.changes) == 1
    world.run(7300.0)
    assert world.changes[-1] is None
    assert len(router.requests) < 400


def test_a_router_that_comes_back_during_its_pause_is_asked_at_its_announcement() -> None:
    world = World(router := FakeRouter())
    world.run(30.0)
    router.speaks = {Version.PCP}
    world.announce(Version.PCP)
    world.run(31.0)
    assert world.changes == [PortMapping(Method.PCP, 50000, "203.0.113.5")]


def test_another_router_or_none_ends_the_mapping() -> None:
    world = World(FakeRouter(Version.PCP))
    world.mapper.handle_router(Router("192.168.7.1", "192.168.7.2"), now=5.0)
    assert [data[:2] for data in world.mapper.take_transmits()] == [b"\2\0", b"\0\0"]
    world.mapper.handle_router(None, now=6.0)
    world.drain()
    assert world.changes[-1] is None
    assert world.mapper.next_timeout() is None


@pytest.mark.parametrize("version", list(Version))
def test_stopping_ends_the_mapping(version: Version) -> None:
    world = World(router := FakeRouter(version))
    world.run(1.0)
    assert world.mapper.mapping is not None
    world.mapper.handle_stop(now=1.0)
    for data in world.mapper.take_transmits():
        router.answer(data, 1.0)
    assert not router.is_mapped
    assert world.mapper.next_timeout() is None


def test_what_does_not_come_from_the_router_or_is_not_ours_changes_nothing() -> None:
    world = World(router := FakeRouter(Version.PCP))
    (request,) = [data for _, data in router.requests if data[1] == 1]
    world.mapper.handle_timeout(now=3600.0)  # a renewal is under way
    world.mapper.take_transmits()
    answer = router.answer(request, 3600.0)
    assert answer is not None
    before = world.mapper.mapping
    for data, source, reason in (
        (answer, Address("192.168.1.66", pcp.PORT), DropReason.UNEXPECTED),
        (answer, Address("192.168.1.1", 5352), DropReason.UNEXPECTED),
        (answer[:24] + bytes(12) + answer[36:], SOURCE, DropReason.NOT_FOR_US),
        (answer[:40] + b"\0\7" + answer[42:], SOURCE, DropReason.NOT_FOR_US),
        (answer[:42] + b"\0\0" + answer[44:], SOURCE, DropReason.MALFORMED),
        (answer[:4] + bytes(4) + answer[8:], SOURCE, DropReason.MALFORMED),
        (b"\0\x81\0\0" + bytes(4) + b"\xa0\x28\xc0\0" + b"\0\0\x0e\x10", SOURCE, DropReason.UNEXPECTED),
        (b"garbage", SOURCE, DropReason.TOO_SHORT),
    ):
        assert world.mapper.handle_datagram(data, source, now=3600.0) is reason
    assert world.mapper.mapping == before
    assert world.mapper.handle_datagram(answer, SOURCE, now=3600.0) is None
    assert world.mapper.handle_datagram(answer, SOURCE, now=3600.0) is DropReason.UNEXPECTED, "it came already"
