"""kill -9 at any moment: afterwards the state is the old one or the new one, and what was said to be done is done."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ..netns.lab import SERVER_HOST
from .stand import BIN, PASSWORD, Daemon, Done, Stand, refusal, stand

pytestmark = pytest.mark.netns

Legal = set[str | None]
Networks = dict[str, dict[str, Any]]

DONE, NO_DAEMON, NO_SERVER = 0, 3, 4
LIVES = 8
"""Of the daemon that does things at random; each takes 1 to 2 s."""
LAST_CALL = 220
"""A start in two networks makes about 60 calls that change files, a creation 35, a new nickname 10."""
MAX_ACTS = 6
"""In one life; whoever survives them is killed between two calls."""


@pytest.fixture(scope="module")
def made() -> Iterator[Stand]:
    with stand(sites=1) as found:
        yield found


@pytest.fixture(scope="module")
def owner(made: Stand) -> Daemon:
    """Owns the network `office`."""
    daemon = made.daemon("owner")
    daemon.start()
    daemon.enters("create", "office")
    return daemon


def test_a_daemon_killed_at_any_call_loses_no_network_and_damages_no_file(made: Stand, owner: Daemon) -> None:
    victim, chance = Victim(made.daemon("victim", "s1")), random.Random(2)
    for life in range(LIVES):
        if life % 8 == 7:  # the server's limit on creations is not what is tested
            made.stop_server()
            made.start_server()
        _start_doomed(victim.daemon, chance.randrange(LAST_CALL))
        for _ in range(MAX_ACTS):
            if not victim.act(chance):
                break
        victim.daemon.running.kill()
        victim.daemon.running.wait()
    victim.daemon.start([str(BIN / "meshvpnd")])
    assert victim.look() is not None
    assert victim.acts >= LIVES, "most lives were long enough to do something"


@pytest.mark.parametrize("call", [9, 13, 21, 40])
def test_a_creation_cut_short_never_happened_or_is_asked_for_again(made: Stand, call: int) -> None:
    daemon = made.daemon(f"creator{call}")
    _start_doomed(daemon, call)
    assert daemon.enter("create", "new").returncode == NO_DAEMON
    assert daemon.running.wait(timeout=10) == -signal.SIGKILL
    daemon.start([str(BIN / "meshvpnd")])
    if "new" not in daemon.networks():
        assert call < 13, "from the first save on it is not forgotten"
        daemon.enters("create", "new")
    daemon.wait_online("new")
    network = daemon.networks()["new"]
    assert (network["role"], network["epoch"]) == ("owner", 1)
    assert network["address"] == network["pool"].replace(".0/24", ".1")
    daemon.does("delete", "new")
    assert daemon.stop() == 0


def test_a_creation_whose_answer_is_lost_is_asked_for_again(made: Stand) -> None:
    made.start_plain_server(7790)
    cutter = [sys.executable, "-m", "tests.failures.cutter", "7795", SERVER_HOST, "7790"]
    made.lab.start("net", "cutter", cutter)
    made.lab.wait("cutter ready", lambda: "ready" in made.lab.log("cutter"))
    daemon = made.daemon("unanswered")
    daemon.start()
    server = f"http://{SERVER_HOST}:7795"
    done = daemon.meshvpn("create", "new", "--server", server, "--password-file", "-", stdin=PASSWORD)
    assert "was asked and did not answer" in refusal(done, NO_SERVER)
    assert "asked for again until it does: `meshvpn list`" in done.stderr
    assert "in a network of that name already" in refusal(daemon.enter("create", "new"), 1)
    daemon.wait_online("new")
    assert daemon.networks()["new"]["role"] == "owner"
    daemon.does("delete", "new")
    daemon.stop()


@pytest.mark.parametrize("call", [26, 32])
def test_an_eviction_cut_short_is_done_as_a_whole_or_not_at_all(made: Stand, owner: Daemon, call: int) -> None:
    made.stop_server()
    made.start_server()
    evictor, net = made.daemon(f"evictor{call}", "s1"), f"net{call}"
    evictor.start()
    evictor.enters("create", net)
    owner.enters("join", net, "--nick", "other")
    evictor.lab.wait("other is known", lambda: len(evictor.networks()[net]["members"]) == 1)
    assert evictor.stop() == 0
    _start_doomed(evictor, call)
    evictor.lab.wait("online or dead", lambda: _state(evictor, net) in ("online", None))
    evictor.meshvpn("evict", net, "other", "--keep-password")
    evictor.running.kill()
    evictor.running.wait()
    evictor.start([str(BIN / "meshvpnd")])
    evictor.wait_online(net)
    members, epoch = len(evictor.networks()[net]["members"]), evictor.networks()[net]["epoch"]
    assert (members, epoch) in ((1, 1), (0, 2))
    if members:
        evictor.does("evict", net, "other", "--keep-password")
    owner.lab.wait("evicted", lambda: _state(owner, net) == "evicted")
    owner.does("leave", net)
    evictor.does("delete", net)
    assert evictor.stop() == 0


class Victim:
    """A daemon that founds, joins, renames and leaves networks, and what it may show of them.

    For each network the nicknames that are legal; None: it may be in no such network.
    """

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.legal: dict[str, Legal] = {"mine": {None}, "office": {None}}
        self.acts = 0

    def look(self) -> Networks | None:
        """Check what is shown, and take it for what is; None if the daemon is dead."""
        networks = self.daemon.networks_if_alive()
        if networks is None:
            return None
        for name, legal in self.legal.items():
            nick = networks[name]["nick"] if name in networks else None
            assert nick in legal, f"{name}: {nick} is not one of {legal}"
            self.legal[name] = {nick}
        assert "damaged" not in self.daemon.meshvpn("status").stdout
        return networks

    def act(self, chance: random.Random) -> bool:
        """Do something; False if the daemon is dead."""
        networks = self.look()
        if networks is None:
            return False
        name, nick = chance.choice(sorted(self.legal)), f"nick{self.acts}"
        self.acts += 1
        ending = "delete" if name == "mine" else "leave"
        if name not in networks:
            entering = "create" if name == "mine" else "join"
            self._note(name, nick, self.daemon.enter(entering, name, "--nick", nick))
        elif not self._is_settled(name) or chance.random() < 0.5:
            self._note(name, None, self.daemon.meshvpn(ending, name))
        else:
            self._note(name, nick, self.daemon.meshvpn("nick", name, nick))
        return self.daemon.running.poll() is None

    def _is_settled(self, name: str) -> bool:
        """Wait until it is clear what became of it; False if there is nothing left but to leave it."""

        def is_clear() -> bool:
            networks = self.daemon.networks_if_alive()
            return networks is None or networks[name]["state"] != "connecting" or networks[name]["note"] is not None

        self.daemon.lab.wait(f"{name} is clear", is_clear)
        return _state(self.daemon, name) in ("online", None)

    def _note(self, name: str, nick: str | None, done: Done) -> None:
        """What is legal after an act: what was said to be done is done, what was cut short may be."""
        assert done.returncode in (DONE, NO_DAEMON, NO_SERVER), done.stderr
        before = self.legal[name]
        self.legal[name] = {nick} if done.returncode == DONE else before | {nick}


def _start_doomed(daemon: Daemon, call: int) -> None:
    daemon.start([sys.executable, "-m", "tests.failures.doomed", str(call)])


def _state(daemon: Daemon, name: str) -> str | None:
    networks = daemon.networks_if_alive()
    return None if networks is None else str(networks[name]["state"])
