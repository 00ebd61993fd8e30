"""The program as it is installed: its command line, its errors, and what is left when it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner

import meshvpn
from meshvpn.proto.control import Attached, Done, Goodbye, MemberChanged, Presence, Refused
from rendezvous import tls
from rendezvous.__main__ import app

from .clients import PATIENCE, Client, Clients
from .signing import Network, identity

PROGRAM = [sys.executable, "-m", "rendezvous"]
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
"""Even for root, a directory without write permission can't be written then."""


# --- the command line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--listen", "nonsense"],
            "--listen nonsense: it is not HOST:PORT; write for example 0.0.0.0:7770 or [::]:7770",
        ),
        (["--listen", "127.0.0.1:²"], "--listen 127.0.0.1:²: it is not HOST:PORT;"),
        (["--listen", "127.0.0.1:0"], "--listen 127.0.0.1:0: it is not HOST:PORT;"),
        (["--listen", "127.0.0.1:65536"], "--listen 127.0.0.1:65536: it is not HOST:PORT;"),
        (["--listen", "127.0.0.1:65535"], "--port2 65536: it is not a second port; give a number from 1 to 65535"),
        (["--listen", "127.0.0.1:7770", "--port2", "7770"], "--port2 7770: it is not a second port;"),
        (["--tls-cert", "x"], "--tls-cert and --tls-key: only one of them was given; give both or none"),
        (["--tls-key", "x"], "--tls-cert and --tls-key: only one of them was given; give both or none"),
        (["--no-tls", "--tls-cert", "x", "--tls-key", "y"], "--no-tls: a certificate was given too;"),
        (["--trusted-proxy", "10.0.0.1/8"], "--trusted-proxy 10.0.0.1/8: it is no address or network ("),
        (["--log-level", "loud"], "--log-level loud: there is no such level; use DEBUG, INFO, WARNING or ERROR"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(tmp_path: Path, arguments: list[str], line: str) -> None:
    done = CliRunner().invoke(app, ["serve", "--data", str(tmp_path), *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"meshvpn-rendezvous: {line}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["serve", "--frobnicate"], "no such option: --frobnicate; see `meshvpn-rendezvous serve --help`"),
        (["serve", "x"], "too many arguments"),
        (["serve", "--port2", "x"], "invalid value for '--port2': 'x' is not a number; see `meshvpn-rendezvous serve"),
        (["serv"], "no such command 'serv'; did you mean 'serve'?"),
    ],
)
def test_a_usage_error_is_one_line(arguments: list[str], line: str) -> None:
    assert_fails(run(*arguments), 2, line)


def test_without_a_command_it_shows_the_commands_and_fails() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (2, "")
    assert "Print the pin" in done.stdout


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_in_use_is_one_clear_line(tmp_path: Path, kind: socket.SocketKind) -> None:
    port = free_port()
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", port))
        done = run("serve", "--data", str(tmp_path), "--listen", f"127.0.0.1:{port}")
    name = "tcp" if kind == socket.SOCK_STREAM else "udp"
    assert_fails(done, 1, f"{name} 127.0.0.1:{port}: cannot be bound (address already in use); give another --listen")


def test_a_host_that_does_not_exist_is_one_clear_line(tmp_path: Path) -> None:
    done = run("serve", "--data", str(tmp_path), "--listen", "no.such.host.invalid:7770")
    assert_fails(done, 1, "tcp no.such.host.invalid:7770: cannot be bound (")


def test_a_data_directory_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = run("serve", "--data", str(tmp_path / "data"), prefix=UNPRIVILEGED)
    assert_fails(done, 1, f"--data {tmp_path}/data: it cannot be written (permission denied); give another directory")


def test_a_file_instead_of_a_data_directory_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    done = run("serve", "--data", str(tmp_path / "data"))
    assert_fails(done, 1, f"--data {tmp_path}/data: it cannot be written (")


def test_a_damaged_database_is_one_clear_line_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "networks.sqlite3"
    path.write_bytes(b"this is no database " * 100)
    done = run("serve", "--data", str(tmp_path), "--listen", f"127.0.0.1:{free_port()}")
    assert_fails(done, 1, f"{path} cannot be used (file is not a database); move it away or restore it from a backup")
    assert path.read_bytes() == b"this is no database " * 100


def test_a_damaged_certificate_is_one_clear_line(tmp_path: Path) -> None:
    certificate, key = tls.ensure_certificate(tmp_path)
    certificate.write_bytes(b"nonsense")
    done = run("serve", "--data", str(tmp_path), "--listen", f"127.0.0.1:{free_port()}")
    assert_fails(done, 1, f"{certificate}: it does not load with {key} (")
    assert_fails(run("pin", "--data", str(tmp_path)), 1, f"{certificate}: no certificate can be read from it")


def test_the_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"meshvpn-rendezvous {meshvpn.__version__}\n"


# --- a server that runs


async def test_a_second_server_on_one_data_directory_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path):
        done = run("serve", "--data", str(tmp_path), "--listen", f"127.0.0.1:{free_port()}")
    assert_fails(done, 1, f"{tmp_path}: another server uses it; stop that one, or give another --data")


