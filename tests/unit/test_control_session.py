"""The control connection: openings, refusals, backoff, unanswered requests, and a server that speaks out of turn."""

from __future__ import annotations

import random

import pytest

from meshvpn.proto import control
from meshvpn.proto.control import Attached, Done, Goodbye, Refused, RelayGrant, Signal, Welcome
from meshvpn.proto.control_session import (
    BACKOFF_FIRST,
    BACKOFF_LAST,
    BACKOFF_REFUSED,
    MAX_PENDING,
    MAX_WORDS,
    OPEN_TIMEOUT,
    REQUEST_TIMEOUT,
    ConnectWanted,
    ControlSession,
    DisconnectWanted,
    RequestFinished,
    SessionAttached,
    SessionLost,
    SessionRefused,
    SessionState,
    attach_opening,
    create_opening,
    join_opening,
)
from meshvpn.proto.drops import DropReason
from meshvpn.proto.errors import StateError
from meshvpn.proto.keys import Identity, verify_detached
from meshvpn.proto.signed import DOMAIN_SESSION, Signed

WHO = Identity(bytes(31) + b"w")
UID = bytes(range(16))
WELCOME = Welcome(version=1, nonce=b"N" * 32, observed_host="", udp_port=1, udp_port2=2, software="")
CHARTER = Signed(b"c", b"s", b"g")
SIGNAL = Signal(to=bytes(32), payload=b"p")


def attached(rid: int) -> Attached:
    return Attached(rid=rid, address="10.0.0.1", charter=CHARTER, members=[], online=[], relay=RelayGrant(1, bytes(32)))


def leave(rid: int) -> control.Request:
    return control.PutLeave(rid=rid, leave=CHARTER)


@pytest.fixture
def session() -> ControlSession:
    return ControlSession(attach_opening(WHO, UID), entropy=random.Random(1).randbytes)


@pytest.fixture
def open_session(session: ControlSession) -> ControlSession:
    go_in(session, now=1.0)
    session.take_events()
    return session


def test_an_opening_proves_the_identity_to_this_connection_and_no_other(session: ControlSession) -> None:
    for opening, subject in (
        (attach_opening(WHO, UID), UID),
        (join_opening(WHO, b"L" * 32), b"L" * 32),
        (create_opening(WHO, UID, CHARTER), UID),
    ):
        request = opening(7, WELCOME.nonce)
        assert request.rid == 7
        assert verify_detached(WHO.public, request.proof, DOMAIN_SESSION + WELCOME.nonce + subject)
        assert not verify_detached(WHO.public, request.proof, DOMAIN_SESSION + b"M" * 32 + subject)


def test_the_session_goes_in_step_by_step(session: ControlSession) -> None:
    assert session.next_timeout() is None
    session.handle_start(now=1.0)
    session.handle_start(now=1.0)
    assert session.take_events() == [ConnectWanted()]
    session.handle_connected(now=1.5)
    assert session.next_timeout() == 1.5 + OPEN_TIMEOUT
    assert hear(session, WELCOME, now=1.6) is None
    assert (session.is_opening, session.is_attached) == (True, False)
    (request,) = session.take_messages()
    answer = attached(control.decode_request(request).rid)  # type: ignore[union-attr]
    assert hear(session, answer, now=1.7) is None
    assert session.take_events() == [SessionAttached(answer, WELCOME)]
    assert (session.is_opening, session.is_attached) == (False, True)
    assert session.next_timeout() is None


def test_what_comes_out_of_turn_is_unexpected_and_changes_nothing(open_session: ControlSession) -> None:
    for message in (WELCOME, attached(1), attached(99), Done(rid=99), Refused(rid=99, code="x", message="")):
        assert hear(open_session, message, now=2.0) is DropReason.UNEXPECTED
    assert open_session.is_attached
    assert open_session.take_events() == []


