"""All networks of the daemon: founding, joining, and what concerns more than one of them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from ipaddress import IPv4Network

from tun.device import TunError, open_device

from .. import ipc
from ..config import Config
from ..proto import admission, owner
from ..proto.charter import Charter, decode_charter
from ..proto.control_session import create_opening, join_opening
from ..proto.errors import ConfigError, MalformedMessage, MembershipError, MeshError
from ..proto.keys import (
    Identity,
    NetworkKeys,
    check_interface,
    check_nick,
    check_pool,
    network_uid,
    normalise_name,
    pick_pool,
)
from ..proto.names import MIN_PREFIX
from ..proto.node import Node
from ..proto.owner import PasswordRule
from ..proto.permit import Permit
from ..proto.record import check_address
from ..proto.roster import RosterState
from ..state import NetworkState, StateDir
from . import interface
from .control_link import ServerUnreachableError
from .enrolment import AnswerLostError, Enrolled, Run, enrol
from .network import Network
from .randomness import entropy

log = logging.getLogger(__name__)


class UnknownNetworkError(MeshError):
    """The user named a network that this host is not in."""


class Networks:
    """By uid. Founding and joining go one after the other."""

    def __init__(
        self, directory: StateDir, config: Config, default_nick: str, publish: Callable[[ipc.EventView], None]
    ) -> None:
        self.by_uid: dict[bytes, Network] = {}
        self.problems: list[str] = []
        self.config = config
        self._directory = directory
        self._default_nick = default_nick
        self._publish = publish
        self._permit = Permit()
        self._enrolling = asyncio.Lock()

    async def start(self) -> None:
        """Bring up what was up."""
        loaded = self._directory.load()
        self.problems = loaded.problems
        for problem in loaded.problems:
            log.error("%s", problem)
        for state in loaded.networks:
            network = self.by_uid[state.uid] = self._network(state)
            if state.is_up and not network.is_ended:
                await self._try_up(network)

    async def stop(self) -> None:
        """The daemon ends; the interfaces stay, so that calls and Asterisk's sockets survive a restart."""
        for network in list(self.by_uid.values()):
            await network.down(keep_device=True)

    def handle_network_change(self) -> None:
        """Addresses or routes of this host changed."""
        for network in self.by_uid.values():
            if network.runner is not None:
                network.runner.handle_network_change()

    def handle_wake(self, slept: float) -> None:
        """The machine was suspended for these seconds."""
        for network in self.by_uid.values():
            if network.runner is not None:
                network.runner.handle_wake(slept)

    def unknown_in_config(self) -> list[str]:
        """Networks that have a table in the configuration file and that this host is not in: misspelt, perhaps."""
        names = {normalise_name(network.state.name) for network in self.by_uid.values()}
        return [name for name in self.config.networks if name not in names]

    def servers(self) -> list[ipc.ServerOptions]:
        """Those of all networks, each once."""
        urls = {network.state.server_url: network.state.server_pin for network in self.by_uid.values()}
        return [ipc.ServerOptions(url=url, pin=pin) for url, pin in urls.items()]

    def interfaces(self) -> frozenset[str]:
        """Those that are the networks' own."""
        return frozenset(network.state.interface for network in self.by_uid.values() if network.state.interface)

    def find(self, text: str) -> Network:
        """By name or uid prefix. Raises UnknownNetworkError."""
        found = [network for network in self.by_uid.values() if is_same_name(network.state.name, text)]
        if not found and len(text) >= MIN_PREFIX:
            found = [network for network in self.by_uid.values() if network.state.uid.hex().startswith(text.casefold())]
        if len(found) != 1:
            problem = "this host is not in a network" if not found else "this host is in several networks"
            raise UnknownNetworkError(f"{problem} called {text}; see `meshvpn list`")
        return found[0]

    async def create(self, request: ipc.CreateRequest) -> Network:
        """Found a network. Raises MeshError, TunError, OSError."""
        keys = network_keys(request.locator, request.wrap_key)
        async with self._enrolling:
            former = await self._check(request)
            pool = await self._pool(request.pool, former)
            network_owner, identity = Identity(entropy(32)), Identity(entropy(32))
            wall = int(time.time())
            roster = owner.found_network(request.name, keys, pool, network_owner, identity, entropy=entropy, wall=wall)
            state = await self._new_state(request, identity, roster, network_uid(network_owner.public), former)
            state.owner, state.is_pending = network_owner.seed, True
            # The server hands out the lowest free address, and a founder is first: a creation that is asked for again
            # after a crash has an address before the answer.
            state.address = str(next(pool.hosts()))
            # On disk before the server hears of it: an owner key that is lost would leave a network without an owner.
            self._directory.save(state)
            run = Run(entropy(32))
            opening = create_opening(identity, state.uid, roster.charter, instance=run.instance)
            try:
                enrolled = await enrol(state.server_url, state.server_pin, opening, run)
                await _check_address(enrolled, decode_charter(roster.charter))
            except AnswerLostError as error:
                await self._ask_again(state)
                raise AnswerLostError(
                    f"{error}; the creation is asked for again until it does: `meshvpn list`"
                ) from error
            except MeshError:
                self._directory.remove(state.uid)
                raise
            state.is_pending = False
            return await self._admit(state, enrolled, former)

    async def join(self, request: ipc.JoinRequest) -> Network:
        """Join a network. Raises MeshError, TunError, OSError."""
        keys = network_keys(request.locator, request.wrap_key)
        async with self._enrolling:
            former = await self._check(request)
            identity = former.identity if former is not None else Identity(entropy(32))
            run = Run(entropy(32))
            opening = join_opening(identity, keys.locator, instance=run.instance)
            enrolled = await enrol(request.server.url, request.server.pin, opening, run)
            try:
                roster = _invitation(enrolled, keys)
                charter = decode_charter(roster.charter)
                await _check_address(enrolled, charter)
                await self._check_pool(IPv4Network(charter.pool), former)
                uid = network_uid(charter.owner)
                state = await self._new_state(request, identity, roster, uid, former)
            except (MeshError, TunError, OSError):
                await enrolled.link.close()
                raise
            if former is not None and former.state.uid == uid:
                state.tunnel_key = former.state.tunnel_key
            return await self._admit(state, enrolled, former)

    async def evict(self, network: Network, request: ipc.EvictRequest) -> None:
        """Put a member out. Raises MeshError."""
        rule: PasswordRule | NetworkKeys
        if request.password == "new":
            check_keys_name(network, request.name or "")
            rule = network_keys(request.locator or "", request.wrap_key or "")
        elif request.password in ("keep", "retire"):
            rule = PasswordRule[request.password.upper()]
        else:
            raise ConfigError("password rule", f"{request.password} is none", "use retire, keep or new")
        await network.act(lambda node, now, wall_ns: node.evict(request.peer, rule, now=now, wall_ns=wall_ns))

    async def leave(self, network: Network, *, force: bool) -> bool:
        """Leave for good, or clean up after an eviction or deletion. False: the server could not be told."""
        if network.owner is not None and not network.is_ended:
            raise MembershipError("you are the owner; use `meshvpn delete` to end the network for everybody")
        return await self._end(network, "leave", lambda node, now, wall: node.leave(now=now, wall_ns=wall), force=force)

    async def delete(self, network: Network, *, force: bool) -> bool:
        """End the network for everybody. False: the server could not be told."""
        if network.owner is None:
            raise MembershipError("only the owner can delete the network; use `meshvpn leave` to leave it")
        return await self._end(
            network, "delete", lambda node, now, wall: node.delete(now=now, wall_ns=wall), force=force
        )

    async def _end(
        self, network: Network, word: str, action: Callable[[Node, float, int], int], *, force: bool
    ) -> bool:
        is_told = True
        try:
            if not network.is_over:
                await network.act(action)
        except (ServerUnreachableError, MembershipError) as error:
            if not force:
                remedy = f"if the server is gone for good, `meshvpn {word} {network.state.name} --force`"
                raise type(error)(f"{error}; {remedy}") from error
            is_told = False
        async with self._enrolling:
            await self._forget(network)
        return is_told

    async def _forget(self, network: Network) -> None:
        """Only one at a time, and not while somebody enrols: the directory may be another network's by then."""
        if self.by_uid.get(network.state.uid) is not network:
            return  # somebody else was faster
        await network.down(keep_device=False)
        self._directory.remove(network.state.uid)
        network.is_forgotten = True
        del self.by_uid[network.state.uid]

    async def _admit(self, state: NetworkState, enrolled: Enrolled, former: Network | None) -> Network:
        state.address = enrolled.attached.answer.address
        state.server_pin = enrolled.link.pin
        try:
            if former is not None:
                await former.down(keep_device=False)
            self._directory.save(state)
            if former is not None and former.state.uid == state.uid:
                former.is_forgotten = True
            elif former is not None:
                await self._forget(former)
            network = self._network(state)
            # From here on the server has us as a member: if the interface fails, `up` can be tried again.
            self.by_uid[state.uid] = network
            await network.up(enrolled)
        except BaseException:  # cancelled too: nobody else would close the connection
            await enrolled.link.close()
            raise
        return network

    async def _ask_again(self, state: NetworkState) -> None:
        """A creation whose answer was lost: from now on like after a restart."""
        network = self.by_uid[state.uid] = self._network(state)
        await self._try_up(network)

    def _network(self, state: NetworkState) -> Network:
        return Network(state, self._directory, self.config.of(state.name), self._publish, permit=self._permit)

    async def _try_up(self, network: Network) -> None:
        try:
            await network.up()
        except (MeshError, OSError, TunError) as error:
            network.trouble = f"the network is down: {error}"
            log.error("network down network=%s error=%s", network.state.name, error)

    # What can be refused is refused before the server is asked: it would count us as a member.

    async def _check(self, request: ipc.CreateRequest | ipc.JoinRequest) -> Network | None:
        """The network of that name that is over, if there is one. Raises ConfigError, MembershipError, TunError."""
        normalise_name(request.name)
        check_nick(request.nick or self._default_nick)
        namesakes = [network for network in self.by_uid.values() if is_same_name(network.state.name, request.name)]
        if any(not network.is_over for network in namesakes):
            raise MembershipError("this host is in a network of that name already; see `meshvpn list`")
        former = namesakes[0] if namesakes else None
        if request.interface is not None:
            await self._check_interface(request.interface, former)
        return former

    async def _check_interface(self, name: str, former: Network | None) -> None:
        check_interface(name)
        user = next((other for other in self._others(former) if other.state.interface == name), None)
        if user is not None:
            raise interface.TakenError(
                f"interface {name}", f"network {user.state.name} has it", "choose another --interface"
            )
        if former is None or former.state.interface != name:
            await asyncio.to_thread(_try_device, name)

    async def _check_pool(self, pool: IPv4Network, former: Network | None) -> None:
        for other in self._others(former):
            if pool.overlaps(IPv4Network(other.roster.charter.pool)):
                problem = f"it collides with network {other.state.name} on interface {other.state.interface}"
                raise interface.TakenError(
                    f"address pool {pool}", problem, "create one of the two with another --subnet"
                )
        ignore = frozenset({former.state.interface or ""} if former is not None else ())
        await asyncio.to_thread(interface.check_collision, pool, ignore=ignore)

    async def _pool(self, wanted: str | None, former: Network | None) -> IPv4Network:
        if wanted is not None:
            pool = check_pool(wanted)
            await self._check_pool(pool, former)
            return pool
        taken = [entry.network for entry in await asyncio.to_thread(interface.local_networks)]
        ours = [IPv4Network(network.roster.charter.pool) for network in self.by_uid.values()]
        return pick_pool([*ours, *(network for network in taken if isinstance(network, IPv4Network))], entropy)

    def _others(self, former: Network | None) -> list[Network]:
        return [network for network in self.by_uid.values() if network is not former]

    async def _new_state(
        self,
        request: ipc.CreateRequest | ipc.JoinRequest,
        identity: Identity,
        roster: RosterState,
        uid: bytes,
        former: Network | None,
    ) -> NetworkState:
        kept = former.state.interface if former is not None else None
        return NetworkState(
            name=request.name,
            uid=uid,
            identity=identity.seed,
            tunnel_key=entropy(32),
            owner=None,
            server_url=request.server.url,
            server_pin=request.server.pin,
            nick=request.nick or self._default_nick,
            interface=request.interface or kept or await self._free_interface(),
            address="",
            joined_at=int(time.time()),
            roster=roster,
        )

    async def _free_interface(self) -> str:
        """A name that no interface has, nor any network that is down."""
        taken = {*await asyncio.to_thread(interface.interface_names)}
        taken.update(network.state.interface or "" for network in self.by_uid.values())
        return next(name for number in itertools.count() if (name := f"mesh{number}") not in taken)


