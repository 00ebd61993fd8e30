"""One network in the daemon: its state on disk, the runner while it is up, what users see and ask."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network

import msgspec

import meshvpn

from .. import ipc
from ..auditfile import AuditFile
from ..config import NetworkConfig
from ..proto import clones, path_view
from ..proto import keys as key_rules
from ..proto.audit import Entry
from ..proto.charter import needs_approval
from ..proto.control import RefusalCode
from ..proto.control_session import ControlSession, SessionRefused, attach_opening, create_opening
from ..proto.errors import MembershipError, RendezvousError
from ..proto.events import (
    ActionFinished,
    Audited,
    CloneSeen,
    CloneSight,
    MembershipChanged,
    NodeEvent,
    PeerChanged,
    PeerMtuChanged,
    PingFinished,
    ServerChanged,
    StateChanged,
)
from ..proto.keys import Identity
from ..proto.membership import MemberKeys, Profile
from ..proto.node import Node
from ..proto.peer import LastKnown, MeshPeer
from ..proto.permit import Permit
from ..proto.roster import Roster
from ..proto.transport import Address, Path
from ..state import NetworkState, SavedPath, StateDir, StateError
from . import views
from .control_link import ControlLink, ServerUnreachableError
from .enrolment import Enrolled, Run
from .randomness import entropy
from .runner import NetworkRunner, Placement
from .sockets import open_sockets

log = logging.getLogger(__name__)

ACTION_TIMEOUT = 15.0
PATHS_SAVED_AFTER = 2.0
"""Seconds from a path that came or went to the disk: a power cut must not take with it where the others are, and many
change at once."""
_NOT_KNOWN_THERE = frozenset({RefusalCode.UNKNOWN_NETWORK, RefusalCode.NOT_A_MEMBER, RefusalCode.NETWORK_EXISTS})


class Network:
    """A network this host is a member of. `publish` is told what users may want to know."""

    def __init__(
        self,
        state: NetworkState,
        directory: StateDir,
        config: NetworkConfig,
        publish: Callable[[ipc.EventView], None],
        *,
        permit: Permit,
    ) -> None:
        self.state = state
        self.config = config
        self._permit = permit
        self.identity = Identity(state.identity)
        self.owner = None if state.owner is None else Identity(state.owner)
        self.roster = Roster(state.uid, self.identity, state.roster)
        self.audit = AuditFile(directory.of(state.uid))
        self.runner: NetworkRunner | None = None
        self.server_state: tuple[str, str | None] = ("connecting", None)
        self.trouble: str | None = None
        """Why it could not be brought up."""
        self.is_forgotten = False
        """Removed from the disk: whoever still has it must not bring it back."""
        self._copy_seen: tuple[str, float] | None = None
        self._turn = asyncio.Lock()
        self._unsaved: str | None = None
        self._path_timer: asyncio.TimerHandle | None = None
        self._directory = directory
        self._publish = publish
        self._waiting: dict[int, asyncio.Future[ActionFinished]] = {}
        self._pings: dict[int, asyncio.Future[PingFinished]] = {}
        self._next_ping = 1

    @property
    def is_ended(self) -> bool:
        """True if its charter says that we are out of it for good: evicted, or the network is deleted."""
        return self.roster.is_evicted or self.roster.charter.is_deleted

    @property
    def is_over(self) -> bool:
        """True if it is ended, or the rendezvous knows nothing to end: its name is free and leaving needs no consent.

        A creation or a farewell that was cut short leaves such a network, and a server that lost its data.
        """
        return self.is_ended or (self.refusal is not None and self.refusal.code in _NOT_KNOWN_THERE)

    @property
    def note(self) -> str | None:
        """One sentence if something needs the user's attention."""
        refused = None if self.refusal is None else f"the rendezvous refuses: {self.refusal.message}"
        waits = None
        if self.is_pending:
            command = f"`meshvpn approve {self.state.name} {self.state.nick}`"
            waits = f"this host waits for an admin, who has to type {command}"
        return self.trouble or self._unsaved or self.parting or self.copy_note or refused or waits or self.audit.problem

    @property
    def is_pending(self) -> bool:
        """True while nobody has approved this host, where that is asked for."""
        is_asked_for = needs_approval(self.roster.charter) and not self.is_ended
        return is_asked_for and not self.roster.is_approved(self.identity.public)

    @property
    def copy_note(self) -> str | None:
        """What was seen of another host that runs with our identity, and what to do, if that is not long ago."""
        if self._copy_seen is None or time.monotonic() >= self._copy_seen[1]:
            return None
        return self._copy_seen[0]

    @property
    def parting(self) -> str | None:
        """Why it is ended, and what to do, if it is."""
        if not self.is_ended:
            return None
        what = "the network was deleted" if self.roster.charter.is_deleted else "this host was evicted"
        return f"{what}; `meshvpn leave {self.state.name}` removes it here"

    @property
    def refusal(self) -> SessionRefused | None:
        """Why the rendezvous has nothing to do with us in this network, if it said so."""
        return None if self.runner is None else self.runner.node.session.refusal

    async def up(self, enrolled: Enrolled | None = None) -> None:
        """Bring it up, once nothing else brings it up or down. Raises MeshError, TunError, OSError."""
        async with self._turn:
            if self.is_forgotten:
                raise MembershipError("this host left the network meanwhile; see `meshvpn list`")
            if self.runner is None:
                await self._start(enrolled)

    async def _start(self, enrolled: Enrolled | None) -> None:
        state = self.state
        sockets = open_sockets(self.config.port or state.udp_port)
        run = enrolled.run if enrolled is not None else Run(entropy(32))
        opening = attach_opening(self.identity, state.uid, instance=run.instance)
        if state.is_pending:
            opening = create_opening(self.identity, state.uid, self.roster.signed_charter, instance=run.instance)
        session = enrolled.session if enrolled is not None else ControlSession(opening, entropy=entropy)
        member_keys = MemberKeys(self.identity, state.tunnel_key, run.disco, self.owner)
        profile = Profile(state.address, state.nick, f"meshvpn {meshvpn.__version__}", state.joined_at)
        node = Node(
            keys=member_keys,
            profile=profile,
            roster=self.roster,
            session=session,
            own_record=state.own_record,
            entropy=entropy,
            options=self.config.options,
            permit=self._permit,
            mtu=self.config.mtu,
        )
        tunnel_public = node.membership.tunnel_public
        placement = Placement(
            interface=state.interface,
            address=state.address,
            address6=str(key_rules.address6(state.uid, tunnel_public)),
            pool=IPv4Network(self.roster.charter.pool),
            uid=state.uid,
            mtu=self.config.mtu,
            engine_without=self.config.engine_without,
        )
        link = enrolled.link if enrolled is not None else ControlLink(state.server_url, state.server_pin, _NOBODY)
        runner = NetworkRunner(node, link, sockets, placement, on_event=self._handle_event)
        if enrolled is None:
            link.handler = runner
        self.runner = runner
        try:
            await runner.start(self._last_known(), enrolled)
        except BaseException:  # cancelled too: half a network must not stay behind
            self.runner = None
            await runner.stop(keep_device=False)
            raise
        self.trouble = None
        assert runner.device is not None, "a runner that started has its device"
        state.interface, state.udp_port = runner.device.name, runner.ports[0]
        self.save()

    async def down(self, *, keep_device: bool) -> None:
        """Stop it, once nothing else brings it up or down; with `keep_device` it is only the daemon that goes."""
        async with self._turn:
            runner, self.runner = self.runner, None
            if runner is not None:
                self._remember_paths(runner)
                await runner.stop(keep_device=keep_device)
                self._fail_actions()
            if not self.is_forgotten:
                self.save()

    def _fail_actions(self) -> None:
        """Requests are numbered by each connection anew: an answer to another one must not count for these."""
        for rid, waiting in self._waiting.items():
            if not waiting.done():
                waiting.set_result(ActionFinished(rid, RefusalCode.UNAVAILABLE, "the network went down"))
        self._waiting.clear()

    def change(self, **settings: object) -> None:
        """Take other settings, on the disk first. Raises StateError; then nothing has changed."""
        self.state.roster = self.roster.export()
        self._directory.save(msgspec.structs.replace(self.state, **settings))
        for name, value in settings.items():
            setattr(self.state, name, value)

    def save(self) -> None:
        """To the disk; a failure is reported, and the next change tries again."""
        self.audit.flush()
        self.state.roster = self.roster.export()
        if self.runner is not None:
            self.state.own_record = self.runner.node.membership.own_record
            self.state.server_pin = self.runner.link.pin
        try:
            self._directory.save(self.state)
            self._unsaved = None
        except StateError as error:
            self._unsaved = str(error)
            log.error("state not saved error=%s", error)

    async def act(self, action: Callable[[Node, float, int], int]) -> str:
        """Carry out a request; what the user has to know besides that it was done, mostly nothing.

        Raises MembershipError, RendezvousError, ServerUnreachableError.
        """
        runner = self._running()
        rid = runner.act(action)
        assert rid is not None, "actions have a number"
        future: asyncio.Future[ActionFinished] = asyncio.get_running_loop().create_future()
        self._waiting[rid] = future
        try:
            async with asyncio.timeout(ACTION_TIMEOUT):
                finished = await future
        except TimeoutError as error:
            raise ServerUnreachableError("the rendezvous does not answer; try again") from error
        finally:
            self._waiting.pop(rid, None)
        if finished.code == RefusalCode.UNAVAILABLE:
            detail = finished.message if runner.server_error is None else str(runner.server_error)
            raise ServerUnreachableError(f"{detail}; try again")
        if finished.code is not None:
            raise RendezvousError(finished.code, finished.message)
        return finished.message

    def become_owner(self, key: Identity) -> None:
        """From now on this host may do what the owner may. Raises StateError; then nothing has changed."""
        self.change(owner=key.seed)
        self.owner = key
        if self.runner is not None:
            self.runner.act(lambda node, _now, _wall_ns: node.import_owner(key))

    async def ping(self, request: ipc.PingRequest) -> ipc.PingReply:
        """One round trip on the path in use. Raises MembershipError."""
        runner = self._running()
        peer = runner.node.find_peer(request.peer)
        answers = await self._ping(runner, peer, [None], request.timeout_s)
        rtt = answers[0]
        return ipc.PingReply(
            nick=peer.member.nick,
            address=peer.member.address,
            path=views.path_name(peer.agent.primary, peer.via),
            rtt_ms=None if rtt is None else round(rtt * 1000, 3),
        )

    async def ping_paths(self, request: ipc.PingRequest) -> ipc.PathsReply:
        """One round trip on each known path, all at once. Raises MembershipError."""
        runner = self._running()
        peer = runner.node.find_peer(request.peer)
        asked = [seen.path for seen in path_view.views(peer.agent, now=time.monotonic())]
        rtts = dict(zip(asked, await self._ping(runner, peer, asked, request.timeout_s), strict=True))
        rows = [
            views.path_row(seen, peer, runner.node.relay_of(peer, seen.path), rtts[seen.path])
            for seen in path_view.views(peer.agent, now=time.monotonic())
            if seen.path in rtts
        ]
        return ipc.PathsReply(nick=peer.member.nick, address=peer.member.address, paths=rows)

    async def _ping(
        self, runner: NetworkRunner, peer: MeshPeer, paths: Sequence[Path | None], patience: float
    ) -> list[float | None]:
        """The round trips in seconds, None where no answer came in time."""
        futures = [asyncio.get_running_loop().create_future() for _ in paths]
        first, self._next_ping = self._next_ping, self._next_ping + len(paths)
        waiting = dict(enumerate(futures, first))
        self._pings.update(waiting)
        try:
            for token, path in zip(waiting, paths, strict=True):
                runner.act(_probe(peer, token, path))
            if futures:
                await asyncio.wait(futures, timeout=min(max(patience, 0.1), 30.0))
        finally:
            for token in waiting:
                del self._pings[token]
        return [future.result().rtt if future.done() else None for future in futures]

    def _running(self) -> NetworkRunner:
        if self.runner is None:
            raise MembershipError(f"the network is down; use `meshvpn up {self.state.name}` first")
        return self.runner

    def _last_known(self) -> dict[bytes, LastKnown]:
        return {
            identity: LastKnown(Path(saved.socket, Address(saved.host, saved.port)), saved.keepalive)
            for identity, saved in self.state.paths.items()
        }

    def _remember_paths(self, runner: NetworkRunner) -> None:
        paths = {
            identity: SavedPath(known.path.socket, known.path.remote.host, known.path.remote.port, known.keepalive)
            for identity, known in runner.node.last_known().items()
        }
        if paths != self.state.paths and self._path_timer is None:
            self._path_timer = asyncio.get_running_loop().call_later(PATHS_SAVED_AFTER, self._save_paths)
        self.state.paths = paths

    def _save_paths(self) -> None:
        self._path_timer = None
        if self.runner is not None and not self.is_forgotten:
            self.save()

    # Events of the node.

    def _handle_event(self, event: NodeEvent) -> None:
        match event:
            case StateChanged():
                if self.runner is not None:
                    self._remember_paths(self.runner)
                self.save()
            case ActionFinished(rid=rid):
                if (waiting := self._waiting.get(rid)) is not None and not waiting.done():
                    waiting.set_result(event)
            case PingFinished(token=token):
                if (ping := self._pings.get(token)) is not None and not ping.done():
                    ping.set_result(event)
            case PeerChanged():
                self._tell_peer(event)
            case PeerMtuChanged():
                self._tell_mtu(event)
            case ServerChanged(state=state, detail=detail):
                self.server_state = (state, detail)
                if state == "connected":
                    self._copy_seen = None
                if state == "connected" and self.state.is_pending:
                    self.state.is_pending = False
                    self.save()
                self._tell(f"server_{state}", None, {} if detail is None else {"detail": detail})
            case CloneSeen():
                self._tell_copy(event)
            case MembershipChanged(what=what):
                self.save()
                self._tell(what, None, {})
            case Audited(entry=entry):
                self._keep(entry)
            case _:
                pass

    def _tell_copy(self, event: CloneSeen) -> None:
        nick = None if event.member is None else event.member.nick
        cure = f"`meshvpn reidentify {self.state.name}`"
        match event.sight:
            case CloneSight.REFUSED:
                said = f"another host runs with this host's identity, says {nick or 'the rendezvous'}"
                said = f"{said}; if this one is a copy of its disk, {cure} here makes it a member of its own"
            case CloneSight.RIVAL:
                said = f"another host tries to run with this host's identity; on a copy of this disk, run {cure}"
            case CloneSight.MEMBER:
                said = f"two hosts run as {nick}; this one stays with the one that was there first"
        if event.sight is not CloneSight.MEMBER:
            self._copy_seen = said, time.monotonic() + 2 * clones.TOLD_FOR
        log.warning("%s network=%s", said, self.state.name)
        self._tell(f"clone_{event.sight}", nick, {"message": said})

    def _tell_peer(self, event: PeerChanged) -> None:
        if self.runner is not None:
            self._remember_paths(self.runner)
        kind = f"member_{event.reason}" if event.state is None else f"peer_{event.state}"
        detail = {} if event.path is None else {"endpoint": str(event.path.remote)}
        log.info("%s network=%s peer=%s", kind, self.state.name, event.member.nick)
        self._tell(kind, event.member.nick, detail)

    def _keep(self, entry: Entry) -> None:
        if not self.is_forgotten and self.audit.append(entry):
            view = views.audit_view(self.audit.count, entry)
            log.info("%s network=%s peer=%s by=%s", view.kind, self.state.name, view.nick, view.by)
            self._tell("audit", view.nick or None, {}, view)

    def _tell_mtu(self, event: PeerMtuChanged) -> None:
        nick, mtu = event.member.nick, event.mtu or self.config.mtu
        log.info("peer_mtu network=%s peer=%s mtu=%d", self.state.name, nick, mtu)
        if event.fragments_pass is False:
            log.warning(
                "IPv6 packets above %d bytes do not reach a peer: the way there carries no 1280 bytes, whole or in "
                "fragments network=%s peer=%s",
                mtu,
                self.state.name,
                nick,
            )
        self._tell("peer_mtu", nick, {"mtu": str(mtu)})

    def _tell(self, kind: str, peer: str | None, detail: dict[str, str], audit: ipc.AuditView | None = None) -> None:
        event = ipc.EventView(
            at=views.rfc3339(time.time()), network=self.state.name, kind=kind, peer=peer, detail=detail, audit=audit
        )
        self._publish(event)


def _probe(peer: MeshPeer, token: int, path: Path | None) -> Callable[[Node, float, int], int]:
    return lambda node, now, wall_ns: node.ping(peer, token, path, now=now, wall_ns=wall_ns)


class _Nobody:
    """Stands in until the runner takes the link."""

    def handle_open(self, server: object) -> None:
        """Never called: the link is opened by the runner."""

    def handle_message(self, data: bytes) -> None:
        """Never called."""

    def handle_closed(self, reason: object) -> None:
        """Never called."""


_NOBODY = _Nobody()
