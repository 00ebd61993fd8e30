"""The real program against a fake daemon on a Unix socket."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from meshvpn import ipc
from meshvpn.cli import strength
from meshvpn.proto.keys import derive_network_keys
from meshvpn.proto.netfindings import Filtering, Findings, PortChoice, ServerFinding, meaning

from .fake import NETWORK, PASSWORD, PEER, FakeDaemon, meshvpn, typed


def test_join_sends_the_derived_keys_and_never_the_password(daemon: FakeDaemon, password_file: Path) -> None:
    daemon.reply = NETWORK
    done = meshvpn(daemon.path, "join", "piaf-vpn", "--server", "example.org", "--password-file", str(password_file))
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["Joining network piaf-vpn .. ok", "this host is me 10.7.5.1 on mesh0"]
    method, route, body = daemon.requests[0]
    request = msgspec.json.decode(body, type=ipc.JoinRequest)
    keys = derive_network_keys("piaf-vpn", PASSWORD)
    assert (method, route) == ("POST", "/v1/networks/join")
    assert (request.locator, request.wrap_key) == (keys.locator.hex(), keys.wrap_key.hex())
    assert request.server == ipc.ServerOptions(url="https://example.org:7770")
    assert PASSWORD.encode() not in body


def test_the_password_is_the_first_line_of_standard_input(daemon: FakeDaemon) -> None:
    done = meshvpn(daemon.path, "passwd", "piaf-vpn", "--password-file", "-", stdin=f"{PASSWORD}\nmore\n")
    request = msgspec.json.decode(daemon.requests[0][2], type=ipc.PasswordRequest)
    assert done.returncode == 0
    assert request.locator == derive_network_keys("piaf-vpn", PASSWORD).locator.hex()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_password_file_open_to_others_is_refused_with_the_remedy(
    daemon: FakeDaemon, password_file: Path, mode: int
) -> None:
    password_file.chmod(mode)
    done = meshvpn(daemon.path, "passwd", "piaf-vpn", "--password-file", str(password_file))
    assert done.returncode == 1
    assert f"chmod 600 {password_file}" in done.stderr
    assert daemon.requests == []


def test_without_a_terminal_or_a_file_there_is_no_password(daemon: FakeDaemon) -> None:
    done = meshvpn(daemon.path, "passwd", "piaf-vpn")
    assert done.returncode == 2
    assert "--password-file" in done.stderr


def test_a_password_is_no_argument(daemon: FakeDaemon) -> None:
    done = meshvpn(daemon.path, "passwd", "piaf-vpn", PASSWORD)
    assert done.returncode == 2
    assert "a password is never one" in done.stderr
    assert daemon.requests == []


@pytest.mark.parametrize(("status", "exit_status"), [(400, 2), (403, 1), (404, 1), (409, 1), (502, 1), (504, 4)])
def test_a_refusal_is_one_line_and_its_kind_the_exit_status(daemon: FakeDaemon, status: int, exit_status: int) -> None:
    daemon.refuse(status, "already online")
    done = meshvpn(daemon.path, "up", "piaf-vpn")
    assert done.returncode == exit_status
    assert done.stdout == ""
    assert done.stderr == "meshvpn: Going online in piaf-vpn .. failed, already online\n"


def test_without_a_daemon_it_says_how_to_start_it(tmp_path: Path) -> None:
    done = meshvpn(tmp_path / "none", "list")
    assert done.returncode == 3
    assert "systemctl start meshvpnd" in done.stderr


def test_a_daemon_that_dies_while_it_is_asked_is_status_3(daemon: FakeDaemon) -> None:
    daemon.status = 0
    done = meshvpn(daemon.path, "up", "piaf-vpn")
    assert done.returncode == 3
    assert done.stderr == (
        "meshvpn: Going online in piaf-vpn .. failed, the daemon ended while it was asked; "
        "see `journalctl -u meshvpnd`\n"
    )


@pytest.mark.parametrize(
    "server",
    [
        "",
        "ftp://a",
        "a:0",
        "a:99999",
        "a/path",
        "me@a",
        f"https://me:{PASSWORD}@a",
        "a?x=1",
        "a?",
        "a#x",
        "a b",
        "a\n",
        "2001:db8::1",
        "http://",
    ],
)
def test_a_server_that_is_none_is_a_usage_error_before_any_question(daemon: FakeDaemon, server: str) -> None:
    done = meshvpn(daemon.path, "join", "piaf-vpn", "--server", server)
    assert done.returncode == 2
    assert "server" in done.stderr
    assert done.stderr.count("\n") == 1
    assert daemon.requests == []


@pytest.mark.parametrize(
    ("server", "url"),
    [
        ("example.org", "https://example.org:7770"),
        ("example.org:443", "https://example.org:443"),
        ("10.0.0.1", "https://10.0.0.1:7770"),
        ("[2001:db8::1]:99", "https://[2001:db8::1]:99"),
        ("https://EXAMPLE.org/", "https://example.org:7770"),
    ],
)
def test_a_server_is_a_host_a_port_or_a_url(daemon: FakeDaemon, server: str, url: str) -> None:
    daemon.reply = NETWORK
    pin = "sha256:" + "AB" * 32
    arguments = ("join", "n", "--server", server, "--server-pin", pin, "--password-file", "-")
    assert meshvpn(daemon.path, *arguments, stdin=PASSWORD).returncode == 0
    request = msgspec.json.decode(daemon.requests[0][2], type=ipc.JoinRequest)
    assert request.server == ipc.ServerOptions(url=url, pin=pin.lower())


def test_a_pin_needs_a_certificate(daemon: FakeDaemon) -> None:
    daemon.reply = NETWORK
    arguments = ("join", "n", "--server", "http://10.0.0.1", "--password-file", "-")
    done = meshvpn(daemon.path, *arguments, "--server-pin", "sha256:" + "ab" * 32, stdin=PASSWORD)
    assert done.returncode == 2
    assert "no certificate" in done.stderr
    assert daemon.requests == []
    assert meshvpn(daemon.path, *arguments, stdin=PASSWORD).returncode == 0
    request = msgspec.json.decode(daemon.requests[0][2], type=ipc.JoinRequest)
    assert request.server == ipc.ServerOptions(url="http://10.0.0.1:7770")


@pytest.mark.parametrize("pin", ["", "sha256:", "sha256:" + "z" * 64, "sha256:" + "a" * 63, "md5:" + "a" * 64, "ca"])
def test_a_pin_that_is_none_is_a_usage_error(daemon: FakeDaemon, pin: str) -> None:
    done = meshvpn(daemon.path, "join", "n", "--server", "example.org", "--server-pin", pin)
    assert done.returncode == 2
    assert "64 hexadecimal digits" in done.stderr
    assert daemon.requests == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("frobnicate",), "no such command 'frobnicate'; see `meshvpn --help`"),
        (("lsit",), "no such command 'lsit'; did you mean 'list'?\n"),
        (("list", "--frob"), "no such option: --frob; see `meshvpn list --help`"),
        (("join",), "missing argument 'NET'; see `meshvpn join --help`"),
        (("join", "a", "b"), "too many arguments (a password is never one); see `meshvpn join --help`"),
        (("ping", "a", "b", "-c", "x"), "invalid value for '-c' / '--count': 'x' is not a number"),
        (("join", "n", "--server"), "option '--server' requires an argument; see `meshvpn --help`"),
        (("join", "n", "--server", "h", "--interface", "a/b"), "interface 'a/b': it is no interface name"),
        (("up", ""), "network name: it is empty; choose one of 1 to 64 characters"),
        (("peers", ".."), "network name: it is a step of a path"),
        (("nick", "n", "a b"), "nickname 'a b': it is not usable"),
        (("evict", "n", b"\xff"), "the arguments are not valid UTF-8"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(
    daemon: FakeDaemon, arguments: tuple[str | bytes, ...], complaint: str
) -> None:
    done = meshvpn(daemon.path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"meshvpn: {complaint}")
    assert done.stderr.count("\n") == 1
    assert daemon.requests == []


def test_without_a_command_it_shows_the_commands_and_fails(daemon: FakeDaemon) -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "meshvpn.cli"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Found a network" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "route"),
    [
        (("leave", "a b/c"), "/v1/networks/a%20b%2Fc/leave"),
        (("delete", "n"), "/v1/networks/n/delete"),
        (("go-online", "n"), "/v1/networks/n/up"),
        (("go-offline", "n"), "/v1/networks/n/down"),
        (("set-nick", "n", "me2"), "/v1/networks/n/nick"),
        (("unban", "n", "berlin"), "/v1/networks/n/unban"),
        (("nick", "n", "me2"), "/v1/networks/n/nick"),
    ],
)
def test_each_action_asks_its_route(daemon: FakeDaemon, arguments: tuple[str, ...], route: str) -> None:
    done = meshvpn(daemon.path, *arguments)
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith(".. ok")
    assert daemon.requests[0][:2] == ("POST", route)


@pytest.mark.parametrize(("option", "password"), [((), "retire"), (("--keep-password",), "keep")])
def test_evict_retires_the_password_unless_told_otherwise(
    daemon: FakeDaemon, option: tuple[str, ...], password: str
) -> None:
    assert meshvpn(daemon.path, "evict", "n", "berlin", *option).returncode == 0
    request = msgspec.json.decode(daemon.requests[0][2], type=ipc.EvictRequest)
    assert request == ipc.EvictRequest(peer="berlin", password=password)


def test_evict_does_not_both_keep_and_renew_the_password(daemon: FakeDaemon) -> None:
    assert meshvpn(daemon.path, "evict", "n", "p", "--new-password", "--keep-password").returncode == 2
    assert daemon.requests == []


def test_list_prints_hamachis_columns(daemon: FakeDaemon) -> None:
    daemon.networks = [NETWORK]
    lines = meshvpn(daemon.path, "list").stdout.splitlines()
    assert lines[0].startswith(" * [piaf-vpn]  10.7.5.0/24")
    assert lines[-1].startswith("     * ab12cd34   berlin")
    assert "direct     UDP 203.0.113.9:43667" in lines[-1]


def test_peers_says_how_each_member_is_reached_and_why(daemon: FakeDaemon) -> None:
    relayed = msgspec.structs.replace(
        PEER,
        nick="the-branch-office-in-the-north",
        address="10.255.255.254",
        state="relay",
        endpoint=None,
        relay="hub",
        why="relay: direct loses 31 %",
        mtu=1216,
        path_mtu=1288,
        fragments=False,
        rx_loss=None,
        rx_r=None,
        rx_mos=None,
        rx_jitter_ms=None,
        kept_marks=0.5,
    )
    offline = msgspec.structs.replace(
        PEER, state="offline", endpoint=None, why=None, path_mtu=None, rtt_ms=None, jitter_ms=None, loss=None, r=None,
        mos=None, rx_r=None, rx_mos=None, rx_loss=None, rx_jitter_ms=None, kept_marks=None,
    )  # fmt: skip
    daemon.reply = [PEER, relayed, offline, msgspec.structs.replace(PEER, kept_marks=0.0)]
    lines = meshvpn(daemon.path, "peers", "n").stdout.splitlines()
    assert lines == [
        "address         nick                  path     rtt      loss to/from  jitter      R      MOS   EF",
        "10.7.5.2        berlin                direct   18.2 ms  1.0/0.0 %     0.5/1.2 ms  92/91  4.36  kept",
        "    203.0.113.9:43667; direct, R 92; relay, R 78; MTU 1400; received 1.5 kB, sent 10 B",
        "10.255.255.254  the-branch-office-i…  relay    18.2 ms  1.0/- %       0.5/- ms    92/-   4.38  50 %",
        "    via hub; relay: direct loses 31 %; MTU 1216, larger IPv6 is lost; received 1.5 kB, sent 10 B",
        "10.7.5.2        berlin                offline  -        -             -           -      -     -",
        "    received 1.5 kB, sent 10 B",
        "10.7.5.2        berlin                direct   18.2 ms  1.0/0.0 %     0.5/1.2 ms  92/91  4.36  lost",
        "    203.0.113.9:43667; direct, R 92; relay, R 78; MTU 1400; received 1.5 kB, sent 10 B",
    ]
    assert max(map(len, lines)) <= 100


def test_status_tells_what_is_in_force(daemon: FakeDaemon) -> None:
    config = ipc.ConfigView(
        duplicate="voice",
        port_guessing=True,
        port_mapping=False,
        lan_discovery=True,
        relay=True,
        relay_rate=1_000_000,
        endpoints=["203.0.113.5:40000"],
        mtu=1400,
        engine_without=["udp_gro"],
        port=40000,
    )
    daemon.reply = ipc.Status(
        version="1",
        pid=7,
        uptime_s=1.0,
        state_dir="/s",
        networks=["n"],
        servers=[],
        engine={"mesh0": {"udp_gso": True, "udp_gro": False}},
        drops={},
        relayed={"mesh0": 2_500_000, "mesh1": 0},
        gossip={
            "n": ipc.GossipView(port=7772, problem=None, silent=["pbx4", "pbx5"]),
            "m": ipc.GossipView(port=7772, problem="the port is taken", silent=[]),
        },
        config_file="/etc/meshvpn/meshvpn.toml",
        config={"n": config},
        problems=["a problem"],
    )
    assert meshvpn(daemon.path, "status").stdout.splitlines()[3:] == [
        "engine     : mesh0 udp_gso, without udp_gro",
        "relayed    : mesh0 2.5 MB for other members",
        "gossip     : n pbx4, pbx5 cannot be told news (a firewall there? TCP port 7772)",
        "gossip     : m members cannot tell this host news: the port is taken",
        "config     : /etc/meshvpn/meshvpn.toml",
        "settings   : n duplicate voice, mtu 1400, udp port 40000, relays up to 8 Mbit/s, endpoints 203.0.113.5:40000, "
        "off: port_mapping, engine without udp_gro",
        "problem    : a problem",
    ]


def test_json_is_exactly_what_the_daemon_said(daemon: FakeDaemon) -> None:
    daemon.networks = [NETWORK]
    printed = json.loads(meshvpn(daemon.path, "--json", "list").stdout)
    assert printed == msgspec.to_builtins([NETWORK])


def test_json_may_stand_after_the_command_too(daemon: FakeDaemon) -> None:
    daemon.networks = [NETWORK]
    assert meshvpn(daemon.path, "list", "--json").stdout == meshvpn(daemon.path, "--json", "list").stdout


def test_a_nickname_that_the_terminal_cannot_show_is_no_failure(daemon: FakeDaemon) -> None:
    daemon.networks = [msgspec.structs.replace(NETWORK, network="büro-№7")]
    done = meshvpn(daemon.path, "list", environment={"PYTHONIOENCODING": "latin-1"}, encoding="latin-1")
    assert done.returncode == 0
    assert "[büro-\\u21167]" in done.stdout


@pytest.mark.parametrize("command", [("leave", "n"), ("delete", "n"), ("evict", "n", "berlin")])
@pytest.mark.parametrize(("answer", "is_done"), [("y", True), ("YES", True), ("n", False), ("", False)])
def test_what_destroys_asks_a_person_first(
    daemon: FakeDaemon, command: tuple[str, ...], answer: str, is_done: bool
) -> None:
    status, shown = typed(daemon, [*command], f"{answer}\n")
    assert "[y/N]" in shown
    assert (status == 0, len(daemon.requests)) == (is_done, is_done)
    assert is_done or shown.rstrip().endswith("meshvpn: not done")


def test_nobody_is_asked_with_yes(daemon: FakeDaemon) -> None:
    status, shown = typed(daemon, ["leave", "n", "--yes"], "")
    assert (status, len(daemon.requests)) == (0, 1)
    assert "[y/N]" not in shown


def test_a_password_is_typed_twice_for_something_new_and_never_shown(daemon: FakeDaemon) -> None:
    status, shown = typed(daemon, ["passwd", "n"], f"{PASSWORD}\n", f"{PASSWORD}\n")
    assert (status, len(daemon.requests)) == (0, 1)
    assert PASSWORD not in shown
    status, shown = typed(daemon, ["passwd", "n"], f"{PASSWORD}\n", "another\n")
    assert (status, len(daemon.requests)) == (2, 1)
    assert "the two passwords differ; try again" in shown


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("password", "about 3 tries find it (this is a top-10 common password)"),
        ("Piaf-VPN", "tries find it"),  # the network's name
        ("berlin1", "tries find it"),  # a member's nickname
        ("asterisk", "tries find it"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "repeats"),
    ],
)
def test_a_password_that_is_as_good_as_none_is_refused_unless_forced(
    daemon: FakeDaemon, password: str, why: str
) -> None:
    daemon.networks = [NETWORK]
    command = ("passwd", "piaf-vpn", "--password-file", "-")
    done = meshvpn(daemon.path, *command, stdin=password)
    assert (done.returncode, daemon.requests) == (1, [])
    assert done.stderr.startswith("meshvpn: that password is too weak, ")
    assert why in done.stderr
    assert done.stderr.endswith("; choose a longer one, or give --force\n")
    assert meshvpn(daemon.path, *command, "--force", stdin=password).returncode == 0
    request = msgspec.json.decode(daemon.requests[0][2], type=ipc.PasswordRequest)
    assert request.locator == derive_network_keys("piaf-vpn", password).locator.hex()


def test_a_weak_password_is_taken_with_a_warning_and_a_good_one_without(daemon: FakeDaemon) -> None:
    command = ("passwd", "n", "--password-file", "-")
    done = meshvpn(daemon.path, *command, stdin="new password")
    assert done.returncode == 0
    assert done.stderr.startswith("meshvpn: warning: that password is weak, about 1,000,000 tries find it")
    assert meshvpn(daemon.path, *command, stdin=PASSWORD).stderr == ""


def test_a_long_password_is_judged_soon_and_by_its_beginning(daemon: FakeDaemon) -> None:
    done = meshvpn(daemon.path, "passwd", "n", "--password-file", "-", stdin="xq" * 512)
    assert done.returncode == 1
    assert "too weak" in done.stderr


def test_who_joins_with_a_weak_password_is_not_lectured(daemon: FakeDaemon) -> None:
    daemon.reply = NETWORK
    done = meshvpn(daemon.path, "join", "n", "--server", "example.org", "--password-file", "-", stdin="password")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_weak_password_is_asked_for_again_at_a_terminal(daemon: FakeDaemon) -> None:
    status, shown = typed(daemon, ["passwd", "n"], "geheim\n", f"{PASSWORD}\n", f"{PASSWORD}\n")
    assert (status, len(daemon.requests)) == (0, 1)
    assert "that password is too weak" in shown


def test_enter_at_a_terminal_makes_a_password_and_shows_it_once(daemon: FakeDaemon) -> None:
    status, shown = typed(daemon, ["passwd", "n"], "\n")
    made = re.search(r"The password is (([a-z]{5}-){4}[a-z]{5})\s", shown)
    assert status == 0
    assert made is not None
    request = msgspec.json.decode(daemon.requests[0][2], type=ipc.PasswordRequest)
    assert request.locator == derive_network_keys("n", made[1]).locator.hex()


def test_made_passwords_are_all_different_and_strong() -> None:
    made = [strength.generate() for _ in range(100)]
    assert len(set(made)) == 100
    assert not any(strength.judge(password, []).is_weak for password in made)


def test_the_end_of_input_is_no_password(daemon: FakeDaemon) -> None:
    status, shown = typed(daemon, ["passwd", "n"], "\x04")
    assert (status, daemon.requests) == (2, [])
    assert "nothing was typed; try again" in shown


def test_an_interrupt_ends_quietly(daemon: FakeDaemon) -> None:
    status, shown = typed(daemon, ["passwd", "n"], "\x03")
    assert (status, daemon.requests) == (130, [])
    assert "Traceback" not in shown


@pytest.mark.parametrize("command", ["leave", "delete"])
def test_what_is_ended_by_force_says_what_stays(daemon: FakeDaemon, command: str) -> None:
    assert meshvpn(daemon.path, command, "n").stdout.endswith(" .. ok\n")
    daemon.reply = ipc.Reply(message="left", note="left here; the others list this host")
    assert meshvpn(daemon.path, command, "n", "--force").stdout.endswith(
        " .. ok\nleft here; the others list this host\n"
    )
    assert [json.loads(body)["force"] for _, _, body in daemon.requests] == [False, True]


def test_ping_fails_when_nothing_answers(daemon: FakeDaemon) -> None:
    daemon.reply = ipc.PingReply(nick="berlin", address="10.7.5.2", path="direct", rtt_ms=None)
    done = meshvpn(daemon.path, "ping", "n", "berlin", "-c", "2")
    assert done.returncode == 1
    assert done.stdout.count("no answer") == 4  # twice on the path, twice through the tunnel
    assert "the path          0 of 2 answered" in done.stdout


def test_ping_echoes_through_the_tunnel_too(daemon: FakeDaemon) -> None:
    daemon.reply = ipc.PingReply(nick="berlin", address="127.0.0.1", path="direct 1.2.3.4:5", rtt_ms=None)
    done = meshvpn(daemon.path, "--json", "ping", "n", "berlin", "-c", "2")
    assert done.returncode == 0  # the path's pings are lost, what a call needs is not
    lines = json.loads(done.stdout)
    assert [(line["rtt_ms"], 0 < line["tunnel_ms"] < 1000) for line in lines] == [(None, True)] * 2


ROW = ipc.PathRow(
    kind="direct v4",
    address="203.0.113.9:43667",
    relay=None,
    state="in use",
    rtt_ms=20.0,
    usual_rtt_ms=21.0,
    jitter_ms=0.5,
    loss=0.0,
    r=92.0,
    mos=4.4,
)


def test_ping_shows_a_row_for_each_path(daemon: FakeDaemon) -> None:
    relay = msgspec.structs.replace(
        ROW, kind="relay", address="20.3.0.1:7770", relay="hub", state="standby", rtt_ms=None
    )
    daemon.reply = ipc.PathsReply(nick="berlin", address="10.7.5.2", paths=[ROW, relay])
    done = meshvpn(daemon.path, "ping", "n", "berlin", "-c", "2", "--paths")
    assert done.returncode == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["path", "address", "rtt", "loss", "jitter", "R", "MOS", "state"],
        ["direct", "v4", "203.0.113.9:43667", "20.0", "ms", "0.0", "%", "0.0", "ms", "92", "4.39", "in", "use"],
        ["relay", "via", "hub", "20.3.0.1:7770", "-", "100.0", "%", "-", "-", "-", "standby"],
    ]
    assert [request[1] for request in daemon.requests] == ["/v1/networks/n/paths"] * 2
    printed = json.loads(meshvpn(daemon.path, "ping", "n", "berlin", "-c", "1", "--paths", "--json").stdout)
    assert [(line["sent"], line["answered"], line["usual_rtt_ms"]) for line in printed] == [(1, 1, 21.0), (1, 0, 21.0)]


def test_ping_says_when_no_path_is_known(daemon: FakeDaemon) -> None:
    daemon.reply = ipc.PathsReply(nick="berlin", address="10.7.5.2", paths=[])
    done = meshvpn(daemon.path, "ping", "n", "berlin", "-c", "1", "--paths")
    assert (done.returncode, done.stdout) == (1, "no path to berlin is known; is it online? See `meshvpn list`\n")


FINDINGS = Findings(
    servers=[ServerFinding("20.1.0.1:7770", 0.0221), ServerFinding("20.1.0.1:7771", None)],
    local=["192.168.1.5"],
    public="203.0.113.5",
    is_translated=True,
    mapping="endpoint-independent",
    is_mapping_sure=False,
    filtering=Filtering.BY_PORT,
    ports=PortChoice.SEQUENTIAL,
    port_step=2,
    hairpin=False,
    mtu=1492,
    local6=[],
    public6=None,
    filtering6=None,
    tcp_rtt=0.085,
    relay_by_tcp=True,
    port_mapping=["UPnP"],
    router_host="203.0.113.5",
)


def test_netcheck_tells_what_was_found_and_what_it_means(daemon: FakeDaemon) -> None:
    daemon.reply = ipc.NetcheckReply(findings=FINDINGS, meaning=["Direct calls to everybody.", "A word. " * 20])
    done = meshvpn(daemon.path, "netcheck")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[:12] == [
        "rendezvous   : 20.1.0.1:7770 by UDP 22.1 ms",
        "rendezvous   : 20.1.0.1:7771 by UDP no answer",
        "by TCP       : 85.0 ms, relay yes",
        "UDP          : passes",
        "IPv4         : 192.168.1.5, seen as 203.0.113.5 (NAT)",
        "mapping      : endpoint-independent (or address-dependent: a second server address would tell)",
        "filtering    : address-and-port-dependent",
        "ports        : sequential, step 2",
        "hairpin      : no",
        "port mapping : UPnP, outer address 203.0.113.5",
        "MTU          : 1492 to the rendezvous",
        "IPv6         : no address",
    ]
    assert lines[12:14] == ["", "Direct calls to everybody."]
    assert max(map(len, lines)) <= 100
    assert json.loads(daemon.requests[0][2]) == {"server": None}
    assert json.loads(meshvpn(daemon.path, "netcheck", "--json").stdout)["findings"]["ports"] == "sequential"


def test_netcheck_asks_another_server_if_it_is_told_to(daemon: FakeDaemon) -> None:
    lost = msgspec.structs.replace(
        FINDINGS,
        servers=[],
        public=None,
        is_translated=None,
        tcp_rtt=None,
        relay_by_tcp=None,
        problems=["the name x cannot be resolved"],
    )
    daemon.reply = ipc.NetcheckReply(findings=lost, meaning=meaning(lost))
    done = meshvpn(daemon.path, "netcheck", "--server", "x")
    assert done.returncode == 4
    assert "UDP          : no answer\n" in done.stdout
    assert "problem      : the name x cannot be resolved\n" in done.stdout
    assert "No rendezvous can be reached" in done.stdout
    assert json.loads(daemon.requests[0][2]) == {"server": {"url": "https://x:7770", "pin": None}}
    assert meshvpn(daemon.path, "netcheck", "--server", "x y").returncode == 2
