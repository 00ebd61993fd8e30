"""How large a packet may be on the way to a peer: found out by padded pings that no router may fragment (RFC 8899).

    unknown ──the largest is answered──────────────────────────▶ known ──10 min──▶ larger ones are tried
       └──it is not──▶ rounds of sizes between what passed and     │
                       what did not, until they meet ◀──a check is lost

Sizes are those of packets inside the tunnel, in steps of the padding; a ping is as long as what such a packet becomes.
Each path has its own, so that one that is used again is known already. While payload flows the size is checked now and
then: a black hole that opens in the middle of a call swallows what is large and lets all pings pass. A path that nobody
talks on waits for its turn, or two hundred that come at once would fill the line with large pings.

Each round brings a small ping too: if even that is not answered, the others prove nothing. A lost ping says little on a
path that loses many; how many lost ones say enough follows from its loss.

What the engine sends may be fragmented on the way, so that nothing vanishes on most networks while a size is not known,
or where not even IPv6's 1,280 bytes fit; whether such fragments arrive is tried too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .constants import TAG_BYTES
from .disco import OVERHEAD, PING_BYTES
from .path import PathAgent
from .probe import SUSPICION, Probe
from .traffic import Traffic
from .transport import RELAY_HEADER, Path

FLOOR = 512
"""Bytes. A path that carries no IPv4 packet of 576 is no part of the internet (RFC 791)."""
IPV6_FLOOR = 1280
"""Bytes that IPv6 asks of every link (RFC 8200 §5)."""
STEP = 16
"""Bytes: WireGuard pads to these."""
FAN = 8
"""Sizes in one round."""
IDLE_DELAY = 30.0
"""Seconds over which the first pings on paths without payload are spread."""
CHECK = 5.0
"""Seconds between two checks while large packets are sent: what a black hole may cost."""
CALM_CHECK = 30.0
"""The same for other payload: a large ping each few seconds would be heard in a call on a slow line."""
BULK_BYTES = 400
"""Mean size of packets from which they are large; those of a call are smaller."""
RAISE_AFTER = 600.0
"""Seconds until larger packets are tried again (RFC 8899 §5.1.1, PMTU_RAISE_TIMER)."""
SILENT_ROUND = 1.0
"""Seconds to the next round after one in which nothing was answered."""
MISTAKE = 0.0011
"""Probability, about, that a size is taken for too large that is only unlucky."""
LUCK = (0.15, 0.5)
"""Shares of pings without an answer that are reckoned with, at least and at most: four misses, or ten."""
LARGEST = 1984
"""The largest size that is tried: what is longer outside is no probe to the engine (SLOW_BYTES in tun/outbox.pxd).
Where these pass, what a larger MTU admits is taken on trust: whoever set it has a network for it."""
MAX_PATHS = 8
"""Paths that are remembered."""
_CONTROL = PING_BYTES + 1  # longer than an ordinary ping: pings that arrived are counted
_FRAGMENTED = -1
_SEALED = 16 + TAG_BYTES
_UDP_IP = {False: 28, True: 48}


def outer_size(path: Path, size: int) -> int:
    """The IP packet on this path around one of that size inside."""
    relayed = 0 if path.is_direct else RELAY_HEADER.size
    return _padded(size) + _SEALED + relayed + _UDP_IP[path.remote.is_ipv6]


def misses_that_count(unanswered: float) -> int:
    """How many pings in a row must be lost to prove something, where such a share of all pings is not answered."""
    luck = min(max(unanswered, LUCK[0]), LUCK[1])
    count = 1
    while luck**count > MISTAKE:
        count += 1
    return count


@dataclass(slots=True)
class Search:
    """What is known of one path. `limit` is what may be sent, `top` the most that could be."""

    top: int
    limit: int
    good: int = 0
    """The largest that was answered, 0: none yet."""
    bad: int = 0
    """The smallest that was not, however often it was asked."""
    fragments_pass: bool | None = None
    """Of packets of IPV6_FLOOR; None: not tried, or no need to."""
    is_on: bool = False
    rested_at: float = float("-inf")
    """When the last search ended, or the last check."""
    lowered_at: float = float("-inf")
    round_ends_at: float | None = None
    unanswered: set[int] = field(default_factory=set)
    pending: dict[bytes, int] = field(default_factory=dict)
    misses: Counter[int] = field(default_factory=Counter)
    rounds: int = 0
    is_heard: bool = False

    def begin(self, *, good: int, bad: int) -> None:
        """Search between these."""
        self.good, self.bad, self.is_on = good, bad, True
        self.round_ends_at, self.rounds, self.is_heard = None, 0, False
        self.unanswered.clear()
        self.pending.clear()
        self.misses.clear()

    def sizes(self) -> list[int]:
        """What the next round asks for: the largest in question, with others once it was missed. None: the end."""
        found = [size for size in (*range(FLOOR, self.top, STEP), self.top) if self.good < size < self.bad]
        chosen = found[-1:]
        if self.is_heard:
            chosen = (
                [found[(number + 1) * len(found) // FAN - 1] for number in range(FAN)] if len(found) > FAN else found
            )
        if self.bad <= IPV6_FLOOR and self.fragments_pass is None:
            chosen = [*chosen, _FRAGMENTED]
        return chosen

    def note_answer(self, size: int) -> None:
        """A ping of that size came through."""
        self.is_heard = True
        self.unanswered.discard(size)
        if size == _FRAGMENTED:
            self.fragments_pass = True
        elif size != _CONTROL:
            self.good = max(self.good, size)
            self.bad = self.bad if size < self.bad else self.top + 1
            self.limit = max(self.limit, size)

    def end_round(self, loss: float, now: float) -> None:
        """What was not answered by now is missed. `loss` is the path's share, one way."""
        self.round_ends_at, self.rounds = None, self.rounds + 1
        self.misses[_CONTROL] += _CONTROL in self.unanswered
        enough = misses_that_count(max(1 - (1 - loss) ** 2, self.misses[_CONTROL] / self.rounds))
        for size in self.unanswered - {_CONTROL} if self.is_heard else ():
            self.misses[size] += 1
            if self.misses[size] < enough:
                continue
            if size == _FRAGMENTED:
                self.fragments_pass = False
            else:
                self.bad = min(self.bad, size)
        self.unanswered.clear()
        if self.bad <= self.limit:
            self.limit, self.lowered_at = max(self.good, FLOOR), now
            self.fragments_pass = None


