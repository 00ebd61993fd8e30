"""The local API's requests about who is in a network. Types and routes are described in meshvpn/ipc.py."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable

from aiohttp import web

from .. import ipc
from ..proto import ownerfile
from ..proto.errors import MembershipError
from ..proto.invites import SECRET, code_of, invite_keys
from ..proto.node import Node
from . import replies, views
from .admissions import Admissions
from .network import Network
from .networks import Networks, check_keys_name, from_hex, network_keys
from .randomness import entropy

_UNTOLD = ", as the rendezvous could not be told"


class MembershipApi:
    """The routes."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._admissions = Admissions(networks)

    def routes(self, net: str) -> list[web.RouteDef]:
        """For aiohttp; `net` is how the path of a network begins."""
        return [
            web.post("/v1/networks", self._create),
            web.post("/v1/networks/join", self._join),
            web.post("/v1/networks/join-by-invite", self._join_by_invite),
            web.post("/v1/networks/import", self._import_owner),
            web.post(f"{net}/leave", self._leave),
            web.post(f"{net}/delete", self._delete),
            web.post(f"{net}/evict", self._evict),
            web.post(f"{net}/unban", self._unban),
            web.post(f"{net}/passwd", self._passwd),
            web.post(f"{net}/access", self._access),
            web.post(f"{net}/approve", self._approve),
            web.post(f"{net}/reject", self._reject),
            web.get(f"{net}/admins", self._admins),
            web.post(f"{net}/admin-add", self._add_admin),
            web.post(f"{net}/admin-remove", self._remove_admin),
            web.post(f"{net}/export-owner", self._export_owner),
            web.post(f"{net}/invite", self._invite),
            web.get(f"{net}/invites", self._invites),
            web.post(f"{net}/revoke", self._revoke),
            web.post(f"{net}/reidentify", self._reidentify),
            web.get(f"{net}/audit", self._audit),
        ]

    # In and out.

    async def _create(self, request: web.Request) -> web.Response:
        return _view(await self._admissions.create(await replies.body(request, ipc.CreateRequest)))

    async def _join(self, request: web.Request) -> web.Response:
        return _view(await self._admissions.join(await replies.body(request, ipc.JoinRequest)))

    async def _join_by_invite(self, request: web.Request) -> web.Response:
        return _view(await self._admissions.join_by_invite(await replies.body(request, ipc.InvitedRequest)))

    async def _import_owner(self, request: web.Request) -> web.Response:
        return _view(await self._admissions.import_owner(await replies.body(request, ipc.ImportRequest)))

    async def _reidentify(self, request: web.Request) -> web.Response:
        body = await replies.body(request, ipc.ReidentifyRequest)
        return _view(await self._admissions.reidentify(self._network(request), body))

    async def _leave(self, request: web.Request) -> web.Response:
        is_told = await self._networks.leave(self._network(request), force=await _is_forced(request))
        return replies.done(
            "left", None if is_told else f"left here; the others list this host until it is evicted{_UNTOLD}"
        )

    async def _delete(self, request: web.Request) -> web.Response:
        is_told = await self._networks.delete(self._network(request), force=await _is_forced(request))
        return replies.done("deleted", None if is_told else f"deleted here; the others go on without an owner{_UNTOLD}")

    # Who may be in.

    async def _evict(self, request: web.Request) -> web.Response:
        body, network = await replies.body(request, ipc.EvictRequest), self._network(request)
        note = await self._networks.evict(network, body)
        passwd = f"`meshvpn passwd {network.state.name}`"
        password = {
            "retire": f"the password is retired, nobody can join until {passwd} sets another one",
            "keep": f"the password is kept, whoever was told it by {body.peer} can join; {passwd} changes that",
        }
        return replies.done("evicted", note, password.get(body.password))

    async def _unban(self, request: web.Request) -> web.Response:
        return await self._about_peer(request, "unbanned", lambda node: node.unban)

    async def _passwd(self, request: web.Request) -> web.Response:
        body = await replies.body(request, ipc.PasswordRequest)
        keys, network = network_keys(body.locator, body.wrap_key), self._network(request)
        check_keys_name(network, body.name)
        note = await network.act(lambda node, now, wall_ns: node.change_password(keys, now=now, wall_ns=wall_ns))
        return replies.done("password changed", note)

    async def _access(self, request: web.Request) -> web.Response:
        mode = (await replies.body(request, ipc.AccessRequest)).access
        network = self._network(request)
        note = await network.act(lambda node, now, wall_ns: node.set_access(mode, now=now, wall_ns=wall_ns))
        return replies.done(f"access is {mode}", note)

    async def _approve(self, request: web.Request) -> web.Response:
        return await self._about_peer(request, "approved", lambda node: node.approve)

    async def _reject(self, request: web.Request) -> web.Response:
        return await self._about_peer(
            request, "rejected", lambda node: node.reject, "it knows the password still; `meshvpn passwd` changes that"
        )

    # Who may say so.

    async def _admins(self, request: web.Request) -> web.Response:
        return replies.json(views.admin_views(self._network(request)))

    async def _add_admin(self, request: web.Request) -> web.Response:
        return await self._about_peer(request, "admin added", lambda node: node.add_admin)

    async def _remove_admin(self, request: web.Request) -> web.Response:
        return await self._about_peer(request, "admin removed", lambda node: node.remove_admin)

    async def _export_owner(self, request: web.Request) -> web.Response:
        body, network = await replies.body(request, ipc.ExportRequest), self._network(request)
        if network.owner is None:
            raise MembershipError("this host is not the owner; export the key where `meshvpn admin list` says so")
        state = network.state
        key = ownerfile.OwnerKey(
            version=ownerfile.VERSION,
            uid=state.uid,
            name=state.name,
            servers=[state.server_url],
            pin=state.server_pin,
            seed=network.owner.seed,
        )
        file = ownerfile.seal(key, from_hex(body.salt, ownerfile.SALT), from_hex(body.key, 32), entropy)
        return replies.json(ipc.OwnerFile(file=base64.b64encode(file).decode()))

    # Invites.

    async def _invite(self, request: web.Request) -> web.Response:
        body, network = await replies.body(request, ipc.InviteRequest), self._network(request)
        secret = entropy(SECRET)
        note = await network.act(
            lambda node, now, wall_ns: node.invite(secret, body.uses, body.ttl, now=now, wall_ns=wall_ns)
        )
        state = network.state
        pin = state.server_pin if state.server_pin is not None and state.server_pin.startswith("sha256:") else None
        return replies.json(
            ipc.InviteReply(
                code=code_of(secret),
                invite=views.invite_name(invite_keys(secret).locator),
                expires_at=views.rfc3339(time.time() + body.ttl),
                server=ipc.ServerOptions(url=state.server_url, pin=pin),
                note=note or None,
            )
        )

    async def _invites(self, request: web.Request) -> web.Response:
        return replies.json(views.invite_views(self._network(request), wall=time.time()))

    async def _revoke(self, request: web.Request) -> web.Response:
        invite = (await replies.body(request, ipc.RevokeRequest)).invite
        network = self._network(request)
        note = await network.act(lambda node, now, wall_ns: node.revoke_invite(invite, now=now, wall_ns=wall_ns))
        return replies.done("revoked", note)

    async def _audit(self, request: web.Request) -> web.Response:
        return replies.json(views.audit_views(self._network(request)))

    async def _about_peer(
        self, request: web.Request, message: str, verb: Callable[[Node], Callable[..., int]], hint: str | None = None
    ) -> web.Response:
        peer = (await replies.body(request, ipc.PeerRequest)).peer
        network = self._network(request)
        note = await network.act(lambda node, now, wall_ns: verb(node)(peer, now=now, wall_ns=wall_ns))
        return replies.done(message, note, hint)

    def _network(self, request: web.Request) -> Network:
        return self._networks.find(request.match_info["net"])


def _view(network: Network) -> web.Response:
    return replies.json(views.network_view(network))


async def _is_forced(request: web.Request) -> bool:
    return request.can_read_body and (await replies.body(request, ipc.LeaveRequest)).force