def test_nothing_is_taken_before_the_welcome_or_after_the_end(session: ControlSession) -> None:
    presence = control.Presence(entry=control.PresenceEntry(bytes(32), 1))
    session.handle_start(now=0.0)
    for happens in (session.handle_start, session.handle_connected, session.handle_stop):
        happens(now=1.0)
        for message in (presence, attached(1), attached(0), Done(rid=0)):
            assert hear(session, message, now=1.0) is DropReason.UNEXPECTED
    assert session.handle_message(b"rubbish", now=3.0) is DropReason.MALFORMED


def test_a_connection_that_nobody_asked_for_is_our_own_mistake(session: ControlSession) -> None:
    with pytest.raises(StateError, match="idle"):
        session.handle_connected(now=1.0)


@pytest.mark.parametrize("stage", ["connected", "welcomed"])
def test_a_server_that_keeps_silent_is_left(session: ControlSession, stage: str) -> None:
    session.handle_start(now=0.0)
    session.handle_connected(now=0.0)
    if stage == "welcomed":
        hear(session, WELCOME, now=0.0)
    session.take_events()
    session.handle_timeout(now=OPEN_TIMEOUT - 0.1)
    assert session.take_events() == []
    session.handle_timeout(now=OPEN_TIMEOUT)
    assert session.take_events() == [DisconnectWanted()]
    assert session.state is SessionState.WAITING
    session.handle_disconnected(now=OPEN_TIMEOUT)  # the shell reports that it closed
    assert session.state is SessionState.WAITING


def test_the_wait_grows_to_its_bound_and_starts_over_after_success(session: ControlSession) -> None:
    waits, now = [], 0.0
    session.handle_start(now=now)
    for _ in range(40):
        session.handle_disconnected(now=now)
        at = session.next_timeout()
        assert at is not None
        waits.append(at - now)
        now = at
        session.handle_timeout(now=now)
    assert max(waits) < BACKOFF_LAST
    assert waits[0] < BACKOFF_FIRST
    assert max(waits[-20:]) > BACKOFF_LAST / 2
    go_in(session, now=now)
    session.handle_disconnected(now=now)
    assert (session.next_timeout() or 0) - now < BACKOFF_FIRST


@pytest.mark.parametrize(("code", "is_slow"), [("evicted", True), ("not_a_member", True), ("rate_limited", False)])
def test_a_refusal_that_only_people_can_lift_is_not_hurried(session: ControlSession, code: str, is_slow: bool) -> None:
    session.handle_start(now=0.0)
    session.handle_connected(now=0.0)
    hear(session, WELCOME, now=0.0)
    session.take_events()
    hear(session, Refused(rid=session._opening_rid, code=code, message="no"), now=1.0)
    assert session.take_events() == [SessionRefused(code, "no"), DisconnectWanted()]
    wait = (session.next_timeout() or 0) - 1.0
    assert (BACKOFF_REFUSED / 2 <= wait <= BACKOFF_REFUSED) == is_slow
    session.handle_retry(now=2.0)  # the user, or the network, says that something changed
    assert session.take_events() == [ConnectWanted()]


def test_being_told_to_go_counts_only_for_good_reasons(open_session: ControlSession) -> None:
    hear(open_session, Goodbye(code="restarting", message="soon"), now=2.0)
    assert open_session.take_events() == []
    hear(open_session, Goodbye(code="evicted", message="out"), now=2.0)
    assert open_session.refusal == SessionRefused("evicted", "out")
    open_session.handle_disconnected(now=3.0)
    assert open_session.take_events() == [SessionRefused("evicted", "out"), SessionLost()]


