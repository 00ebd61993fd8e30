"""All networks of the daemon: founding, joining, and what concerns more than one of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from ipaddress import IPv4Network

from tun.device import TunError

from .. import ipc
from ..proto import owner
from ..proto.charter import decode_charter
from ..proto.control import RefusalCode
from ..proto.control_session import create_opening, join_opening
from ..proto.errors import ConfigError, MembershipError, MeshError, RendezvousError
from ..proto.keys import Identity, NetworkKeys, check_interface, check_nick, check_pool, network_uid, pick_pool
from ..proto.owner import PasswordRule
from ..proto.roster import RosterState
from ..state import NetworkState, StateDir
from . import interface
from .enrolment import Enrolled, enrol
from .network import Network
from .randomness import entropy

log = logging.getLogger(__name__)


class UnknownNetworkError(MeshError):
    """The user named a network that this host is not in."""


class Networks:
    """By uid. Founding and joining go one after the other."""

    def __init__(self, directory: StateDir, default_nick: str, publish: Callable[[ipc.EventView], None]) -> None:
        self.by_uid: dict[bytes, Network] = {}
        self.problems: list[str] = []
        self._directory = directory
        self._default_nick = default_nick
        self._publish = publish
        self._enrolling = asyncio.Lock()

    async def start(self) -> None:
        """Bring up what was up."""
        loaded = self._directory.load()
        self.problems = loaded.problems
        for problem in loaded.problems:
            log.error("%s", problem)
        for state in loaded.networks:
            network = self.by_uid[state.uid] = Network(state, self._directory, self._publish)
            if state.is_up and not network.roster.is_evicted and not network.roster.charter.is_deleted:
                await self._try_up(network)

    async def stop(self) -> None:
        """The daemon ends; the interfaces stay, so that calls and Asterisk's sockets survive a restart."""
        for network in self.by_uid.values():
            await network.down(keep_device=True)

    def handle_network_change(self) -> None:
        """Addresses or routes of this host changed."""
        for network in self.by_uid.values():
            if network.runner is not None:
                network.runner.handle_network_change()

    def find(self, text: str) -> Network:
        """By name or uid prefix. Raises UnknownNetworkError."""
        wanted = text.casefold()
        found = [
            network
            for network in self.by_uid.values()
            if network.state.name.casefold() == wanted
            or (len(wanted) >= 4 and network.state.uid.hex().startswith(wanted))
        ]
        if len(found) != 1:
            problem = "this host is not in a network" if not found else "this host is in several networks"
            raise UnknownNetworkError(f"{problem} called {text}; see `meshvpn list`")
        return found[0]

    async def create(self, request: ipc.CreateRequest) -> Network:
        """Found a network. Raises MeshError, TunError, OSError."""
        keys = _keys(request.locator, request.wrap_key)
        async with self._enrolling:
            self._check_name(request.name)
            pool = await self._pool(request.pool)
            network_owner, identity = Identity(entropy(32)), Identity(entropy(32))
            wall = int(time.time())
            roster = owner.found_network(request.name, keys, pool, network_owner, identity, entropy=entropy, wall=wall)
            state = self._new_state(request, identity, roster, network_uid(network_owner.public), wall)
            state.owner, state.is_pending = network_owner.seed, True
            # On disk before the server hears of it: an owner key that is lost would leave a network without an owner.
            self._directory.save(state)
            opening = create_opening(identity, state.uid, roster.charter)
            try:
                enrolled = await enrol(state.server_url, state.server_pin, opening)
            except MeshError:
                self._directory.remove(state.uid)
                raise
            state.is_pending = False
            return await self._admit(state, enrolled)

    async def join(self, request: ipc.JoinRequest) -> Network:
        """Join a network. Raises MeshError, TunError, OSError."""
        keys = _keys(request.locator, request.wrap_key)
        async with self._enrolling:
            former = self._former(request.name)
            if former is None:
                self._check_name(request.name)
            identity = former.identity if former is not None else Identity(entropy(32))
            opening = join_opening(identity, keys.locator)
            enrolled = await enrol(request.server.url, request.server.pin, opening)
            try:
                roster = owner.accept_invitation(enrolled.attached.answer.charter, keys)
                charter = decode_charter(roster.charter)
                pool = IPv4Network(charter.pool)
                await asyncio.to_thread(interface.check_collision, pool, ignore=self._mesh_interfaces())
            except MeshError:
                await enrolled.link.close()
                raise
            uid = network_uid(charter.owner)
            state = self._new_state(request, identity, roster, uid, int(time.time()))
            if former is not None:
                await former.down(keep_device=False)
                state.tunnel_key = former.state.tunnel_key
            return await self._admit(state, enrolled)

    async def evict(self, network: Network, request: ipc.EvictRequest) -> None:
        """Put a member out. Raises MeshError."""
        rule: PasswordRule | NetworkKeys
        if request.password == "new":
            rule = _keys(request.locator or "", request.wrap_key or "")
        elif request.password in ("keep", "retire"):
            rule = PasswordRule[request.password.upper()]
        else:
            raise ConfigError("password rule", f"{request.password} is none", "use retire, keep or new")
        await network.act(lambda node, now, wall_ns: node.evict(request.peer, rule, now=now, wall_ns=wall_ns))

    async def leave(self, network: Network) -> None:
        """Leave for good, or clean up after an eviction or deletion."""
        if not (network.roster.is_evicted or network.roster.charter.is_deleted):
            if network.owner is not None:
                raise MembershipError("you are the owner; use `meshvpn delete` to end the network for everybody")
            await network.act(lambda node, now, wall_ns: node.leave(now=now, wall_ns=wall_ns))
        await self._forget(network)

    async def delete(self, network: Network) -> None:
        """End the network for everybody."""
        if not network.roster.charter.is_deleted:
            await network.act(lambda node, now, wall_ns: node.delete(now=now, wall_ns=wall_ns))
        await self._forget(network)

    async def _forget(self, network: Network) -> None:
        await network.down(keep_device=False)
        del self.by_uid[network.state.uid]
        self._directory.remove(network.state.uid)

    async def _admit(self, state: NetworkState, enrolled: Enrolled) -> Network:
        state.address = enrolled.attached.answer.address
        state.server_pin = enrolled.link.pin
        try:
            self._directory.save(state)
            network = Network(state, self._directory, self._publish)
            # From here on the server has us as a member: if the interface fails, `up` can be tried again.
            self.by_uid[state.uid] = network
            await network.up(enrolled)
        except BaseException:  # cancelled too: nobody else would close the connection
            await enrolled.link.close()
            raise
        return network

    async def _try_up(self, network: Network) -> None:
        try:
            await network.up()
        except (MeshError, OSError, TunError) as error:
            problem = f"network {network.state.name} is down: {error}"
            self.problems.append(problem)
            log.error("%s", problem)

    def _new_state(
        self,
        request: ipc.CreateRequest | ipc.JoinRequest,
        identity: Identity,
        roster: RosterState,
        uid: bytes,
        wall: int,
    ) -> NetworkState:
        if request.interface is not None:
            check_interface(request.interface)
        return NetworkState(
            name=request.name,
            uid=uid,
            identity=identity.seed,
            tunnel_key=entropy(32),
            owner=None,
            server_url=request.server.url,
            server_pin=request.server.pin,
            nick=check_nick(request.nick or self._default_nick),
            interface=request.interface,
            address="",
            joined_at=wall,
            roster=roster,
        )

    def _check_name(self, name: str) -> None:
        if any(network.state.name.casefold() == name.casefold() for network in self.by_uid.values()):
            raise RendezvousError(RefusalCode.NETWORK_EXISTS, "you are already a member of a network of that name")

    def _former(self, name: str) -> Network | None:
        """A network that put us out: joining again is done with the same identity."""
        return next(
            (
                network
                for network in self.by_uid.values()
                if network.state.name.casefold() == name.casefold() and network.roster.is_evicted
            ),
            None,
        )

    async def _pool(self, wanted: str | None) -> IPv4Network:
        ignore = self._mesh_interfaces()
        if wanted is not None:
            pool = check_pool(wanted)
            await asyncio.to_thread(interface.check_collision, pool, ignore=ignore)
            return pool
        local = await asyncio.to_thread(interface.local_networks)
        return pick_pool([entry.network for entry in local if isinstance(entry.network, IPv4Network)], entropy)

    def _mesh_interfaces(self) -> frozenset[str]:
        """Interfaces left over from networks that are down: their own addresses are no collision."""
        return frozenset(
            network.state.interface
            for network in self.by_uid.values()
            if network.state.interface and network.roster.is_evicted
        )


def _keys(locator: str, wrap_key: str) -> NetworkKeys:
    try:
        keys = NetworkKeys(bytes.fromhex(locator), bytes.fromhex(wrap_key))
    except ValueError as error:
        raise ConfigError("keys", "they are not hexadecimal", "use the meshvpn command") from error
    if len(keys.locator) != 32 or len(keys.wrap_key) != 32:
        raise ConfigError("keys", "they are not 32 bytes each", "use the meshvpn command")
    return keys
