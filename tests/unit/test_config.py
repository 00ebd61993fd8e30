"""The configuration file: what is said holds, and what is not understood is refused with the key and the remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meshvpn.config import MAX_FILE, Config, NetworkConfig, load, parse
from meshvpn.proto.errors import ConfigError
from meshvpn.proto.options import Duplicate, Options
from meshvpn.proto.transport import Address

FILE = Path("meshvpn.toml")
EXAMPLE = Path(__file__).parents[2] / "systemd" / "meshvpn.toml"


def test_nothing_said_is_the_default() -> None:
    assert parse(b"", FILE) == Config(FILE)
    assert parse(b"", FILE).of("any") == NetworkConfig(Options(), 1400, None)


def test_the_example_shows_every_key_and_the_defaults() -> None:
    text = EXAMPLE.read_text()
    assert parse(text.encode(), EXAMPLE) == Config(EXAMPLE)
    live = re.sub(r"^#(?=[\[a-z])", "", text, flags=re.MULTILINE)
    said = parse(live.encode(), EXAMPLE)
    assert (said.log_level, said.log_format) == ("INFO", "text")
    assert said.default == NetworkConfig()
    one = said.of("piaf-vpn")
    assert one.options == Options(duplicate=Duplicate.VOICE, endpoints=(Address("203.0.113.5", 40000),))
    assert one.port == 40000
    assert one.engine_without == frozenset()
    keys = {line.split(" =")[0] for line in live.splitlines() if re.match(r"[a-z_]+ =", line)}
    assert keys >= {*Options.__slots__, "mtu", "port", "engine_without", "log_level", "log_format"}


def test_a_network_s_table_goes_before_the_top() -> None:
    said = parse(
        """
        duplicate = "signalling"
        relay = false
        mtu = 1300
        engine_without = ["udp_gso", "tun_uso"]
        [network."Büro"]
        relay = true
        relay_rate = "0.8 Mbit/s"
        [network.other]
        mtu = 9000
        port_mapping = false
        engine_without = []
        port_guessing = false
        lan_discovery = false
        """.encode(),
        FILE,
    )
    without = frozenset({"udp_gso", "tun_uso"})
    assert said.of("unnamed") == NetworkConfig(
        Options(duplicate=Duplicate.SIGNALLING, relay=False), 1300, None, without
    )
    assert said.of("BÜRO") == NetworkConfig(
        Options(duplicate=Duplicate.SIGNALLING, relay_rate=100_000), 1300, None, without
    )
    assert said.of("other") == NetworkConfig(
        Options(
            duplicate=Duplicate.SIGNALLING, relay=False, port_mapping=False, port_guessing=False, lan_discovery=False
        ),
        9000,
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a =", "meshvpn.toml: it is no TOML (invalid value (at end of document)); mend that line"),
        ("mtu = 1400.5", "meshvpn.toml: mtu: it is not understood; write a number from 1280 to 9000"),
        ("mtu = 1279", "meshvpn.toml: mtu: 1279 is out of range; write a number from 1280 to 9000"),
        ("mtu = 9001", "meshvpn.toml: mtu: 9001 is out of range"),
        ("mtu = true", "meshvpn.toml: mtu: it is not understood"),
        ("foo = 1", "meshvpn.toml: foo: there is no such key here; there are mtu, duplicate, "),
        ("relay = 'no'", "meshvpn.toml: relay: it is not understood; write true or false"),
        ("duplicate = 'all'", 'meshvpn.toml: duplicate: it is not understood; write "off", "signalling" or "voice"'),
        ("log_level = 'LOUD'", 'meshvpn.toml: log_level: it is not understood; write "DEBUG", '),
        ("relay_rate = 8", "meshvpn.toml: relay_rate: it is not understood; write a number and kbit/s"),
        ("relay_rate = '8 MB/s'", 'meshvpn.toml: relay_rate: "8 MB/s" is no rate; write a number and kbit/s'),
        ("relay_rate = '-8 Mbit/s'", 'meshvpn.toml: relay_rate: "-8 Mbit/s" is no rate'),
        ("relay_rate = '1 kbit/s'", 'meshvpn.toml: relay_rate: "1 kbit/s" is less than a call'),
        ("engine_without = 'udp_gso'", "meshvpn.toml: engine_without: it is not understood; write a list of kernel "),
        (
            "engine_without = ['gso']",
            'meshvpn.toml: engine_without: "gso" is none that the engine uses; write ',
        ),
        ("port = 5", "meshvpn.toml: port: it is of one network; write it under [network.NAME]"),
        ("network = 5", "meshvpn.toml: network: it is not understood; write a table for each network"),
        ("[network]\nn = 5", 'meshvpn.toml: network "n": it is not understood; write a table for each network'),
        ("[network.n]\nfoo = 1", 'meshvpn.toml: network "n": foo: there is no such key here; there are '),
        ("[network.n]\nlog_level = 'INFO'", 'meshvpn.toml: network "n": log_level: there is no such key here'),
        ("[network.n]\nport = 0", 'meshvpn.toml: network "n": port: 0 is no UDP port; write a number from 1 to 65535'),
        ("[network.n]\nmtu = 1", 'meshvpn.toml: network "n": mtu: 1 is out of range'),
        ("[network.n]\n[network.N]", 'meshvpn.toml: network "N": there are two tables for it; leave one of them'),
        ("[network.'']", "meshvpn.toml: network name: it is empty; "),
        ("[network.n]\nendpoints = '1.2.3.4:5'", 'meshvpn.toml: network "n": endpoints: it is not understood; '),
        ("[network.n]\nendpoints = [5]", 'meshvpn.toml: network "n": endpoints: it is not understood; '),
        ("[network.n]\nendpoints = [" + "'1.2.3.4:5'," * 9 + "]", 'meshvpn.toml: network "n": endpoints: there are 9'),
        ("x = " + "[" * 100_000, "meshvpn.toml: it is no TOML"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), FILE)
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "203.0.113.5",
        "203.0.113.5:",
        ":40000",
        "203.0.113.5:0",
        "203.0.113.5:65536",
        "203.0.113.5:٤",
        "203.0.113.5:+4",
        "pbx.example.net:40000",
        "2001:db8::5:40000",
        "[203.0.113.5]:40000",
        "[fe80::1%eth0]:40000",
        "[fe80::1]:40000",
        "[::ffff:203.0.113.5]:40000",
        "127.0.0.1:40000",
        "0.0.0.0:40000",
        "224.0.0.1:40000",
    ],
)
def test_an_endpoint_is_an_address_that_others_can_reach(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="is no address at which others reach this host; write a list"):
        parse(f'[network.n]\nendpoints = ["{endpoint}"]'.encode(), FILE)


def test_endpoints_of_both_families_count_once() -> None:
    text = '[network.n]\nendpoints = ["203.0.113.5:1", "[2001:db8:0::5]:2", "[2001:db8::5]:2"]'
    assert parse(text.encode(), FILE).of("n").options.endpoints == (
        Address("203.0.113.5", 1),
        Address("2001:db8::5", 2),
    )


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match=r"none.toml: it cannot be read \(no such file or directory\); mend it, or"):
        load(missing)
    with pytest.raises(ConfigError, match=r"it cannot be read \(is a directory\)"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="it is larger than 1 MiB"):
        parse(bytes(MAX_FILE + 1), FILE)
    with pytest.raises(ConfigError, match="it is not valid UTF-8"):
        parse(b"\xff", FILE)
