"""A mesh between sites behind real NATs: when each path was found, and what calls heard.

Members enter and are asked by the daemon's API, which costs a fraction of the command line's start, and the instants of
changes are those of the daemon's log.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from threading import Lock
from typing import Any

from meshvpn import ipc
from meshvpn.cli.client import Client
from meshvpn.proto.keys import NetworkKeys, derive_network_keys

from .lab import SERVER_HOST, LabError
from .mesh import NETWORK, Mesh
from .native import compiled
from .natlab import HERE, NatLab
from .stream import READY, tell

HTTPS = 443
VOICE_PORT = "4000"
VOICE_BYTES = "172"
"""160 bytes of G.711 and the RTP header."""
VOICE_RATE = 50.0
SILENCE = 2.0
"""Seconds after which what has not come is lost."""
_LINE = re.compile(r"^(\S+ \S+) INFO \S+ peer_(\w+) network=\S+ peer=piaf-server(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Heard:
    """What one end of a call heard of the other. Instants are Unix time."""

    sent: int
    received: int
    repeated: int
    reordered: int
    longest_gap: float
    gap_at: float
    last_at: float
    missing: tuple[tuple[int, int], ...]
    """The first ranges of numbers that did not come, before the last that did."""

    @property
    def lost(self) -> int:
        """Packets."""
        return self.sent - self.received

    @property
    def is_whole(self) -> bool:
        """Every packet, once."""
        return self.received > 0 and (self.lost, self.repeated) == (0, 0)


@dataclass(frozen=True, slots=True)
class Change:
    """A line of a daemon's log: since when it reaches a peer in this way."""

    at: float
    state: str
    peer: int


