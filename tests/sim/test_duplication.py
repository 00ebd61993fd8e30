"""Duplication: what a call cannot miss goes on two paths, so that losing either loses no packet."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshvpn.proto.options import Duplicate, Options

from .member import Member
from .mesh import KEYS, Mesh
from .world import PORT_RESTRICTED, SERVER

A, B = "20.1.0.1", "20.2.0.1"


def two_that_talk(duplicate: Duplicate) -> tuple[Mesh, Member, Member]:
    """Over a direct path for a while, so that the second one is known to work."""
    mesh = Mesh()
    a, b = (mesh.add_member(name, PORT_RESTRICTED) for name in "ab")
    for member in (a, b):
        member.options = Options(duplicate=duplicate)
    a.create(KEYS)
    mesh.run(1.0)
    b.join(KEYS)
    mesh.run(3.0)
    assert a.is_direct(b)
    assert b.is_direct(a)
    mesh.stream(a, b)
    mesh.stream(b, a)
    mesh.run(20.0)
    return mesh, a, b


def cut_direct(mesh: Mesh) -> None:
    mesh.network.cut(A, B)


def cut_relay(mesh: Mesh) -> None:
    for site in (A, B):
        mesh.network.cut(site, SERVER)


@pytest.mark.parametrize("cut", [cut_direct, cut_relay])
def test_losing_either_of_two_paths_loses_no_packet(cut: Callable[[Mesh], None]) -> None:
    mesh, _, _ = two_that_talk(Duplicate.VOICE)
    cut(mesh)
    mesh.run(20.0)
    mesh.stop_streams()
    assert [stream.lost for stream in mesh.streams] == [[], []]
    assert [stream.repeated for stream in mesh.streams] == [0, 0]


@pytest.mark.parametrize("duplicate", [Duplicate.OFF, Duplicate.SIGNALLING])
def test_voice_that_goes_on_one_path_is_lost_until_the_cut_is_noticed(duplicate: Duplicate) -> None:
    mesh, _, _ = two_that_talk(duplicate)
    cut_direct(mesh)
    mesh.run(20.0)
    mesh.stop_streams()
    assert all(stream.lost for stream in mesh.streams)


def test_of_two_paths_the_second_stays_the_one_it_is() -> None:
    mesh, a, b = two_that_talk(Duplicate.VOICE)
    second = [member.peer(other).agent.secondary for member, other in ((a, b), (b, a))]  # type: ignore[union-attr]
    assert all(path is not None and not path.is_direct for path in second)
    mesh.run(60.0)
    assert second == [member.peer(other).agent.secondary for member, other in ((a, b), (b, a))]  # type: ignore[union-attr]
