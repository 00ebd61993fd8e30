"""Two machines joined by functions; loss is not calling one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshvpn.proto.drops import DropReason
from meshvpn.proto.transport import Address, Path
from meshvpn.proto.wireguard import HandshakeGaveUp, InstallKeypair, SendKeepalive, WireGuard

PATH = Path(0, Address("192.0.2.1", 1000))
WALL = 1_700_000_000_000_000_000
Pair = tuple[WireGuard, WireGuard]


def test_a_handshake_gives_both_ends_the_same_keys(pair: Pair) -> None:
    initiator, responder = pair
    initiator.handle_handshake_wanted(1, now=0.0, wall_ns=WALL)
    transfer(initiator, responder, 0.1)
    transfer(responder, initiator, 0.2)
    ours, theirs = keypair(initiator), keypair(responder)
    assert (ours.send_key, ours.receive_key) == (theirs.receive_key, theirs.send_key)
    assert (ours.local_index, ours.remote_index) == (theirs.remote_index, theirs.local_index)
    assert ours.is_initiator
    assert not theirs.is_initiator


def test_an_old_epochs_key_is_accepted_from_either_end(entropy: Callable[[int], bytes]) -> None:
    old, new = bytes(32), bytes([1]) * 32
    initiator, responder = make_pair(entropy, [new, old], [old])
    initiator.handle_handshake_wanted(1, now=0.0, wall_ns=WALL)
    transfer(initiator, responder, 0.1)
    transfer(responder, initiator, 0.2)
    assert keypair(initiator).send_key == keypair(responder).receive_key


def test_the_responder_tries_its_older_key_on_a_retry(entropy: Callable[[int], bytes]) -> None:
    old, new = bytes([2]) * 32, bytes([1]) * 32
    initiator, responder = make_pair(entropy, [old], [new, old])
    initiator.handle_handshake_wanted(1, now=0.0, wall_ns=WALL)
    transfer(initiator, responder, 0.1)
    assert transfer(responder, initiator, 0.2) == [DropReason.DECRYPT_FAILED]
    initiator.handle_timeout(now=1.1, wall_ns=WALL + 10**9)
    transfer(initiator, responder, 1.2)
    assert transfer(responder, initiator, 1.3) == [None]


def test_a_wrong_preshared_key_never_establishes(entropy: Callable[[int], bytes]) -> None:
    initiator, responder = make_pair(entropy, [bytes([1]) * 32], [bytes([2]) * 32])
    initiator.handle_handshake_wanted(1, now=0.0, wall_ns=WALL)
    now, events = 0.0, []
    while (at := initiator.next_timeout()) is not None and now < 200:
        now = at
        transfer(initiator, responder, now)
        assert set(transfer(responder, initiator, now)) <= {DropReason.DECRYPT_FAILED}
        initiator.handle_timeout(now=now, wall_ns=WALL + int(now * 1e9))
        events += initiator.take_events()
    assert events == [HandshakeGaveUp(1)]


def test_a_replayed_initiation_is_refused(pair: Pair) -> None:
    initiator, responder = pair
    initiator.handle_handshake_wanted(1, now=0.0, wall_ns=WALL)
    data = initiator.take_transmits()[0].data
    assert responder.handle_datagram(data, PATH, now=0.1, wall_ns=WALL) is None
    assert responder.handle_datagram(data, PATH, now=5.0, wall_ns=WALL) is DropReason.STALE_TIMESTAMP


def test_every_flipped_byte_of_an_initiation_is_refused(pair: Pair) -> None:
    initiator, responder = pair
    initiator.handle_handshake_wanted(1, now=0.0, wall_ns=WALL)
    data = initiator.take_transmits()[0].data
    for position in range(len(data) - 16):  # mac2 counts under load only
        broken = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        reason = responder.handle_datagram(broken, PATH, now=position * 0.1, wall_ns=WALL)
        assert reason in (DropReason.BAD_MAC1, DropReason.UNKNOWN_TYPE), position
    assert responder.take_events() == []
    assert responder.handle_datagram(data, PATH, now=100.0, wall_ns=WALL) is None


def test_under_load_a_cookie_round_trip_lets_the_handshake_through(pair: Pair) -> None:
    initiator, responder = pair
    initiator.handle_handshake_wanted(1, now=0.0, wall_ns=WALL)
    first = initiator.take_transmits()[0].data
    for _ in range(200):
        responder.handle_datagram(first, PATH, now=0.0, wall_ns=WALL)
    responder.take_transmits()
    initiator.handle_timeout(now=1.0, wall_ns=WALL + 10**9)
    assert transfer(initiator, responder, 0.9) == [DropReason.BAD_MAC2]
    assert transfer(responder, initiator, 0.9) == [None]  # the cookie
    initiator.handle_path_available(1, now=1.3, wall_ns=WALL + 2 * 10**9)
    assert transfer(initiator, responder, 0.95) == [None]


def test_of_two_handshakes_begun_at_once_the_one_of_the_greater_key_stands(pair: Pair) -> None:
    smaller, greater = sorted(pair, key=lambda machine: machine.public_key)
    for machine in pair:
        machine.handle_handshake_wanted(1, now=0.0, wall_ns=WALL)
    for now in (0.1, 0.2):
        crossing = [machine.take_transmits() for machine in (smaller, greater)]
        for target, sent in zip((greater, smaller), crossing, strict=True):
            assert [target.handle_datagram(item.data, PATH, now=now, wall_ns=WALL) for item in sent] == [None]
    installed = {
        name: [event.is_initiator for event in machine.take_events() if isinstance(event, InstallKeypair)]
        for name, machine in (("smaller", smaller), ("greater", greater))
    }
    assert installed == {"smaller": [False], "greater": [False, True]}
    assert smaller._peers[1].attempt is None is greater._peers[1].attempt


@pytest.fixture
def entropy() -> Callable[[int], bytes]:
    return counting_entropy()


@pytest.fixture
def pair(entropy: Callable[[int], bytes]) -> Pair:
    return make_pair(entropy, [bytes(32)], [bytes(32)])


def counting_entropy() -> Callable[[int], bytes]:
    import hashlib

    count = 0

    def draw(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(count.to_bytes(8, "big")).digest(size)

    return draw


def make_pair(entropy: Callable[[int], bytes], ours: list[bytes], theirs: list[bytes]) -> Pair:
    initiator, responder = WireGuard(entropy(32), entropy=entropy), WireGuard(entropy(32), entropy=entropy)
    initiator.add_peer(1, responder.public_key, ours)
    responder.add_peer(1, initiator.public_key, theirs)
    return initiator, responder


def transfer(source: WireGuard, target: WireGuard, now: float) -> list[DropReason | None]:
    sent = source.take_transmits()
    return [target.handle_datagram(item.data, PATH, now=now, wall_ns=WALL) for item in sent]


def keypair(machine: WireGuard) -> InstallKeypair:
    events = machine.take_events()
    assert not any(isinstance(event, SendKeepalive) and event.peer != 1 for event in events)
    return next(event for event in events if isinstance(event, InstallKeypair))
