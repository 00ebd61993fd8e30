"""Members on real sockets, and a server in this process for them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import aiohttp

from meshvpn.proto import control, stun
from meshvpn.proto.control import Attached, RelayGrant, Response, Welcome
from meshvpn.proto.keys import Identity
from rendezvous.limits import Limits
from rendezvous.server import Server
from rendezvous.sources import Network as IpNetwork
from rendezvous.store import Store

from .signing import Network

R = TypeVar("R", bound=Response)
PATIENCE = 60.0
"""Seconds after which a test fails instead of waiting on; nothing that works comes near."""


class Client:
    """A control connection that was welcomed."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse, welcome: Welcome) -> None:
        self.websocket = websocket
        self.welcome = welcome

    async def send(self, request: control.Request) -> None:
        await self.websocket.send_bytes(control.encode(request))

    async def receive(self) -> Response:
        async with asyncio.timeout(PATIENCE):
            return control.decode_response(await self.websocket.receive_bytes())

    async def expect(self, kind: type[R]) -> R:
        """The next message, which is of this kind."""
        message = await self.receive()
        assert isinstance(message, kind), message
        return message

    async def ask(self, request: control.Request, kind: type[R]) -> R:
        await self.send(request)
        return await self.expect(kind)

    async def closed(self) -> int | None:
        """The code with which the server closes, after what it still has to say."""
        async with asyncio.timeout(PATIENCE):
            async for _ in self.websocket:
                pass
        return self.websocket.close_code

    async def create(self, network: Network) -> Attached:
        return await self.ask(network.create(nonce=self.welcome.nonce), Attached)

    async def join(self, network: Network, member: Identity) -> Attached:
        return await self.ask(network.join(member, nonce=self.welcome.nonce), Attached)

    async def attach(self, network: Network, member: Identity, instance: bytes = b"") -> Attached:
        return await self.ask(network.attach(member, nonce=self.welcome.nonce, instance=instance), Attached)


class Stream:
    """A member's end of the relay by WebSocket."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.websocket = websocket

    async def send(self, data: bytes) -> None:
        await self.websocket.send_bytes(data)

    async def receive(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.websocket.receive_bytes()

    async def ask(self, request: bytes) -> stun.Message:
        await self.send(request)
        return stun.parse(await self.receive())

    async def bind(self, grant: RelayGrant, counter: int = 1) -> None:
        """Bind this stream to a relay seat."""
        answer = await self.ask(binding(grant, counter))
        assert answer.type == stun.MessageType.SUCCESS
        assert answer.is_authentic(grant.key)

    async def closed(self) -> tuple[int, str]:
        """How the server closes, after what it still has to say."""
        async with asyncio.timeout(PATIENCE):
            while (message := await self.websocket.receive()).type is aiohttp.WSMsgType.BINARY:
                pass
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        return message.data, str(message.extra)


def binding(grant: RelayGrant, counter: int) -> bytes:
    """The request that binds a seat to where it comes from."""
    username = stun.relay_username(grant.id, counter)
    return stun.binding_request(b"t" * 12, username=username, key=grant.key)


class Clients:
    """Makes clients of one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str, context: ssl.SSLContext | None = None) -> None:
        self.session = session
        self.url = url
        self.context = context
        self._made: list[Client | Stream] = []

    async def close(self) -> None:
        for client in self._made:
            await client.websocket.close()

    async def stream(self) -> Stream:
        """A relay stream that is bound to no seat."""
        async with asyncio.timeout(PATIENCE):
            websocket = await self.session.ws_connect(f"{self.url}/v1/relay", ssl=self.context or True)
        stream = Stream(websocket)
        self._made.append(stream)
        return stream

    async def connect(self, **headers: str) -> Client:
        async with asyncio.timeout(PATIENCE):
            websocket = await self.session.ws_connect(
                f"{self.url}/v1/control", ssl=self.context or True, max_msg_size=control.MAX_MESSAGE, headers=headers
            )
            welcome = control.decode_response(await websocket.receive_bytes())
        assert isinstance(welcome, Welcome)
        client = Client(websocket, welcome)
        self._made.append(client)
        return client

    async def get(self, path: str) -> tuple[int, str]:
        async with asyncio.timeout(PATIENCE), self.session.get(self.url + path, ssl=self.context or True) as answer:
            return answer.status, await answer.text()

    async def metric(self, name: str) -> float:
        _, text = await self.get("/metrics")
        values = [line.rpartition(" ")[2] for line in text.splitlines() if line.rpartition(" ")[0] == name]
        return float(values[0]) if values else 0.0


class Running:
    """A server, its clients and its UDP addresses."""

    def __init__(self, server: Server, clients: Clients, udp: list[socket.socket], tcp: socket.socket) -> None:
        self.server = server
        self.clients = clients
        self.udp_addresses = [sock.getsockname() for sock in udp]
        self.tcp_address: tuple[str, int] = tcp.getsockname()
        self._is_stopped = False

    async def stop(self) -> None:
        if not self._is_stopped:
            self._is_stopped = True
            await self.server.stop()


@asynccontextmanager
async def running(
    store: Store,
    limits: Limits | None = None,
    *,
    context: ssl.SSLContext | None = None,
    client_context: ssl.SSLContext | None = None,
    trusted: list[IpNetwork] | None = None,
    send_buffer: int | None = None,
) -> AsyncIterator[Running]:
    """A server on loopback, on ports that the system chose."""
    tcp = bound(socket.SOCK_STREAM)
    if send_buffer is not None:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    udp = [bound(socket.SOCK_DGRAM), bound(socket.SOCK_DGRAM)]
    ports = udp[0].getsockname()[1], udp[1].getsockname()[1]
    server = Server(store, limits or Limits(), udp=udp, udp_ports=ports, trusted_proxies=trusted or [])
    await server.start([tcp], context)
    scheme = "http" if context is None else "https"
    async with aiohttp.ClientSession() as session:
        clients = Clients(session, f"{scheme}://127.0.0.1:{tcp.getsockname()[1]}", client_context)
        node = Running(server, clients, udp, tcp)
        try:
            yield node
        finally:
            await clients.close()
            await node.stop()


def bound(kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    return sock


class Datagrams:
    """A UDP socket of a member."""

    def __init__(self) -> None:
        self.socket = bound(socket.SOCK_DGRAM)

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.socket.getsockname()
        return host, port

    async def ask(self, data: bytes, server: tuple[str, int]) -> bytes:
        self.socket.sendto(data, server)
        return await self.receive()

    async def receive(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().sock_recv(self.socket, 4096)

    async def bind(self, grant: RelayGrant, server: tuple[str, int], counter: int = 1) -> None:
        """Bind this socket to a relay seat."""
        answer = stun.parse(await self.ask(binding(grant, counter), server))
        assert answer.type == stun.MessageType.SUCCESS
        assert answer.is_authentic(grant.key)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is true."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            pass
