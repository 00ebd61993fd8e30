"""Commands about one network that come at once: each has its turn, and none brings back what another one removed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshvpn.config import Config, NetworkConfig
from meshvpn.net import network as module
from meshvpn.net.control_link import ServerUnreachableError
from meshvpn.net.networks import Networks
from meshvpn.net.sockets import NetworkSockets
from meshvpn.proto import owner
from meshvpn.proto.control import RefusalCode
from meshvpn.proto.control_session import SessionState
from meshvpn.proto.errors import MembershipError
from meshvpn.proto.events import ActionFinished
from meshvpn.proto.keys import Identity, NetworkKeys, network_uid
from meshvpn.proto.node import Node
from meshvpn.proto.permit import Permit
from meshvpn.state import NetworkState, StateDir

OWNER, MEMBER = Identity(b"o" * 32), Identity(b"m" * 32)
KEYS = NetworkKeys(b"l" * 32, b"w" * 32)


class Runner:
    """Stands in for the one with an interface; it starts and stops when it is told to."""

    history: list[str]
    may_go: asyncio.Event

    def __init__(self, node: Node, link: Any, sockets: NetworkSockets, placement: Any, *, on_event: Any) -> None:
        self.node, self.link, self.on_event = node, link, on_event
        self.ports: Mapping[int, int] = {0: 1}
        self.server_error = None
        self.device: Any = None
        sockets.close()
        self.history.append("made")

    async def start(self, last_known: object, enrolled: object) -> None:
        await self.may_go.wait()
        self.device = SimpleNamespace(name="mesh0")
        self.history.append("started")

    async def stop(self, *, keep_device: bool) -> None:
        await self.may_go.wait()
        self.device = None
        self.history.append("stopped")

    def act(self, action: Any) -> int:
        if not self.node.session.is_attached:
            gone = ActionFinished(7, RefusalCode.UNAVAILABLE, "not connected to the rendezvous")
            asyncio.get_running_loop().call_soon(self.on_event, gone)
        return 7


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Networks]:
    """One network, known to the disk, down."""
    monkeypatch.setattr(module, "NetworkRunner", Runner)
    Runner.history, Runner.may_go = [], asyncio.Event()
    directory = StateDir(tmp_path)
    made = Networks(directory, Config(), "pbx", lambda event: None)
    state = _state()
    directory.save(state)
    made.by_uid[state.uid] = module.Network(state, directory, NetworkConfig(), lambda event: None, permit=Permit())
    yield made
    directory.close()


async def test_who_takes_a_network_down_waits_until_it_is_up(networks: Networks) -> None:
    (network,) = networks.by_uid.values()
    commands = [asyncio.create_task(network.up()) for _ in range(2)]
    await asyncio.sleep(0)
    commands.append(asyncio.create_task(network.down(keep_device=False)))
    commands.append(asyncio.create_task(network.up()))
    await asyncio.sleep(0)
    Runner.may_go.set()
    await asyncio.gather(*commands)
    assert Runner.history == ["made", "started", "stopped", "made", "started"]
    assert network.runner is not None


async def test_a_network_that_is_left_stays_gone(networks: Networks, tmp_path: Path) -> None:
    (network,) = networks.by_uid.values()
    Runner.may_go.set()
    await network.up()
    network.roster.handle_charter(owner.delete_network(network.roster, OWNER, wall=2).charter, [], wall=2)
    Runner.may_go.clear()
    commands = [*(networks.leave(network, force=False) for _ in range(2)), network.up()]
    tasks = [asyncio.create_task(command) for command in commands]
    await asyncio.sleep(0)
    Runner.may_go.set()
    *left, up = await asyncio.gather(*tasks, return_exceptions=True)
    assert left == [True, True]
    assert isinstance(up, MembershipError)
    assert not networks.by_uid
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("is_up", [True, False])
async def test_a_network_whose_server_is_gone_for_good_is_left_by_force_alone(
    networks: Networks, tmp_path: Path, is_up: bool
) -> None:
    (network,) = networks.by_uid.values()
    Runner.may_go.set()
    if is_up:
        await network.up()
    with pytest.raises(ServerUnreachableError if is_up else MembershipError, match="`meshvpn leave net --force`"):
        await networks.leave(network, force=False)
    assert list(networks.by_uid.values()) == [network]
    assert await networks.leave(network, force=True) is False
    assert not networks.by_uid
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


async def test_force_does_not_make_an_owner_leave_but_delete(networks: Networks) -> None:
    (network,) = networks.by_uid.values()
    network.owner = OWNER
    with pytest.raises(MembershipError, match="use `meshvpn delete`"):
        await networks.leave(network, force=True)
    with pytest.raises(MembershipError, match="`meshvpn delete net --force`"):
        await networks.delete(network, force=False)
    assert await networks.delete(network, force=True) is False
    assert not networks.by_uid


async def test_an_action_ends_with_the_connection_that_carried_it(networks: Networks) -> None:
    (network,) = networks.by_uid.values()
    Runner.may_go.set()
    await network.up()
    assert network.runner is not None
    network.runner.node.session.state = SessionState.ATTACHED
    action = asyncio.create_task(network.act(lambda node, now, wall_ns: 7))
    await asyncio.sleep(0)
    await network.down(keep_device=False)
    with pytest.raises(ServerUnreachableError, match="went down"):
        await action


def _state() -> NetworkState:
    roster = owner.found_network("net", KEYS, IPv4Network("10.1.0.0/24"), OWNER, MEMBER, entropy=bytes, wall=1)
    return NetworkState(
        name="net",
        uid=network_uid(OWNER.public),
        identity=MEMBER.seed,
        tunnel_key=b"t" * 32,
        owner=None,
        server_url="http://192.0.2.1",
        server_pin=None,
        nick="pbx",
        interface="mesh0",
        address="10.1.0.1",
        joined_at=1,
        roster=roster,
    )
