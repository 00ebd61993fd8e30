"""Passwords and keys are in no argument list, log line, answer, exception or file that others may read."""

from __future__ import annotations

import base64
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from meshvpn import ipc
from meshvpn.proto.invites import secret_of
from meshvpn.proto.keys import derive_network_keys
from meshvpn.proto.ownerfile import derive_key, salt_of
from meshvpn.state import NetworkState, read_checked

from ..netns.lab import SERVER_HOST
from . import raw
from .stand import PASSWORD, Daemon, Stand, meshvpn, stand

pytestmark = pytest.mark.netns

NEW_PASSWORD = "Tr0ub4dor&3 and more"
LOOKS = [
    ("list",),
    ("--json", "list"),
    ("peers", "office"),
    ("status",),
    ("--json", "status"),
    ("--json", "events", "office"),
    ("--json", "admin", "list", "office"),
    ("--json", "invite", "office", "--list"),
]
PASSPHRASE = "in the safe of the other office"
WRONG_PASSWORD = "this is not the password"


class Secrets:
    """What nobody may see, by name, each in the ways in which it might be written."""

    def __init__(self) -> None:
        self.spellings: dict[str, set[bytes]] = {}

    def add(self, name: str, secret: bytes | None) -> None:
        if secret is not None:
            hexadecimal = secret.hex().encode()
            ways = {secret, repr(secret)[2:-1].encode(), hexadecimal, hexadecimal.upper(), base64.b64encode(secret)}
            self.spellings[name] = ways

    def found_in(self, data: bytes) -> list[str]:
        return [name for name, ways in self.spellings.items() if any(way in data for way in ways)]


@pytest.fixture(scope="module")
def made() -> Iterator[Stand]:
    with stand(sites=1) as found:
        yield found


@pytest.fixture(scope="module")
def printed() -> list[bytes]:
    """What the commands printed, on both streams, and their argument lists."""
    return []


@pytest.fixture(scope="module")
def secrets(made: Stand, printed: list[bytes]) -> Secrets:
    """Those of two members, after everything was done that handles secrets, with talkative logs."""
    secrets = Secrets()
    for password in (PASSWORD, NEW_PASSWORD, WRONG_PASSWORD):
        secrets.add(f"password {password}", password.encode())
        secrets.add(f"wrap key of {password}", derive_network_keys("office", password).wrap_key)
    owner, guest = (
        made.daemon(name, where, ["--log-level", "DEBUG"]) for name, where in (("owner", "net"), ("guest", "s1"))
    )
    for daemon in (owner, guest):
        daemon.start()
    _do(printed, owner, "create", "office", "--nick", "owner", "--server", SERVER_HOST)
    _do(printed, guest, "join", "office", "--nick", "guest", "--server", SERVER_HOST)
    _do(printed, guest, "join", "nowhere", "--server", SERVER_HOST, password=WRONG_PASSWORD, status=1)
    owner.lab.wait("guest is known", lambda: len(owner.networks()["office"]["members"]) == 1)
    _remember(secrets, owner, guest)
    _add_invite(secrets, owner, guest)
    _add_owner_file(secrets, printed, owner)
    _do(printed, owner, "passwd", "office", password=NEW_PASSWORD)
    _do(printed, owner, "evict", "office", "guest", "--new-password", password=PASSWORD)
    _remember(secrets, owner, guest)
    for daemon in (owner, guest):
        for arguments in LOOKS:
            _keep(printed, daemon, *arguments)
        daemon.stop()
        daemon.start()
    return secrets


def test_there_are_secrets_to_look_for(secrets: Secrets) -> None:
    assert {"owner: owner", "owner: epoch 1", "owner: epoch 2", "guest: tunnel key"} < set(secrets.spellings)


def test_no_log_has_a_secret(made: Stand, secrets: Secrets) -> None:
    logs = sorted(made.lab.directory.glob("*.log"))
    assert [log.stem for log in logs] == ["guest", "owner", "rendezvous"]
    for log in logs:
        assert "ready" in log.read_text()
        assert secrets.found_in(log.read_bytes()) == []


def test_no_command_prints_or_is_given_a_secret(secrets: Secrets, printed: list[bytes]) -> None:
    assert any(b"Creating network office .. ok" in text for text in printed)
    for text in printed:
        assert secrets.found_in(text) == []


