"""Tags of a daemon's runs, notices to copies, and questions to peers whether they are there."""

from __future__ import annotations

import random

import pytest

from meshvpn.proto import clones, disco
from meshvpn.proto.clones import PATIENCE, PINGS, Challenges
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import MalformedMessage
from meshvpn.proto.primitives import x25519_public
from meshvpn.proto.transport import Address, Path
from meshvpn.proto.wireguard import OtherInstance, SessionEstablished, WireGuard

MAC1 = bytes(range(16))
PATH = Path(0, Address("192.0.2.1", 1000))
WALL_NS = 1_700_000_000 * 10**9
HERE, THERE = b"h" * 32, b"t" * 32
ENTROPY = random.Random(1).randbytes


def test_runs_have_other_names_and_tags() -> None:
    names = {clones.instance_of(disco.public_key(ENTROPY(32))) for _ in range(50)}
    assert len(names) == 50
    assert {len(name) for name in names} == {clones.INSTANCE}
    assert all(0 <= clones.tag_of(disco.public_key(ENTROPY(32))) < 1 << 16 for _ in range(50))


def test_a_notice_opens_at_who_sent_the_initiation_and_nowhere_else() -> None:
    notice = clones.seal_notice(HERE, x25519_public(THERE), 7, MAC1, ENTROPY)
    assert clones.is_notice(notice)
    assert not disco.is_disco(notice)
    assert len(notice) < 148, "it answers an initiation and must not be longer"
    assert clones.notice_sender(notice) == x25519_public(HERE)
    assert clones.open_notice(THERE, notice) == (7, MAC1)
    with pytest.raises(MalformedMessage):
        clones.open_notice(b"s" * 32, notice)


def test_a_notice_that_was_changed_or_comes_from_a_weak_key_is_dropped() -> None:
    notice = bytearray(clones.seal_notice(HERE, x25519_public(THERE), 7, MAC1, ENTROPY))
    weak = bytes(notice[:6]) + bytes(32) + bytes(notice[38:])
    notice[-1] ^= 1
    for data in (bytes(notice), weak):
        with pytest.raises(MalformedMessage) as caught:
            clones.open_notice(THERE, data)
        assert caught.value.reason is DropReason.DECRYPT_FAILED


def test_a_question_is_a_few_pings_and_then_a_verdict() -> None:
    challenges, now, pings = Challenges(), 10.0, 0
    challenges.start(1, 0.04, now=now)
    while (at := challenges.next_timeout()) is not None:
        now = at
        pinged, silent = challenges.take_due(now=now)
        pings += len(pinged)
    assert pings == PINGS
    assert silent == [1]
    assert now == pytest.approx(10.0 + PATIENCE[0] + 4 * 0.04)


def test_a_long_round_trip_gets_more_time_but_not_too_much() -> None:
    challenges = Challenges()
    challenges.start(1, 5.0, now=0.0)
    challenges.start(2, 0.0, now=0.0)
    verdicts: dict[int, float] = {}
    while (at := challenges.next_timeout()) is not None:
        verdicts |= dict.fromkeys(challenges.take_due(now=at)[1], at)
    assert verdicts == pytest.approx({1: PATIENCE[1], 2: PATIENCE[0]})


def test_only_a_sign_of_life_after_the_question_answers_it() -> None:
    challenges = Challenges()
    assert not challenges.handle_sign(1, 5.0)
    challenges.start(1, 0.0, now=10.0)
    assert not challenges.handle_sign(1, 10.0)
    assert challenges.handle_sign(1, 10.1)
    assert not challenges.handle_sign(1, 10.2)
    assert challenges.next_timeout() is None


def test_handshakes_carry_the_tag_in_the_half_that_engines_do_not_sort_by() -> None:
    a, b = pair(0xABCD)
    indices = set()
    for step in range(200):
        a.handle_handshake_wanted(1, now=float(step), wall_ns=WALL_NS + step * 10**9)
        (transmit,) = a.take_transmits()
        b.handle_datagram(transmit.data, PATH, now=float(step), wall_ns=WALL_NS)
        a.handle_datagram(b.take_transmits()[0].data, PATH, now=float(step), wall_ns=WALL_NS)
        indices.add(int.from_bytes(transmit.data[4:8], "little"))
    assert {clones.tag_in(index) for index in indices} == {0xABCD}
    assert len(indices) > 190


def test_a_handshake_of_another_run_is_kept_until_somebody_decides() -> None:
    a, b = pair(1)
    b.set_tag(1, 2)
    a.handle_handshake_wanted(1, now=0.0, wall_ns=WALL_NS)
    data = a.take_transmits()[0].data
    assert b.handle_datagram(data, PATH, now=0.1, wall_ns=WALL_NS) is DropReason.CLONED
    assert not b.take_transmits()
    (other,) = b.take_events()
    assert isinstance(other, OtherInstance)
    b.set_tag(1, None)
    b.handle_accepted(other, now=0.5, wall_ns=WALL_NS)
    assert a.handle_datagram(b.take_transmits()[0].data, PATH, now=0.6, wall_ns=WALL_NS) is None
    assert [event.tag for event in b.take_events() if isinstance(event, SessionEstablished)] == [1]


def test_an_answer_of_another_run_is_not_used_and_asked_for_again() -> None:
    a, b = pair(1)
    a.set_tag(1, 9)
    a.handle_handshake_wanted(1, now=0.0, wall_ns=WALL_NS)
    b.handle_datagram(a.take_transmits()[0].data, PATH, now=0.0, wall_ns=WALL_NS)
    assert a.handle_datagram(b.take_transmits()[0].data, PATH, now=0.0, wall_ns=WALL_NS) is DropReason.CLONED
    (other,) = a.take_events()
    assert isinstance(other, OtherInstance)
    a.set_tag(1, None)
    a.handle_accepted(other, now=1.0, wall_ns=WALL_NS)
    b.handle_datagram(a.take_transmits()[0].data, PATH, now=1.0, wall_ns=WALL_NS)
    assert a.handle_datagram(b.take_transmits()[0].data, PATH, now=1.0, wall_ns=WALL_NS) is None


def test_who_is_told_that_it_is_a_copy_waits_and_only_for_what_it_sent_last() -> None:
    a, _ = pair(1)
    a.handle_handshake_wanted(1, now=0.0, wall_ns=WALL_NS)
    data = a.take_transmits()[0].data
    index, mac1 = int.from_bytes(data[4:8], "little"), data[116:132]
    assert a.handle_refusal(1, index, bytes(16), 60.0, now=0.0) is DropReason.UNEXPECTED
    assert a.handle_refusal(1, index ^ 1, mac1, 60.0, now=0.0) is DropReason.UNEXPECTED
    assert a.next_timeout() == 1.0
    assert a.handle_refusal(1, index, mac1, 60.0, now=0.5) is None
    a.handle_path_available(1, now=10.0, wall_ns=WALL_NS)
    a.handle_handshake_wanted(1, now=20.0, wall_ns=WALL_NS)
    assert not a.take_transmits()
    assert a.next_timeout() == 60.5
    a.handle_timeout(now=60.5, wall_ns=WALL_NS)
    assert len(a.take_transmits()) == 1


def pair(tag: int) -> tuple[WireGuard, WireGuard]:
    """The first one's handshakes carry the tag; the second one's do not care."""
    entropy = random.Random(2).randbytes
    a, b = WireGuard(HERE, entropy=entropy, tag=tag), WireGuard(THERE, entropy=entropy)
    a.add_peer(1, b.public_key)
    b.add_peer(1, a.public_key)
    return a, b
