"""What the server does with messages, without sockets: decisions, storage and who hears of them, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshvpn.proto import control
from meshvpn.proto.control import (
    Attached,
    CharterChanged,
    Done,
    Goodbye,
    MemberChanged,
    MemberLeft,
    Presence,
    PresenceEntry,
    Refused,
    Response,
    Signal,
    Signalled,
)
from meshvpn.proto.keys import Identity
from rendezvous import service as service_module
from rendezvous.connection import Connection
from rendezvous.limits import Limits
from rendezvous.metrics import Metrics
from rendezvous.relay import Relay
from rendezvous.service import Service
from rendezvous.store import ConflictError, Store, Stored
from tests.unit.test_control import any_request

from .memory_store import MemoryStore
from .signing import Network, identity

ANNA, BERT, CARL = identity("anna"), identity("bert"), identity("carl")
NONCE = b"n" * 32


# --- who hears what


async def test_who_attaches_sees_who_is_there_and_the_others_hear_of_it() -> None:
    node = Node()
    network, founder = await node.founded()
    anna = node.connect()
    answer = await node.ask(anna, network.join(ANNA, nonce=NONCE))
    assert isinstance(answer, Attached)
    assert answer.address == "10.7.5.2"
    assert [entry.identity for entry in answer.online] == [network.founder.public]
    assert await node.heard(founder) == [Presence(entry=PresenceEntry(ANNA.public, answer.relay.id))]


async def test_everybody_hears_of_two_changes_in_the_same_order() -> None:
    node = Node()
    network, founder = await node.founded()
    anna, bert, carl = [await node.joined(network, who) for who in (ANNA, BERT, CARL)]
    for connection in (founder, anna, bert, carl):
        await node.heard(connection)
    await asyncio.gather(
        node.ask(founder, network.put_charter(network.change(access="locked"))),
        node.ask(anna, network.put_record(ANNA, "10.7.5.2")),
    )
    kinds = [[type(message) for message in await node.heard(connection)] for connection in (bert, carl)]
    assert kinds[0] == kinds[1]
    assert set(kinds[0]) == {CharterChanged, MemberChanged}


async def test_an_evicted_member_gets_the_charter_and_goodbye_and_is_gone_at_once() -> None:
    node = Node()
    network, founder = await node.founded()
    anna, bert = await node.joined(network, ANNA), await node.joined(network, BERT)
    for connection in (founder, anna, bert):
        await node.heard(connection)
    charter = network.evict(ANNA.public)
    assert await node.ask(founder, network.put_charter(charter)) == Done(rid=2)
    news, goodbye = await node.heard(anna)
    assert isinstance(news, CharterChanged)
    assert (news.charter, isinstance(goodbye, Goodbye)) == (charter, True)
    assert anna.is_closing
    assert await node.heard(bert) == [news]
    node.service.handle_closed(anna)
    assert await node.heard(bert) == []


async def test_an_evicted_member_that_does_not_go_is_not_listened_to() -> None:
    node = Node()
    network, founder = await node.founded()
    anna, bert = await node.joined(network, ANNA), await node.joined(network, BERT)
    await node.ask(founder, network.put_charter(network.evict(ANNA.public)))
    await node.heard(bert)
    await node.say(anna, Signal(to=BERT.public, payload=b"still here"))
    await node.say(anna, network.put_record(ANNA, "10.7.5.2"))
    await node.say(anna, Network(2).create(nonce=NONCE))
    assert await node.heard(bert) == []
    assert await node.memory.count() == 1


async def test_who_is_evicted_while_it_waits_for_its_turn_is_refused() -> None:
    node = Node()
    network, founder = await node.founded()
    anna = await node.joined(network, ANNA)
    evicting = asyncio.create_task(node.say(founder, network.put_charter(network.evict(ANNA.public))))
    await asyncio.sleep(0)
    await node.say(anna, network.put_record(ANNA, "10.7.5.2"))
    await evicting
    assert not any(isinstance(message, MemberChanged) for message in await node.heard(founder))


async def test_who_leaves_hears_that_it_did_and_then_goodbye() -> None:
    node = Node()
    network, founder = await node.founded()
    anna = await node.joined(network, ANNA)
    await node.heard(founder)
    request = network.put_leave(ANNA)
    await node.say(anna, request)
    assert (await node.heard(anna))[-2:] == [Done(rid=2), Goodbye(code="left", message="you left the network")]
    assert anna.is_closing
    assert await node.heard(founder) == [MemberLeft(leave=request.leave)]


async def test_a_member_that_comes_back_replaces_its_connection_and_is_online_throughout() -> None:
    node = Node()
    network, founder = await node.founded()
    older = await node.joined(network, ANNA)
    newer = node.connect()
    await node.heard(older)
    await node.heard(founder)
    answer = await node.ask(newer, network.attach(ANNA, nonce=NONCE))
    assert isinstance(answer, Attached)
    (goodbye,) = await node.heard(older)
    assert isinstance(goodbye, Goodbye)
    assert goodbye.code == "replaced"
    node.service.handle_closed(older)
    assert await node.heard(founder) == [Presence(entry=PresenceEntry(ANNA.public, answer.relay.id))]
    await node.say(founder, Signal(to=ANNA.public, payload=b"hello"))
    assert await node.heard(newer) == [Signalled(source=network.founder.public, payload=b"hello")]


async def test_a_connection_that_ended_while_it_was_let_in_does_not_replace_one_that_lives() -> None:
    node = Node()
    network, _ = await node.founded()
    alive, late = await node.joined(network, ANNA), node.connect()
    attaching = asyncio.create_task(node.say(late, network.attach(ANNA, nonce=NONCE)))
    await asyncio.sleep(0)
    late.close()
    await attaching
    assert node.service.presence.seat(alive) is not None
    assert not alive.is_closing


async def test_a_signal_that_is_too_large_or_comes_too_early_is_refused() -> None:
    node = Node()
    network, founder = await node.founded()
    anna = node.connect()
    await node.say(anna, Signal(to=network.founder.public, payload=b""))
    await node.say(founder, Signal(to=ANNA.public, payload=bytes(control.MAX_SIGNAL + 1)))
    assert [codes(await node.heard(connection)) for connection in (anna, founder)] == [["bad_request"], ["bad_request"]]


async def test_requests_out_of_turn_are_refused_and_the_connection_goes_on() -> None:
    node = Node()
    network, founder = await node.founded()
    stranger = node.connect()
    assert code(await node.ask(founder, network.attach(network.founder, nonce=NONCE))) == "bad_request"
    assert code(await node.ask(stranger, network.put_leave(ANNA))) == "bad_request"
    assert isinstance(await node.ask(stranger, network.join(ANNA, nonce=NONCE)), Attached)


async def test_a_refused_member_gets_the_charter_that_proves_it() -> None:
    node = Node()
    network, founder = await node.founded()
    await node.joined(network, ANNA)
    charter = network.evict(ANNA.public)
    await node.ask(founder, network.put_charter(charter))
    again = node.connect()
    await node.say(again, network.attach(ANNA, nonce=NONCE))
    evidence, refusal = await node.heard(again)
    assert evidence == CharterChanged(charter=charter, members=[])
    assert code(refusal) == "evicted"


async def test_an_evicted_members_relay_seats_are_gone_with_it() -> None:
    node = Node()
    network, founder = await node.founded()
    await node.joined(network, ANNA)
    assert len(node.relay) == 2
    await node.ask(founder, network.put_charter(network.evict(ANNA.public)))
    assert len(node.relay) == 1


async def test_a_proof_for_another_connection_does_not_hold() -> None:
    node = Node()
    network, _ = await node.founded()
    answer = await node.ask(node.connect(), network.join(ANNA, nonce=b"m" * 32))
    assert code(answer) == "bad_signature"


async def test_the_opening_timeout_ends_strangers_and_spares_members() -> None:
    node = Node()
    _, member = await node.founded()
    stranger = node.connect()
    for connection in (member, stranger):
        node.service.handle_opening_timeout(connection)
    assert (member.is_closing, stranger.is_closing) == (False, True)


# --- many at once


async def test_a_herd_on_many_nodes_is_let_in_with_an_address_each() -> None:
    store = MemoryStore()
    nodes = [Node(store=store) for _ in range(16)]
    network, _ = await nodes[0].founded()
    people = [identity(number) for number in range(160)]
    answers = await asyncio.gather(
        *(
            nodes[number % 16].ask(nodes[number % 16].connect(), network.join(person, nonce=NONCE))
            for number, person in enumerate(people)
        )
    )
    addresses = [answer.address for answer in answers if isinstance(answer, Attached)]
    assert len(set(addresses)) == 160
    assert all(len(node.service.locks) == 0 for node in nodes)
    stored = await store.get(network.uid)
    assert stored is not None
    assert {entry.identity for entry in stored.document.members} >= {person.public for person in people}


async def test_of_many_that_create_one_network_at_once_the_founder_is_let_in() -> None:
    node = Node()
    network = Network()
    founders = [network.founder, ANNA, BERT, network.founder]
    answers = await asyncio.gather(
        *(node.ask(node.connect(), network.create(nonce=NONCE, founder=founder)) for founder in founders)
    )
    assert [type(answer) for answer in answers] == [Attached, Refused, Refused, Attached]
    assert codes(answers) == ["network_exists", "network_exists"]


async def test_two_networks_that_want_one_locator_do_not_both_get_it() -> None:
    node = Node()
    first, second = Network(1), Network(2, locator=Network(1).charter.locator)
    answers = await asyncio.gather(
        *(node.ask(node.connect(), network.create(nonce=NONCE)) for network in (first, second))
    )
    assert isinstance(answers[0], Attached)
    assert code(answers[1]) == "network_exists"


async def test_a_network_that_is_slow_holds_up_nobody_else() -> None:
    node = Node()
    slow, quick = Network(1), Network(2)
    gate = asyncio.Event()
    node.memory.pause = lambda uid: gate if uid == slow.uid else None
    waiting = asyncio.create_task(node.ask(node.connect(), slow.create(nonce=NONCE)))
    await asyncio.sleep(0)
    assert isinstance(await node.ask(node.connect(), quick.create(nonce=NONCE)), Attached)
    assert code(await node.ask(node.connect(), Network(3).join(ANNA, nonce=NONCE))) == "unknown_network"
    assert code(await node.ask(node.connect(), Network(3).attach(ANNA, nonce=NONCE))) == "unknown_network"
    assert not waiting.done()
    gate.set()
    assert isinstance(await waiting, Attached)
    assert len(node.service.locks) == 0


# --- storage that fails


async def test_what_could_not_be_stored_is_refused_told_to_nobody_and_can_be_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node()
    network, founder = await node.founded()
    anna = await node.joined(network, ANNA)
    await node.heard(founder)
    node.memory.failure = "disk full"
    request = network.put_record(ANNA, "10.7.5.2")
    assert code(await node.ask(anna, request)) == "unavailable"
    assert code(await node.ask(node.connect(), network.join(BERT, nonce=NONCE))) == "unavailable"
    assert await node.heard(founder) == []
    node.memory.failure = None
    assert await node.ask(anna, request) == Done(rid=2)
    assert [type(message) for message in await node.heard(founder)] == [MemberChanged]
    assert b"meshvpn_storage_failures_total 2.0" in node.metrics.render()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "storage failed error=disk full"
    ]


async def test_a_storage_that_always_conflicts_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Contended(MemoryStore):
        async def put(self, document: object, revision: int) -> Stored:
            self.puts += 1
            raise ConflictError

    monkeypatch.setattr(service_module, "MAX_CONFLICTS", 5)
    store = Contended()
    node = Node(store=store)
    assert code(await node.ask(node.connect(), Network().create(nonce=NONCE))) == "unavailable"
    assert (store.puts, len(node.service.locks)) == (5, 0)


# --- limits


async def test_messages_beyond_the_limit_are_refused_by_their_number_and_time_heals_it() -> None:
    node = Node(replace(Limits(), message_rate=1.0, message_burst=3.0))
    network, founder = await node.founded()
    request = network.put_record(network.founder, "10.7.5.1", rid=77)
    answers = [await node.ask(founder, request) for _ in range(3)]
    assert answers == [Done(rid=77), Done(rid=77), answers[2]]
    assert isinstance(answers[2], Refused)
    assert (answers[2].rid, answers[2].code) == (77, "rate_limited")
    await node.say(founder, Signal(to=ANNA.public, payload=b""))
    assert codes(await node.heard(founder)) == ["rate_limited"]
    node.now += 1.0
    assert await node.ask(founder, request) == Done(rid=77)


async def test_who_sends_too_many_bytes_is_told_and_closed() -> None:
    node = Node(replace(Limits(), byte_rate=0.0, byte_burst=2000.0))
    network, founder = await node.founded()
    await node.say(founder, network.put_charter(network.sign(sealed=bytes(3000))))
    assert codes(await node.heard(founder)) == ["rate_limited"]
    assert founder.is_closing


async def test_wrong_passwords_of_one_source_are_limited_and_another_source_is_not() -> None:
    node = Node(replace(Limits(), join_rate=0.5, join_burst=2.0))
    network, _ = await node.founded()
    wrong = Network(2).join(ANNA, nonce=NONCE)
    assert [code(await node.ask(node.connect(), wrong)) for _ in range(3)] == [
        "unknown_network",
        "unknown_network",
        "rate_limited",
    ]
    assert code(await node.ask(node.connect(), network.join(ANNA, nonce=NONCE))) == "rate_limited"
    assert isinstance(await node.ask(node.connect("elsewhere"), network.join(BERT, nonce=NONCE)), Attached)
    node.now += 2.0
    assert isinstance(await node.ask(node.connect(), network.join(ANNA, nonce=NONCE)), Attached)


async def test_joins_that_find_their_network_are_not_limited() -> None:
    node = Node(replace(Limits(), join_rate=0.0, join_burst=1.0))
    network, _ = await node.founded()
    for number in range(5):
        await node.joined(network, identity(number))


async def test_guessing_on_many_connections_at_once_gains_nothing_in_the_long_run() -> None:
    node = Node(replace(Limits(), join_rate=1.0, join_burst=2.0))
    answered = 0
    for _ in range(20):
        answers = await asyncio.gather(
            *(node.ask(node.connect(), Network(2).join(ANNA, nonce=NONCE)) for _ in range(10))
        )
        answered += codes(answers).count("unknown_network")
        node.now += 2.0
    assert answered <= 2 + 10 + 40


async def test_setting_passwords_is_no_way_to_guess_those_of_others() -> None:
    node = Node(replace(Limits(), join_rate=0.0, join_burst=3.0))
    network, founder = await node.founded()
    victim = Network(2)
    assert isinstance(await node.ask(node.connect("elsewhere"), victim.create(nonce=NONCE)), Attached)
    answers = []
    for number in range(4):
        charter = network.change(locator=bytes([number]) * 32)
        answers.append(await node.ask(founder, network.put_charter(charter)))
    assert [type(answer) for answer in answers] == [Done, Done, Done, Refused]
    assert codes(answers) == ["rate_limited"]
    taken = network.change(locator=victim.charter.locator)
    assert code(await node.ask(founder, network.put_charter(taken))) == "rate_limited"
    assert await node.ask(founder, network.put_charter(network.change(access="locked", locator=None))) == Done(rid=2)


async def test_a_password_that_another_network_has_is_refused() -> None:
    node = Node()
    network, founder = await node.founded()
    other = Network(2)
    await node.ask(node.connect(), other.create(nonce=NONCE))
    before = network.charter
    taken = network.change(locator=other.charter.locator)
    assert code(await node.ask(founder, network.put_charter(taken))) == "network_exists"
    network.charter = before
    assert isinstance(await node.ask(node.connect(), network.join(ANNA, nonce=NONCE)), Attached)


async def test_networks_created_by_one_source_are_limited() -> None:
    node = Node(replace(Limits(), create_rate=0.0, create_burst=2.0))
    answers = [await node.ask(node.connect(), Network(seed).create(nonce=NONCE)) for seed in range(3)]
    assert [type(answer) for answer in answers] == [Attached, Attached, Refused]
    assert codes(answers) == ["rate_limited"]
    assert isinstance(await node.ask(node.connect("elsewhere"), Network(4).create(nonce=NONCE)), Attached)


async def test_records_sealed_anew_by_one_source_are_limited_and_other_changes_are_not() -> None:
    node = Node(replace(Limits(), envelope_rate=1.0, envelope_burst=3.0))
    network, founder = await node.founded()
    anew = [network.envelope(network.founder, "10.7.5.1")] * 2
    assert await node.ask(founder, network.put_charter(network.change(), *anew)) == Done(rid=2)
    assert code(await node.ask(founder, network.put_charter(network.change(), *anew))) == "rate_limited"
    assert await node.ask(founder, network.put_charter(network.change())) == Done(rid=2)
    node.now += 1.0
    assert await node.ask(founder, network.put_charter(network.change(), *anew)) == Done(rid=2)


async def test_a_reader_that_is_too_slow_is_cut_and_counted() -> None:
    node = Node(replace(Limits(), outgoing_messages=3))
    network, founder = await node.founded()
    anna = await node.joined(network, ANNA)
    for _ in range(5):
        await node.say(founder, Signal(to=ANNA.public, payload=b"hello"))
    assert (anna.is_cut, anna.waiting) == (True, 0)
    assert not founder.is_closing
    node.service.handle_closed(anna)
    assert b"meshvpn_connections_cut_total 1.0" in node.metrics.render()


async def test_a_few_large_messages_cut_a_slow_reader_too() -> None:
    node = Node(replace(Limits(), outgoing_bytes=10_000))
    network, founder = await node.founded()
    anna = await node.joined(network, ANNA)
    for _ in range(2):
        await node.say(founder, Signal(to=ANNA.public, payload=bytes(6000)))
    assert anna.is_cut


# --- hostile input


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.binary(max_size=300), any_request.map(control.encode)), max_size=12), st.booleans())
def test_whatever_a_client_sends_nothing_is_raised_and_little_is_kept(messages: list[bytes], attached: bool) -> None:
    async def scenario() -> None:
        node = Node()
        network, founder = await node.founded()
        document = await node.memory.get(network.uid)
        connection = founder if attached else node.connect()
        for data in messages:
            before = connection.is_closing
            await node.service.handle_message(connection, data)
            answers = await node.heard(connection)
            assert len(answers) <= 2
            assert not before or answers == []
        assert await node.memory.count() == 1
        assert await node.memory.get(network.uid) == document
        assert (len(node.relay), len(node.service.presence), len(node.service.locks)) == (1, 1, 0)

    asyncio.run(scenario())


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_genuine_message_that_was_tampered_with_does_no_harm(data: st.DataObject) -> None:
    async def scenario() -> None:
        node = Node()
        network, founder = await node.founded()
        await node.joined(network, ANNA)
        requests: list[control.Request] = [
            network.put_charter(network.sign(version=2, epoch=2, evicted={ANNA.public: 2})),
            network.put_leave(network.founder),
            network.put_record(network.founder, "10.7.5.1"),
        ]
        genuine = data.draw(st.sampled_from(requests))
        body = bytearray(control.encode(genuine))
        # Behind the tag and the number: what is signed.
        at = data.draw(st.integers(body.index(b"rid") + 4, len(body) - 1))
        body[at] ^= data.draw(st.integers(1, 255))
        before = await node.memory.get(network.uid)
        await node.service.handle_message(founder, bytes(body))
        after = await node.memory.get(network.uid)
        assert before is not None
        assert after is not None
        assert [entry.identity for entry in after.document.members] == [network.founder.public, ANNA.public]
        assert after.document.charter == before.document.charter

    asyncio.run(scenario())


# --- helpers


class Node:
    """A service with connections that nobody reads but the test."""

    def __init__(self, limits: Limits | None = None, *, store: Store | None = None) -> None:
        self.limits = limits or Limits()
        self.memory = MemoryStore()
        self.now = 1000.0
        self.metrics = Metrics()
        self.relay = Relay(self.limits, entropy=random.Random(1).randbytes)
        self.service = Service(
            store or self.memory,
            self.relay,
            self.limits,
            self.metrics,
            clock=lambda: self.now,
            wall=lambda: 1_700_000_000.0,
        )

    def connect(self, source: str = "here") -> Connection:
        return Connection(source, NONCE, self.limits, now=self.now)

    async def founded(self) -> tuple[Network, Connection]:
        network, connection = Network(), self.connect()
        assert isinstance(await self.ask(connection, network.create(nonce=NONCE)), Attached)
        return network, connection

    async def joined(self, network: Network, member: Identity) -> Connection:
        connection = self.connect()
        assert isinstance(await self.ask(connection, network.join(member, nonce=NONCE)), Attached)
        return connection

    async def say(self, connection: Connection, request: control.Request) -> None:
        await self.service.handle_message(connection, control.encode(request))

    async def ask(self, connection: Connection, request: control.Request) -> Response:
        """The one answer; what else is heard is passed over."""
        await self.say(connection, request)
        heard = await self.heard(connection)
        (answer,) = [message for message in heard if isinstance(message, Attached | Done | Refused)]
        return answer

    async def heard(self, connection: Connection) -> list[Response]:
        """What waits to be sent."""
        messages = [await connection.next_message() for _ in range(connection.waiting)]
        return [control.decode_response(message) for message in messages if message is not None]


def code(answer: Response) -> str:
    assert isinstance(answer, Refused), answer
    return answer.code


def codes(answers: Iterable[Response]) -> list[str]:
    return [answer.code for answer in answers if isinstance(answer, Refused)]
