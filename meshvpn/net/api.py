"""The local API's server side: HTTP on the Unix socket. Types and routes are described in meshvpn/ipc.py."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

import meshvpn
from tun.device import TunError

from .. import ipc
from ..proto.errors import ConfigError, MembershipError, MeshError, RendezvousError
from ..proto.keys import check_nick
from ..proto.netfindings import meaning
from ..state import StateError
from . import netcheck, replies, views
from .control_link import PinMismatchError, ServerUnreachableError
from .interface import TakenError
from .membership_api import MembershipApi
from .network import Network
from .networks import Networks, UnknownNetworkError

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY = 65536
MAX_EVENT_STREAMS = 32
EVENT_BACKLOG = 1000

_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python does not name it
_MAX_GROUPS_BYTES = 1024  # what Python reads; of a user in more than 256 groups only the primary one counts

_STATUS = {
    UnknownNetworkError: (404, "unknown_network"),
    ServerUnreachableError: (504, "server_unreachable"),
    PinMismatchError: (502, "pin_mismatch"),
    TakenError: (409, "taken"),
    ConfigError: (400, "usage"),
    MembershipError: (409, "refused"),
    StateError: (409, "state"),
    TunError: (409, "device"),
    OSError: (409, "system"),
}


class Events:
    """Hands events to everybody who listens; a slow listener loses the oldest ones."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[ipc.EventView]] = set()

    def publish(self, event: ipc.EventView) -> None:
        """Tell all."""
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    def open(self) -> asyncio.Queue[ipc.EventView] | None:
        """A new listener's queue, or None if there are too many."""
        if len(self._queues) >= MAX_EVENT_STREAMS:
            return None
        queue: asyncio.Queue[ipc.EventView] = asyncio.Queue(EVENT_BACKLOG)
        self._queues.add(queue)
        return queue

    def close(self, queue: asyncio.Queue[ipc.EventView]) -> None:
        """The listener is gone."""
        self._queues.discard(queue)


class Api:
    """The routes."""

    def __init__(self, networks: Networks, events: Events, state_dir: str) -> None:
        self._networks = networks
        self._events = events
        self._state_dir = state_dir
        self._started_at = time.monotonic()
        self._checking = asyncio.Lock()

    def application(self) -> web.Application:
        """For aiohttp."""
        application = web.Application(client_max_size=MAX_BODY, middlewares=[_errors_as_replies, _for_admins_only])
        net = "/v1/networks/{net}"
        application.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/networks", self._list),
                web.get("/v1/events", self._stream),
                web.post("/v1/netcheck", self._netcheck),
                web.get(f"{net}/peers", self._peers),
                web.post(f"{net}/up", self._up),
                web.post(f"{net}/down", self._down),
                web.post(f"{net}/nick", self._nick),
                web.post(f"{net}/ping", self._ping),
                web.post(f"{net}/paths", self._paths),
                *MembershipApi(self._networks).routes(net),
            ]
        )
        return application

    async def _status(self, _request: web.Request) -> web.Response:
        networks = list(self._networks.by_uid.values())
        running = [network.runner for network in networks if network.runner is not None]
        engines = {runner.device.name: runner.engine for runner in running if runner.device and runner.engine}
        return replies.json(
            ipc.Status(
                version=meshvpn.__version__,
                pid=os.getpid(),
                uptime_s=round(time.monotonic() - self._started_at, 1),
                state_dir=self._state_dir,
                networks=[network.state.name for network in networks],
                servers=[_server_view(network) for network in networks],
                engine={name: dict(engine.features) for name, engine in engines.items()},
                drops={name: engine.drops() for name, engine in engines.items()},
                relayed={name: engine.relayed()[1] for name, engine in engines.items()},
                gossip={network.state.name: view for network in networks if (view := views.gossip_view(network))},
                config_file=None if self._networks.config.file is None else str(self._networks.config.file),
                config={network.state.name: views.config_view(network) for network in networks},
                problems=[
                    *self._networks.problems,
                    *(f"{network.state.name}: {network.note}" for network in networks if network.note),
                ],
            )
        )

    async def _list(self, _request: web.Request) -> web.Response:
        return replies.json([views.network_view(network) for network in self._networks.by_uid.values()])

    async def _peers(self, request: web.Request) -> web.Response:
        return replies.json(views.peer_views(self._network(request)))

    async def _up(self, request: web.Request) -> web.Response:
        network = self._network(request)
        if network.parting is not None:
            raise MembershipError(network.parting)
        if network.runner is not None:
            raise MembershipError("already online")
        network.change(is_up=True)
        await network.up()
        return replies.done("online")

    async def _down(self, request: web.Request) -> web.Response:
        network = self._network(request)
        if network.runner is None:
            raise MembershipError("already offline")
        network.change(is_up=False)
        await network.down(keep_device=False)
        return replies.done("offline")

    async def _nick(self, request: web.Request) -> web.Response:
        nick = check_nick((await replies.body(request, ipc.NickRequest)).nick)
        network = self._network(request)
        network.change(nick=nick)
        if network.runner is not None:
            network.runner.act(lambda node, now, wall_ns: node.rename(nick, now=now, wall_ns=wall_ns))
        return replies.done(f"you are {nick} now")

    async def _ping(self, request: web.Request) -> web.Response:
        return replies.json(await self._network(request).ping(await replies.body(request, ipc.PingRequest)))

    async def _paths(self, request: web.Request) -> web.Response:
        return replies.json(await self._network(request).ping_paths(await replies.body(request, ipc.PingRequest)))

    async def _netcheck(self, request: web.Request) -> web.Response:
        server = (await replies.body(request, ipc.NetcheckRequest)).server
        servers = [server] if server is not None else self._networks.servers()
        if not servers:
            raise ConfigError("netcheck", "this host is in no network, so no server is known", "give --server HOST")
        async with self._checking:  # two at a time would hear each other's bursts at the NAT
            found = await netcheck.check(servers, ignore=self._networks.interfaces())
        return replies.json(ipc.NetcheckReply(findings=found, meaning=meaning(found)))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        queue = self._events.open()
        if queue is None:
            return replies.error(409, "too_many", "too many programs listen to events already")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        try:
            await response.prepare(request)
            while True:
                await response.write(msgspec.json.encode(await queue.get()) + b"\n")
        except ConnectionError:
            return response  # the listener went away
        finally:
            self._events.close(queue)

    def _network(self, request: web.Request) -> Network:
        return self._networks.find(request.match_info["net"])


