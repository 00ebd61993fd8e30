"""Who is measured: each program's usual configuration, encrypted, uncompressed, over plain UDP, inner MTU 1400.

A contestant's `start` brings up both ends on its own pair of hosts and returns the tunnel. Keys and certificates are
made at run time. Ciphers are the program's default or what its manual recommends for speed:

    fastd         salsa2012+umac                nebula        AES-256-GCM (default)
    tinc 1.0      AES-256-CBC, SHA-256 (default) n2n 1.3       Twofish (the only one)
    openvpn       AES-256-GCM (default), no kernel module     wireguard-go  ChaCha20-Poly1305 (the only one)

Debian's wireguard-go is from 2022; WIREGUARD_GO=PATH in the environment adds another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import meshvpn
from tests.netns.lab import LabError

from . import native
from .arena import INNER, INNER_MTU, OUTER, Arena, Pair
from .figures import say

BIN = Path(sys.executable).parent
STARTUP = 30.0
"""Seconds within which a tunnel has to carry a ping."""

Processes = list[subprocess.Popen[bytes]]


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel that is up."""

    pair: Pair
    processes: Processes
    """The daemons that carry packets, one an end."""
    addresses: tuple[str, str] = INNER
    span: int = 1
    """Addresses in a row that each end has, beginning with its own."""

    @property
    def pids(self) -> list[int]:
        """Of the daemons."""
        return [process.pid for process in self.processes]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program that is measured."""

    name: str
    start: Callable[[Arena, Pair], Tunnel]
    version: Callable[[], str]
    is_floor: bool = False


def bring_up(arena: Arena, contestant: Contestant) -> Tunnel:
    """Start both ends and wait until a ping passes. Raises LabError with what the program said last."""
    pair = arena.add_pair(contestant.name.replace("-", "")[:8])
    try:
        tunnel = contestant.start(arena, pair)
        there = tunnel.addresses[1]
        ping = ["ping", "-c", "1", "-W", "1", there]
        arena.wait("a ping", lambda: arena.attempt(pair.a, ping).returncode == 0, timeout=STARTUP)
    except (LabError, OSError, subprocess.SubprocessError) as error:
        raise LabError(f"{contestant.name}: {error}; it said: {arena.last_line(pair.a)}") from error
    return tunnel


def bring_up_all(arena: Arena, contestants: Sequence[Contestant]) -> tuple[dict[str, Tunnel], list[str]]:
    """Those that start, and a line about each that does not."""
    tunnels: dict[str, Tunnel] = {}
    problems: list[str] = []
    for contestant in contestants:
        try:
            tunnels[contestant.name] = bring_up(arena, contestant)
            say(f"{contestant.name} is up")
        except LabError as error:
            problems.append(str(error).replace("\n", " "))
            say(problems[-1])
    return tunnels, problems


def _ends(pair: Pair) -> list[tuple[int, str]]:
    return [(0, pair.a), (1, pair.b)]


def _file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def _output(*command: str, text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _address(arena: Arena, host: str, end: int, device: str) -> None:
    """Give the device, once it is there, its address."""
    arena.wait(device, lambda: arena.attempt(host, ["ip", "link", "show", device]).returncode == 0, timeout=STARTUP)
    arena.ip(host, f"addr add {INNER[end]}/24 dev {device}")
    arena.ip(host, f"link set {device} mtu {INNER_MTU} up")


def _meshvpn(arena: Arena, pair: Pair) -> Tunnel:
    directory = arena.directory / pair.a
    password = _file(directory / "password", "correct horse battery staple\n")
    server = f"{OUTER[0]}:7770"
    data = str(directory / "rendezvous")
    serve = [str(BIN / "meshvpn-rendezvous"), "serve", "--listen", server, "--data", data]
    arena.wait_ready(arena.start(pair.a, "rendezvous", serve), "rendezvous")
    processes: Processes = []

    def command(end: int, *arguments: str) -> list[str]:
        return [str(BIN / "meshvpn"), "--json", "--socket", str(directory / f"socket{end}"), *arguments]

    for end, host in _ends(pair):
        state, socket = str(directory / f"state{end}"), str(directory / f"socket{end}")
        processes.append(arena.start(host, host, [str(BIN / "meshvpnd"), "--state-dir", state, "--socket", socket]))
        arena.wait_ready(processes[-1], host)
        enter = ["create", "join"][end]
        arena.run(host, command(end, enter, "bench", "--server", server, "--password-file", str(password)))

    def is_direct(end: int, host: str) -> bool:
        peers = json.loads(arena.run(host, command(end, "peers", "bench")))
        return [peer["state"] for peer in peers] == ["direct"]

    for end, host in _ends(pair):
        arena.wait(f"{host} direct", lambda end=end, host=host: is_direct(end, host))  # type: ignore[misc]
    lists = [json.loads(arena.run(host, command(end, "list"))) for end, host in _ends(pair)]
    return Tunnel(pair, processes, (lists[0][0]["address"], lists[1][0]["address"]))


def _fastd(arena: Arena, pair: Pair) -> Tunnel:
    keys = [dict(zip(("secret", "public"), _fastd_key(), strict=True)) for _ in range(2)]
    processes: Processes = []
    for end, host in _ends(pair):
        config = _file(
            arena.directory / host / "fastd.conf",
            f'log level info; mode tun; interface "vpn0"; mtu {INNER_MTU}; method "salsa2012+umac";\n'
            f'bind {OUTER[end]}:7000; secret "{keys[end]["secret"]}";\n'
            f'peer "other" {{ key "{keys[1 - end]["public"]}"; remote {OUTER[1 - end]}:7000; }}\n',
        )
        processes.append(arena.start(host, host, ["fastd", "--config", str(config)]))
        _address(arena, host, end, "vpn0")
    return Tunnel(pair, processes)


def _fastd_key() -> tuple[str, str]:
    secret = _output("fastd", "--generate-key", "--machine-readable")
    public = _output("fastd", "--config", "-", "--show-key", "--machine-readable", text=f'secret "{secret}";')
    return secret, public


def _nebula(arena: Arena, pair: Pair) -> Tunnel:
    directory = arena.directory / pair.a / "nebula"
    directory.mkdir(parents=True)
    ca = [str(directory / name) for name in ("ca.crt", "ca.key")]
    _output("nebula-cert", "ca", "-name", "bench", "-out-crt", ca[0], "-out-key", ca[1])
    processes: Processes = []
    for end, host in _ends(pair):
        crt, key = (str(directory / f"{host}.{kind}") for kind in ("crt", "key"))
        address = f"{INNER[end]}/24"
        sign = ["nebula-cert", "sign", "-ca-crt", ca[0], "-ca-key", ca[1], "-name", host, "-ip", address]
        _output(*sign, "-out-crt", crt, "-out-key", key)
        rule = [{"port": "any", "proto": "any", "host": "any"}]
        config = {
            "pki": {"ca": ca[0], "cert": crt, "key": key},
            "static_host_map": {INNER[1 - end]: [f"{OUTER[1 - end]}:4242"]},
            "lighthouse": {"am_lighthouse": False, "hosts": []},
            "listen": {"host": "0.0.0.0", "port": 4242},
            "tun": {"dev": "vpn0", "mtu": INNER_MTU},
            "logging": {"level": "warning"},
            "firewall": {"outbound": rule, "inbound": rule},
        }
        path = _file(directory / f"{host}.yml", json.dumps(config))  # JSON is YAML
        processes.append(arena.start(host, host, ["nebula", "-config", str(path)]))
    return Tunnel(pair, processes)


def _tinc(arena: Arena, pair: Pair) -> Tunnel:
    names = ("left", "right")
    directories = [arena.directory / host / "tinc" for host in (pair.a, pair.b)]
    for end, directory in enumerate(directories):
        connect = "ConnectTo = left\n" if end else ""
        name = names[end]
        _file(directory / "tinc.conf", f"Name = {name}\nInterface = vpn0\nAddressFamily = ipv4\n{connect}")
        _file(directory / "hosts" / name, f"Address = {OUTER[end]}\nSubnet = {INNER[end]}/32\n")
        up = f"#!/bin/sh\nip addr add {INNER[end]}/24 dev $INTERFACE\nip link set $INTERFACE mtu {INNER_MTU} up\n"
        _file(directory / "tinc-up", up).chmod(0o700)
        _output("tincd", "-c", str(directory), "-K", "2048", text="")
    for end, directory in enumerate(directories):
        _file(directories[1 - end] / "hosts" / names[end], (directory / "hosts" / names[end]).read_text())
    processes = []
    for end, host in _ends(pair):
        command = ["tincd", "-D", "-d1", "-c", str(directories[end]), "--pidfile", str(directories[end] / "pid")]
        processes.append(arena.start(host, host, command))
    return Tunnel(pair, processes)


def _n2n(arena: Arena, pair: Pair) -> Tunnel:
    arena.start(pair.a, "supernode", ["supernode", "-l", "7654"])
    # An edge whose first registration is lost tries again much later.
    arena.wait("supernode", lambda: ":7654 " in arena.run(pair.a, ["ss", "-lun"]))
    secret = f"N2N_KEY={os.urandom(8).hex()}"
    processes = []
    for end, host in _ends(pair):
        address = ["-a", INNER[end], "-s", "255.255.255.0", "-M", str(INNER_MTU)]
        command = ["edge", "-d", "vpn0", *address, "-c", "bench", "-l", f"{OUTER[0]}:7654"]
        processes.append(arena.start(host, host, ["env", secret, *command]))
    return Tunnel(pair, processes)


def _openvpn(arena: Arena, pair: Pair) -> Tunnel:
    directory = arena.directory / pair.a / "openvpn"
    directory.mkdir(parents=True)
    prints = []
    for _, host in _ends(pair):
        request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        crt, key = str(directory / f"{host}.crt"), str(directory / f"{host}.key")
        _output("openssl", *request, "-subj", f"/CN={host}", "-out", crt, "-keyout", key)
        prints.append(_output("openssl", "x509", "-in", crt, "-noout", "-fingerprint", "-sha256").split("=")[1])
    processes = []
    for end, host in _ends(pair):
        options = {
            "dev": "vpn0",
            "dev-type": "tun",
            "proto": "udp",
            "local": OUTER[end],
            "remote": f"{OUTER[1 - end]} 1194",
            "lport": "1194",
            "ifconfig": f"{INNER[end]} {INNER[1 - end]}",
            "tun-mtu": str(INNER_MTU),
            "cert": str(directory / f"{host}.crt"),
            "key": str(directory / f"{host}.key"),
            "peer-fingerprint": prints[1 - end],
            "verb": "1",
        }
        lines = [f"{name} {value}" for name, value in options.items()]
        role = ["tls-server\ndh none", "tls-client"][end]
        path = _file(directory / f"{host}.conf", "\n".join([*lines, role, "disable-dco", ""]))
        processes.append(arena.start(host, host, ["openvpn", "--config", str(path)]))
    return Tunnel(pair, processes)


def _wireguard_go(program: str) -> Callable[[Arena, Pair], Tunnel]:
    return lambda arena, pair: _start_wireguard_go(arena, pair, program)


def _start_wireguard_go(arena: Arena, pair: Pair, program: str) -> Tunnel:
    keys = [_output("wg", "genkey") for _ in range(2)]
    public = [_output("wg", "pubkey", text=key) for key in keys]
    processes = []
    for end, host in _ends(pair):
        # Its control socket lies in one directory for all namespaces, so the name has to be this run's.
        device = f"{arena.prefix}{pair.a[0]}{end}"
        key = _file(arena.directory / host / "key", keys[end])
        processes.append(arena.start(host, host, ["env", "LOG_LEVEL=error", program, "-f", device]))
        _address(arena, host, end, device)
        peer = ["peer", public[1 - end], "allowed-ips", f"{INNER[1 - end]}/32", "endpoint", f"{OUTER[1 - end]}:7001"]
        arena.run(host, ["wg", "set", device, "private-key", str(key), "listen-port", "7001", *peer])
    return Tunnel(pair, processes)


def _floor(kind: str) -> Callable[[Arena, Pair], Tunnel]:
    def start(arena: Arena, pair: Pair) -> Tunnel:
        processes = []
        for end, host in _ends(pair):
            command = [native.program("floors"), kind, "vpn0", OUTER[end], OUTER[1 - end], "7002"]
            processes.append(arena.start(host, host, command))
            _address(arena, host, end, "vpn0")
        return Tunnel(pair, processes)

    return start


def _newest_version() -> str:
    return _output(_NEWEST_PROGRAM, "--version").split()[1]


def _package(name: str) -> Callable[[], str]:
    return lambda: _output("dpkg-query", "--show", "--showformat", "${Version}", name)


NEWEST = "newest-wireguard-go"
_NEWEST_PROGRAM = os.environ.get("WIREGUARD_GO", "")
MESHVPN = Contestant("meshvpn", _meshvpn, lambda: meshvpn.__version__)
SINGLE = Contestant("copy", _floor("single"), lambda: "one packet a call", is_floor=True)
BATCH = Contestant("copy-gso", _floor("batch"), lambda: "GSO/GRO, batches", is_floor=True)
PEERS = (
    Contestant("fastd", _fastd, _package("fastd")),
    Contestant("nebula", _nebula, _package("nebula")),
    Contestant("tinc", _tinc, _package("tinc")),
    Contestant("n2n", _n2n, _package("n2n")),
    Contestant("openvpn", _openvpn, _package("openvpn")),
    Contestant("wireguard-go", _wireguard_go("wireguard-go"), _package("wireguard-go")),
    *([Contestant(NEWEST, _wireguard_go(_NEWEST_PROGRAM), _newest_version)] if _NEWEST_PROGRAM else []),
)
ALL = (MESHVPN, *PEERS, SINGLE, BATCH)
