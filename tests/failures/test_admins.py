"""Who is answered on the daemon's socket: root, the daemon's own user, and the group meshvpn (peer credentials)."""

from __future__ import annotations

import grp
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from meshvpn.net import api

from . import raw

NOBODY, MESHVPN, USERS = 65534, 4711, 100


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group meshvpn on a machine that has none."""
    entry = grp.struct_group(("meshvpn", "x", MESHVPN, []))
    monkeypatch.setattr(grp, "getgrnam", {"meshvpn": entry}.__getitem__)


@pytest.mark.parametrize(
    ("user", "groups", "is_admin"),
    [
        (0, [], True),
        (NOBODY, [], False),
        (NOBODY, [USERS], False),
        (NOBODY, [USERS, MESHVPN], True),
        (MESHVPN, [], True),  # the primary group counts too
        (NOBODY, range(10_000, 10_300), False),  # more groups than can be read
    ],
)
def test_the_kernel_says_who_is_an_admin(tmp_path: Path, user: int, groups: Sequence[int], is_admin: bool) -> None:
    assert _is_admin(tmp_path, user, groups) == is_admin


def test_without_the_group_only_root_is_an_admin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grp, "getgrnam", {}.__getitem__)
    assert _is_admin(tmp_path, 0, [])
    assert not _is_admin(tmp_path, NOBODY, [MESHVPN])


def _is_admin(directory: Path, user: int, groups: Sequence[int]) -> bool:
    """Connect as that user, and ask about the end that was accepted. An abstract socket: no directory is in the way."""
    name = f"\0meshvpn test {directory}"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(name)
        listener.listen()
        with raw.acting_as(user, groups):
            client.connect(name)
        accepted, _ = listener.accept()
        with accepted:
            return api._is_admin(accepted)
