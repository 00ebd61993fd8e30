"""A plane under test: the compiled engine or its readable twin, a TUN to push to and take from, and three far ends.

The far ends are the test itself: `inject` sends a datagram from one of them, `sent` is what the plane sent there.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from meshvpn.proto import primitives
from meshvpn.proto.commands import DataPlane as CommandedPlane
from meshvpn.proto.dataplane import (
    DataPlane,
    DataPlaneEvent,
    HandshakeWanted,
    KeypairConfirmed,
    PathSeen,
    PeerStats,
    RekeyWanted,
)
from meshvpn.proto.transport import Address, Path, RelayHop
from tun import engine as compiled
from tun.engine import MAX_PEERS, Engine

A_HOST, B_HOST = "10.0.0.1", "10.0.0.2"
FAR_ENDS = 3
WAIT = 5.0
"""Seconds after which what should have arrived has not."""
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""Of those that run tests side by side, each has a processor of its own."""
SETTLED_HOST, SETTLED_KEYPAIR = "255.255.255.254", (0xFFFFFFFE, 0xFFFFFFFD)
SOL_UDP, UDP_SEGMENT = 17, 103
SO_RCVBUFFORCE = 33

WITHOUT = {
    "engine": frozenset[str](),
    "engine-no-gso": frozenset({"udp_gso"}),
    "engine-no-gro": frozenset({"udp_gro"}),
    "engine-plain": frozenset({"udp_gso", "udp_gro", "sendmmsg", "recvmmsg"}),
}
KINDS = (*WITHOUT, "twin")


class Plane(CommandedPlane, Protocol):
    """What a plane is called with, by commands and else."""

    def remove_route(self, network: bytes, length: int) -> None: ...

    def remove_socket(self, number: int) -> None: ...

    def relayed(self) -> tuple[int, int]: ...


class Side(Protocol):
    """One plane with its TUN and its far ends."""

    address: Address
    far: tuple[Address, ...]

    @property
    def plane(self) -> Plane: ...

    def push(self, packet: bytes) -> None: ...

    def take(self, count: int) -> list[bytes]: ...

    def inject(self, *datagrams: bytes, far: int = 0, tos: int = 0) -> None:
        """From a far end, one by one, with an outer mark; see `inject_joined`."""

    def inject_joined(self, *datagrams: bytes) -> None:
        """As one train of equal size (the last may be shorter), which an engine with GRO gets as one message."""

    def sent(self, count: int, far: int = 0) -> list[bytes]: ...

    def events(self) -> list[DataPlaneEvent]:
        """All new ones."""

    def datagrams(self) -> list[tuple[Path, bytes]]: ...

    def stats(self, peer: int = 1) -> PeerStats: ...

    def drops(self) -> dict[str, int]: ...

    def settle(self) -> None:
        """Return when all that was pushed and injected has been worked on."""


