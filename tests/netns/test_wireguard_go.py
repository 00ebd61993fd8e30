"""Debian's wireguard-go on one host, meshvpnd's data plane on the other: the oracle that the protocol is right.

    h1 20.1.0.101  plain_peer.py        10.99.N.1  ── internet ──  10.99.N.2        wireguard-go  20.1.0.102 h2

Each test has pairs (N) of its own. Two more pairs, one a role, carry calls from before the first test until after
REKEY_AFTER_TIME; so do two PBXs of a mesh whose rendezvous is gone. The last tests say what became of them.
"""

from __future__ import annotations

import base64
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import msgspec
import pytest

from meshvpn.proto.constants import KEEPALIVE_TIMEOUT, REKEY_AFTER_TIME, REKEY_TIMEOUT
from meshvpn.proto.keys import ula_prefix
from meshvpn.proto.primitives import x25519_public

from .flood import COOKIE
from .lab import Lab, public_address, public_address6
from .mesh import Mesh
from .plain_peer import Config, Status
from .stream import Stream, tell

pytestmark = pytest.mark.netns

US, IT = "h1", "h2"
"""The hosts of plain_peer.py and of wireguard-go."""
FIRST_PORT = 52000
PSK = bytes(range(32))
LONG_CALL = int(50 * (REKEY_AFTER_TIME + REKEY_TIMEOUT + 5))
"""Packets."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What each end is configured with; wrong ones where a test wants them."""

    ours: bytes
    its: bytes
    ours_as_it_knows: bytes
    its_as_we_know: bytes
    our_psk: bytes = PSK
    its_psk: bytes = PSK


def make_keys() -> Keys:
    ours, its = os.urandom(32), os.urandom(32)
    return Keys(ours, its, x25519_public(ours), x25519_public(its))


class Pair:
    """One interface on each side. An end that does not know the other's endpoint waits until it is called."""

    numbers = count(1)

    def __init__(
        self,
        lab: Lab,
        keys: Keys,
        *,
        we_call: bool = False,
        it_calls: bool = False,
        outer6: bool = False,
        keepalive: int | None = None,
    ) -> None:
        self.lab = lab
        self.keys = keys
        self.number = number = next(Pair.numbers)
        self.our_interface, self.its_interface = f"pl{number}", f"{lab.prefix}g{number}"
        self.port = FIRST_PORT + number
        self.uid = bytes([number]) * 16
        hosts = ula_prefix(self.uid).hosts()
        self.ours, self.its = f"10.99.{number}.1", f"10.99.{number}.2"
        self.ours6, self.its6 = str(next(hosts)), str(next(hosts))
        us, it = (public_address6(1), public_address6(2)) if outer6 else (public_address(1), public_address(2))
        config = Config(
            interface=self.our_interface,
            uid=self.uid,
            pool=f"10.99.{number}.0/24",
            address=self.ours,
            address6=self.ours6,
            private_key=keys.ours,
            peer_key=keys.its_as_we_know,
            preshared_keys=[keys.our_psk],
            endpoint=(it, self.port) if we_call else None,
            routes=[f"{self.its}/32", f"{self.its6}/128"],
            keepalive=keepalive,
        )
        self.process = lab.open(US, [sys.executable, "-m", "tests.netns.plain_peer"])
        ready = tell(self.process, msgspec.json.encode(config).decode() + "\n")
        self.our_port = int(ready.split()[1])
        endpoint = (f"[{us}]" if outer6 else us) + f":{self.our_port}"
        self._start_wireguard_go(endpoint if it_calls else None)

    def _start_wireguard_go(self, endpoint: str | None) -> None:
        lab, keys, name = self.lab, self.keys, self.its_interface
        lab.start(IT, name, ["wireguard-go", "-f", name])
        lab.wait("wireguard-go", lambda: control_socket(name).exists())
        lines = [
            "[Interface]",
            f"PrivateKey = {text(keys.its)}",
            f"ListenPort = {self.port}",
            "[Peer]",
            f"PublicKey = {text(keys.ours_as_it_knows)}",
            f"PresharedKey = {text(keys.its_psk)}",
            f"AllowedIPs = {self.ours}/32, {self.ours6}/128",
        ]
        if endpoint is not None:
            lines.append(f"Endpoint = {endpoint}")
        for address in (f"{self.its}/24", f"{self.its6}/64"):
            lab.run(IT, ["ip", "address", "add", address, "dev", name])
        lab.run(IT, ["ip", "link", "set", name, "mtu", "1400", "up"])
        lab.run(IT, ["wg", "setconf", name, "/dev/stdin"], text="\n".join(lines))

    def status(self) -> Status:
        """What plain_peer.py says."""
        status = msgspec.json.decode(tell(self.process, "status\n"), type=Status)
        status.drops.pop("no_route", None)  # router solicitations of our own kernel on a new interface
        return status

    def rekey(self) -> None:
        """We start a handshake."""
        assert tell(self.process, "rekey\n") == "done\n"

    def latest_handshake(self) -> int:
        """As `wg show` says: Unix time, 0 for never."""
        return int(self._show("latest-handshakes"))

    def received_by_it(self) -> int:
        """Bytes, as `wg show` says."""
        return int(self._show("transfer").split()[0])

    def _show(self, what: str) -> str:
        shown = self.lab.run(IT, ["wg", "show", self.its_interface, what])
        return shown.removeprefix(text(self.keys.ours_as_it_knows)).strip()

    def we_ping(self, *options: str, address: str | None = None) -> str:
        """What `ping` says at our end."""
        return self.lab.attempt(US, ["ping", *options, address or self.its]).stdout

    def it_pings(self, *options: str, address: str | None = None) -> str:
        """The same at its end."""
        return self.lab.attempt(IT, ["ping", *options, address or self.ours]).stdout

    def we_stream(self, port: int, **how: int | tuple[int, ...]) -> Stream:
        """UDP from us to it."""
        return Stream(self.lab, US, IT, self.its, port, **how)  # type: ignore[arg-type]

    def it_streams(self, port: int, **how: int | tuple[int, ...]) -> Stream:
        """UDP from it to us."""
        return Stream(self.lab, IT, US, self.ours, port, **how)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Calls:
    """A call each way."""

    pair: Pair
    streams: tuple[Stream, Stream]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        try:
            made.add_host(1)
            made.add_host(2)
            yield made
        finally:
            made.end_processes()
            for leftover in control_socket("x").parent.glob(f"{made.prefix}g*.sock"):
                leftover.unlink()


