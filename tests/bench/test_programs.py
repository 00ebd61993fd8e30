"""The benchmark's C programs count what really happened: checked against packets made by hand, on loopback."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bench import native

HEAD = struct.Struct("=IIQ")
FLOWS = 4


def test_a_receiver_counts_losses_repetitions_and_reordering_apart(receiver: Receiver) -> None:
    for sequence in (0, 1, 2, 2, 5, 4, 4, 6):  # 3 is lost, 2 and 4 come twice, 4 comes late
        receiver.send(0, sequence)
    result = receiver.finish()
    assert (result["received"], result["duplicates"], result["reordered"]) == (6, 2, 1)


def test_a_receiver_keeps_flows_apart(receiver: Receiver) -> None:
    for flow in range(FLOWS):
        receiver.send(flow, 7)
    receiver.send(FLOWS, 0)  # a flow that nobody announced
    assert receiver.finish()["received"] == FLOWS


def test_a_packet_from_far_behind_is_late_and_not_a_repetition(receiver: Receiver) -> None:
    for sequence in (1, 1000, 2):
        receiver.send(0, sequence)
    result = receiver.finish()
    assert (result["received"], result["duplicates"], result["reordered"]) == (3, 0, 1)


def test_delays_are_those_between_the_packets_stamp_and_its_arrival(receiver: Receiver) -> None:
    for sequence in range(100):
        receiver.send(0, sequence, age_ns=(50 if sequence < 90 else 800) * 10**6)
    result = receiver.finish()
    # A bucket is 1.6 % wide; this machine may add delay, never take any away.
    assert 49.2 <= result["p50_ms"] < 787
    assert result["p99_ms"] >= 787
    assert result["p50_ms"] < result["p99_ms"] <= result["p999_ms"]


def test_jitter_follows_rfc_3550(receiver: Receiver) -> None:
    for sequence in range(200):
        receiver.send(0, sequence, age_ns=1_000_000_000 * (sequence % 2))
    # |D| is one second each time, so the mean tends to it: 1 - (15/16)^199.
    assert 900 < receiver.finish()["jitter_ms"] < 1_100


def test_a_sender_sends_what_it_says_from_a_port_a_flow(sink: socket.socket) -> None:
    host, port = sink.getsockname()
    done = run("voice", "send", host, str(port), "2000", "60", str(FLOWS), "0.1")
    packets = [sink.recvfrom(2048) for _ in range(json.loads(done)["sent"])]
    heads = [HEAD.unpack_from(data) for data, _ in packets]
    assert len(packets) == 200
    assert {len(data) for data, _ in packets} == {60 - 28}
    assert [(flow, sequence) for flow, sequence, _ in heads] == [(n % FLOWS, n // FLOWS) for n in range(200)]
    assert len({source for _, source in packets}) == FLOWS


def test_a_sender_spreads_flows_over_addresses_at_both_ends(sink: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.2", sink.getsockname()[1]))
        other.settimeout(5)
        run("voice", "send", "127.0.0.1", str(sink.getsockname()[1]), "2000", "60", "4", "0.01", "2", "127.0.1.1")
        for target, source in ((sink, "127.0.1.1"), (other, "127.0.1.2")):
            assert {target.recvfrom(2048)[1][0] for _ in range(10)} == {source}


def test_the_bare_relay_passes_packets_to_the_other_end_unchanged(sink: socket.socket) -> None:
    port = sink.getsockname()[1]
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second,
        subprocess.Popen(
            [native.program("floors"), "relay", "127.0.0.3", str(port), "127.0.0.1", "127.0.0.2"]
        ) as relay,
    ):
        try:
            second.bind(("127.0.0.2", port))
            for source, target in ((sink, second), (second, sink)):
                target.settimeout(0.1)
                assert exchange(source, target, ("127.0.0.3", port), b"sealed") == (b"sealed", ("127.0.0.3", port))
        finally:
            relay.terminate()


class Receiver:
    """`voice receive` on loopback."""

    def __init__(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            self._address = free.getsockname()
        command = [native.program("voice"), "receive", str(self._address[1]), str(FLOWS)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(self, flow: int, sequence: int, *, age_ns: int = 0) -> None:
        self._socket.sendto(HEAD.pack(flow, sequence, time.time_ns() - age_ns), self._address)

    def finish(self) -> dict[str, Any]:
        self._process.terminate()  # what is in its buffer is counted first
        output, _ = self._process.communicate(timeout=10)
        result: dict[str, Any] = json.loads(output)
        return result

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def sink() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock


def run(name: str, *arguments: str) -> str:
    return subprocess.run([native.program(name), *arguments], capture_output=True, text=True, check=True).stdout


def exchange(
    source: socket.socket, target: socket.socket, relay: tuple[str, int], data: bytes
) -> tuple[bytes, tuple[str, int]] | None:
    for _ in range(100):  # the relay may not listen yet
        source.sendto(data, relay)
        try:
            found: tuple[bytes, tuple[str, int]] = target.recvfrom(2048)
        except TimeoutError:
            continue
        return found
    return None
