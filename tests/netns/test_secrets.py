"""Passwords and keys are in no argument list, log line, error message or file that others can read."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import combinations
from pathlib import Path

import msgspec
import pytest

from meshvpn.proto.keys import derive_network_keys, pair_psk
from meshvpn.proto.primitives import x25519_public
from meshvpn.state import NetworkState, read_checked

from .lab import SERVER_HOST, Lab
from .mesh import BIN, NETWORK, Mesh

pytestmark = pytest.mark.netns

PASSWORD = "Schloß & Riegel, 4711"
OTHER_PASSWORD = "a wrong one, typed by somebody"
NEW_PASSWORD = "the one after the eviction"


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Lab() as lab:
        made = Mesh(lab, 3, log_level="DEBUG")
        made.password_file = made.write_password("password", PASSWORD)
        made.start()
        yield made


def test_nothing_secret_is_left_where_others_can_read(mesh: Mesh) -> None:
    seen: set[bytes] = set()
    new, wrong = mesh.write_password("new", NEW_PASSWORD), mesh.write_password("wrong", OTHER_PASSWORD)
    run(mesh, seen, 1, "create", NETWORK, "--server", SERVER_HOST, "--password-file", str(mesh.password_file))
    run(mesh, seen, 2, "join", NETWORK, "--server", SERVER_HOST, "--password-file", str(wrong))
    for number in (2, 3):
        nick = ("--nick", f"piaf-server{number}")
        run(mesh, seen, number, "join", NETWORK, "--server", SERVER_HOST, "--password-file", "-", *nick)
    mesh.wait_direct()
    assert mesh.reaches(1, mesh.address(2))
    secrets = secrets_of_states(mesh)
    run(mesh, seen, 1, "evict", NETWORK, "piaf-server3", "--new-password", "--password-file", str(new))
    for number in (1, 2, 3):
        for command in ("list", "peers", "status"):
            run(mesh, seen, number, command, *([NETWORK] if command == "peers" else []))
    for request in misshapen_requests(secrets):
        seen.add(request_raw(mesh.socket(1), request))
    secrets |= secrets_of_states(mesh)
    for name, password in (("password", PASSWORD), ("new password", NEW_PASSWORD), ("wrong password", OTHER_PASSWORD)):
        secrets[name] = password.encode()
        secrets[f"wrap key of the {name}"] = derive_network_keys(NETWORK, password).wrap_key
    for text in seen:
        check_free(text, secrets, "an argument list, an answer or a program's output")
    check_files(mesh, secrets)


def run(mesh: Mesh, seen: set[bytes], number: int, *arguments: str) -> None:
    """A command; what it prints and all argument lists of this machine while it runs are added to `seen`."""
    command = [str(BIN / "meshvpn"), "--socket", str(mesh.socket(number)), *arguments]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(mesh.lab.attempt, mesh.hosts[number], command, text=f"{PASSWORD}\n")
        lists: set[bytes] = set()
        while not wait([running], timeout=0.01).done:
            lists |= argument_lists()
    assert any(arguments[0].encode() in line.split(b"\0") for line in lists), "the command itself was seen"
    seen |= lists | {running.result().stdout.encode()}


def argument_lists() -> set[bytes]:
    lists = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            lists.add(file.read_bytes())
    return lists


def secrets_of_states(mesh: Mesh) -> dict[str, bytes]:
    """All keys that the daemons keep, and those that follow from them."""
    secrets: dict[str, bytes] = {}
    tunnels, epochs = [], set()
    for number in mesh.hosts:
        (file,) = (mesh.lab.directory / f"state{number}").glob("*/network")
        state = msgspec.msgpack.decode(read_checked(file), type=NetworkState)
        secrets[f"identity of site {number}"] = state.identity
        secrets[f"tunnel key of site {number}"] = state.tunnel_key
        if state.owner is not None:
            secrets["owner key"] = state.owner
        tunnels.append(x25519_public(state.tunnel_key))
        epochs |= {entry.key for entry in state.roster.epoch_keys}
    for epoch in epochs:
        secrets[f"epoch key {len(secrets)}"] = epoch
        for first, second in combinations(tunnels, 2):
            secrets[f"preshared key {len(secrets)}"] = pair_psk(epoch, first, second)
    assert len(secrets) >= 10
    return secrets


def misshapen_requests(secrets: dict[str, bytes]) -> list[bytes]:
    """Requests to the local API that are refused for various reasons, with keys in them."""
    keys = {name: key.hex() for name, key in zip(("locator", "wrap_key"), secrets.values(), strict=False)}
    whole = {"name": "x", "server": {"url": "https://127.0.0.1:1"}, **keys}
    bodies: list[object] = [
        keys,
        whole,
        {**whole, "wrap_key": keys["wrap_key"] + "zz"},
        {**whole, "server": keys["wrap_key"]},
        list(keys.values()),
    ]
    texts = [json.dumps(body).encode() for body in bodies]
    return [*texts, texts[0][:-1], b"\xff" + texts[0]]


def request_raw(api: Path, body: bytes) -> bytes:
    """The daemon's answer to a request to join."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(api))
        head = f"POST /v1/networks/join HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        with sock.makefile("rb") as answer:
            text = answer.read()
    assert b" 200 " not in text.split(b"\r\n")[0]
    return text


def check_files(mesh: Mesh, secrets: dict[str, bytes]) -> None:
    """Everything that the programs wrote: what others can read, and the whole of what the server has."""
    directory, passwords = mesh.lab.directory, {"a password": PASSWORD.encode(), "the new one": NEW_PASSWORD.encode()}
    given = {mesh.password_file, directory / "new", directory / "wrong"}
    files = [file for file in directory.rglob("*") if file.is_file() and file not in given]
    assert {"daemon1.log", "rendezvous.log", "network", "networks.sqlite3"} <= {file.name for file in files}
    for file in files:
        is_private = stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
        kept_by = file.relative_to(directory).parts[0]
        assert is_private or not kept_by.startswith("state"), file
        is_secret_place = is_private and kept_by != "rendezvous"
        check_free(file.read_bytes(), passwords if is_secret_place else secrets, str(file))


def check_free(data: bytes, secrets: dict[str, bytes], where: str) -> None:
    for name, secret in secrets.items():
        # Not as an assertion on the two: its message would show them.
        is_there = any(form in data for form in forms(secret))
        assert not is_there, f"{name} is in {where}"


@functools.cache
def forms(secret: bytes) -> list[bytes]:
    """As it is, and as programs write bytes."""
    found = [secret, repr(secret)[2:-1].encode(), secret.hex().encode(), secret.hex().upper().encode()]
    found.append(repr(b'"' + secret)[3:-1].encode())  # next to other quotes it is written in another way
    found.append(" ".join(str(byte) for byte in secret).encode())
    found.append(json.dumps(secret.decode("latin-1"))[1:-1].encode())
    with contextlib.suppress(UnicodeDecodeError):
        found.append(json.dumps(secret.decode())[1:-1].encode())
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        # At each of the three places where it may stand in what was encoded.
        found += [encode(bytes(before) + secret).rstrip(b"=")[-(-before * 4 // 3) : -1] for before in range(3)]
    return found
