"""The commands as a user types them, one mesh for all of them: each test leaves three members that are online."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .lab import Lab
from .mesh import BIN, NETWORK, Mesh

pytestmark = pytest.mark.netns

PEER_KEYS = {
    "nick", "identity", "address", "address6", "state", "endpoint", "relay", "rtt_ms", "jitter_ms", "loss", "mos",
    "rx_bytes", "tx_bytes", "last_handshake_s", "routes",
}  # fmt: skip
PEER_KEYS_FOR_VOICE = {
    "why", "r", "rx_loss", "rx_jitter_ms", "rx_packets", "tx_packets", "rx_lost", "rx_reordered", "rx_duplicates",
    "rx_marked", "rx_kept_marks", "kept_marks", "rx_r", "rx_mos", "mtu", "path_mtu", "fragments", "keepalive_s",
}  # fmt: skip
NETWORK_KEYS = {
    "network", "uid", "state", "address", "address6", "interface", "nick", "access", "role", "epoch", "members",
}  # fmt: skip
NETWORK_KEYS_FOR_DISPLAY = {"owner", "pool", "capacity", "has_password", "is_pending", "note"}
"""What `list` prints besides."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Lab() as lab:
        made = Mesh(lab, 3)
        made.start()
        made.found()
        made.wait_direct()
        for number in made.hosts:
            listen(made, number)
        yield made


def test_json_has_the_keys_that_scripts_rely_on(mesh: Mesh) -> None:
    network, peers = mesh.network(1), mesh.peers(1)
    assert set(network) == NETWORK_KEYS | NETWORK_KEYS_FOR_DISPLAY
    assert [set(peer) for peer in (*peers, *network["members"])] == [PEER_KEYS | PEER_KEYS_FOR_VOICE] * 4
    assert [peer["identity"] for peer in network["members"]] == [peer["identity"] for peer in peers]
    assert (network["network"], network["state"], network["role"], network["access"]) == (
        NETWORK, "online", "owner", "open",
    )  # fmt: skip
    assert mesh.network(2)["role"] == "member"
    reached = [(peer["nick"], peer["state"], peer["relay"]) for peer in peers]
    assert reached == [("piaf-server2", "direct", None), ("piaf-server3", "direct", None)]
    status = as_json(mesh, 1, "status")
    assert (status["networks"], status["problems"]) == ([NETWORK], [])
    assert [server["state"] for server in status["servers"]] == ["connected"]
    replies = as_json(mesh, 1, "ping", NETWORK, "piaf-server2", "-c", "1")
    assert [reply["address"] for reply in replies] == [mesh.address(2)]
    assert replies[0]["rtt_ms"] > 0
    assert replies[0]["tunnel_ms"] > 0
    paths = as_json(mesh, 1, "ping", NETWORK, "piaf-server2", "-c", "1", "--paths")
    assert (paths[0]["kind"], paths[0]["state"], paths[0]["answered"]) == ("direct v4", "in use", 1)
    assert [(path["relay"], path["answered"]) for path in paths if path["kind"] == "relay"] == [("rendezvous", 1)]


def test_a_member_is_named_by_nick_address_or_identity(mesh: Mesh) -> None:
    (peer, _) = mesh.peers(1)
    for name in (peer["nick"], peer["address"], peer["address6"], peer["identity"][:8]):
        assert "piaf-server2" in mesh.meshvpn(1, "ping", NETWORK, name, "-c", "1")
    check_refused(mesh, 1, "ping", NETWORK, "nobody")


def test_a_new_nick_reaches_the_others(mesh: Mesh) -> None:
    for nick in ("berlin", "piaf-server2"):
        mesh.meshvpn(2, "nick", NETWORK, nick)
        assert mesh.network(2)["nick"] == nick
        for number in (1, 3):
            mesh.lab.wait("the new nick", lambda at=number, new=nick: new in nicks(mesh, at))  # type: ignore[misc]


def test_down_stays_down_and_up_is_reached_again(mesh: Mesh) -> None:
    address = mesh.address(2)
    mesh.meshvpn(2, "down", NETWORK)
    assert mesh.network(2)["state"] == "offline"
    assert "mesh0" not in mesh.lab.run(mesh.hosts[2], ["ip", "link"])
    # Paths that carry something are probed each second, idle ones rarely.
    mesh.lab.wait(
        "they see it",
        lambda: not mesh.reaches(1, address) and event(mesh, 1, "peer_offline", "piaf-server2"),
        timeout=60,
    )
    check_refused(mesh, 2, "down", NETWORK)
    mesh.daemons[2].terminate()
    mesh.daemons[2].wait()
    mesh.start_daemon(2)
    listen(mesh, 2)
    assert mesh.network(2)["state"] == "offline"
    mesh.meshvpn(2, "up", NETWORK)
    mesh.lab.wait("reached again", lambda: mesh.reaches(1, address))
    assert mesh.address(2) == address
    check_refused(mesh, 2, "up", NETWORK)