async def test_the_pin_that_is_shown_is_the_certificates_at_every_start(tmp_path: Path) -> None:
    for _ in range(2):
        async with serving(tmp_path, "--log-level", "info", tls=True) as program:
            shown = program.ready_line.rpartition("pin=")[2].strip()
            client = await program.clients.connect()
            seen = client.websocket.get_extra_info("ssl_object").getpeercert(binary_form=True)
        (tmp_path / "seen.pem").write_text(ssl.DER_cert_to_PEM_cert(seen))
        assert shown == tls.pin_of(tmp_path / "seen.pem") == run("pin", "--data", str(tmp_path)).stdout.strip()


async def test_it_takes_no_more_connections_than_it_has_file_descriptors(tmp_path: Path) -> None:
    few = ["prlimit", "--nofile=266:266"]
    async with serving(tmp_path, prefix=few) as program:
        assert " connections=10 " in program.ready_line
        for _ in range(10):
            await program.clients.connect()
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await program.clients.connect()


async def test_several_tcp_ports_share_the_udp_ports(tmp_path: Path) -> None:
    more = free_port()
    async with serving(tmp_path, "--listen", f"127.0.0.1:{more}") as program:
        other = Clients(program.clients.session, f"http://127.0.0.1:{more}")
        client = await other.connect()
        assert client.welcome.udp_port == program.port
        await other.close()


async def test_a_proxy_that_is_named_is_believed(tmp_path: Path) -> None:
    async with serving(tmp_path, "--trusted-proxy", "127.0.0.1") as program:
        client = await program.clients.connect(**{"X-Forwarded-For": "203.0.113.7"})
        assert client.welcome.observed_host == "203.0.113.7"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_clients_go_with_a_goodbye(tmp_path: Path, number: signal.Signals) -> None:
    async with serving(tmp_path) as program:
        network = Network()
        client = await program.clients.connect()
        await client.create(network)
        program.process.send_signal(number)
        assert (await client.expect(Goodbye)).code == "restarting"
        assert await client.closed() == 1000
        assert await program.ended() == 0
    async with serving(tmp_path) as program:
        again = await program.clients.connect()
        assert (await again.attach(network, network.founder)).address == "10.7.5.1"


async def test_systemd_hears_when_it_is_ready_and_when_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        async with serving(tmp_path / "data"):
            assert listener.recv(64) == b"READY=1"
        assert listener.recv(64) == b"STOPPING=1"


async def test_a_full_disk_is_said_so_loses_nothing_and_heals(tmp_path: Path) -> None:
    async with serving(tmp_path) as program:
        network = Network(pool="10.8.0.0/16")
        founder = await program.clients.connect()
        await founder.create(network)
        with no_more_bytes(program.process.pid, tmp_path / "networks.sqlite3-wal"):
            for number in range(100):
                client = await program.clients.connect()
                answer = await joined_or_refused(client, network, number)
                await client.websocket.close()
                if isinstance(answer, Refused):
                    break
            assert isinstance(answer, Refused)
            assert answer.code == "unavailable"
        client = await program.clients.connect()
        again = await joined_or_refused(client, network, number)
        assert isinstance(again, Attached)
        assert len(again.members) == number + 2


