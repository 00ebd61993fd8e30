"""How this host becomes a member: founds a network, joins one by whatever way, or becomes another member of its own."""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import time
from ipaddress import IPv4Network

import msgspec

from tun.device import TunError, open_device

from .. import ipc
from ..proto import admission, owner, ownerfile
from ..proto.charter import Charter, decode_charter, rank
from ..proto.control_session import create_opening
from ..proto.errors import ConfigError, MalformedMessage, MembershipError, MeshError
from ..proto.invites import SECRET, invite_keys
from ..proto.keys import Identity, check_interface, check_nick, check_pool, network_uid, normalise_name, pick_pool
from ..proto.record import check_address
from ..proto.roster import Roster, RosterState
from ..state import NetworkState
from . import interface
from .control_link import ServerUnreachableError
from .enrolment import AnswerLostError, Enrolled, Run, enrol
from .network import Network
from .networks import Networks, from_hex, is_same_name, network_keys
from .randomness import entropy
from .ways import ByInvite, ByOwner, ByPassword, Way


class _Wish(msgspec.Struct, frozen=True):
    """What the user says about this host in a network that it enters; `name` None: what the network says."""

    server: ipc.ServerOptions
    name: str | None
    nick: str
    interface: str | None


class Admissions:
    """One after the other. All raise MeshError, TunError, OSError; what can be refused is refused before the server
    is asked, which would count us as a member."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    async def create(self, request: ipc.CreateRequest) -> Network:
        """Found a network."""
        keys, wish = network_keys(request.locator, request.wrap_key), self._wish(request, request.server, request.name)
        async with self._networks.enrolling:
            former = await self._check(wish)
            pool = await self._pool(request.pool, former)
            network_owner, identity = Identity(entropy(32)), Identity(entropy(32))
            roster = owner.found_network(
                request.name, keys, pool, network_owner, identity, entropy=entropy, wall=_wall()
            )
            uid = network_uid(network_owner.public)
            state = await self._new_state(wish, request.name, identity, roster, uid, former)
            state.owner, state.is_pending = network_owner.seed, True
            # The server hands out the lowest free address, and a founder is first: a creation that is asked for again
            # after a crash has an address before the answer.
            state.address = str(next(pool.hosts()))
            # On disk before the server hears of it: an owner key that is lost would leave a network without an owner.
            self._networks.directory.save(state)
            run = Run(entropy(32))
            opening = create_opening(identity, state.uid, roster.charter, instance=run.instance)
            try:
                enrolled = await enrol(state.server_url, state.server_pin, opening, run)
                await _check_address(enrolled, decode_charter(roster.charter))
            except AnswerLostError as error:
                await self._networks.ask_again(state)
                raise AnswerLostError(
                    f"{error}; the creation is asked for again until it does: `meshvpn list`"
                ) from error
            except MeshError:
                self._networks.directory.remove(state.uid)
                raise
            state.is_pending = False
            return await self._networks.admit(state, enrolled, former)

    async def join(self, request: ipc.JoinRequest) -> Network:
        """Join by name and password."""
        keys = network_keys(request.locator, request.wrap_key)
        async with self._networks.enrolling:
            return await self._enter(self._wish(request, request.server, request.name), ByPassword(keys))

    async def join_by_invite(self, request: ipc.InvitedRequest) -> Network:
        """Join by an invite's code."""
        way = _by_invite(request.secret)
        async with self._networks.enrolling:
            return await self._enter(self._wish(request, request.server, request.name), way)

    async def import_owner(self, request: ipc.ImportRequest) -> Network:
        """Become an owner by an exported key, as the member that this host is or as a new one."""
        try:
            file = base64.b64decode(request.file, validate=True)
        except binascii.Error:
            raise ConfigError("owner file", "it is not base64", "use the meshvpn command") from None
        key = ownerfile.open_file(file, from_hex(request.key, 32))
        async with self._networks.enrolling:
            network = self._networks.by_uid.get(key.uid)
            if network is not None and not network.is_over:
                network.become_owner(key.identity)
                return network
            places = [ipc.ServerOptions(url=url, pin=key.pin) for url in key.servers]
            places = places if request.server is None else [request.server]
            if not places:
                raise ConfigError("owner file", "it names no server", "give --server")
            return await self._enter_anywhere(request, key, places)

    async def reidentify(self, network: Network, request: ipc.ReidentifyRequest) -> Network:
        """Leave the old identity to the host that this one is a copy of, and join as a new member."""
        way: Way
        if request.secret is not None:
            way = _by_invite(request.secret)
        elif network.owner is not None:
            way = ByOwner(network.owner)
        else:
            way = ByPassword(admission.rejoin_keys(network.roster))
        async with self._networks.enrolling:
            old, identity = network.state, Identity(entropy(32))
            enrolled = await _ask(way, identity, ipc.ServerOptions(url=old.server_url, pin=old.server_pin))
            try:
                roster, charter = await _open(enrolled, way)
                if network_uid(charter.owner) != old.uid:
                    raise MembershipError(f"that is not an invite of {old.name}; ask for one of it")
                known = network.roster
                if rank(roster.charter, charter) < rank(known.signed_charter, known.charter):
                    raise MembershipError(
                        "the server shows an older state of the network than this host knows; try later"
                    )
            except MeshError:
                await _withdraw(enrolled, old.uid, identity)
                raise
            state = msgspec.structs.replace(
                old,
                identity=identity.seed,
                tunnel_key=entropy(32),
                own_record=None,
                joined_at=_wall(),
                udp_port=0,
                paths={},
                is_up=True,
                roster=msgspec.structs.replace(known.export(), charter=roster.charter, epoch_keys=roster.epoch_keys),
            )
            return await self._networks.admit(state, enrolled, network)

    async def _enter_anywhere(
        self, request: ipc.ImportRequest, key: ownerfile.OwnerKey, places: list[ipc.ServerOptions]
    ) -> Network:
        """By the first server that answers."""
        for place in places[:-1]:
            try:
                return await self._enter_as_owner(request, key, place)
            except ServerUnreachableError:
                continue
        return await self._enter_as_owner(request, key, places[-1])

    async def _enter_as_owner(
        self, request: ipc.ImportRequest, key: ownerfile.OwnerKey, place: ipc.ServerOptions
    ) -> Network:
        return await self._enter(self._wish(request, place, key.name), ByOwner(key.identity), key.identity)

    async def _enter(self, wish: _Wish, way: Way, network_owner: Identity | None = None) -> Network:
        former = await self._check(wish)
        identity = former.identity if former is not None else Identity(entropy(32))
        enrolled = await _ask(way, identity, wish.server)
        uid = None
        try:
            roster, charter = await _open(enrolled, way)
            uid = network_uid(charter.owner)
            name = Roster(uid, identity, roster).settings.name
            if wish.name is None:
                former = self._namesake(name)
            elif not is_same_name(wish.name, name):
                raise MembershipError(f"that is not a way into {wish.name}; leave the name away, or check it")
            await _check_address(enrolled, charter)
            await self._check_pool(IPv4Network(charter.pool), former)
            state = await self._new_state(wish, wish.name or name, identity, roster, uid, former)
        except (MeshError, TunError, OSError):
            await _withdraw(enrolled, uid, identity)
            raise
        if former is not None and former.state.uid == uid:
            state.tunnel_key = former.state.tunnel_key
        state.owner = None if network_owner is None else network_owner.seed
        return await self._networks.admit(state, enrolled, former)

    # Checks.

    def _wish(
        self,
        request: ipc.CreateRequest | ipc.JoinRequest | ipc.InvitedRequest | ipc.ImportRequest,
        server: ipc.ServerOptions,
        name: str | None,
    ) -> _Wish:
        return _Wish(server, name, request.nick or self._networks.default_nick, request.interface)

    async def _check(self, wish: _Wish) -> Network | None:
        """The network of that name that is over, if there is one. Raises ConfigError, MembershipError, TunError."""
        if wish.name is not None:
            normalise_name(wish.name)
        check_nick(wish.nick)
        former = None if wish.name is None else self._namesake(wish.name)
        if wish.interface is not None:
            await self._check_interface(wish.interface, former)
        return former

    def _namesake(self, name: str) -> Network | None:
        """The network of that name that is over, if there is one. Raises MembershipError if one is not."""
        namesakes = [network for network in self._networks.by_uid.values() if is_same_name(network.state.name, name)]
        if any(not network.is_over for network in namesakes):
            raise MembershipError("this host is in a network of that name already; see `meshvpn list`")
        return namesakes[0] if namesakes else None

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
        ours = [IPv4Network(network.roster.charter.pool) for network in self._networks.by_uid.values()]
        return pick_pool([*ours, *(network for network in taken if isinstance(network, IPv4Network))], entropy)

    def _others(self, former: Network | None) -> list[Network]:
        return [network for network in self._networks.by_uid.values() if network is not former]

    async def _new_state(
        self, wish: _Wish, name: str, identity: Identity, roster: RosterState, uid: bytes, former: Network | None
    ) -> NetworkState:
        kept = former.state.interface if former is not None else None
        return NetworkState(
            name=name,
            uid=uid,
            identity=identity.seed,
            tunnel_key=entropy(32),
            owner=None,
            server_url=wish.server.url,
            server_pin=wish.server.pin,
            nick=wish.nick,
            interface=wish.interface or kept or await self._free_interface(),
            address="",
            joined_at=_wall(),
            roster=roster,
        )

    async def _free_interface(self) -> str:
        """A name that no interface has, nor any network that is down."""
        taken = {*await asyncio.to_thread(interface.interface_names)}
        taken.update(network.state.interface or "" for network in self._networks.by_uid.values())
        return next(name for number in itertools.count() if (name := f"mesh{number}") not in taken)