def test_who_leaves_is_gone_and_may_come_back_as_somebody_new(mesh: Mesh) -> None:
    identity = mesh.peers(1)[1]["identity"]
    mesh.meshvpn(3, "leave", NETWORK, "--yes")
    assert as_json(mesh, 3, "list") == []
    assert "mesh0" not in mesh.lab.run(mesh.hosts[3], ["ip", "link"])
    assert not list((mesh.lab.directory / "state3").glob("*/network")), "its keys are forgotten"
    mesh.lab.wait("they see it", lambda: event(mesh, 1, "member_left", "piaf-server3"))
    assert (nicks(mesh, 1), nicks(mesh, 2)) == ({"piaf-server2"}, {"piaf-server1"})
    check_refused(mesh, 3, "leave", NETWORK, "--yes")
    check_refused(mesh, 1, "leave", NETWORK, "--yes")  # the owner
    mesh.admit(3)
    mesh.lab.wait("it is back", lambda: "piaf-server3" in nicks(mesh, 1))
    assert identity not in [peer["identity"] for peer in mesh.peers(1)]


def test_a_new_password_counts_for_who_joins_and_for_nobody_else(mesh: Mesh) -> None:
    new = mesh.write_password("changed", "changed password")
    mesh.lab.wait("session", lambda: mesh.reaches(1, mesh.address(2)))
    call = mesh.call(1, 2)
    check_refused(mesh, 2, "passwd", NETWORK, "--password-file", str(new))
    mesh.meshvpn(1, "passwd", NETWORK, "--password-file", str(new))
    mesh.meshvpn(3, "leave", NETWORK, "--yes")
    refused = mesh.enter(3, "join")
    assert (refused.returncode, refused.stdout.count("\n")) == (1, 1)
    assert "no network with that name and password" in refused.stdout
    mesh.password_file = new
    mesh.admit(3)
    for stream in call:
        arrived = stream.stop()
        assert arrived.is_whole, arrived


def test_who_was_unbanned_joins_again_with_its_identity(mesh: Mesh) -> None:
    mesh.lab.wait("it is there", lambda: "piaf-server3" in nicks(mesh, 1))
    before = identities(mesh, 1)
    check_refused(mesh, 2, "evict", NETWORK, "piaf-server3")
    mesh.meshvpn(1, "evict", NETWORK, "piaf-server3", "--keep-password")
    mesh.lab.wait("all know", lambda: event(mesh, 2, "member_evicted", "piaf-server3"))
    mesh.lab.wait("it knows", lambda: event(mesh, 3, "evicted", None))
    assert mesh.enter(3, "join").returncode == 1
    mesh.meshvpn(1, "unban", NETWORK, "piaf-server3")
    check_refused(mesh, 1, "unban", NETWORK, "piaf-server3")
    mesh.admit(3)
    mesh.lab.wait("reached again", lambda: mesh.reaches(1, mesh.address(3)))
    assert identities(mesh, 1) == before


def test_a_deleted_network_is_gone_for_everybody(mesh: Mesh) -> None:
    """The last one: there is no network afterwards."""
    check_refused(mesh, 2, "delete", NETWORK, "--yes")
    mesh.meshvpn(1, "delete", NETWORK, "--yes")
    assert as_json(mesh, 1, "list") == []
    for number in (2, 3):
        mesh.lab.wait("they know", lambda at=number: mesh.network(at)["state"] == "deleted")  # type: ignore[misc]
        assert event(mesh, number, "deleted", None)
        mesh.meshvpn(number, "leave", NETWORK, "--yes")
        assert as_json(mesh, number, "list") == []
    assert "no network with that name and password" in mesh.enter(2, "join").stdout


def as_json(mesh: Mesh, number: int, *arguments: str) -> Any:
    return json.loads(mesh.meshvpn(number, "--json", *arguments))


def check_refused(mesh: Mesh, number: int, *arguments: str) -> None:
    """Status 1 and one line that says why."""
    done = mesh.attempt(number, *arguments)
    assert (done.returncode, done.stdout.count("\n")) == (1, 1), done.stdout


def nicks(mesh: Mesh, number: int) -> set[str]:
    """Of the others, as a site sees them."""
    return {peer["nick"] for peer in mesh.peers(number)}


def identities(mesh: Mesh, number: int) -> dict[str, str]:
    """By nick."""
    return {peer["nick"]: peer["identity"] for peer in mesh.peers(number)}


def listen(mesh: Mesh, number: int) -> None:
    """`meshvpn events` at a site, until its daemon ends."""
    command = [str(BIN / "meshvpn"), "--socket", str(mesh.socket(number)), "--json", "events"]
    mesh.lab.start(mesh.hosts[number], f"events{number}", command)


def event(mesh: Mesh, number: int, kind: str, peer: str | None) -> bool:
    """True once it has been printed at a site."""
    lines = [json.loads(line) for line in mesh.lab.log(f"events{number}").splitlines()]
    return any((line["network"], line["kind"], line["peer"]) == (NETWORK, kind, peer) for line in lines)
