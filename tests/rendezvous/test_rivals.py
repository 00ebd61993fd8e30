"""Two connections of one identity by different instances: who was there first is asked, and stays if it answers."""

from __future__ import annotations

from meshvpn.proto import control
from meshvpn.proto.control import Ask, Attached, Goodbye, Here, Refused, Response
from rendezvous.connection import Connection
from rendezvous.presence import REPLACED
from rendezvous.rivals import PATIENCE, VACANT_FOR

from .signing import Network
from .test_service import ANNA, NONCE, Node

ONE, TWO, THREE = b"1" * 16, b"2" * 16, b"3" * 16


async def test_who_is_there_stays_and_the_newcomer_is_refused_by_name() -> None:
    node, network, first = await attached(ONE)
    second = await knock(node, network, TWO)
    assert await node.heard(second) == []
    await node.say(first, Here(token=(await asked(node, first)).token))
    (refusal,) = await node.heard(second)
    assert isinstance(refusal, Refused)
    assert (refusal.code, refusal.rid) == ("cloned", 1)
    assert node.service.next_timeout() is None
    assert not first.is_closing


async def test_who_does_not_answer_is_replaced() -> None:
    node, network, first = await attached(ONE)
    second = await knock(node, network, TWO)
    await wait(node, PATIENCE - 0.01)
    assert not [message for message in await node.heard(second) if isinstance(message, Attached)]
    await wait(node, 0.01)
    assert isinstance((await node.heard(second))[0], Attached)
    assert REPLACED in await node.heard(first)
    assert first.is_closing
    # Too late, and no longer its own to say.
    await node.say(first, Here(token=1))
    assert not second.is_closing


async def test_the_same_instance_takes_the_place_of_its_older_connection_at_once() -> None:
    node, network, first = await attached(ONE)
    second = await knock(node, network, ONE)
    assert isinstance((await node.heard(second))[0], Attached)
    assert await node.heard(first) == [REPLACED]


async def test_a_newcomer_does_not_wait_for_one_that_has_gone() -> None:
    node, network, first = await attached(ONE)
    second = await knock(node, network, TWO)
    node.service.handle_closed(first)
    await wait(node, 0.0)
    assert isinstance((await node.heard(second))[0], Attached)


async def test_who_reconnects_while_a_copy_waits_is_asked_again_and_not_ousted() -> None:
    node, network, first = await attached(ONE)
    copy = await knock(node, network, TWO)
    again = await knock(node, network, ONE)
    node.service.handle_closed(first)
    await wait(node, PATIENCE)
    await node.say(again, Here(token=(await asked(node, again)).token))
    assert [message.code for message in await node.heard(copy) if isinstance(message, Refused)] == ["cloned"]
    assert not again.is_closing


async def test_a_newcomer_that_goes_leaves_nothing_behind() -> None:
    node, network, first = await attached(ONE)
    second = await knock(node, network, TWO)
    node.service.handle_closed(second)
    assert node.service.next_timeout() is None
    await node.say(first, Here(token=(await asked(node, first)).token))
    assert not first.is_closing


async def test_an_answer_that_nobody_asked_for_refuses_nobody() -> None:
    node, network, first = await attached(ONE)
    second = await knock(node, network, TWO)
    stranger = await node.joined(network, ANNA)
    token = (await asked(node, first)).token
    await node.say(stranger, Here(token=token))
    await node.say(first, Here(token=token + 1))
    assert not [message for message in await node.heard(second) if isinstance(message, Refused)]


async def test_several_copies_are_refused_one_by_one() -> None:
    node, network, first = await attached(ONE)
    copies = [await knock(node, network, instance) for instance in (TWO, THREE)]
    for message in await node.heard(first):
        assert isinstance(message, Ask)
        await node.say(first, Here(token=message.token))
    for copy in copies:
        assert [type(message) for message in await node.heard(copy)] == [Refused]


async def test_who_waits_cannot_ask_twice() -> None:
    node, network, _ = await attached(ONE)
    second = await knock(node, network, TWO)
    await node.say(second, network.attach(network.founder, nonce=NONCE, instance=TWO))
    assert [message.code for message in await node.heard(second) if isinstance(message, Refused)] == ["bad_request"]


async def attached(instance: bytes) -> tuple[Node, Network, Connection]:
    """A network whose founder is connected by this instance."""
    node = Node()
    network, founder = await node.founded()
    node.service.handle_closed(founder)
    connection = await knock(node, network, instance)
    assert isinstance((await node.heard(connection))[0], Attached)
    return node, network, connection


async def knock(node: Node, network: Network, instance: bytes) -> Connection:
    """The founder wants to attach, by this instance."""
    connection = node.connect()
    await node.say(connection, network.attach(network.founder, nonce=NONCE, instance=instance))
    return connection


async def asked(node: Node, connection: Connection) -> Ask:
    heard: list[Response] = await node.heard(connection)
    return next(message for message in heard if isinstance(message, Ask))


async def wait(node: Node, seconds: float) -> None:
    node.now += seconds
    at = node.service.next_timeout()
    if at is not None and at <= node.now:
        await node.service.handle_timeout()


def test_ask_and_here_are_messages() -> None:
    assert control.decode_request(control.encode(Here(token=7))) == Here(token=7)
    assert control.decode_response(control.encode(Ask(token=7))) == Ask(token=7)
    assert not isinstance(Ask(token=7), Goodbye)


async def test_who_was_refused_does_not_slip_in_while_the_other_connects_anew() -> None:
    node, network, first = await attached(ONE)
    copy = await knock(node, network, TWO)
    await node.say(first, Here(token=(await asked(node, first)).token))
    node.service.handle_closed(first)
    node.service.handle_closed(copy)
    await wait(node, VACANT_FOR - 0.01)
    (refusal,) = await node.heard(await knock(node, network, TWO))
    assert isinstance(refusal, Refused)
    assert refusal.code == "cloned"
    await wait(node, 0.01)
    assert isinstance((await node.heard(await knock(node, network, TWO)))[0], Attached)


async def test_a_host_that_starts_anew_does_not_wait_because_a_copy_was_refused() -> None:
    node, network, first = await attached(ONE)
    await knock(node, network, TWO)
    await node.say(first, Here(token=(await asked(node, first)).token))
    node.service.handle_closed(first)
    assert isinstance((await node.heard(await knock(node, network, THREE)))[0], Attached)