@web.middleware
async def _errors_as_replies(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RendezvousError as error:
        return replies.error(502, error.code, str(error))
    except (MeshError, TunError, OSError) as error:
        for kind, (status, code) in _STATUS.items():
            if isinstance(error, kind):
                return replies.error(status, code, _told(error))
        return replies.error(409, "refused", str(error))
    except web.HTTPException as error:
        return replies.error(
            error.status, "http", f"no such request ({error.reason}); are meshvpn and meshvpnd of one version?"
        )
    except ValueError as error:
        return replies.error(400, "usage", f"the request is not understood: {error}")


@web.middleware
async def _for_admins_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The socket's mode keeps others out; this holds where a mode was loosened or a descriptor was handed on."""
    peer = None if request.transport is None else request.transport.get_extra_info("socket")
    if peer is None or not _is_admin(peer):
        return replies.error(
            403, "no_permission", f"no permission; run as root or as a member of the group {ipc.SOCKET_GROUP}"
        )
    return await handler(request)


def _is_admin(peer: socket.socket) -> bool:
    """True if who connected is root, the daemon's own user, or in the socket's group."""
    _, user, group = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user in (0, os.geteuid()):
        return True
    groups = {group}
    with contextlib.suppress(OSError):
        found = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
        groups.update(struct.unpack(f"{len(found) // 4}I", found))
    try:
        return grp.getgrnam(ipc.SOCKET_GROUP).gr_gid in groups
    except KeyError:
        return False


def _told(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{(error.strerror or str(error)).lower()}; see `journalctl -u meshvpnd`"
    return str(error)


def _server_view(network: Network) -> ipc.ServerView:
    state, detail = network.server_state
    error = network.runner.server_error if network.runner is not None else None
    if network.runner is None:
        state, detail = "offline", None
    elif network.refusal is not None:
        state, detail = "refused", network.refusal.message
    elif state == "connecting" and error is not None:
        state, detail = "unreachable", str(error)
    return ipc.ServerView(
        network=network.state.name,
        url=network.state.server_url,
        state=state,
        detail=detail,
        pin=network.state.server_pin,
    )