@pytest.fixture(scope="module", autouse=True)
def long_calls(lab: Lab) -> list[Calls]:
    """Started before the first test of this module."""
    calls: list[Calls] = []
    for pair in (Pair(lab, make_keys(), we_call=True), Pair(lab, make_keys(), it_calls=True)):
        first = pair.we_ping("-c1", "-W5") if not calls else pair.it_pings("-c1", "-W5")
        assert received(first) == 1, first
        calls.append(Calls(pair, (pair.we_stream(6000, count=LONG_CALL), pair.it_streams(6000, count=LONG_CALL))))
    return calls


@pytest.fixture(scope="module", autouse=True)
def long_call_of_a_mesh(lab: Lab) -> tuple[Mesh, tuple[Stream, Stream]]:
    """The same between two daemons, the rendezvous having ended."""
    mesh = Mesh(lab, 2)
    mesh.start()
    mesh.found()
    mesh.wait_direct()
    call = mesh.call(1, 2, count=LONG_CALL)
    mesh.wait_good(1, 2)
    mesh.end_server(signal.SIGKILL)
    return mesh, call


@pytest.mark.parametrize("outer6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("we_call", [True, False], ids=["we_call", "it_calls"])
def test_the_first_packet_makes_the_session_and_is_answered(lab: Lab, we_call: bool, outer6: bool) -> None:
    pair = Pair(lab, make_keys(), we_call=we_call, it_calls=not we_call, outer6=outer6)
    assert pair.latest_handshake() == 0
    first = pair.we_ping("-c1", "-W3") if we_call else pair.it_pings("-c1", "-W3")
    assert received(first) == 1, first
    assert pair.latest_handshake() > 0
    status = pair.status()
    assert (status.initiated, status.answered, status.drops) == (int(we_call), int(not we_call), {})


@pytest.mark.parametrize("we_call", [True, False], ids=["we_call", "it_calls"])
def test_packets_of_every_size_pass_inside_ipv4_and_ipv6(lab: Lab, we_call: bool) -> None:
    pair = Pair(lab, make_keys(), we_call=we_call, it_calls=not we_call)
    assert received(pair.we_ping("-c1", "-W3") if we_call else pair.it_pings("-c1", "-W3")) == 1
    for inner, head, ours, its in (("-4", 28, pair.ours, pair.its), ("-6", 48, pair.ours6, pair.its6)):
        for size in (64, 512, 1391, 1399, 1400):
            options = (inner, "-c1", "-W3", "-Mdo", "-s", str(size - head))
            for shown in (pair.we_ping(*options, address=its), pair.it_pings(*options, address=ours)):
                assert received(shown) == 1, f"{size} bytes: {shown}\n{pair.status()}"
    assert pair.status().drops == {}


def test_ten_thousand_packets_each_way_arrive_once_and_unchanged_in_both_roles(lab: Lab) -> None:
    pairs = [Pair(lab, make_keys(), we_call=True), Pair(lab, make_keys(), it_calls=True)]
    assert received(pairs[0].we_ping("-c1", "-W3")) == received(pairs[1].it_pings("-c1", "-W3")) == 1
    streams = [
        start(7000, rate=1000, count=10000, sizes=(172, 32, 1372, 172, 604))
        for pair in pairs
        for start in (pair.we_stream, pair.it_streams)
    ]
    for stream in streams:
        arrived = stream.finish()
        assert arrived.is_whole, arrived
    for pair in pairs:
        status = pair.status()
        assert (status.initiated + status.answered, status.lost_packets, status.drops) == (1, 0, {})


def test_handshakes_in_the_middle_of_traffic_lose_nothing(lab: Lab) -> None:
    pair = Pair(lab, make_keys(), we_call=True)
    assert received(pair.we_ping("-c1", "-W3")) == 1
    streams = [pair.we_stream(7000, rate=500, count=60000), pair.it_streams(7000, rate=500, count=60000)]
    for number in range(2, 12):
        pair.rekey()
        lab.wait("a new session", lambda wanted=number: pair.status().initiated == wanted)  # type: ignore[misc]
        # Which also takes the 20 ms within which it refuses another initiation.
        assert received(pair.we_ping("-c1", "-W3")) == 1
    for stream in streams:
        arrived = stream.stop()
        assert arrived.is_whole, arrived
    assert pair.status().drops == {}


@pytest.mark.parametrize("we_call", [True, False], ids=["we_call", "it_calls"])
def test_nothing_passes_with_a_wrong_preshared_key(lab: Lab, we_call: bool) -> None:
    pair = Pair(lab, replace(make_keys(), its_psk=bytes(32)), we_call=we_call, it_calls=not we_call)
    if not we_call:
        assert received(pair.it_pings("-c3", "-i0.3", "-W1")) == 0
        assert pair.status().answered > 0, "the preshared key comes last: its initiation is genuine"
    assert received(pair.we_ping("-c3", "-i0.3", "-W1")) == 0
    lab.wait("our end refuses its response", lambda: pair.status().drops.get("decrypt_failed", 0) > 0)
    assert received(pair.it_pings("-c3", "-i0.3", "-W1")) == 0
    status = pair.status()
    assert (status.initiated, status.rx_packets, pair.latest_handshake()) == (0, 0, 0)


@pytest.mark.parametrize("it_has", ["its own wrong key", "our wrong key"])
def test_nothing_passes_with_a_wrong_static_key(lab: Lab, it_has: str) -> None:
    keys, stranger = make_keys(), os.urandom(32)
    changed, reason = {
        "its own wrong key": (replace(keys, its=stranger), "unknown_peer"),
        "our wrong key": (replace(keys, ours_as_it_knows=x25519_public(stranger)), "bad_mac1"),
    }[it_has]
    pair = Pair(lab, changed, we_call=True, it_calls=True)
    assert received(pair.it_pings("-c2", "-i0.3", "-W1")) == 0
    lab.wait("our end refuses its initiation", lambda: pair.status().drops.get(reason, 0) > 0)
    assert received(pair.we_ping("-c2", "-i0.3", "-W1")) == 0
    status = pair.status()
    assert (status.initiated, status.answered, status.rx_packets, pair.latest_handshake()) == (0, 0, 0, 0)


def test_under_load_we_send_a_cookie_and_it_gets_in_with_that(lab: Lab) -> None:
    pair = Pair(lab, make_keys(), it_calls=True)
    with flood(lab, IT, public_address(1), pair.our_port, pair.keys.ours_as_it_knows, burst=100):
        shown = pair.it_pings("-c1", "-W10")
    assert received(shown) == 1, shown
    assert pair.status().cookies_sent[f"{public_address(2)}:{pair.port}"] > 0


def test_under_load_it_sends_a_cookie_and_we_get_in_with_that(lab: Lab) -> None:
    pair = Pair(lab, make_keys(), we_call=True)
    with flood(lab, US, public_address(2), pair.port, pair.keys.its_as_we_know, burst=1000):
        shown = pair.we_ping("-c1", "-W10")
    assert received(shown) == 1, shown
    assert pair.status().cookies_received > 0


def test_each_end_answers_one_way_traffic_with_keepalives_so_that_nobody_doubts_the_session(lab: Lab) -> None:
    pairs = [Pair(lab, make_keys(), we_call=True), Pair(lab, make_keys(), it_calls=True)]
    length = int(10 * (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + 2))
    streams = [
        pairs[0].we_stream(7000, rate=10, count=length),
        pairs[1].it_streams(7000, rate=10, count=length),
    ]
    for stream in streams:
        assert stream.finish().is_whole
    assert [(pair.status().initiated, pair.status().answered) for pair in pairs] == [(1, 0), (0, 1)]


def test_an_idle_session_gets_our_persistent_keepalives(lab: Lab) -> None:
    pair = Pair(lab, make_keys(), we_call=True, keepalive=1)
    assert received(pair.we_ping("-c1", "-W3")) == 1
    before = pair.received_by_it()
    lab.wait("two keepalives", lambda: pair.received_by_it() >= before + 2 * 32)
    assert pair.status().initiated == 1


def test_calls_live_through_the_rekey_after_two_minutes_in_both_roles(long_calls: list[Calls]) -> None:
    for calls in long_calls:
        for stream in calls.streams:
            arrived = stream.finish()
            assert arrived.is_whole, arrived
    statuses = [calls.pair.status() for calls in long_calls]
    assert [(status.initiated, status.answered) for status in statuses] == [(2, 0), (0, 2)], "whoever began renewed"
    assert [(status.lost_packets, status.drops) for status in statuses] == [(0, {}), (0, {})]


def test_a_call_of_the_mesh_lives_through_its_rekey_without_the_rendezvous(
    long_call_of_a_mesh: tuple[Mesh, tuple[Stream, Stream]],
) -> None:
    mesh, call = long_call_of_a_mesh
    for stream in call:
        arrived = stream.finish()
        assert arrived.is_whole, arrived
    for number in (1, 2):
        assert mesh.states(number) == ["direct"]
        assert mesh.peers(number)[0]["last_handshake_s"] < REKEY_AFTER_TIME, "it was renewed"


@contextmanager
def flood(lab: Lab, where: str, host: str, port: int, key: bytes, *, burst: int) -> Iterator[None]:
    """Handshakes of strangers, so many that they are answered with cookies; meanwhile too."""
    name = f"flood-{where}"
    program = [sys.executable, "-m", "tests.netns.flood", host, str(port), text(key), str(burst), "20"]
    running = lab.start(where, name, program)
    lab.wait("load", lambda: COOKIE in lab.log(name))
    try:
        yield
        assert running.poll() is None, "the load lasted"
    finally:
        running.terminate()


def control_socket(interface: str) -> Path:
    """Where wireguard-go listens for `wg`, in whatever namespace it runs."""
    return Path(f"/var/run/wireguard/{interface}.sock")


def received(shown: str) -> int:
    """The number of answers that `ping` counted."""
    found = re.search(r"(\d+) received", shown)
    return int(found[1]) if found else 0


def text(key: bytes) -> str:
    """As `wg` writes keys."""
    return base64.b64encode(key).decode()
