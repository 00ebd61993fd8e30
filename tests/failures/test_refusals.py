"""What users get wrong, and what the world does to them: one line, the right exit status, nothing lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshvpn import ipc

from ..netns.lab import SERVER_HOST
from . import raw
from .stand import PASSWORD, Daemon, Stand, meshvpn, refusal, stand

pytestmark = pytest.mark.netns

USAGE, REFUSED, NO_DAEMON, NO_SERVER = 2, 1, 3, 4


@pytest.fixture(scope="module")
def made() -> Iterator[Stand]:
    with stand(sites=1) as found:
        yield found


@pytest.fixture(scope="module")
def owner(made: Stand) -> Daemon:
    """Owns the network `office`."""
    daemon = made.daemon("owner")
    daemon.start()
    daemon.enters("create", "office", "--nick", "owner")
    return daemon


@pytest.fixture(scope="module")
def guest(made: Stand) -> Daemon:
    """Another host, in no network between the tests."""
    daemon = made.daemon("guest", "s1")
    daemon.start()
    return daemon


# Names and passwords.


def test_a_wrong_password_and_an_unknown_network_are_the_same_refusal(owner: Daemon, guest: Daemon) -> None:
    wrong = refusal(guest.enter("join", "office", password="wrong"), REFUSED)
    unknown = refusal(guest.enter("join", "nowhere"), REFUSED)
    why = "no network with that name and password; check both, or ask its owner"
    assert wrong == f"meshvpn: Joining network office .. failed, {why}\n"
    assert unknown == wrong.replace("office", "nowhere")
    assert guest.networks() == {}


@pytest.mark.parametrize("command", ["create", "join"])
@pytest.mark.parametrize("name", ["", "  ", "x" * 300, ".", "..", "a\nb", "\N{FULLWIDTH FULL STOP}"])
def test_a_name_that_is_none_is_a_usage_error(guest: Daemon, command: str, name: str) -> None:
    assert "network name: it " in refusal(guest.enter(command, name), USAGE)
    assert guest.networks() == {}


@pytest.mark.parametrize("name", ["", "x" * 300, ".."])
def test_the_daemon_itself_refuses_a_name_that_is_none(guest: Daemon, name: str) -> None:
    request = ipc.CreateRequest(
        name=name, locator="00" * 32, wrap_key="00" * 32, server=ipc.ServerOptions(url=f"https://{SERVER_HOST}:7770")
    )
    status, body = raw.ask(raw.Connection(guest.socket), "POST", "/v1/networks", request)
    assert status == 400
    assert "network name: it " in body
    assert guest.networks() == {}


@pytest.mark.parametrize("name", ["a/b", "50 % of Büro №7?", "x" * 64])
def test_any_other_name_works_in_every_command(guest: Daemon, name: str) -> None:
    guest.enters("create", name)
    assert guest.networks()[name]["state"] == "online"
    guest.does("peers", name)
    guest.does("nick", name, "other")
    guest.does("down", name)
    guest.does("up", name.upper())
    guest.wait_online(name)
    guest.does("delete", name)
    assert guest.networks() == {}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "password: it is empty"),
        (b"\nsecond line", "password: it is empty"),
        (b"\xff\xfe secret", "is not valid UTF-8"),
        (b"x" * 2000, "password: it has more than 1024 bytes"),
    ],
)
@pytest.mark.parametrize("is_file", [True, False])
def test_a_password_that_is_none_is_a_usage_error(
    guest: Daemon, tmp_path: Path, content: bytes, complaint: str, is_file: bool
) -> None:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_bytes(content)
    source = str(file) if is_file else "-"
    done = guest.meshvpn("create", "n", "--server", SERVER_HOST, "--password-file", source, stdin=content)
    assert complaint in refusal(done, USAGE)
    assert "secret" not in done.stderr


# Networks and members.


def test_a_network_is_joined_once_only(owner: Daemon, guest: Daemon) -> None:
    guest.enters("join", "office")
    address = guest.networks()["office"]["address"]
    for command in ("join", "create"):
        line = refusal(guest.enter(command, "OFFICE"), REFUSED)
        assert "this host is in a network of that name already" in line
    assert guest.networks()["office"]["address"] == address
    guest.does("leave", "office")


def test_a_password_is_set_under_the_networks_name_and_not_its_uid(owner: Daemon, guest: Daemon) -> None:
    uid = owner.networks()["office"]["uid"][:8]
    guest.enters("join", "office", "--nick", "guest")
    owner.lab.wait("guest is known", lambda: len(owner.networks()["office"]["members"]) == 1)
    for command in (("passwd", uid), ("evict", uid, "guest", "--new-password")):
        done = owner.meshvpn(*command, "--password-file", "-", stdin="another password")
        assert "write office instead" in refusal(done, USAGE)
    guest.does("leave", "office")
    guest.enters("join", "office")
    guest.does("leave", "office")


def test_the_owner_does_not_leave_and_a_member_does_not_delete(owner: Daemon, guest: Daemon) -> None:
    guest.enters("join", "office")
    assert "use `meshvpn delete`" in refusal(owner.meshvpn("leave", "office"), REFUSED)
    assert "use `meshvpn leave`" in refusal(guest.meshvpn("delete", "office"), REFUSED)
    assert "not the owner" in refusal(guest.meshvpn("evict", "office", "owner"), REFUSED)
    assert owner.networks()["office"]["state"] == guest.networks()["office"]["state"] == "online"
    guest.does("leave", "office")


def test_who_was_evicted_comes_back_only_after_an_unban(owner: Daemon, guest: Daemon) -> None:
    guest.enters("join", "office", "--nick", "guest")
    address = guest.networks()["office"]["address"]
    owner.lab.wait("guest is known", lambda: len(owner.networks()["office"]["members"]) == 1)
    owner.does("evict", "office", "guest", "--keep-password")
    guest.lab.wait("evicted", lambda: guest.networks()["office"]["state"] == "evicted")
    assert "this host was evicted" in refusal(guest.enter("join", "office"), REFUSED)
    assert "use `meshvpn leave`" not in refusal(guest.meshvpn("up", "office"), REFUSED)
    owner.does("unban", "office", "guest")
    guest.enters("join", "office", "--nick", "guest")
    network = guest.networks()["office"]
    assert network["state"] == "online"
    assert network["interface"] == "mesh0"
    assert network["address"] != address, "the address of an evicted member rests"
    guest.does("leave", "office")


@pytest.mark.parametrize("command", ["up", "down", "leave", "peers"])
def test_a_network_that_this_host_is_not_in_is_named(guest: Daemon, command: str) -> None:
    assert "not in a network called nowhere; see `meshvpn list`" in refusal(guest.meshvpn(command, "nowhere"), REFUSED)


# Addresses and interfaces.


def test_a_pool_that_collides_with_a_local_route_is_refused_with_the_interface(guest: Daemon) -> None:
    guest.lab.run("s1", ["ip", "link", "add", "lan7", "type", "bridge"])
    guest.lab.run("s1", ["ip", "link", "set", "lan7", "up"])
    guest.lab.run("s1", ["ip", "route", "add", "10.9.0.0/16", "dev", "lan7"])
    try:
        line = refusal(guest.enter("create", "n", "--subnet", "10.9.5.0/24"), REFUSED)
        assert "address pool 10.9.5.0/24: it collides with 10.9.0.0/16 on interface lan7" in line
    finally:
        guest.lab.run("s1", ["ip", "link", "del", "lan7"])
    assert guest.networks() == {}


def test_joining_a_pool_that_collides_names_the_interface(owner: Daemon, guest: Daemon) -> None:
    pool = owner.networks()["office"]["pool"]
    guest.lab.run("s1", ["ip", "link", "add", "lan8", "type", "bridge"])
    guest.lab.run("s1", ["ip", "addr", "add", pool.replace("0/24", "77/25"), "dev", "lan8"])
    try:
        line = refusal(guest.enter("join", "office"), REFUSED)
        assert f"address pool {pool}: it collides with" in line
        assert "on interface lan8" in line
    finally:
        guest.lab.run("s1", ["ip", "link", "del", "lan8"])
    assert guest.networks() == {}
    guest.enters("join", "office")
    guest.does("leave", "office")


def test_the_pool_of_a_network_that_is_down_is_taken_too(guest: Daemon) -> None:
    guest.enters("create", "first", "--subnet", "10.44.0.0/24")
    guest.does("down", "first")
    line = refusal(guest.enter("create", "second", "--subnet", "10.44.0.0/16"), REFUSED)
    assert "it collides with network first" in line
    guest.does("up", "first")
    guest.wait_online("first")
    guest.does("delete", "first")


def test_an_interface_is_given_to_one_network_only(guest: Daemon) -> None:
    guest.enters("create", "first", "--interface", "pbx0")
    guest.does("down", "first")
    assert "network first has it" in refusal(guest.enter("create", "second", "--interface", "pbx0"), REFUSED)
    guest.enters("create", "second")
    guest.does("down", "second")
    guest.enters("create", "third")
    names = [network["interface"] for network in guest.networks().values()]
    assert sorted(names) == ["mesh0", "mesh1", "pbx0"]
    for name in ("first", "second", "third"):
        guest.meshvpn("up", name)
        guest.wait_online(name)
        guest.does("delete", name)


def test_an_interface_of_another_program_is_left_alone(made: Stand, owner: Daemon) -> None:
    other = made.daemon("other")
    other.start()
    assert "used by another program" in refusal(other.enter("create", "n", "--interface", "mesh0"), REFUSED)
    assert "interface br0" in refusal(other.enter("create", "n", "--interface", "br0"), REFUSED)
    assert "no interface name" in refusal(other.enter("create", "n", "--interface", "a/b"), USAGE)
    assert other.networks() == {}
    other.stop()
    assert owner.networks()["office"]["state"] == "online"
    assert "br0" in made.lab.run("net", ["ip", "link"])


# Servers.


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (f"{SERVER_HOST}:9", "connection refused"),
        ("21.0.0.1", "network is unreachable"),
        ("rendezvous.invalid", "cannot be resolved"),
        ("x" * 300, "cannot be resolved"),
        (f"http://{SERVER_HOST}", "is it https://?"),
    ],
)
def test_a_server_that_is_not_there_is_status_4(owner: Daemon, server: str, reason: str) -> None:
    before = sorted(owner.state.iterdir())
    for command in ("create", "join"):
        arguments = (command, "n", "--server", server, "--password-file", "-")
        line = refusal(owner.meshvpn(*arguments, stdin=PASSWORD), NO_SERVER)
        assert "rendezvous" in line
        assert reason in line
        assert "check --server" in line
    assert list(owner.networks()) == ["office"]
    assert sorted(owner.state.iterdir()) == before


def test_another_certificate_than_the_pinned_one_is_refused(guest: Daemon) -> None:
    line = refusal(guest.enter("join", "office", "--server-pin", "sha256:" + "0" * 64), REFUSED)
    assert "shows another certificate" in line


def test_a_member_survives_the_server_and_says_so(made: Stand, owner: Daemon) -> None:
    made.stop_server()
    try:
        owner.lab.wait("noticed", lambda: owner.networks()["office"]["state"] == "connecting")
        line = refusal(
            owner.meshvpn("passwd", "office", "--password-file", "-", stdin=f"the new {PASSWORD}"), NO_SERVER
        )
        # The second, if it has tried to come back already.
        assert "not connected to the rendezvous; try again" in line or "cannot be reached (connection refused)" in line
        assert owner.stop() == 0
        owner.start()
        assert owner.networks()["office"]["state"] == "connecting"
    finally:
        made.start_server()
    owner.wait_online("office")


def test_a_network_that_the_server_forgot_can_be_left(made: Stand, guest: Daemon) -> None:
    guest.enters("create", "gone")
    made.stop_server()
    database = made.lab.directory / "rendezvous"
    kept = {file.name: file.read_bytes() for file in database.glob("networks*")}
    for file in database.glob("networks*"):
        file.unlink()
    made.start_server()
    try:
        guest.lab.wait("refused", lambda: guest.networks()["gone"]["note"] is not None)
        assert "does not know the network" in guest.networks()["gone"]["note"]
        (server,) = [each for each in guest.status()["servers"] if each["network"] == "gone"]
        assert server["state"] == "refused"
        assert "does not know the network" in server["detail"]
        guest.does("delete", "gone")
        assert guest.networks() == {}
    finally:
        made.stop_server()
        for name, content in kept.items():
            (database / name).write_bytes(content)
        made.start_server()


# The daemon.


def test_without_a_daemon_each_command_is_status_3_and_asks_for_no_password(made: Stand, tmp_path: Path) -> None:
    dead = made.daemon("dead")
    dead.start()
    dead.stop(signal.SIGKILL)
    for path in (dead.socket, tmp_path / "none"):
        for command in (("list",), ("status",), ("join", "n", "--server", "h"), ("passwd", "n"), ("events",)):
            assert "systemctl start meshvpnd" in refusal(meshvpn(path, *command), NO_DAEMON)


def test_others_are_not_answered_even_where_the_socket_is_open_to_them(guest: Daemon) -> None:
    guest.lab.directory.chmod(0o711)
    guest.socket.chmod(0o666)
    try:
        with raw.acting_as(user=65534, groups=[]):
            nobody = raw.Connection(guest.socket)
        answers = [raw.ask(connection, "GET", "/v1/status") for connection in (nobody, raw.Connection(guest.socket))]
    finally:
        guest.socket.chmod(0o660)
        guest.lab.directory.chmod(0o700)
    assert [status for status, _ in answers] == [403, 200]
    assert "run as root or as a member of the group meshvpn" in answers[0][1]
