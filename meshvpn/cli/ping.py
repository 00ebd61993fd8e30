"""The command `ping`: how well a member is reached, through the tunnel and on each path beneath it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import msgspec
import typer

from .. import ipc
from ..proto.score import mos, one_way_loss, r_factor
from . import show
from .client import REFUSED
from .common import Net, Options, Peer, print_json, route
from .echo import Echo

PATIENCE = 2.0
"""Seconds for an answer."""
INTERVAL = 1.0
"""Seconds from ping to ping, like ping(8); none if there was no answer."""


class PingLine(ipc.PingReply, frozen=True, kw_only=True):
    """One round as `--json` prints it: the path's round trip, and an echo's through the tunnel."""

    tunnel_ms: float | None


class PathLine(ipc.PathRow, frozen=True, kw_only=True):
    """One path as `--json` prints it, over all rounds. `rtt_ms` is the mean; None: nothing came back."""

    sent: int
    answered: int


@dataclass(slots=True)
class Tally:
    """The round trips of one path or of the tunnel, milliseconds; None: no answer."""

    rtts: list[float | None] = field(default_factory=list)

    @property
    def answered(self) -> list[float]:
        """Without the lost ones."""
        return [rtt for rtt in self.rtts if rtt is not None]

    @property
    def mean(self) -> float | None:
        """Of those that came back."""
        return sum(self.answered) / len(self.answered) if self.answered else None

    @property
    def jitter(self) -> float | None:
        """The mean step from one round trip to the next."""
        steps = [abs(later - earlier) for earlier, later in pairwise(self.answered)]
        return sum(steps) / len(steps) if steps else None

    @property
    def loss(self) -> float:
        """The share that did not come back, of round trips."""
        return 1 - len(self.answered) / len(self.rtts) if self.rtts else 0.0

    @property
    def r(self) -> float | None:
        """How a call would sound by these figures."""
        if self.mean is None:
            return None
        return r_factor(self.mean / 1000, (self.jitter or 0.0) / 1000, one_way_loss(self.loss))


def ping(
    context: typer.Context,
    net: Net,
    peer: Peer,
    count: Annotated[int, typer.Option("-c", "--count", min=1, max=1000, help="how many rounds, one a second")] = 4,
    paths: Annotated[bool, typer.Option("--paths", help="every known path instead of the one in use")] = False,
) -> None:
    """Measure the round trip to a member: on the path in use, and of an echo through the tunnel."""
    is_reached = _ping_paths(context.obj, net, peer, count) if paths else _ping(context.obj, net, peer, count)
    if not is_reached:
        raise typer.Exit(REFUSED)


def _ping(options: Options, net: str, peer: str, count: int) -> bool:
    lines: list[PingLine] = []
    path, tunnel = Tally(), Tally()
    echo: Echo | None = None
    is_forbidden = False
    for _ in _rounds(count):
        request = ipc.PingRequest(peer=peer, timeout_s=PATIENCE)
        reply = options.client.post(route(net, "ping"), request, ipc.PingReply)
        if echo is None and not is_forbidden:
            try:
                echo = Echo(reply.address)
            except PermissionError:
                is_forbidden = True
        seconds = None if echo is None else echo.round_trip(PATIENCE)
        path.rtts.append(reply.rtt_ms)
        tunnel.rtts.append(None if seconds is None else round(seconds * 1000, 3))
        lines.append(PingLine(**msgspec.structs.asdict(reply), tunnel_ms=tunnel.rtts[-1]))
        if not options.json:
            through = "" if is_forbidden else f", through the tunnel {_answer(tunnel.rtts[-1])}"
            print(f"{reply.nick} ({reply.address}) {reply.path}: {_answer(reply.rtt_ms)}{through}", flush=True)
    if options.json:
        print_json(lines)
        return bool(path.answered or tunnel.answered)
    print(f"the path          {_summary(path)}")
    not_measured = "not measured: this user may not send ICMP, run as root"
    print(f"through the tunnel {not_measured if is_forbidden else _summary(tunnel)}")
    if path.answered and not tunnel.answered and not is_forbidden:
        where = f"{lines[-1].nick}'s firewall drops ICMP on its mesh interface"
        print(f"the path works, but no echo came through the tunnel; see whether {where}")
    return bool(path.answered or tunnel.answered)


def _ping_paths(options: Options, net: str, peer: str, count: int) -> bool:
    tallies: dict[tuple[str, str, str | None], Tally] = {}
    newest: dict[tuple[str, str, str | None], ipc.PathRow] = {}
    reply = None
    for _ in _rounds(count):
        reply = options.client.post(route(net, "paths"), ipc.PingRequest(peer=peer, timeout_s=PATIENCE), ipc.PathsReply)
        newest = {(row.kind, row.address, row.relay): row for row in reply.paths}
        for key, row in newest.items():
            tallies.setdefault(key, Tally()).rtts.append(row.rtt_ms)
    lines = [_path_line(row, tallies[key]) for key, row in newest.items()]
    if options.json:
        print_json(lines)
    elif not lines:
        print(f"no path to {peer} is known; is it online? See `meshvpn list`")
    else:
        print("\n".join(show.columns(show.path_rows(lines))))
    return any(line.answered for line in lines)


def _rounds(count: int) -> Iterator[int]:
    """One a second."""
    for number in range(count):
        started = time.monotonic()
        yield number
        if number + 1 < count:
            time.sleep(max(0.0, INTERVAL - (time.monotonic() - started)))


def _path_line(row: ipc.PathRow, tally: Tally) -> PathLine:
    r, jitter = tally.r, tally.jitter
    figures = msgspec.structs.asdict(row) | {
        "rtt_ms": None if tally.mean is None else round(tally.mean, 3),
        "jitter_ms": None if jitter is None else round(jitter, 3),
        "loss": round(one_way_loss(tally.loss), 4),
        "r": None if r is None else round(r, 1),
        "mos": None if r is None else round(mos(r), 2),
    }
    return PathLine(**figures, sent=len(tally.rtts), answered=len(tally.answered))


def _answer(rtt_ms: float | None) -> str:
    return "no answer" if rtt_ms is None else f"{rtt_ms:.2f} ms"


def _summary(tally: Tally) -> str:
    text = f"{len(tally.answered)} of {len(tally.rtts)} answered"
    if tally.mean is None or tally.r is None:
        return text
    jitter = "" if tally.jitter is None else f", jitter {tally.jitter:.2f} ms"
    least, most = min(tally.answered), max(tally.answered)
    return f"{text}, {least:.2f}/{tally.mean:.2f}/{most:.2f} ms (least/mean/most){jitter}, MOS {mos(tally.r):.1f}"
