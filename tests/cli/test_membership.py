"""The commands about who is in a network, against a fake daemon."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import msgspec
import pytest

from meshvpn import ipc
from meshvpn.cli.audit import text
from meshvpn.proto import ownerfile
from meshvpn.proto.invites import code_of, secret_of
from meshvpn.proto.keys import Identity, network_uid

from .fake import NETWORK, PEER, FakeDaemon, meshvpn, typed

CODE = code_of(bytes(range(16)))
PASSPHRASE = "in the safe of the other office"
OWNER = Identity(b"o" * 32)
ENTRY = ipc.AuditView(
    number=7,
    at="2026-11-25T16:00:00Z",
    seen_at="2026-11-25T16:00:01Z",
    kind="evict",
    identity="ab12cd34" * 8,
    nick="berlin",
    by="hub",
    by_identity="99" * 32,
    detail="",
    is_proven=True,
)


@pytest.mark.parametrize(
    ("arguments", "route", "body"),
    [
        (("access", "n", "locked"), "access", {"access": "locked"}),
        (("access", "n", "approve"), "access", {"access": "approve"}),
        (("set-access", "n", "lock"), "access", {"access": "locked"}),
        (("set-access", "n", "unlock"), "access", {"access": "open"}),
        (("set-access", "n", "manual"), "access", {"access": "approve"}),
        (("set-access", "n", "auto"), "access", {"access": "open"}),
        (("approve", "n", "berlin"), "approve", {"peer": "berlin"}),
        (("reject", "n", "berlin"), "reject", {"peer": "berlin"}),
        (("admin", "add", "n", "berlin"), "admin-add", {"peer": "berlin"}),
        (("admin", "remove", "n", "berlin"), "admin-remove", {"peer": "berlin"}),
        (("invite", "n", "--revoke", "abcd1234"), "revoke", {"invite": "abcd1234"}),
    ],
)
def test_each_action_asks_its_route(
    daemon: FakeDaemon, arguments: tuple[str, ...], route: str, body: dict[str, str]
) -> None:
    daemon.reply = ipc.Reply(message="done", note="what else is to be known")
    done = meshvpn(daemon.path, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" .. ok\nwhat else is to be known\n")
    assert [(method, path) for method, path, _ in daemon.requests] == [("POST", f"/v1/networks/n/{route}")]
    assert json.loads(daemon.requests[0][2]) == body
    printed = json.loads(meshvpn(daemon.path, "--json", *arguments).stdout)
    assert printed == {"message": "done", "note": "what else is to be known"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("access", "n", "closed"), "invalid value for 'open|approve|locked': 'closed'"),
        (("admin",), "missing command; see `meshvpn admin --help`"),
        (("admin", "ad", "n", "p"), "no such command 'ad'; did you mean 'add'"),
        (("owner", "export", "n"), "missing argument 'FILE'"),
        (("join", "--server", "h"), "missing argument 'NET'"),
        (("join", CODE, "--invite", "--server", "h"), "an invite's code is never an argument"),
        (("join", CODE.lower(), "--server", "h"), "an invite's code is never an argument"),
        (("invite", "n", "--ttl", "soon"), "--ttl soon is no time from a minute to a year"),
        (("invite", "n", "--ttl", "59s"), "--ttl 59s is no time"),
        (("invite", "n", "--ttl", "366d"), "--ttl 366d is no time"),
        (("invite", "n", "--uses", "0"), "invalid value for '--uses'"),
        (("invite", "n", "--list", "--revoke", "x"), "--list and --revoke exclude each other"),
        (("events", "--follow"), "--follow goes with a network"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(daemon: FakeDaemon, arguments: tuple[str, ...], complaint: str) -> None:
    done = meshvpn(daemon.path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"meshvpn: {complaint}")
    assert done.stderr.count("\n") == 1
    assert daemon.requests == []


# Invites.


def test_an_invite_says_what_to_type_on_the_other_host(daemon: FakeDaemon) -> None:
    pin = "sha256:" + "ab" * 32
    daemon.reply = msgspec.to_builtins(
        ipc.InviteReply(
            code=CODE,
            invite="12345678",
            expires_at="2026-11-26T16:00:00Z",
            server=ipc.ServerOptions(url="https://example.org:7770", pin=pin),
        )
    )
    done = meshvpn(daemon.path, "invite", "piaf-vpn", "--uses", "3", "--ttl", "90m")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "Inviting to piaf-vpn .. ok",
        "the code, for 3 hosts until 2026-11-26T16:00:00Z:",
        "",
        f"    {CODE}",
        "",
        "on the other PBX type this, and the code when it is asked for:",
        "",
        f"    meshvpn join --invite --server https://example.org:7770 --server-pin {pin}",
        "",
        "to take it back: meshvpn invite piaf-vpn --revoke 12345678",
    ]
    assert json.loads(daemon.requests[0][2]) == {"uses": 3, "ttl": 5400}
    assert json.loads(meshvpn(daemon.path, "--json", "invite", "n").stdout)["code"] == CODE
    assert json.loads(daemon.requests[1][2]) == {"uses": 1, "ttl": 86400}


@pytest.mark.parametrize("code", [CODE, CODE.lower(), CODE.replace("-", ""), f" {CODE} \nmore"])
def test_a_code_is_joined_by_however_it_is_written(daemon: FakeDaemon, code: str) -> None:
    daemon.reply = msgspec.structs.replace(NETWORK, is_pending=True)
    done = meshvpn(daemon.path, "join", "--invite", "--server", "h", "--nick", "me", "--password-file", "-", stdin=code)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "Joining network by invite .. ok",
        "this host is me 10.7.5.1 on mesh0",
        "it waits for an admin, who has to type: meshvpn approve piaf-vpn me",
    ]
    method, route, body = daemon.requests[0]
    assert (method, route) == ("POST", "/v1/networks/join-by-invite")
    request = msgspec.json.decode(body, type=ipc.InvitedRequest)
    assert (bytes.fromhex(request.secret), request.name) == (secret_of(CODE), None)


@pytest.mark.parametrize("code", ["", "ABCDE", CODE[:-1], CODE + "A", "ÄÖÜ"])
def test_a_code_that_is_none_is_a_usage_error_that_does_not_repeat_it(daemon: FakeDaemon, code: str) -> None:
    done = meshvpn(daemon.path, "join", "--invite", "--server", "h", "--password-file", "-", stdin=code)
    assert done.returncode == 2
    assert "copy the whole code" in done.stderr
    assert not code or code not in done.stderr
    assert daemon.requests == []


def test_a_code_is_typed_at_a_terminal_without_being_seen(daemon: FakeDaemon) -> None:
    daemon.reply = NETWORK
    status, shown = typed(daemon, ["join", "--invite", "--server", "h"], f"{CODE}\n")
    assert (status, len(daemon.requests)) == (0, 1)
    assert "Invite code (it is not shown): " in shown
    assert CODE not in shown


def test_open_invites_are_listed_without_their_codes(daemon: FakeDaemon) -> None:
    daemon.reply = [ipc.InviteView(invite="12345678", uses=1, expires_at="2026-11-26T16:00:00Z")]
    assert meshvpn(daemon.path, "invite", "n", "--list").stdout == "12345678  for 1 host until 2026-11-26T16:00:00Z\n"
    daemon.reply = []
    assert meshvpn(daemon.path, "invite", "n", "--list").stdout == "no open invites; `meshvpn invite n` makes one\n"


# The owner's key.


def test_an_exported_key_is_a_file_for_this_user_alone_that_opens_with_the_passphrase(
    daemon: FakeDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    daemon.reply = ipc.OwnerFile(file=base64.b64encode(b"sealed").decode())
    arguments = ("owner", "export", "piaf-vpn", str(file), "--passphrase-file", "-")
    done = meshvpn(daemon.path, *arguments, stdin=PASSPHRASE)
    assert done.returncode == 0, done.stderr
    assert PASSPHRASE not in done.stdout
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"sealed", 0o600)
    request = msgspec.json.decode(daemon.requests[0][2], type=ipc.ExportRequest)
    assert request.key == ownerfile.derive_key(PASSPHRASE, bytes.fromhex(request.salt)).hex()
    again = meshvpn(daemon.path, *arguments, stdin=PASSPHRASE)
    assert (again.returncode, len(daemon.requests)) == (1, 1)
    assert again.stderr == f"meshvpn: {file} is there already; give another name\n"


def test_a_weak_passphrase_locks_no_key(daemon: FakeDaemon, tmp_path: Path) -> None:
    file = tmp_path / "key"
    done = meshvpn(daemon.path, "owner", "export", "n", str(file), "--passphrase-file", "-", stdin="geheim")
    assert (done.returncode, daemon.requests) == (1, [])
    assert done.stderr.startswith("meshvpn: that passphrase is too weak")
    assert not file.exists()


def test_nothing_is_left_of_an_export_that_was_refused(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.refuse(409, "this host is not the owner")
    file = tmp_path / "key"
    done = meshvpn(daemon.path, "owner", "export", "n", str(file), "--passphrase-file", "-", stdin=PASSPHRASE)
    assert done.returncode == 1
    assert done.stderr == "meshvpn: Exporting the owner's key of n .. failed, this host is not the owner\n"
    assert not file.exists()


def test_an_import_sends_the_file_and_what_opens_it(daemon: FakeDaemon, tmp_path: Path) -> None:
    salt = bytes(range(16))
    key = ownerfile.derive_key(PASSPHRASE, salt)
    owner = ownerfile.OwnerKey(
        version=1, uid=network_uid(OWNER.public), name="n", servers=[], pin=None, seed=OWNER.seed
    )
    file = tmp_path / "key"
    file.write_bytes(ownerfile.seal(owner, salt, key, bytes))
    daemon.reply = NETWORK
    done = meshvpn(daemon.path, "owner", "import", str(file), "--passphrase-file", "-", stdin=PASSPHRASE)
    assert done.stdout.splitlines()[0] == f"Importing the owner's key from {file} .. ok"
    request = msgspec.json.decode(daemon.requests[0][2], type=ipc.ImportRequest)
    assert ownerfile.open_file(base64.b64decode(request.file), bytes.fromhex(request.key)) == owner
    assert request.server is None


@pytest.mark.parametrize("content", [b"", b"rubbish", b"MVOWNER1", b"x" * 100_000])
def test_a_file_that_holds_no_key_is_refused_before_anybody_types(
    daemon: FakeDaemon, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    done = meshvpn(daemon.path, "owner", "import", str(file))
    assert done.returncode == 2
    assert done.stderr.startswith("meshvpn: owner file: it is not one that `meshvpn owner export` wrote")


def test_admins_are_listed_with_the_owner_first(daemon: FakeDaemon) -> None:
    daemon.reply = [
        ipc.AdminView(nick="", identity="11" * 32, role="owner", is_here=True),
        ipc.AdminView(nick="berlin", identity="22" * 32, role="admin", is_here=False),
    ]
    lines = meshvpn(daemon.path, "admin", "list", "n").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["owner", "11111111", "-", "(this", "host)"],
        ["admin", "22222222", "berlin"],
    ]


# What is seen of it.


def test_who_waits_for_approval_is_marked_and_an_admin_told_what_to_type(daemon: FakeDaemon) -> None:
    waiting = msgspec.structs.replace(PEER, nick="stranger", state="pending", endpoint=None)
    daemon.networks = [msgspec.structs.replace(NETWORK, members=[PEER, waiting], access="approve")]
    lines = meshvpn(daemon.path, "list").stdout.splitlines()
    assert "members: 2/254, owner: me, access: approve" in lines[0]
    assert "       ? waits for you: `meshvpn approve piaf-vpn stranger`, or `meshvpn reject …`" in lines
    assert lines[-1].startswith("     ? ab12cd34   stranger")
    daemon.networks = [msgspec.structs.replace(daemon.networks[0], role="member")]
    assert "waits for you" not in meshvpn(daemon.path, "list").stdout


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "berlin (ab12cd34) was evicted, by hub"),
        ({"kind": "joined", "by_identity": "ab12cd34" * 8}, "berlin (ab12cd34) joined"),
        ({"kind": "access", "identity": None, "nick": "", "detail": "locked"}, "access was set (locked), by hub"),
        ({"by": ""}, "berlin (ab12cd34) was evicted, by 99999999"),
        ({"kind": "moved"}, "berlin (ab12cd34) moved, by hub"),
        ({"is_proven": False}, "berlin (ab12cd34) was evicted, by hub  ! its signature does not hold"),
    ],
)
def test_an_entry_of_the_audit_list_reads_as_a_sentence(changes: dict[str, object], line: str) -> None:
    assert text(msgspec.structs.replace(ENTRY, **changes)) == f"2026-11-25T16:00:00Z  {line}"


def test_events_of_a_network_are_its_newest_history(daemon: FakeDaemon) -> None:
    entries = [msgspec.structs.replace(ENTRY, number=number, nick=f"pbx{number}") for number in range(1, 61)]
    daemon.reply = entries
    nicks = re.findall(r"pbx\d+", meshvpn(daemon.path, "events", "n").stdout)
    assert nicks == [f"pbx{number}" for number in range(11, 61)]
    assert len(json.loads(meshvpn(daemon.path, "--json", "events", "n", "-n", "0").stdout)) == 60
    assert len(meshvpn(daemon.path, "events", "n", "-n", "2").stdout.splitlines()) == 2


def test_reidentify_asks_first_and_takes_an_invite_where_there_is_no_password(daemon: FakeDaemon) -> None:
    daemon.reply = NETWORK
    status, shown = typed(daemon, ["reidentify", "piaf-vpn"], "n\n")
    assert (status, daemon.requests) == (1, [])
    assert "Take a new identity and address in piaf-vpn?" in shown
    assert meshvpn(daemon.path, "reidentify", "piaf-vpn", "--yes").returncode == 0
    done = meshvpn(daemon.path, "reidentify", "piaf-vpn", "--yes", "--invite", "--password-file", "-", stdin=CODE)
    assert done.stdout.startswith("Joining piaf-vpn as a new member .. ok\n")
    bodies = [json.loads(body) for _, _, body in daemon.requests]
    assert bodies == [{"secret": None}, {"secret": secret_of(CODE).hex()}]