class EngineSide:
    """The compiled engine; a socket pair stands for the TUN, UDP is loopback's."""

    def __init__(self, *, without: frozenset[str] = frozenset(), vnet_hdr: bool = False) -> None:
        self.inner, self.tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.udp = loopback()
        self.ends = tuple(loopback() for _ in range(FAR_ENDS))
        for sock in (self.inner, self.tun):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.inner.setblocking(False)
        self.udp.setblocking(False)
        self.address, self.far = name_of(self.udp), tuple(map(name_of, self.ends))
        self.sink, self._settled = loopback(), 0
        self.vnet = bytes(10) if vnet_hdr and "vnet_hdr" not in without else b""
        self.plane = Engine(self.inner.fileno(), [self.udp.fileno()], without=without, vnet_hdr=vnet_hdr)
        self.plane.start()
        # Loopback has a queue a processor: datagrams of a thread that moves can overtake each other.
        self._processors = os.sched_getaffinity(0)
        os.sched_setaffinity(0, own_processor())

    def push(self, packet: bytes) -> None:
        self.tun.send(packet)

    def take(self, count: int) -> list[bytes]:
        return receive(self.tun, count)

    def inject(self, *datagrams: bytes, far: int = 0, tos: int = 0) -> None:
        marks = [(socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", tos))] if tos else []
        for data in datagrams:
            self.ends[far].sendmsg([data], marks, 0, self.udp.getsockname())

    def inject_joined(self, *datagrams: bytes) -> None:
        size = struct.pack("=H", len(datagrams[0]))
        self.ends[0].sendmsg([b"".join(datagrams)], [(SOL_UDP, UDP_SEGMENT, size)], 0, self.udp.getsockname())

    def sent(self, count: int, far: int = 0) -> list[bytes]:
        return receive(self.ends[far], count)

    def events(self) -> list[DataPlaneEvent]:
        self.settle()
        return [_event(item) for item in self.plane.take_events(100_000)]

    def datagrams(self) -> list[tuple[Path, bytes]]:
        self.settle()
        taken = self.plane.take_datagrams(100_000)
        return [(_path(item.socket, item.host, item.port, item), item.data) for item in taken]

    def stats(self, peer: int = 1) -> PeerStats:
        self.settle()
        return PeerStats(*self.plane.stats(peer))

    def drops(self) -> dict[str, int]:
        return {name: count for name, count in self.plane.drops().items() if count}

    def settle(self) -> None:
        # Each queue is first in, first out: what comes from and goes to a peer of our own is the last.
        if not self._settled:
            introduce(self, name_of(self.sink), SETTLED_HOST, peer=MAX_PEERS)
            install(self.plane, *SETTLED_KEYPAIR, is_initiator=True, peer=MAX_PEERS)
        before = self.plane.stats(MAX_PEERS)
        self.sink.sendto(seal(*SETTLED_KEYPAIR, self._settled, b""), self.udp.getsockname())
        self.push(self.vnet + packet(A_HOST, SETTLED_HOST, 0))
        self._settled += 1
        until(lambda: self.plane.stats(MAX_PEERS).last_received_at > before.last_received_at)
        until(lambda: self.plane.stats(MAX_PEERS).tx_packets > before.tx_packets)

    def close(self) -> None:
        os.sched_setaffinity(0, self._processors)
        self.plane.stop()
        for sock in (self.inner, self.tun, self.udp, self.sink, *self.ends):
            sock.close()


class TwinSide:
    """The twin; what it sends goes to the other side, if it has that address, or to a far end."""

    def __init__(self, port: int = 1000) -> None:
        self.plane = DataPlane()
        self.address = Address("127.0.0.1", port)
        self.far = tuple(Address("127.0.0.1", port + 1 + number) for number in range(FAR_ENDS))
        self.other: TwinSide = self
        self._packets: list[bytes] = []
        self._sent: dict[Address, list[bytes]] = {address: [] for address in self.far}

    def push(self, packet: bytes) -> None:
        self.plane.handle_packet(packet, now=time.monotonic())

    def take(self, count: int) -> list[bytes]:
        for side in (self.other, self, self.other, self):
            side.carry()
        self._packets += self.plane.take_packets()
        taken, self._packets = self._packets[:count], self._packets[count:]
        return taken

    def inject(self, *datagrams: bytes, far: int = 0, tos: int = 0) -> None:
        for data in datagrams:
            self.plane.handle_datagram(data, Path(0, self.far[far]), now=time.monotonic(), tos=tos)

    def inject_joined(self, *datagrams: bytes) -> None:
        self.inject(*datagrams)

    def sent(self, count: int, far: int = 0) -> list[bytes]:
        self.carry()
        box = self._sent[self.far[far]]
        taken, box[:] = box[:count], box[count:]
        return taken

    def carry(self) -> None:
        for transmit in self.plane.take_transmits():
            data = transmit.data if transmit.path.relay is None else transmit.path.relay.header() + transmit.data
            if transmit.path.remote in self._sent:
                self._sent[transmit.path.remote].append(data)
            else:
                self.other.plane.handle_datagram(data, Path(0, self.address), now=time.monotonic())

    def events(self) -> list[DataPlaneEvent]:
        return self.plane.take_events()

    def datagrams(self) -> list[tuple[Path, bytes]]:
        return self.plane.take_datagrams()

    def stats(self, peer: int = 1) -> PeerStats:
        return self.plane.stats(peer)

    def drops(self) -> dict[str, int]:
        return self.plane.drops()

    def settle(self) -> None:
        self.plane.handle_time(now=time.monotonic())

    def close(self) -> None:
        pass


@contextlib.contextmanager
def open_side(kind: str) -> Iterator[Side]:
    """A plane without peers."""
    side = TwinSide() if kind == "twin" else EngineSide(without=WITHOUT[kind])
    with contextlib.closing(side):
        yield side


@contextlib.contextmanager
def open_pair(kind: str) -> Iterator[tuple[Side, Side]]:
    """Two planes, A and B, that know each other as peer 1."""
    if kind == "twin":
        left, right = TwinSide(1000), TwinSide(2000)
        left.other, right.other = right, left
        introduce(left, right.address, B_HOST)
        introduce(right, left.address, A_HOST)
        yield left, right
        return
    with open_side(kind) as a, open_side(kind) as b:
        introduce(a, b.address, B_HOST)
        introduce(b, a.address, A_HOST)
        yield a, b


def introduce(side: Side, address: Address, host: str, peer: int = 1) -> None:
    """A peer with one address inside and one outside."""
    side.plane.add_peer(peer)
    side.plane.add_route(socket.inet_aton(host), 32, peer)
    side.plane.set_endpoint(peer, 0, address.host, address.port)


def handshake(initiator: Plane, responder: Plane, number: int) -> None:
    """Installed in the order of a real one: the responder first."""
    install(responder, 2 * number, 2 * number + 1, is_initiator=False)
    install(initiator, 2 * number + 1, 2 * number, is_initiator=True)


def install(plane: Plane, local: int, remote: int, *, is_initiator: bool, age: float = 0.0, peer: int = 1) -> None:
    """Keys follow from the indices, so that both ends (and `seal`, `unseal`) agree."""
    plane.install_keypair(
        peer,
        local_index=local,
        remote_index=remote,
        send_key=_key(remote, local),
        receive_key=_key(local, remote),
        is_initiator=is_initiator,
        created_at=time.monotonic() - age,
    )


def seal(local: int, remote: int, counter: int, packet: bytes, *, is_padded: bool = True) -> bytes:
    """What the far end sends to a plane that has this keypair."""
    header = struct.pack("<IIQ", 4, local, counter)
    plaintext = packet + bytes(-len(packet) % 16) if is_padded else packet
    return header + primitives.aead_encrypt(_key(local, remote), counter, plaintext, b"")


def unseal(local: int, remote: int, message: bytes) -> tuple[int, bytes]:
    """Counter and (padded) packet of what a plane with this keypair sent."""
    kind, index, counter = struct.unpack_from("<IIQ", message)
    assert (kind, index) == (4, remote)
    packet = primitives.aead_decrypt(_key(remote, local), counter, message[16:], b"")
    assert packet is not None
    return counter, packet


def _key(local: int, remote: int) -> bytes:
    return struct.pack("<II", local, remote) * 4


def packet(source: str, destination: str, number: int, size: int = 200, *, tos: int = 0) -> bytes:
    """An IP packet of `size` bytes, of the addresses' family."""
    body = number.to_bytes(4, "big")
    if ":" in source:
        addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
        return struct.pack("!IHBB", 6 << 28 | tos << 20, size - 40, 17, 64) + addresses + body + bytes(size - 44)
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, tos, size, 0, 0, 64, 17, 0) + addresses
    check = 0xFFFF - checksum(head)
    return head[:10] + check.to_bytes(2, "big") + head[12:] + body + bytes(size - 24)


def checksum(head: bytes) -> int:
    """The Internet checksum's sum, not complemented: 0xFFFF over a whole good header."""
    total: int = sum(struct.unpack(f"!{len(head) // 2}H", head))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that other threads bring about."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0002)


def receive(sock: socket.socket, count: int) -> list[bytes]:
    """Up to `count` datagrams: fewer if no more come."""
    taken: list[bytes] = []
    deadline = time.monotonic() + WAIT
    while len(taken) < count and select.select([sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
        taken.append(sock.recv(65536))
    return taken


def loopback() -> socket.socket:
    """A UDP socket with room for what a test injects at once."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    return sock


def own_processor() -> set[int]:
    """The one that this worker's tests use."""
    processors = sorted(os.sched_getaffinity(0))
    return {processors[WORKER % len(processors)]}


def name_of(sock: socket.socket) -> Address:
    """Its address."""
    return Address(*sock.getsockname())


def _path(number: int, host: str, port: int, item: compiled.Datagram | compiled.EngineEvent) -> Path:
    relay = RelayHop(item.relay_destination, item.relay_source) if item.is_relayed else None
    return Path(number, Address(host, port), relay)


def _event(item: compiled.EngineEvent) -> DataPlaneEvent:
    match item.kind:
        case compiled.EVENT_HANDSHAKE_WANTED:
            return HandshakeWanted(item.peer)
        case compiled.EVENT_REKEY_WANTED:
            return RekeyWanted(item.peer)
        case compiled.EVENT_KEYPAIR_CONFIRMED:
            return KeypairConfirmed(item.peer, item.local_index)
        case _:
            return PathSeen(item.peer, _path(item.socket, item.host, item.port, item))
