"""The first contact: what the server may answer, and a connection that ends before anybody runs the network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from aiohttp import web

from meshvpn import ipc
from meshvpn.config import Config
from meshvpn.net import interface
from meshvpn.net.admissions import Admissions
from meshvpn.net.control_link import ServerIdentity
from meshvpn.net.enrolment import MAX_BACKLOG, Enrolled, Run, enrol
from meshvpn.net.network import Network
from meshvpn.net.networks import Networks
from meshvpn.proto import control, owner
from meshvpn.proto.control import Attached, Join, RelayGrant, Signalled, Welcome
from meshvpn.proto.control_session import join_opening
from meshvpn.proto.errors import MembershipError, MeshError
from meshvpn.proto.keys import Identity, NetworkKeys
from meshvpn.proto.signed import Signed
from meshvpn.state import StateDir

from .founded import WALL

KEYS = NetworkKeys(b"l" * 32, b"w" * 32)
WELCOME = Welcome(version=1, nonce=bytes(32), observed_host="", udp_port=1, udp_port2=2, software="")
NEWS = Signalled(source=bytes(32), payload=bytes(control.MAX_SIGNAL))


class Listener:
    """Who runs the network."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.closed = 0

    def handle_open(self, server: ServerIdentity) -> None:
        raise AssertionError("it was open already")

    def handle_message(self, data: bytes) -> None:
        self.messages.append(data)

    def handle_closed(self, reason: MeshError | None) -> None:
        self.closed += 1


async def test_a_connection_that_ends_before_it_is_handed_over_is_known_to_have_ended() -> None:
    async with server(address="10.1.0.7", news=[NEWS]) as url:
        enrolled = await enrol(url, None, join_opening(Identity(bytes(32)), KEYS.locator), Run(bytes(32)))
        await ended(enrolled)
    listener = Listener()
    enrolled.hand_over(listener)
    assert listener.messages == [control.encode(NEWS)]
    assert listener.closed == 1


async def test_a_server_that_talks_too_much_before_the_handover_is_cut() -> None:
    count = 2 * MAX_BACKLOG // len(control.encode(NEWS))
    async with server(address="10.1.0.7", news=[NEWS] * count) as url:
        enrolled = await enrol(url, None, join_opening(Identity(bytes(32)), KEYS.locator), Run(bytes(32)))
        await ended(enrolled)
    assert sum(map(len, enrolled.backlog)) <= MAX_BACKLOG
    assert len(enrolled.backlog) < count


@pytest.mark.parametrize("address", ["8.8.8.8", "10.2.0.1", "10.1.0.0", "rubbish", "10.1.0.7/0", ""])
@pytest.mark.parametrize("action", ["create", "join"])
async def test_an_address_outside_the_pool_is_not_taken_from_a_server(
    address: str, action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_interface(network: Network, enrolled: Enrolled | None = None) -> None:
        raise AssertionError("it was brought up")

    monkeypatch.setattr(Network, "up", no_interface)
    monkeypatch.setattr(interface, "check_collision", lambda pool, *, ignore: None)
    monkeypatch.setattr(interface, "interface_names", list)
    directory = StateDir(tmp_path)
    all_networks = Networks(directory, Config(), "pbx", lambda event: None)
    admissions = Admissions(all_networks)
    keys = {"name": "net", "locator": KEYS.locator.hex(), "wrap_key": KEYS.wrap_key.hex()}
    async with server(address=address) as url:
        where = ipc.ServerOptions(url=url)
        if action == "join":
            entering = admissions.join(ipc.JoinRequest(server=where, **keys))
        else:
            entering = admissions.create(ipc.CreateRequest(server=where, pool="10.1.0.0/24", **keys))
        with pytest.raises(MembershipError, match="do not trust this server"):
            await entering
    assert not all_networks.by_uid
    assert directory.load().networks == []
    directory.close()


@asynccontextmanager
async def server(*, address: str, news: Sequence[control.Response] = ()) -> AsyncIterator[str]:
    """A rendezvous that lets everybody in, says something more, and closes."""
    founder, entropy = Identity(b"f" * 32), bytes
    invited = owner.found_network(
        "net", KEYS, IPv4Network("10.1.0.0/24"), Identity(b"o" * 32), founder, entropy=entropy, wall=WALL
    ).charter

    async def handle(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(max_msg_size=control.MAX_MESSAGE)
        await websocket.prepare(request)
        await websocket.send_bytes(control.encode(WELCOME))
        opening = control.decode_request(await websocket.receive_bytes())
        assert isinstance(opening, Join | control.Create)
        charter = invited if isinstance(opening, Join) else opening.charter
        for message in (_attached(opening.rid, address, charter), *news):
            await websocket.send_bytes(control.encode(message))
        await websocket.close()
        return websocket

    application = web.Application()
    application.router.add_get("/v1/control", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _attached(rid: int, address: str, charter: Signed) -> Attached:
    return Attached(rid=rid, address=address, charter=charter, members=[], online=[], relay=RelayGrant(1, bytes(32)))


async def ended(enrolled: Enrolled) -> None:
    task = enrolled.link._task
    assert task is not None
    await asyncio.wait([task])