def network_keys(locator: str, wrap_key: str) -> NetworkKeys:
    """What a request carries, as bytes. Raises ConfigError."""
    try:
        keys = NetworkKeys(bytes.fromhex(locator), bytes.fromhex(wrap_key))
    except ValueError:  # `from None`: the error shows a digit of the key
        raise ConfigError("keys", "they are not hexadecimal", "use the meshvpn command") from None
    if len(keys.locator) != 32 or len(keys.wrap_key) != 32:
        raise ConfigError("keys", "they are not 32 bytes each", "use the meshvpn command")
    return keys


def check_keys_name(network: Network, name: str) -> None:
    """Raise ConfigError unless keys were derived from the network's own name: with others nobody could join it."""
    if not is_same_name(network.state.name, name):
        what, problem = f"network {name}", "a password goes with the network's name"
        raise ConfigError(what, problem, f"write {network.state.name} instead")


def is_same_name(name: str, other: str) -> bool:
    """True if two spellings mean one network."""
    try:
        return normalise_name(name) == normalise_name(other)
    except ConfigError:
        return False


def _invitation(enrolled: Enrolled, keys: NetworkKeys) -> RosterState:
    try:
        return admission.by_password(enrolled.attached.answer.charter, keys)
    except MalformedMessage as error:
        raise MembershipError(f"the server's answer is not genuine ({error}); do not trust this server") from error


async def _check_address(enrolled: Enrolled, charter: Charter) -> None:
    """The interface gets it with the pool's length: any other would draw foreign traffic into the tunnel."""
    try:
        check_address(enrolled.attached.answer.address, charter)
    except MalformedMessage as error:
        await enrolled.link.close()
        problem = f"the server gives this host an address that is not in {charter.pool}"
        raise MembershipError(f"{problem}; do not trust this server") from error


def _try_device(name: str) -> None:
    """Raise TunError if the interface belongs to another program or is no TUN device; what was there stays."""
    open_device(name, persist=False).close()
