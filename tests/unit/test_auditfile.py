"""The audit list on disk: nothing is lost to a crash, a full disk or a damaged file, and its size is bounded."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from meshvpn import auditfile
from meshvpn.auditfile import AuditFile
from meshvpn.proto.audit import AuditError, Entry
from meshvpn.proto.signed import Signed


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many more bytes the disk takes; none: as many as you like."""
    room: list[int] = []
    write = os.write

    def bounded(descriptor: int, data: bytes) -> int:
        if not room or not os.readlink(f"/proc/self/fd/{descriptor}").endswith("/audit"):
            return write(descriptor, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", bounded)
    return room


def test_what_was_appended_is_there_after_a_restart_and_is_not_appended_twice(tmp_path: Path) -> None:
    audit = AuditFile(tmp_path)
    assert [audit.append(_entry(number)) for number in range(3)] == [True] * 3
    again = AuditFile(tmp_path)
    assert again.entries() == [_entry(number) for number in range(3)]
    assert again.append(_entry(2)) is False
    assert again.append(_entry(3)) is True
    assert AuditFile(tmp_path).count == 4
    assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o600


def test_what_a_crash_tore_is_cut_off_and_told_again(tmp_path: Path) -> None:
    audit = AuditFile(tmp_path)
    audit.append(_entry(0))
    whole = (tmp_path / "audit").read_bytes()
    audit.append(_entry(1))
    torn = (tmp_path / "audit").read_bytes()[:-1]
    for size in range(len(whole), len(torn)):
        (tmp_path / "audit").write_bytes(torn[:size])
        again = AuditFile(tmp_path)
        assert again.entries() == [_entry(0)]
        assert again.problem is None
        assert (tmp_path / "audit").read_bytes() == whole
    again.append(_entry(1))
    assert AuditFile(tmp_path).entries() == [_entry(0), _entry(1)]


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_full_disk_loses_nothing_and_leaves_no_half_of_an_entry(tmp_path: Path, full: list[int], room: int) -> None:
    audit = AuditFile(tmp_path)
    audit.append(_entry(0))
    whole = (tmp_path / "audit").read_bytes()
    full.append(room)
    audit.append(_entry(1))
    assert (tmp_path / "audit").read_bytes() == whole
    assert "no space left" in str(audit.problem)
    assert audit.entries() == [_entry(0), _entry(1)]
    assert AuditFile(tmp_path).entries() == [_entry(0)]
    full.clear()
    audit.flush()
    assert audit.problem is None
    assert AuditFile(tmp_path).entries() == [_entry(0), _entry(1)]


def test_what_waits_for_a_full_disk_is_bounded_and_that_is_told(
    tmp_path: Path, full: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditfile, "MAX_WAITING", 1000)
    audit = AuditFile(tmp_path)
    full.append(0)
    for number in range(100):
        audit.append(_entry(number))
    kept = len(audit.entries())
    assert 1 < kept < 100
    assert audit.problem is not None
    assert f"{100 - kept} entries were lost" in audit.problem


def test_a_damaged_list_is_kept_aside_and_a_new_one_begun(tmp_path: Path) -> None:
    audit = AuditFile(tmp_path)
    for number in range(3):
        audit.append(_entry(number))
    file = tmp_path / "audit"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(AuditError):
        audit.entries()
    again = AuditFile(tmp_path)
    assert again.problem is not None
    assert "kept as audit.damaged-1; a new list was begun" in again.problem
    assert (tmp_path / "audit.damaged-1").read_bytes() == data
    again.append(_entry(9))
    assert AuditFile(tmp_path).entries() == [_entry(9)]


def test_an_entry_that_was_taken_out_is_noticed(tmp_path: Path) -> None:
    audit, ends = AuditFile(tmp_path), []
    for number in range(3):
        audit.append(_entry(number))
        ends.append((tmp_path / "audit").stat().st_size)
    data = (tmp_path / "audit").read_bytes()
    (tmp_path / "audit").write_bytes(data[: ends[0]] + data[ends[1] :])
    assert "does not follow the one before it" in str(AuditFile(tmp_path).problem)


def test_the_list_goes_on_in_a_second_file_and_the_oldest_third_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditfile, "MAX_FILE", 2000)
    audit = AuditFile(tmp_path)
    for number in range(100):
        audit.append(_entry(number))
    kept = audit.entries()
    assert kept == [_entry(number) for number in range(100 - len(kept), 100)]
    assert 4 < len(kept) < 30
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 4000
    again = AuditFile(tmp_path)
    assert again.entries() == kept
    again.append(_entry(100))
    assert AuditFile(tmp_path).entries()[-1] == _entry(100)


def test_a_list_that_cannot_be_used_stops_nothing(tmp_path: Path) -> None:
    audit = AuditFile(tmp_path / "missing")
    audit.append(_entry(0))
    assert "no such file or directory" in str(audit.problem)
    assert audit.entries() == [_entry(0)]


def _entry(number: int) -> Entry:
    given: dict[str, Any] = {"seen_at": 1, "at": 1, "kind": "access", "subject": None, "nick": "", "detail": "open"}
    evidence = Signed(number.to_bytes(8, "big"), b"a" * 32, b"s" * 64)
    return Entry(**given, actor=b"a" * 32, actor_nick="pbx", evidence=evidence)
