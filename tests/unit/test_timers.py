"""Deadlines that follow from stamps, against the kernel driver's timers that packets arm.

The twin of the engine writes the stamps; `KernelTimers` is armed by the same packets. Whatever happens, both must want
the same things at the same times.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from meshvpn.proto import timers
from meshvpn.proto.constants import KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_TIMEOUT
from meshvpn.proto.dataplane import DataPlane
from meshvpn.proto.drops import DropReason
from meshvpn.proto.timers import NEVER, SilenceTimer, Stamps
from meshvpn.proto.transport import Address, Path

TRACES = 600
START = 1000.0
MAX_FIRED = 1000
NO_PERSISTENT = 10_000.0
"""An interval that no trace lives to see."""


@pytest.mark.parametrize("group", range(6))
def test_stamps_give_the_deadlines_of_the_kernel_drivers_timers(group: int) -> None:
    for seed in range(group * TRACES // 6, (group + 1) * TRACES // 6):
        play(seed, random.Random(seed))


def test_nothing_is_due_for_a_peer_that_was_never_spoken_to() -> None:
    assert timers.keepalive_at(Stamps()) is None
    assert SilenceTimer().due_at(Stamps()) is None


def test_each_deadline_is_its_stamp_and_the_papers_interval() -> None:
    assert timers.keepalive_at(Stamps(first_received_at=5.0)) == 15.0
    assert SilenceTimer().due_at(Stamps(first_sent_at=5.0)) == 20.0
    assert timers.zero_at(5.0) == 545.0
    stamps = Stamps(last_sent_at=7.0, last_authenticated_at=6.0)
    assert timers.persistent_keepalive_at(stamps, 25.0, 5.0) == 32.0
    assert timers.persistent_keepalive_at(stamps, 25.0, 9.0) == 34.0


def test_a_silence_is_doubted_once_and_again_only_after_more_was_sent() -> None:
    silence = SilenceTimer()
    assert silence.due_at(Stamps(first_sent_at=10.0, last_sent_at=12.0)) == 25.0
    silence.handle_fired(now=25.0)
    assert silence.due_at(Stamps(first_sent_at=10.0, last_sent_at=12.0)) is None
    assert silence.due_at(Stamps(first_sent_at=10.0, last_sent_at=30.0)) == 45.0
    assert silence.due_at(Stamps(first_sent_at=10.0, last_sent_at=44.0)) == 45.0
    silence.handle_fired(now=45.0)
    assert silence.due_at(Stamps(first_sent_at=10.0, last_sent_at=44.0)) is None


def test_a_new_silence_after_an_answer_is_doubted_from_its_own_beginning() -> None:
    silence = SilenceTimer()
    silence.handle_fired(now=25.0)
    assert silence.due_at(Stamps(first_sent_at=NEVER, last_sent_at=26.0)) is None
    assert silence.due_at(Stamps(first_sent_at=30.0, last_sent_at=31.0)) == 45.0


# The model.


class KernelTimers:
    """What drivers/net/wireguard/timers.c does at each hook, under its names, without the jitter and one oversight.

    The driver keeps `need_another_keepalive` when a packet of ours makes the keepalive needless; the next one is then
    followed by another although nothing more arrived.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.send_keepalive: float | None = None
        self.need_another_keepalive = False
        self.new_handshake: float | None = None
        self.zero_key_material: float | None = None
        self.persistent_keepalive: float | None = None

    def data_sent(self, now: float) -> None:
        if self.new_handshake is None:
            self.new_handshake = now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT

    def data_received(self, now: float) -> None:
        if self.send_keepalive is None:
            self.send_keepalive = now + KEEPALIVE_TIMEOUT
        else:
            self.need_another_keepalive = True

    def any_authenticated_packet_sent(self) -> None:
        self.send_keepalive = None
        self.need_another_keepalive = False

    def any_authenticated_packet_received(self) -> None:
        self.new_handshake = None

    def any_authenticated_packet_traversal(self, now: float) -> None:
        self.persistent_keepalive = now + self.interval

    def session_derived(self, now: float) -> None:
        self.zero_key_material = now + 3 * REJECT_AFTER_TIME

    def deadlines(self) -> dict[str, float | None]:
        return {
            "keepalive": self.send_keepalive,
            "handshake": self.new_handshake,
            "zero": self.zero_key_material,
            "persistent": self.persistent_keepalive,
        }


