"""All networks of the daemon: which there are, how they come and go, and what concerns more than one of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tun.device import TunError

from .. import ipc
from ..config import Config
from ..proto.errors import ConfigError, MembershipError, MeshError
from ..proto.keys import (
    NetworkKeys,
    normalise_name,
)
from ..proto.names import MIN_PREFIX
from ..proto.node import Node
from ..proto.owner import PasswordRule
from ..proto.permit import Permit
from ..state import NetworkState, StateDir
from .control_link import ServerUnreachableError
from .enrolment import Enrolled
from .network import Network

log = logging.getLogger(__name__)


class UnknownNetworkError(MeshError):
    """The user named a network that this host is not in."""


class Networks:
    """By uid. Whoever founds, joins or forgets one holds `enrolling`."""

    def __init__(
        self, directory: StateDir, config: Config, default_nick: str, publish: Callable[[ipc.EventView], None]
    ) -> None:
        self.by_uid: dict[bytes, Network] = {}
        self.problems: list[str] = []
        self.config = config
        self.directory = directory
        self.default_nick = default_nick
        self._publish = publish
        self._permit = Permit()
        self.enrolling = asyncio.Lock()

    async def start(self) -> None:
        """Bring up what was up."""
        loaded = self.directory.load()
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

    async def evict(self, network: Network, request: ipc.EvictRequest) -> str:
        """Put a member out; what the user has to know besides. Raises MeshError."""
        rule: PasswordRule | NetworkKeys
        if request.password == "new":
            check_keys_name(network, request.name or "")
            rule = network_keys(request.locator or "", request.wrap_key or "")
        elif request.password in ("keep", "retire"):
            rule = PasswordRule[request.password.upper()]
        else:
            raise ConfigError("password rule", f"{request.password} is none", "use retire, keep or new")
        return await network.act(lambda node, now, wall_ns: node.evict(request.peer, rule, now=now, wall_ns=wall_ns))

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
        async with self.enrolling:
            await self.forget(network)
        return is_told

    async def forget(self, network: Network) -> None:
        """Only one at a time, and not while somebody enrols: the directory may be another network's by then."""
        if self.by_uid.get(network.state.uid) is not network:
            return  # somebody else was faster
        await network.down(keep_device=False)
        self.directory.remove(network.state.uid)
        network.is_forgotten = True
        del self.by_uid[network.state.uid]

    async def admit(self, state: NetworkState, enrolled: Enrolled, former: Network | None) -> Network:
        """The server let us in: keep that, and bring it up in the place of a former one. For who holds `enrolling`."""
        state.address = enrolled.attached.answer.address
        state.server_pin = enrolled.link.pin
        try:
            if former is not None:
                await former.down(keep_device=False)
            self.directory.save(state)
            if former is not None and former.state.uid == state.uid:
                former.is_forgotten = True
            elif former is not None:
                await self.forget(former)
            network = self._network(state)
            # From here on the server has us as a member: if the interface fails, `up` can be tried again.
            self.by_uid[state.uid] = network
            await network.up(enrolled)
        except BaseException:  # cancelled too: nobody else would close the connection
            await enrolled.link.close()
            raise
        return network

    async def ask_again(self, state: NetworkState) -> None:
        """A creation whose answer was lost: from now on like after a restart."""
        network = self.by_uid[state.uid] = self._network(state)
        await self._try_up(network)

    def _network(self, state: NetworkState) -> Network:
        return Network(state, self.directory, self.config.of(state.name), self._publish, permit=self._permit)

    async def _try_up(self, network: Network) -> None:
        try:
            await network.up()
        except (MeshError, OSError, TunError) as error:
            network.trouble = f"the network is down: {error}"
            log.error("network down network=%s error=%s", network.state.name, error)


def network_keys(locator: str, wrap_key: str) -> NetworkKeys:
    """What a request carries, as bytes. Raises ConfigError."""
    return NetworkKeys(from_hex(locator, 32), from_hex(wrap_key, 32))


def from_hex(text: str, size: int) -> bytes:
    """A key that a request carries. Raises ConfigError."""
    try:
        key = bytes.fromhex(text)
    except ValueError:  # `from None`: the error shows a digit of the key
        raise ConfigError("keys", "they are not hexadecimal", "use the meshvpn command") from None
    if len(key) != size:
        raise ConfigError("keys", f"one is not {size} bytes long", "use the meshvpn command")
    return key


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