class NatMesh(Mesh):
    """Hosts of a NatLab, by number; the server listens at TCP port 443, which is open everywhere."""

    def __init__(
        self,
        lab: NatLab,
        hosts: dict[int, str],
        *,
        configs: Mapping[int, str] | None = None,
        log_level: str = "INFO",
    ) -> None:
        super().__init__(lab, 0, log_level=log_level)
        self.configs = dict(configs or {})
        self.natlab = lab
        self.hosts = hosts
        self.port = HTTPS
        self.server_of: dict[int, str] = {}
        """The server's address as some members know it, where it is another."""
        self.addresses: dict[int, str] = {}
        self._talkers: dict[int, Talker] = {}

    def start(self) -> None:
        """Start everything; the members enter in their order."""
        self.start_server()
        self.start_daemons(list(self.hosts))
        for number in self.hosts:
            self.enlist(number)

    def start_daemons(self, numbers: Sequence[int]) -> None:
        """Start several at once."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self.start_daemon, numbers))

    def enlist(self, number: int) -> None:
        """Create the network or join it. Raises CliError."""
        keys, client = _keys(), self.client(number)
        host = self.server_of.get(number, SERVER_HOST)
        server = ipc.ServerOptions(url=f"https://{host}:{self.port}")
        nick, locator, wrap_key = f"piaf-server{number}", keys.locator.hex(), keys.wrap_key.hex()
        if self.addresses:
            join = ipc.JoinRequest(name=NETWORK, locator=locator, wrap_key=wrap_key, server=server, nick=nick)
            view = client.post("/v1/networks/join", join, ipc.NetworkView)
        else:
            create = ipc.CreateRequest(name=NETWORK, locator=locator, wrap_key=wrap_key, server=server, nick=nick)
            view = client.post("/v1/networks", create, ipc.NetworkView)
        self.addresses[number] = view.address

    def client(self, number: int) -> Client:
        """A daemon's API."""
        return Client(str(self.socket(number)))

    def is_attached(self, number: int) -> bool:
        """True if a member is connected to the rendezvous."""
        servers = self.client(number).get("/v1/status", ipc.Status).servers
        return [server.state for server in servers] == ["connected"]

    def peer(self, number: int, other: int) -> ipc.PeerView:
        """What a member knows of another. Raises LabError."""
        nick = f"piaf-server{other}"
        for view in self.client(number).get(f"/v1/networks/{NETWORK}/peers", list[ipc.PeerView]):
            if view.nick == nick:
                return view
        raise LabError(f"site {number} does not know site {other}")

    def paths(self, number: int, other: int) -> list[ipc.PathRow]:
        """All paths of a member to another, each pinged for this answer."""
        request = ipc.PingRequest(peer=f"piaf-server{other}")
        return self.client(number).post(f"/v1/networks/{NETWORK}/paths", request, ipc.PathsReply).paths

    def is_reached(self, state: str, a: int, b: int) -> bool:
        """True if both ends reach each other in this way."""
        return {self._state(a, b), self._state(b, a)} == {state}

    def wait_known(self, a: int, b: int) -> None:
        """Wait until both ends know that the other is there."""
        self.lab.wait(f"{a} and {b} know each other", lambda: None not in (self._state(a, b), self._state(b, a)))

    def _state(self, number: int, other: int) -> str | None:
        """None: it does not know the other yet."""
        try:
            return self.peer(number, other).state
        except LabError:
            return None

    def wait_state(self, state: str, a: int, b: int, *, timeout: float = 20) -> float:
        """Wait until they do; the seconds that it took."""
        return self.lab.wait(f"{a} and {b}: {state}", lambda: self.is_reached(state, a, b), timeout=timeout)

    def changes(self, number: int, other: int) -> list[Change]:
        """The history of a member's way to another."""
        found = _LINE.findall(self.lab.log(f"daemon{number}"))
        return [
            Change(datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").timestamp(), state, int(peer))
            for at, state, peer in found
            if int(peer) == other
        ]

    def talker(self, number: int) -> Talker:
        """The phone of a site; it is there from the first time on."""
        if number not in self._talkers:
            self._talkers[number] = Talker(self.natlab, self.hosts[number], self.addresses[number])
        return self._talkers[number]

    def begin(self, a: int, b: int, *, rate: float = VOICE_RATE) -> None:
        """They talk, both ways."""
        for phone, other in [(self.talker(a), b), (self.talker(b), a)]:  # both listen before one talks
            phone.talk(self.addresses[other], rate)

    def end(self, a: int, b: int) -> tuple[Heard, Heard]:
        """They fall silent; what b heard of a, and a of b."""
        for here, there in ((a, b), (b, a)):
            self.talker(here).talk(self.addresses[there], 0)
        ended = time.monotonic()
        while self.heard(a, b).lost or self.heard(b, a).lost:
            if time.monotonic() - ended > SILENCE:
                break
            time.sleep(0.1)
        return self.heard(a, b), self.heard(b, a)

    def heard(self, source: int, target: int) -> Heard:
        """What one has heard of the other so far."""
        sent = self.talker(source).report()[self.addresses[target]]["sent"]
        came = self.talker(target).report()[self.addresses[source]]
        missing = tuple((first, last) for first, last in came["missing"])
        return Heard(
            sent,
            came["received"],
            came["repeated"],
            came["reordered"],
            came["longest_gap"],
            came["gap_at"],
            came["last_at"],
            missing,
        )


class Talker:
    """talk.c at a host: sends voice to others and counts what comes."""

    def __init__(self, lab: NatLab, host: str, address: str) -> None:
        command = [compiled(HERE / "talk.c"), address, VOICE_PORT, VOICE_BYTES]
        self._process: subprocess.Popen[str] = lab.open(host, command)
        self._lock = Lock()
        if tell(self._process) != READY:
            raise LabError(f"talk did not start at {host}")

    def talk(self, address: str, rate: float) -> None:
        """Packets a second from now on; 0: none."""
        self._ask(f"rate {address} {rate}")

    def report(self) -> dict[str, dict[str, Any]]:
        """Its figures by peer."""
        return dict(json.loads(self._ask("report")))

    def _ask(self, command: str) -> str:
        with self._lock:  # scenarios that run at once share a host's
            return tell(self._process, f"{command}\n")


@cache
def _keys() -> NetworkKeys:
    return derive_network_keys(NETWORK, "correct horse battery staple")