class Bench:
    """One peer of one node, as packets and as timers. Every method is one thing that happens at `now`."""

    def __init__(self, interval: float) -> None:
        self.near, self.far = make_plane(A_HOST, B_HOST), make_plane(B_HOST, A_HOST)
        self.kernel = KernelTimers(interval)
        self.silence = SilenceTimer()
        self.interval = interval
        self.keypair_at: float | None = None
        self.handshakes = 0
        self.staged = 0
        self.has_doubted = False

    def stamps(self) -> Stamps:
        stats = self.near.stats(1)
        return Stamps(
            stats.first_sent_at,
            stats.first_received_at,
            stats.more_arrived,
            stats.last_authenticated_at,
            stats.last_sent_at,
        )

    def deadlines(self) -> dict[str, float | None]:
        stamps, has_keys = self.stamps(), self.keypair_at is not None
        since = START if self.keypair_at is None else self.keypair_at
        return {
            "keepalive": timers.keepalive_at(stamps),
            "handshake": self.silence.due_at(stamps),
            "zero": timers.zero_at(since) if has_keys else None,
            "persistent": timers.persistent_keepalive_at(stamps, self.interval, since) if has_keys else None,
        }

    def has_session(self, now: float) -> bool:
        return self.keypair_at is not None and now - self.keypair_at < REJECT_AFTER_TIME

    def send_data(self, now: float) -> None:
        self.near.handle_packet(packet(A_HOST, B_HOST), now=now)
        self.near.take_transmits()
        if self.has_session(now):
            self.note_sent(now, has_data=True)
        else:
            self.staged += 1

    def receive_data(self, now: float) -> None:
        if self.has_session(now):
            self.far.handle_packet(packet(B_HOST, A_HOST), now=now)
            self.deliver(now)
            self.kernel.data_received(now)

    def receive_keepalive(self, now: float) -> None:
        if self.has_session(now):
            self.far.handle_time(now=now)
            self.far.send_keepalive(1)
            self.deliver(now)

    def deliver(self, now: float) -> None:
        for transmit in self.far.take_transmits():
            self.near.handle_datagram(transmit.data, PATH, now=now)
        assert self.near.drops().get(DropReason.DECRYPT_FAILED.value, 0) == 0
        self.kernel.any_authenticated_packet_received()
        self.kernel.any_authenticated_packet_traversal(now)

    def shake_hands(self, now: float) -> None:
        self.handshakes += 1
        install(self.far, self.handshakes, now, is_initiator=True)
        install(self.near, self.handshakes, now, is_initiator=True)
        self.near.take_transmits()
        self.keypair_at = now
        self.kernel.any_authenticated_packet_received()
        self.kernel.any_authenticated_packet_traversal(now)
        self.kernel.session_derived(now)
        if self.staged:
            self.staged = 0
            self.note_sent(now, has_data=True)

    def note_sent(self, now: float, *, has_data: bool) -> None:
        self.kernel.any_authenticated_packet_sent()
        self.kernel.any_authenticated_packet_traversal(now)
        if has_data:
            self.kernel.data_sent(now)

    def fire(self, name: str, now: float) -> None:
        match name:
            case "keepalive" | "persistent":
                self.near.handle_time(now=now)
                is_sent = self.near.send_keepalive(1)
                assert is_sent == self.has_session(now)
                self.near.take_transmits()
                again = self.kernel.need_another_keepalive
                self.note_sent(now, has_data=False)
                if again:
                    self.kernel.send_keepalive = now + KEEPALIVE_TIMEOUT
            case "handshake":
                self.has_doubted = True
                self.silence.handle_fired(now=now)
                self.kernel.new_handshake = None
            case _:
                self.near.forget_keypairs(1)
                self.far.forget_keypairs(1)
                self.keypair_at = self.kernel.zero_key_material = None


def play(seed: int, source: random.Random) -> None:
    bench, now = Bench(interval=source.choice([17.0, 25.0, *[NO_PERSISTENT] * 4])), START
    bench.shake_hands(now)
    pause = source.choice([2.0, 8.0, 30.0])
    actions = choose_actions(bench, source)
    end, fired = START + 600, 0
    while now < end:
        next_action = now + source.expovariate(1 / pause)
        while (due := first_due(bench)) is not None and due[0] <= next_action:
            now, fired = max(now, due[0]), fired + 1
            assert fired < MAX_FIRED, f"trace {seed} never goes quiet"
            bench.fire(due[1], now)
            compare(seed, now, bench)
        now = next_action
        source.choice(actions)(now)
        compare(seed, now, bench)


def choose_actions(bench: Bench, source: random.Random) -> list[Callable[[float], None]]:
    """What can happen in a trace, by weight: some have no handshakes, some hear nothing, some only listen."""
    return [
        *[bench.send_data] * source.randrange(4),
        *[bench.receive_data] * source.randrange(4),
        *[bench.receive_keepalive] * source.randrange(2),
        *[bench.shake_hands] * source.randrange(2),
        bench.send_data,
    ]


def first_due(bench: Bench) -> tuple[float, str] | None:
    # A keepalive that has no session to go through waits for the next one.
    due = [(at, name) for name, at in bench.deadlines().items() if at is not None]
    due = [(at, name) for at, name in due if name not in ("keepalive", "persistent") or bench.has_session(at)]
    return min(due, default=None)


def compare(seed: int, now: float, bench: Bench) -> None:
    expected, got = bench.kernel.deadlines(), bench.deadlines()
    if not bench.has_session(now):
        for name in ("keepalive", "persistent"):
            del expected[name], got[name]
    if bench.interval != NO_PERSISTENT and bench.has_doubted:
        # Stamps do not tell a keepalive from data: with persistent ones an unanswered session is doubted again.
        del expected["handshake"], got["handshake"]
    assert got == expected, f"trace {seed} at {now}"


A_HOST, B_HOST = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
PATH = Path(0, Address("192.0.2.1", 1000))


def make_plane(own: bytes, other: bytes) -> DataPlane:
    plane = DataPlane()
    plane.add_peer(1)
    plane.add_route(other, 32, 1)
    plane.set_endpoint(1, 0, PATH.remote.host, PATH.remote.port)
    return plane


def install(plane: DataPlane, index: int, now: float, *, is_initiator: bool) -> None:
    key = bytes([index % 256]) * 32
    plane.install_keypair(
        1,
        local_index=index,
        remote_index=index,
        send_key=key,
        receive_key=key,
        is_initiator=is_initiator,
        created_at=now,
    )


def packet(source: bytes, destination: bytes) -> bytes:
    return b"\x45\0\0\x1c" + bytes(8) + source + destination + bytes(8)