def test_every_request_ends_exactly_once(open_session: ControlSession) -> None:
    done, refused, late, lost = (open_session.request(leave, now=float(now)) for now in (2, 2, 2, 11))
    assert len(open_session.take_messages()) == 4
    hear(open_session, Done(rid=done), now=3.0)
    hear(open_session, Refused(rid=refused, code="not_allowed", message="no"), now=3.0)
    assert open_session.next_timeout() == 2.0 + REQUEST_TIMEOUT
    open_session.handle_timeout(now=2.0 + REQUEST_TIMEOUT)
    open_session.handle_disconnected(now=13.0)
    finished = [(event.rid, event.code) for event in open_session.take_events() if isinstance(event, RequestFinished)]
    assert finished == [(done, None), (refused, "not_allowed"), (late, "unavailable"), (lost, "unavailable")]
    assert hear(open_session, Done(rid=done), now=14.0) is DropReason.UNEXPECTED


def test_requests_are_bounded_and_fail_at_once_without_a_connection(session: ControlSession) -> None:
    rid = session.request(leave, now=0.0)
    assert [(event.rid, event.code) for event in session.take_events() if isinstance(event, RequestFinished)] == [
        (rid, "unavailable")
    ]
    go_in(session, now=1.0)
    session.take_events()
    for _ in range(MAX_PENDING + 3):
        session.request(leave, now=2.0)
    assert len([event for event in session.take_events() if isinstance(event, RequestFinished)]) == 3


def test_what_was_not_sent_is_not_sent_on_the_next_connection(open_session: ControlSession) -> None:
    assert open_session.send(SIGNAL)
    open_session.handle_disconnected(now=2.0)
    assert not open_session.send(SIGNAL)
    assert open_session.take_messages() == []


def test_a_stopped_session_closes_fails_what_is_open_and_stays_closed(open_session: ControlSession) -> None:
    rid = open_session.request(leave, now=2.0)
    open_session.handle_stop(now=3.0)
    assert open_session.take_events() == [
        DisconnectWanted(),
        RequestFinished(rid, "unavailable", "the daemon closed the connection"),
    ]
    open_session.handle_disconnected(now=4.0)
    open_session.handle_retry(now=5.0)
    assert open_session.next_timeout() is None
    assert open_session.state is SessionState.IDLE


def test_after_the_first_time_it_comes_back_as_a_member() -> None:
    session = ControlSession(join_opening(WHO, b"L" * 32), entropy=random.Random(1).randbytes)
    assert isinstance(go_in(session, now=1.0), control.Join)
    session.use_attach(attach_opening(WHO, UID))
    session.handle_disconnected(now=2.0)
    session.handle_retry(now=2.0)
    assert isinstance(go_in(session, now=3.0), control.Attach)


def test_the_servers_words_are_short_and_carry_no_control_sequences(session: ControlSession) -> None:
    harm, shown = "\x1b]0;x\x07\r\n\u202e" + "long " * 100_000, "?]0;x????long "
    session.handle_start(now=0.0)
    session.handle_connected(now=0.0)
    hear(session, WELCOME, now=0.0)
    hear(session, Refused(rid=session._opening_rid, code=harm, message=harm), now=1.0)
    session.handle_retry(now=2.0)
    go_in(session, now=2.0)
    rid = session.request(leave, now=3.0)
    hear(session, Refused(rid=rid, code=harm, message=harm), now=3.0)
    hear(session, Goodbye(code="evicted", message=harm), now=3.0)
    told = [event for event in session.take_events() if isinstance(event, SessionRefused | RequestFinished)]
    assert [event.message[: len(shown)] for event in told] == [shown] * 3
    assert all(len(event.message) <= MAX_WORDS for event in told)
    assert all(event.code is not None and event.code.isprintable() for event in told)


def go_in(session: ControlSession, *, now: float) -> control.Request:
    """All the way; the opening request."""
    session.handle_start(now=now)
    session.handle_connected(now=now)
    hear(session, WELCOME, now=now)
    (data,) = session.take_messages()
    request = control.decode_request(data)
    hear(session, attached(session._opening_rid), now=now)
    return request


def hear(session: ControlSession, message: control.Response, *, now: float) -> object:
    return session.handle_message(control.encode(message), now=now)