@pytest.mark.parametrize("seed", range(2))
async def test_what_was_acknowledged_survives_a_kill_at_any_moment(tmp_path: Path, seed: int) -> None:
    network = Network(seed, pool="10.8.0.0/16")
    joined: dict[int, str] = {}
    recorded: list[int] = []
    kill_after = random.Random(seed).randrange(3, 30)

    async def join_and_publish(program: Program, numbers: range) -> None:
        for number in numbers:
            member, client = identity(number), await program.clients.connect()
            joined[number] = (await client.join(network, member)).address
            if len(joined) == kill_after:
                program.process.kill()
            await client.send(network.put_record(member, joined[number]))
            while not isinstance(answer := await client.receive(), Done):
                assert isinstance(answer, Presence | MemberChanged)
            recorded.append(number)

    async with serving(tmp_path) as program:
        founder = await program.clients.connect()
        await founder.create(network)
        writers = [join_and_publish(program, range(first, 1000, 4)) for first in range(4)]
        results = await asyncio.gather(*writers, return_exceptions=True)
        assert await program.ended() == -signal.SIGKILL
    assert all(isinstance(result, aiohttp.ClientError | OSError | TypeError) for result in results), results
    assert len(joined) >= kill_after
    async with serving(tmp_path) as program:
        again = await program.clients.connect()
        attached = await again.attach(network, network.founder)
        stored = {entry.identity: entry for entry in attached.members}
        assert len({entry.address for entry in attached.members}) == len(stored)
        for number, address in joined.items():
            assert stored[identity(number).public].address == address
        for number in recorded:
            assert stored[identity(number).public].envelope is not None


# --- helpers


class Program:
    """A server in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, ready_line: str, clients: Clients) -> None:
        self.process = process
        self.port = port
        self.ready_line = ready_line
        self.clients = clients

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


@asynccontextmanager
async def serving(data: Path, *arguments: str, tls: bool = False, prefix: Sequence[str] = ()) -> AsyncIterator[Program]:
    """Start it, wait until it is ready, and end it if it has not ended."""
    port = free_port()
    command = [*prefix, *PROGRAM, "serve", "--data", str(data), "--listen", f"127.0.0.1:{port}", *arguments]
    process = await asyncio.create_subprocess_exec(*command, *([] if tls else ["--no-tls"]), stderr=subprocess.PIPE)
    assert process.stderr is not None
    log: list[str] = []
    try:
        async with asyncio.timeout(PATIENCE):
            while "ready" not in (log or [""])[-1]:
                line = (await process.stderr.readline()).decode()
                assert line, log
                log.append(line)
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reading = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as session:
            clients = Clients(session, f"{'https' if tls else 'http'}://127.0.0.1:{port}", context)
            yield Program(process, port, log[-1], clients)
            await clients.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(PATIENCE):
            await process.wait()
    assert b"Traceback" not in await reading


def run(*arguments: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, *PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def assert_fails(done: subprocess.CompletedProcess[str], status: int, line: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(f"meshvpn-rendezvous: {line}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def free_port() -> int:
    """One whose successor is free too; the second UDP port."""
    while True:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            first, second, third = (
                stack.enter_context(socket.socket(socket.AF_INET, kind))
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_DGRAM)
            )
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            second.bind(("127.0.0.1", port))
            third.bind(("127.0.0.1", port + 1))
            return port


@contextlib.contextmanager
def no_more_bytes(process: int, path: Path) -> Iterator[None]:
    """The process can make no file longer than this one is, as on a full disk."""
    before = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (path.stat().st_size + 50_000, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)


async def joined_or_refused(client: Client, network: Network, number: int) -> Attached | Refused:
    await client.send(network.join(identity(number), nonce=client.welcome.nonce))
    answer = await client.receive()
    assert isinstance(answer, Attached | Refused)
    return answer
