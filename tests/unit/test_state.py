from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from meshvpn.proto import owner
from meshvpn.proto.keys import Identity, NetworkKeys, check_pool, network_uid
from meshvpn.state import NetworkState, StateDir, StateError, read_checked, write_checked

MANY = 200
"""More calls than any of the actions makes."""


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_checked(tmp_path / "file", b"payload")
    assert read_checked(tmp_path / "file") == b"payload"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_every_truncation_and_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_checked(file, b"payload")
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(StateError):
            read_checked(file)
    for position in range(len(whole)):
        for bit in range(8):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            with pytest.raises(StateError):
                read_checked(file)


def test_a_second_daemon_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    first = StateDir(tmp_path)
    with pytest.raises(StateError, match="another meshvpnd"):
        StateDir(tmp_path)
    first.close()
    StateDir(tmp_path).close()


def test_a_network_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    directory = StateDir(tmp_path)
    directory.save(_network())
    loaded = directory.load()
    directory.close()
    assert loaded.networks == [_network()]
    assert loaded.problems == []


@pytest.mark.parametrize(("opened", "mode"), [("file", 0o640), ("file", 0o604), ("directory", 0o750)])
def test_keys_that_are_open_to_others_are_closed_and_that_is_told_once(tmp_path: Path, opened: str, mode: int) -> None:
    directory = StateDir(tmp_path)
    directory.save(_network())
    place = tmp_path / _network().uid.hex()
    changed = place / "network" if opened == "file" else place
    changed.chmod(mode)
    loaded = directory.load()
    assert loaded.networks == [_network()]
    assert [changed.stat().st_mode & 0o777] == [0o600 if opened == "file" else 0o700]
    assert len(loaded.problems) == 1
    assert f"{changed} was open to others (mode {mode:04o}) and is closed now" in loaded.problems[0]
    assert directory.load().problems == []
    directory.close()


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_directory_into_which_others_may_write_is_not_used(tmp_path: Path, mode: int) -> None:
    place = tmp_path / "state"
    place.mkdir()
    place.chmod(mode)
    with pytest.raises(StateError, match=f"mode {mode:04o}.*chmod 700 {place}"):
        StateDir(place)
    assert list(place.iterdir()) == []


def test_a_damaged_network_is_kept_aside_and_named_also_at_later_starts(tmp_path: Path) -> None:
    (tmp_path / "aa").mkdir(mode=0o700)
    (tmp_path / "aa" / "network").write_bytes(b"rubbish")
    (tmp_path / "aa" / "network").chmod(0o600)
    directory = StateDir(tmp_path)
    for _ in range(2):
        loaded = directory.load()
        assert loaded.networks == []
        assert "network.damaged-1" in loaded.problems[0]
    directory.close()
    assert (tmp_path / "aa" / "network.damaged-1").read_bytes() == b"rubbish"


def test_a_network_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    directory = StateDir(tmp_path)
    directory.save(_network())
    (tmp_path / "00").mkdir(mode=0o700)
    (tmp_path / "00" / "network").mkdir()
    loaded = directory.load()
    directory.close()
    assert [network.name for network in loaded.networks] == ["office"]
    assert loaded.problems == [
        f"{tmp_path / '00'} cannot be used (is a directory), so its network stays down; mend it, restart meshvpnd"
    ]


def test_a_removed_network_is_gone_and_the_others_are_not(tmp_path: Path) -> None:
    directory = StateDir(tmp_path)
    directory.save(_network())
    other = _network(owner_seed=bytes(range(32)))
    directory.save(other)
    directory.remove(_network().uid)
    directory.remove(_network().uid)
    assert directory.load().networks == [other]
    directory.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [other.uid.hex(), "lock"]


@pytest.mark.parametrize("action", ["create", "change", "remove", "set_aside"])
def test_a_kill_before_any_call_leaves_the_old_state_or_the_new_one(tmp_path: Path, action: str) -> None:
    old = [] if action in ("create", "set_aside") else [_network()]
    new = {"create": [_network()], "change": [_network(nick="after")]}.get(action, [])
    seen = []
    done = subprocess.run(
        [sys.executable, "-c", _DOOMED, str(tmp_path), action, str(MANY)],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    lives = int(done.stdout)
    assert 3 < lives < MANY, "each life ends at another call, the last one survives them all"
    for number in range(lives):
        directory = StateDir(tmp_path / str(number))
        loaded = directory.load()
        assert loaded.networks in (old, new), number
        assert bool(loaded.problems) == (action == "set_aside"), loaded.problems
        assert directory.load().networks == loaded.networks
        kept = sorted(entry.name for entry in directory.path.glob("*/*"))
        assert kept == [*(["network"] * len(loaded.networks)), *(["network.damaged-1"] * (action == "set_aside"))]
        directory.close()
        seen.append(loaded.networks)
    assert seen[0] == old
    assert seen[-1] == new


def _network(owner_seed: bytes = b"o" * 32, nick: str = "before") -> NetworkState:
    """The same each time."""
    founder, keys = Identity(b"f" * 32), NetworkKeys(b"l" * 32, b"w" * 32)
    head = Identity(owner_seed)
    pool = check_pool("10.7.5.0/24")
    roster = owner.found_network("office", keys, pool, head, founder, entropy=lambda size: b"e" * size, wall=1)
    return NetworkState(
        name="office",
        uid=network_uid(head.public),
        identity=founder.seed,
        tunnel_key=b"t" * 32,
        owner=owner_seed,
        server_url="https://example.org:7770",
        server_pin=None,
        nick=nick,
        interface="mesh0",
        address="10.7.5.1",
        joined_at=1,
        roster=roster,
    )


_DOOMED = """
import os, sys
from pathlib import Path
from meshvpn.state import StateDir
from tests.failures.doomed import doom
from tests.unit.test_state import _network

place, action, many = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(many):
    directory = StateDir(place / str(number))
    if action in ("change", "remove"):
        directory.save(_network())
    if action == "set_aside":
        (directory.path / "aa").mkdir()
        (directory.path / "aa" / "network").write_bytes(b"rubbish")
    child = os.fork()
    if child == 0:
        doom(number)
        if action == "remove":
            directory.remove(_network().uid)
        elif action == "set_aside":
            directory.load()
        else:
            directory.save(_network(nick="before" if action == "create" else "after"))
        sys.setprofile(None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    directory.close()
    if status == 0:
        print(number + 1)
        break
"""
