"""What is said of Hamachi: you can't keep them from joining; there is no way to change the password; only the server
that created the network can remove machines; whoever knows name and password can join. And a dead server is the end.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..netns.lab import SERVER_HOST
from .stand import Daemon, Stand, refusal, stand

pytestmark = pytest.mark.netns

NET = "piaf-vpn"
NEW_PASSWORD = "lusab-babad-gutih-tugad"
NEWER_PASSWORD = "mudof-sorab-lidin-pagov"
PASSPHRASE = "in the safe of the other office"


@pytest.fixture(scope="module")
def made() -> Iterator[Stand]:
    with stand(sites=3) as found:
        yield found


def test_the_complaints_about_hamachi_do_not_hold_here(made: Stand, tmp_path: Path) -> None:
    first, second, third, guest = (
        made.daemon(name, where)
        for name, where in (("server1", "net"), ("server2", "s1"), ("server3", "s2"), ("guest", "s3"))
    )
    for daemon in (first, second, third, guest):
        daemon.start()
    first.enters("create", NET, "--nick", "server1")
    key = tmp_path / "key"
    first.does("owner", "export", NET, str(key), "--passphrase-file", "-", stdin=PASSPHRASE)
    for daemon in (second, third):
        daemon.enters("join", NET, "--nick", daemon.name)
    _knows(first, "server2", "server3")

    # "You can't keep them from joining."
    assert first.does("access", NET, "locked") == f"Setting access to {NET} to locked .. ok\n"
    assert "locked" in refusal(guest.enter("join", NET), 1)
    first.does("access", NET, "open")

    # "There currently is no way to change your network password."
    first.does("passwd", NET, "--password-file", "-", stdin=NEW_PASSWORD)
    assert "no network with that name and password" in refusal(guest.enter("join", NET), 1)
    assert guest.enter("join", NET, "--nick", "guest", password=NEW_PASSWORD).returncode == 0
    _knows(second, "server1", "server3", "guest")

    # "You can only remove machines using the same server that was used to create the network."
    assert "not the owner" in refusal(second.meshvpn("evict", NET, "guest"), 1)
    first.does("admin", "add", NET, "server2")
    made.lab.wait("server2 is an admin", lambda: second.networks()[NET]["role"] == "admin")
    told = second.does("evict", NET, "guest")
    assert told.splitlines() == [
        f"Evicting guest from {NET} .. ok",
        f"the password is retired, nobody can join until `meshvpn passwd {NET}` sets another one",
    ]
    made.lab.wait("the guest is out", lambda: guest.networks()[NET]["state"] == "evicted")
    _knows(first, "server2", "server3")
    guest.does("leave", NET)
    assert "no network with that name and password" in refusal(guest.enter("join", NET, password=NEW_PASSWORD), 1)

    # "Anyone that knows your network name and password can join."
    second.does("passwd", NET, "--password-file", "-", stdin=NEWER_PASSWORD)
    second.does("access", NET, "approve")
    done = guest.enter("join", NET, "--nick", "stranger", password=NEWER_PASSWORD)
    assert f"it waits for an admin, who has to type: meshvpn approve {NET} stranger" in done.stdout
    made.lab.wait("the stranger is seen", lambda: "stranger" in _states(first))
    assert _states(first)["stranger"] == "pending"
    shown = first.does("list")
    assert re.search(r"^     \? [0-9a-f]{8}   stranger", shown, re.MULTILINE)
    assert f"`meshvpn approve {NET} stranger`" in shown
    assert "note" in guest.networks()[NET]
    first.does("reject", NET, "stranger")
    made.lab.wait("the stranger is out", lambda: guest.networks()[NET]["state"] == "evicted")
    guest.does("leave", NET)
    assert guest.enter("join", NET, "--nick", "friend", password=NEWER_PASSWORD).returncode == 0
    made.lab.wait("the friend is seen", lambda: _states(first).get("friend") == "pending")
    second.does("approve", NET, "friend")
    made.lab.wait("the friend is in", lambda: not guest.networks()[NET]["is_pending"])
    made.lab.wait("the friend is a peer", lambda: _states(third).get("friend") in ("direct", "relay"))

    # By a code, without the password, even where others have to be approved.
    guest.does("leave", NET)
    made.lab.wait("the friend left", lambda: "friend" not in _states(second))
    invited = json.loads(second.does("--json", "invite", NET, "--ttl", "10m"))
    assert guest.networks() == {}
    joined = guest.does(
        "join", "--invite", "--server", SERVER_HOST, "--nick", "invited", "--password-file", "-", stdin=invited["code"]
    )
    assert joined.startswith("Joining network by invite .. ok\nthis host is invited ")
    made.lab.wait("the invited one is in", lambda: _states(third).get("invited") in ("direct", "relay"))

    # A dead server is not the end.
    guest.does("leave", NET)
    first.stop()
    shutil.rmtree(first.state)
    refused = guest.meshvpn("owner", "import", str(key), "--passphrase-file", "-", stdin="another one")
    assert "passphrase" in refusal(refused, 2)
    imported = guest.does("owner", "import", str(key), "--nick", "heir", "--passphrase-file", "-", stdin=PASSPHRASE)
    assert imported.startswith(f"Importing the owner's key from {key} .. ok\nthis host is heir ")
    assert guest.networks()[NET]["role"] == "owner"
    guest.does("evict", NET, "server1", "--keep-password")
    guest.does("admin", "remove", NET, "server2")
    made.lab.wait("server2 is no admin", lambda: second.networks()[NET]["role"] == "member")

    # Who did what, wherever it is asked, and after a restart too.
    before = _history(second)
    story = [(entry["kind"], entry["nick"]) for entry in before]
    for told_of in [
        ("access", ""),
        ("passwd", ""),
        ("joined", "guest"),
        ("admin_add", "server2"),
        ("evict", "guest"),
        ("reject", "stranger"),
        ("approve", "friend"),
        ("left", "friend"),
        ("invite", ""),
        ("evict", "server1"),
        ("admin_remove", "server2"),
    ]:
        assert told_of in story
    assert all(entry["is_proven"] for entry in before)
    second.stop()
    second.start()
    assert _history(second)[: len(before)] == before


def _history(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(daemon.does("--json", "events", NET))
    return found


def _states(daemon: Daemon) -> dict[str, str]:
    return {member["nick"]: member["state"] for member in daemon.networks()[NET]["members"]}


def _knows(daemon: Daemon, *nicks: str) -> None:
    daemon.lab.wait(f"{daemon.name} knows {nicks}", lambda: set(_states(daemon)) == set(nicks))
