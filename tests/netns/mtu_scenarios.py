"""Paths that carry no full packets: large ones arrive, or their sender is told."""

from __future__ import annotations

from functools import partial

from .natmesh import NatMesh
from .nats import PORT_RESTRICTED
from .scenarios import Outcome, assert_whole, calling, settle, sites

IPV4, IPV6 = 20 + 8, 40 + 8
"""Bytes around what a ping carries."""
FULL = 1400
LEAST6 = 1280


def lines_that_fragment(outcome: Outcome) -> None:
    """One takes 1,400 bytes, another 1,280, and say so: what is larger inside IPv6 goes in fragments."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        for line, mtu in (("r2", 1400), ("r3", 1280)):
            lab.line(line, mtu=mtu)
        settle(mesh)
        with calling(mesh, outcome, (1, 2), (1, 3)):
            for other, limit in ((2, 1328), (3, 1216)):
                wait_limit(mesh, outcome, other, limit)
                assert_arrives_or_is_reported(mesh, other, limit)
                assert echo(mesh, 1, other, LEAST6, is_ipv6=True)
            lab.wait("fragments are known to pass", lambda: mesh.peer(1, 3).fragments is True)
    assert_whole(outcome.heard)


def a_path_that_swallows_large_packets(outcome: Outcome) -> None:
    """Without a word: those above 1,400 bytes from the start, those above 1,280 in the middle of a call."""
    with sites(PORT_RESTRICTED, PORT_RESTRICTED) as (lab, mesh):
        lab.between("r1", "r2", hole=1400)
        settle(mesh)
        with calling(mesh, outcome, (1, 2)):
            wait_limit(mesh, outcome, 2, 1328)
            assert_arrives_or_is_reported(mesh, 2, 1328)
            assert echo(mesh, 1, 2, LEAST6, is_ipv6=True)
            # Large ones among the voice, so that the hole is looked for often.
            lab.start(mesh.hosts[1], "bulk", ["ping", "-q", "-i", "0.01", "-s", "1000", mesh.addresses[2]])
            lab.between("r1", "r2", hole=1280)
            wait_limit(mesh, outcome, 2, 1216)
            assert_arrives_or_is_reported(mesh, 2, 1216)
            lab.wait("what IPv6 loses is told", lambda: mesh.peer(1, 2).fragments is False)
        assert mesh.is_reached("direct", 1, 2)
    assert_whole(outcome.heard)


def wait_limit(mesh: NatMesh, outcome: Outcome, other: int, limit: int) -> None:
    """Until site 1 and the other know what fits."""
    outcome.seconds[f"{limit} bytes to {other}"] = mesh.lab.wait(
        f"1 and {other} send {limit} bytes", lambda: mesh.peer(1, other).mtu == mesh.peer(other, 1).mtu == limit
    )


def assert_arrives_or_is_reported(mesh: NatMesh, other: int, limit: int) -> None:
    """What fits arrives whole, what may be fragmented arrives, what may not is refused with the size that would do."""
    for here, there in ((1, other), (other, 1)):
        mesh.lab.wait("the route has the size", partial(is_refused, mesh, here, there, limit))
        assert echo(mesh, here, there, limit)
        assert echo(mesh, here, there, 3000, is_whole=False)
        assert echo(mesh, here, there, LEAST6 - 200, is_ipv6=True)


def echo(mesh: NatMesh, here: int, there: int, size: int, *, is_whole: bool = True, is_ipv6: bool = False) -> bool:
    """Does a packet of that size go there and come back?"""
    return "1 received" in ping(mesh, here, there, size, is_whole=is_whole, is_ipv6=is_ipv6)


def is_refused(mesh: NatMesh, here: int, there: int, limit: int) -> bool:
    """Does the kernel refuse a full packet, and say that so many bytes would do?"""
    _, found, told = ping(mesh, here, there, FULL, is_whole=True, is_ipv6=False).partition("mtu=")
    return bool(found) and int(told.split()[0]) == limit


def ping(mesh: NatMesh, here: int, there: int, size: int, *, is_whole: bool, is_ipv6: bool) -> str:
    """What `ping` says of one packet of that size."""
    address = mesh.peer(here, there).address6 if is_ipv6 else mesh.addresses[there]
    payload = size - (IPV6 if is_ipv6 else IPV4)
    command = ["ping", "-c", "1", "-W", "1", "-s", str(payload), "-M", "do" if is_whole else "dont", address]
    return mesh.lab.attempt(mesh.hosts[here], command).stdout


SCENARIOS = (lines_that_fragment, a_path_that_swallows_large_packets)