class PeerMtu:
    """The sizes for one peer; `mtu` is the interface's. Drive it by `follow` after whatever happened to the paths."""

    def __init__(self, mtu: int) -> None:
        self._mtu, self._top = mtu, min(mtu, LARGEST)
        self._searches: dict[Path, Search] = {}
        self._path: Path | None = None
        self._starts_at = float("-inf")
        self._told: tuple[int, bool | None] = (mtu, None)

    @property
    def search(self) -> Search | None:
        """What is known of the path in use."""
        return None if self._path is None else self._searches.get(self._path)

    @property
    def limit(self) -> int:
        """Bytes of the largest packet inside that goes to the peer whole, as far as is known."""
        return self._told[0]

    @property
    def fragments_pass(self) -> bool | None:
        """Where IPV6_FLOOR does not pass whole: does it in fragments?"""
        return self._told[1]

    @property
    def path_mtu(self) -> int | None:
        """The largest IP packet that went over the path in use unfragmented; None: not known yet."""
        search = self.search
        if self._path is None or search is None or search.rested_at == float("-inf"):
            return None
        return outer_size(self._path, search.limit)

    def forget(self) -> None:
        """We may be on other networks now."""
        self._searches.clear()
        self._path = None

    def note_pong(self, transaction_id: bytes) -> bool:
        """A pong came. False: it answers none of these pings."""
        search = self.search
        size = None if search is None else search.pending.pop(transaction_id, None)
        if search is None or size is None:
            return False
        search.note_answer(size)
        return True

    def next_timeout(self) -> float | None:
        """The end of a round, or the first; checks follow the traffic."""
        search = self.search
        if search is None:
            return None
        return self._starts_at if search.is_on and not search.pending else search.round_ends_at

    def follow(self, agent: PathAgent, sent: Traffic, *, now: float) -> bool:
        """Go on where the peer is reached now; `sent` is what of late. True: what may be sent is another size."""
        probe = agent.table.primary if agent.is_reachable else None
        self._use(probe, now)
        search = self.search
        if probe is None or search is None:
            return False
        is_active = agent.is_active(now)
        if not search.pending and not is_active and now < self._starts_at:
            return self._tell(search)
        if search.round_ends_at is not None:
            if search.unanswered - {_CONTROL} and now < search.round_ends_at:
                return self._tell(search)
            search.end_round(probe.loss, now)
        elif not search.is_on and is_active:
            self._look_again(search, sent, now)
        if search.is_on:
            self._ask(agent, probe, search, now)
        return self._tell(search)

    def _use(self, probe: Probe | None, now: float) -> None:
        path = None if probe is None else probe.path
        if path == self._path:
            return
        self._path = path
        if probe is None or path is None:
            return
        self._starts_at = now + IDLE_DELAY * probe.spread
        search = self._searches.pop(path, None)
        if search is None:
            search = Search(self._top, self._top)
            search.begin(good=0, bad=self._top + 1)
        else:
            search.begin(good=0, bad=search.bad)
        self._searches[path] = search
        if len(self._searches) > MAX_PATHS:
            del self._searches[next(iter(self._searches))]

    def _look_again(self, search: Search, sent: Traffic, now: float) -> None:
        is_bulk = sent.tx_bytes > BULK_BYTES * sent.tx_packets
        if search.limit < self._top and now >= search.lowered_at + RAISE_AFTER:
            search.lowered_at = now
            search.begin(good=search.good, bad=self._top + 1)
        elif now >= search.rested_at + (CHECK if is_bulk else CALM_CHECK):
            search.begin(good=0, bad=search.bad)

    def _ask(self, agent: PathAgent, probe: Probe, search: Search, now: float) -> None:
        sizes = search.sizes()
        if not sizes:
            search.is_on, search.rested_at = False, now
            return
        is_silent = bool(search.pending) and not search.is_heard
        search.is_heard = False
        search.unanswered = {*sizes, _CONTROL}
        for size in search.unanswered:
            is_whole = size != _FRAGMENTED
            length = _CONTROL if size == _CONTROL else _padded(size if is_whole else IPV6_FLOOR) + _SEALED - OVERHEAD
            search.pending[agent.knock(probe.path, now=now, size=length, is_whole=is_whole)] = size
        search.round_ends_at = now + (SILENT_ROUND if is_silent else SUSPICION + probe.slack)

    def _tell(self, search: Search) -> bool:
        limit = self._mtu if search.limit == self._top else search.limit
        if search.is_on:
            limit = min(limit, self.limit)  # until it is sure
        told = (limit, search.fragments_pass if limit < IPV6_FLOOR else None)
        is_new, self._told = told != self._told, told
        return is_new


def _padded(size: int) -> int:
    return -(-size // STEP) * STEP