def _by_invite(secret: str) -> ByInvite:
    return ByInvite(invite_keys(from_hex(secret, SECRET)))


async def _ask(way: Way, identity: Identity, server: ipc.ServerOptions) -> Enrolled:
    run = Run(entropy(32))
    return await enrol(server.url, server.pin, way.opening(identity, run.instance, wall=_wall()), run)


async def _open(enrolled: Enrolled, way: Way) -> tuple[RosterState, Charter]:
    try:
        roster = way.open(enrolled.attached.answer.charter)
    except MalformedMessage as error:
        raise MembershipError(f"the server's answer is not genuine ({error}); do not trust this server") from error
    return roster, decode_charter(roster.charter)


async def _withdraw(enrolled: Enrolled, uid: bytes | None, identity: Identity) -> None:
    """The server counts us as a member, and we are none after all."""
    if uid is None:  # it is not even sure of which network
        await enrolled.link.close()
    else:
        await enrolled.leave(owner.make_leave(uid, identity, wall=_wall()))


async def _check_address(enrolled: Enrolled, charter: Charter) -> None:
    """The interface gets it with the pool's length: any other would draw foreign traffic into the tunnel."""
    try:
        check_address(enrolled.attached.answer.address, charter)
    except MalformedMessage as error:
        problem = f"the server gives this host an address that is not in {charter.pool}"
        raise MembershipError(f"{problem}; do not trust this server") from error


def _try_device(name: str) -> None:
    """Raise TunError if the interface belongs to another program or is no TUN device; what was there stays."""
    open_device(name, persist=False).close()


def _wall() -> int:
    return int(time.time())
