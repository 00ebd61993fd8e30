from __future__ import annotations

from pathlib import Path

import pytest

from meshvpn.state import StateDir, StateError, read_checked, write_checked


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
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(StateError):
            read_checked(file)


def test_a_second_daemon_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    first = StateDir(tmp_path)
    with pytest.raises(StateError, match="another meshvpnd"):
        StateDir(tmp_path)
    first.close()
    StateDir(tmp_path).close()


def test_a_damaged_network_is_kept_aside_and_named(tmp_path: Path) -> None:
    (tmp_path / "aa").mkdir()
    (tmp_path / "aa" / "network").write_bytes(b"rubbish")
    directory = StateDir(tmp_path)
    loaded = directory.load()
    directory.close()
    assert loaded.networks == []
    assert "network.damaged-1" in loaded.problems[0]
    assert (tmp_path / "aa" / "network.damaged-1").read_bytes() == b"rubbish"
