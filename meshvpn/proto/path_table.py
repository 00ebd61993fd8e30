"""Every path to one peer that is worth a ping, by where it was learnt, with caps on what others can add.

candidates  the addresses of the peer's newest offer
relays      through the rendezvous, the best first
helpers     through members that relay (relaying.py)
others      where the peer's pings came from, and what worked but is not offered any more
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .candidate import MAX_CANDIDATES, Candidate
from .choice import second_way
from .pace import Role
from .probe import FRESH_FOR, Probe
from .transport import FIRST_EXTRA_SOCKET, Address, Path

MAX_RELAYS = 2
MAX_HELPERS = 3
"""Members that are tried at a time: each costs pings, and two that work are enough to fall back on."""
MAX_OTHERS = 8
REMEMBERED_FOR = 600.0
"""Seconds for which a direct path is remembered after it worked last, though nobody offers it."""
RELAYED_FOR = 30.0
"""Seconds for which one through a member of the peer's choice is, after the peer asked there last."""
RELAY_TRIES = 3
"""Unanswered pings after which a relay that is not known to work is no help beside another path."""


class PathTable:
    """The probes by path. `in_use` is the primary: it stays, whatever happens to where it came from."""

    def __init__(self) -> None:
        self.probes: dict[Path, Probe] = {}
        self.relays: tuple[Path, ...] = ()
        self.helpers: tuple[Path, ...] = ()
        self.in_use: Path | None = None

    @property
    def primary(self) -> Probe | None:
        """The probe of the path in use."""
        return self.get(self.in_use)

    def get(self, path: Path | None) -> Probe | None:
        """The probe of a path that is here."""
        return None if path is None else self.probes.get(path)

    def candidates(self) -> set[Path]:
        """The paths of the newest offer."""
        return {path for path, probe in self.probes.items() if probe.is_candidate}

    def known_relays(self) -> list[Probe]:
        """Those through the rendezvous, the best first."""
        return [self.probes[path] for path in self.relays]

    def primary_and_relays(self) -> list[Probe]:
        """What is asked first when something happened."""
        primary, relays = self.primary, self.known_relays()
        return relays if primary is None or primary in relays else [primary, *relays]

    def role(self, path: Path) -> Role:
        """What the path is for, besides being the primary."""
        if path in self.relays:
            return Role.RELAY
        return Role.HELPER if path in self.helpers else Role.OTHER

    def direct_ways(self) -> tuple[Path, ...]:
        """Direct paths on which a round trip came back, the one in use first."""
        proven = [it for it in self.probes.values() if it.path.is_direct and it.is_proven]
        proven.sort(key=lambda it: (it.path != self.in_use, -(it.verified_at or 0.0), it.path))
        return tuple(probe.path for probe in proven)

    def is_direct(self) -> bool:
        """Does a direct path work, or was one proven that is not given up?"""
        return any(probe.path.is_direct and probe.is_proven for probe in self.probes.values())

    def has_worked(self) -> bool:
        """Did a direct path work that is remembered?"""
        return any(probe.path.is_direct and probe.worked_at is not None for probe in self.probes.values())

    def extra_sockets(self, now: float) -> set[int]:
        """Sockets opened to guess ports on which a path works, did not long ago, or may yet."""
        probes = [probe for path, probe in self.probes.items() if path.socket >= FIRST_EXTRA_SOCKET]
        return {
            probe.path.socket
            for probe in probes
            if probe.is_proven or now - max(probe.asked_at, probe.worked_at or 0.0) < FRESH_FOR
        }

    def forget_sockets(self, numbers: Collection[int]) -> None:
        """These are closed."""
        for path in [path for path in self.probes if path.socket in numbers]:
            del self.probes[path]

    def has_direct(self, now: float) -> bool:
        """Does a direct path work?"""
        probes = (probe for probe in self.probes.values() if probe.path.is_direct)
        return any(probe.is_alive(now, is_primary=probe.path == self.in_use) for probe in probes)

    def reaches(self, socket: int, remote: Address) -> bool:
        """Does a direct path work between this socket and that address?"""
        probe = self.probes.get(Path(socket, remote))
        return probe is not None and probe.is_proven

    def r_of(self, path: Path | None) -> float:
        """How a call sounds on one of the paths, 0 if that is not known."""
        probe = self.get(path)
        return 0.0 if probe is None else probe.r or 0.0

    def standby(self, now: float) -> Probe | None:
        """What the primary is compared with, and left for."""
        primary = self.primary
        second = None if primary is None else second_way(self.probes.values(), primary, now)
        return second or next(iter(self.known_relays()), None)

    def hope(self, session: tuple[float, Path] | None) -> Path | None:
        """Where to send while no path is known to work. `session`: when and on which path the last was agreed on."""
        current, relay = self.primary, next(iter(self.known_relays()), None)
        if current is not None and current.is_proven:
            return current.path  # in doubt, not dead yet
        if session is not None:
            agreed_at, path = session
            if relay is None or agreed_at > (float("-inf") if relay.worked_at is None else relay.worked_at):
                return path
        return None if relay is None else relay.path

    def double(self, path: Path | None, now: float) -> Path | None:
        """Where to send besides this primary: nowhere while it works."""
        if path is None:
            return None
        primary = self.probes.setdefault(path, Probe(path))
        if primary.is_alive(now, is_primary=True):
            return None
        second = second_way(self.probes.values(), primary, now)
        if second is None and path.is_direct:
            relays = self.known_relays()
            second = next((relay for relay in relays if relay.is_proven or relay.tries < RELAY_TRIES), None)
        return None if second is None else second.path

    def beside(self, path: Path | None, kept: Path | None, now: float) -> Path | None:
        """Another way that works beside this primary which does: `kept`, the one used so far, for as long as it is."""
        primary = self.get(path)
        if primary is None or not primary.is_alive(now, is_primary=True):
            return None
        so_far = self.get(kept)
        if so_far is not None and so_far is not primary and so_far.is_alive(now):
            return kept
        second = second_way(self.probes.values(), primary, now)
        return None if second is None else second.path

    def void(self) -> None:
        """The peer's daemon was started anew: nothing is known but the ways through the rendezvous."""
        self.probes = {}
        self.helpers = ()
        self.set_relays(self.relays)

    def set_candidates(self, candidates: Sequence[Candidate], now: float) -> None:
        """Another offer came. Where the peer was just heard is no candidate, but our ping may be under way there."""
        wanted = {Path(1 if entry.address.is_ipv6 else 0, entry.address) for entry in candidates[:MAX_CANDIDATES]}
        for path in sorted(wanted):
            self.probes.setdefault(path, Probe(path))
        for path, probe in list(self.probes.items()):
            probe.is_candidate = path in wanted
            is_known = probe.worked_at is not None or probe.is_peer_reflexive(now)
            if not (probe.is_candidate or is_known or self._is_kept(path)):
                del self.probes[path]
        self.limit_others()

    def set_relays(self, paths: Sequence[Path]) -> list[Probe]:
        """The ways through the rendezvous; the probes of those that are new."""
        gone = set(self.relays).difference(paths)
        self.relays = tuple(paths[:MAX_RELAYS])
        for path in gone:
            self.probes.pop(path, None)
        return self._add(self.relays, is_rendezvous=True)

    def set_helpers(self, paths: Sequence[Path]) -> list[Probe]:
        """The ways through members; the probes of those that are new. One that is dropped is not known any more."""
        gone = set(self.helpers).difference(paths)
        self.helpers = tuple(paths[:MAX_HELPERS])
        for path in gone:
            self.probes.pop(path, None)
        return self._add(self.helpers, is_rendezvous=False)

    def obtain(self, path: Path) -> Probe | None:
        """The path's probe, made if there is room: the message was authenticated, so the peer is really there."""
        if path not in self.probes:
            self.probes[path] = Probe(path)
            self.limit_others(newest=path)
        return self.probes.get(path)

    def limit_others(self, newest: Path | None = None) -> None:
        """Drop those above the cap."""
        others = [probe for probe in self.probes.values() if not probe.is_candidate and not self._is_named(probe.path)]
        # What works is never given away for what may: a source address is easily forged.
        others.sort(key=lambda it: (it.path == self.in_use, it.is_proven, it.path == newest, it.worked_at or 0.0))
        for probe in others[: max(0, len(others) - MAX_OTHERS)]:
            del self.probes[probe.path]

    def forget(self, now: float) -> None:
        """Drop what nobody has spoken of for long."""
        for path, probe in list(self.probes.items()):
            if not probe.is_candidate and not self._is_kept(path) and self._is_forgotten(probe, now):
                del self.probes[path]

    def _is_forgotten(self, probe: Probe, now: float) -> bool:
        if not probe.path.is_direct:
            return now - max(probe.asked_at, probe.sent_at if probe.worked_at is None else 0.0) > RELAYED_FOR
        return not probe.is_proven and probe.worked_at is not None and now - probe.worked_at > REMEMBERED_FOR

    def _is_named(self, path: Path) -> bool:
        return path in self.relays or path in self.helpers

    def _is_kept(self, path: Path) -> bool:
        return path == self.in_use or self._is_named(path)

    def _add(self, paths: Sequence[Path], *, is_rendezvous: bool) -> list[Probe]:
        new = [Probe(path) for path in paths if path not in self.probes]
        self.probes.update((probe.path, probe) for probe in new)
        for path in paths:
            self.probes[path].is_rendezvous = is_rendezvous
        return new