def test_no_running_program_shows_a_secret_in_its_arguments_or_environment(made: Stand, secrets: Secrets) -> None:
    assert made.server is not None
    shown = [Path(f"/proc/{made.server.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    assert secrets.found_in(b"".join(shown)) == []


def test_no_running_program_leaves_a_core(made: Stand) -> None:
    assert made.server is not None
    for process in (made.server, *(daemon.running for daemon in made.daemons)):
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), process.args


def test_secrets_are_in_files_that_only_root_reads(made: Stand, secrets: Secrets) -> None:
    holders = set()
    for file in made.lab.directory.rglob("*"):
        if file.is_file() and secrets.found_in(file.read_bytes()):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
            assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700, file
            holders.add(file.relative_to(made.lab.directory).parts[0])
    assert holders == {"owner.state", "guest.state"}, "the server keeps no secret"


@pytest.mark.parametrize("harm", ["cut", "not hexadecimal", "a number", "no object"])
def test_a_request_that_is_not_understood_is_not_repeated(made: Stand, secrets: Secrets, harm: str) -> None:
    wrap_key = derive_network_keys("office", PASSWORD).wrap_key.hex()
    locator = derive_network_keys("office", PASSWORD).locator.hex()
    server = ipc.ServerOptions(url=f"https://{SERVER_HOST}:7770")
    whole = msgspec.json.encode(ipc.JoinRequest(name="n", locator=locator, wrap_key=wrap_key, server=server))
    body = {
        "cut": whole[:-20],
        "not hexadecimal": whole.replace(b'"wrap_key":"', b'"wrap_key":"x'),
        "a number": whole.replace(f'"{locator}"'.encode(), b"7"),
        "no object": b"[" + whole + b"]",
    }[harm]
    socket = made.lab.directory / "owner.sock"
    for route in ("/v1/networks", "/v1/networks/join", "/v1/networks/office/passwd"):
        status, answer = raw.ask(raw.Connection(socket), "POST", route, body)
        assert status == 400
        assert secrets.found_in(answer.encode()) == []
        assert wrap_key[:16] not in answer
    assert wrap_key[:16] not in made.lab.log("owner")


@pytest.mark.parametrize("kind", ipc._Secret.__subclasses__())
def test_a_request_shows_no_key_when_it_is_printed(kind: type[msgspec.Struct]) -> None:
    keys = {"locator": "11" * 32, "wrap_key": "22" * 32}
    given = {"name": "n", "peer": "p", "server": {"url": "https://example.org:7770"}, **keys}
    given |= {"secret": "22" * 16, "salt": "22" * 16, "key": "22" * 32, "file": "22", "code": "22"}
    given |= {"invite": "12345678", "expires_at": ""}
    request = msgspec.convert(given, kind)
    assert "22" in msgspec.json.encode(request).decode()
    assert repr(request) == f"{kind.__name__}(…)"


def test_a_server_with_a_password_in_it_is_refused_without_repeating_it(made: Stand) -> None:
    done = meshvpn(made.lab.directory / "owner.sock", "join", "n", "--server", f"https://me:{PASSWORD}@example.org")
    assert done.returncode == 2
    assert PASSWORD not in done.stderr


def _do(printed: list[bytes], daemon: Daemon, *arguments: str, password: str = PASSWORD, status: int = 0) -> None:
    _keep(printed, daemon, *arguments, "--password-file", "-", password=password, status=status)


def _keep(printed: list[bytes], daemon: Daemon, *arguments: str, password: str = "", status: int = 0) -> None:
    done = daemon.meshvpn(*arguments, stdin=password + "\n")
    assert done.returncode == status, done.stderr
    printed.append(f"{done.args}\n{done.stdout}\n{done.stderr}".encode())


def _add_invite(secrets: Secrets, owner: Daemon, guest: Daemon) -> None:
    """The code is printed once, for the user to pass it on; nobody else shows it, used or not."""
    code = json.loads(owner.does("--json", "invite", "office"))["code"]
    secrets.add("invite code", code.encode())
    secrets.add("invite", secret_of(code))
    guest.does("leave", "office")
    joining = ("join", "--invite", "--server", SERVER_HOST, "--nick", "guest", "--password-file", "-")
    assert code not in guest.does(*joining, stdin=code)
    owner.lab.wait("guest is back", lambda: len(owner.networks()["office"]["members"]) == 1)


def _add_owner_file(secrets: Secrets, printed: list[bytes], owner: Daemon) -> None:
    file = owner.lab.directory / "owner.key"
    secrets.add("passphrase", PASSPHRASE.encode())
    _keep(printed, owner, "owner", "export", "office", str(file), "--passphrase-file", "-", password=PASSPHRASE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secrets.add("key of the passphrase", derive_key(PASSPHRASE, salt_of(file.read_bytes())))


def _remember(secrets: Secrets, *daemons: Daemon) -> None:
    for daemon in daemons:
        (file,) = daemon.state.glob("*/network")
        state = msgspec.msgpack.decode(read_checked(file), type=NetworkState)
        secrets.add(f"{daemon.name}: identity", state.identity)
        secrets.add(f"{daemon.name}: tunnel key", state.tunnel_key)
        secrets.add(f"{daemon.name}: owner", state.owner)
        for key in state.roster.epoch_keys:
            secrets.add(f"{daemon.name}: epoch {key.epoch}", key.key)
