"""Starting, stopping, refusing: the engine alone."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import socket
import threading
from pathlib import Path

import pytest

from tun.engine import MAX_PEERS, MAX_SOCKETS, Engine, memory_blocks

from .sides import A_HOST, B_HOST, EngineSide, install, introduce, loopback, packet, seal, until


def test_engines_come_and_go_and_leave_nothing() -> None:
    gc.collect()
    before = held()
    for _ in range(30):
        run_a_while()
    assert held() == before


def test_an_engine_can_be_stopped_and_started_again() -> None:
    with contextlib.closing(EngineSide()) as side:
        introduce(side, side.far[0], B_HOST)
        install(side.plane, 1, 2, is_initiator=True)
        for number in range(20):
            side.plane.stop()
            side.plane.stop()
            side.plane.start()
            with pytest.raises(RuntimeError, match="runs already"):
                side.plane.start()
            side.push(packet(A_HOST, B_HOST, number))
            assert len(side.sent(1)) == 1


def test_an_engine_without_traffic_sleeps_also_after_a_stop() -> None:
    with contextlib.closing(EngineSide()) as side:
        for _ in range(3):
            until(lambda: engine_threads() == ["S", "S"])
            side.plane.stop()
            side.plane.start()
        until(lambda: engine_threads() == ["S", "S"])


def test_a_peer_that_roams_with_every_packet_does_not_fill_the_memory() -> None:
    with contextlib.closing(EngineSide()) as side:
        side.plane.add_peer(1, roams=True)
        install(side.plane, 1, 2, is_initiator=False)
        side.settle()
        before = memory_blocks()
        for counter in range(2000):
            side.inject(seal(1, 2, counter, b""), far=counter % 3)
        side.settle()
        assert memory_blocks() < before + 1000


def test_what_came_while_it_was_stopped_is_worked_on_after_the_start() -> None:
    with contextlib.closing(EngineSide()) as side:
        introduce(side, side.far[0], B_HOST)
        install(side.plane, 1, 2, is_initiator=True)
        side.plane.stop()
        side.push(packet(A_HOST, B_HOST, 1))
        side.inject(seal(1, 2, 0, packet(B_HOST, A_HOST, 2)))
        side.plane.start()
        assert len(side.sent(1)) == 1
        assert side.take(1) == [packet(B_HOST, A_HOST, 2)]


def test_a_stop_right_after_a_kick_is_not_missed() -> None:
    with contextlib.closing(EngineSide()) as side:
        introduce(side, side.far[0], B_HOST)
        for number in range(1, 200):
            install(side.plane, number, 2, is_initiator=True)
            side.plane.stop()
            side.plane.start()


def test_a_device_that_goes_away_ends_the_engine_with_its_errno() -> None:
    with contextlib.closing(EngineSide()) as side:
        directory = os.open("/", os.O_RDONLY)
        os.dup2(directory, side.inner.fileno())
        os.close(directory)
        introduce(side, side.far[0], B_HOST)
        until(lambda: side.plane.error == errno.EISDIR)
        assert select.select([side.plane.slow_fd], [], [], 5.0)[0]


def test_all_calls_may_come_from_several_threads() -> None:
    with contextlib.closing(EngineSide()) as side:
        failures: list[BaseException] = []

        def churn(peer: int) -> None:
            try:
                for number in range(200):
                    introduce(side, side.far[0], f"10.1.0.{peer}", peer=peer)
                    install(side.plane, 10_000 * peer + number + 1, 7, is_initiator=True, peer=peer)
                    side.plane.stats(peer)
                    side.plane.send_keepalive(peer)
                    side.plane.forget_keypairs(peer)
                    side.plane.remove_peer(peer)
            except BaseException as error:  # noqa: BLE001 - a thread's failure must fail the test
                failures.append(error)

        threads = [threading.Thread(target=churn, args=(peer,)) for peer in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30.0)
        assert failures == []
        assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("count", [0, MAX_SOCKETS + 1])
def test_an_engine_has_a_bounded_number_of_sockets(count: int) -> None:
    with loopback() as sock, pytest.raises(ValueError, match="sockets"):
        Engine(sock.fileno(), [sock.fileno()] * count)


def test_what_is_no_socket_is_refused() -> None:
    with open("/dev/null", "rb") as file, loopback() as sock, pytest.raises(OSError, match="is no socket"):
        Engine(sock.fileno(), [file.fileno()])


@pytest.mark.parametrize("queue", [0, 65537])
def test_the_queue_to_python_has_a_sensible_length(queue: int) -> None:
    with loopback() as sock, pytest.raises(ValueError, match="slow_queue"):
        Engine(sock.fileno(), [sock.fileno()], slow_queue=queue)


@pytest.mark.parametrize("number", [-1, 0, MAX_PEERS + 1])
def test_a_peer_has_a_number_in_range(number: int) -> None:
    with contextlib.closing(EngineSide()) as side, pytest.raises(ValueError, match="peer number"):
        side.plane.add_peer(number)


@pytest.mark.parametrize(
    ("number", "host", "port", "header"),
    [
        (1, "127.0.0.1", 1, b""),
        (-1, "127.0.0.1", 1, b""),
        (0, "::1", 1, b""),
        (0, "localhost", 1, b""),
        (0, "127.0.0.1", 0, b""),
        (0, "127.0.0.1", 65536, b""),
        (0, "127.0.0.1", 1, b"\5"),
    ],
)
def test_an_endpoint_that_is_none_is_refused_and_the_old_one_stays(
    number: int, host: str, port: int, header: bytes
) -> None:
    with contextlib.closing(EngineSide()) as side:
        introduce(side, side.far[0], B_HOST)
        install(side.plane, 1, 2, is_initiator=True)
        with pytest.raises(ValueError, match="socket"):
            side.plane.set_endpoint(1, number, host, port, header)
        with pytest.raises(ValueError, match="socket"):
            side.plane.set_endpoint(1, 0, "127.0.0.1", 1, secondary=(number, host, port, header))
        side.push(packet(A_HOST, B_HOST, 1))
        assert len(side.sent(1)) == 1


@pytest.mark.parametrize("kind", ["AF_INET", "AF_INET6"])
def test_it_sends_and_receives_on_the_socket_of_the_path(kind: str) -> None:
    family = getattr(socket, kind)
    host = "127.0.0.1" if kind == "AF_INET" else "::1"
    inner, tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with inner, tun, loopback() as first, socket.socket(family, socket.SOCK_DGRAM) as second:
        far = socket.socket(family, socket.SOCK_DGRAM)
        for sock in (second, far):
            sock.bind((host, 0))
        inner.setblocking(False)
        engine = Engine(inner.fileno(), [first.fileno(), second.fileno()])
        engine.start()
        try:
            engine.add_peer(1)
            engine.add_route(socket.inet_aton(B_HOST), 32, 1)
            engine.set_endpoint(1, 1, host, far.getsockname()[1])
            install(engine, 1, 2, is_initiator=True)
            tun.send(packet(A_HOST, B_HOST, 1))
            far.settimeout(5.0)
            _, source = far.recvfrom(4096)
            assert source[:2] == second.getsockname()[:2]
            far.sendto(seal(1, 2, 0, packet(B_HOST, A_HOST, 2)), second.getsockname())
            tun.settimeout(5.0)
            assert tun.recv(4096) == packet(B_HOST, A_HOST, 2)
        finally:
            engine.stop()
            far.close()


def held() -> tuple[int, int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count(), memory_blocks()


def engine_threads() -> list[str]:
    """The states of the engine's threads."""
    stats = [path.read_text() for path in Path("/proc/self/task").glob("*/stat")]
    names = {thread.native_id for thread in threading.enumerate() if thread.name.startswith("engine-")}
    return [stat.rsplit(") ", 1)[1][0] for stat in stats if int(stat.split(" ", 1)[0]) in names]


def run_a_while() -> None:
    with contextlib.closing(EngineSide()) as side:
        introduce(side, side.far[0], B_HOST)
        side.push(packet(A_HOST, B_HOST, 0))
        install(side.plane, 1, 2, is_initiator=True)
        side.inject(b"\1\0\0\0stays in the queue", seal(1, 2, 0, packet(B_HOST, A_HOST, 0)))
        assert len(side.sent(1)) == len(side.take(1)) == 1
        side.plane.forget_keypairs(1)
        side.push(packet(A_HOST, B_HOST, 1))
