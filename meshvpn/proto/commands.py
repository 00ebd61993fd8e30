"""What a node tells its data plane: the engine in the daemon, its twin in simulations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .copies import Copies
from .transport import Path


@dataclass(frozen=True, slots=True)
class AddPeer:
    """A member became a peer; `routes` are (network bytes, prefix length) of its addresses."""

    peer: int
    routes: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class RemovePeer:
    """The member is gone: its keys, routes and queued packets go with it."""

    peer: int


@dataclass(frozen=True, slots=True)
class MovePeer:
    """Send to `primary` from now on, and if there is a `secondary`, there too what `copies` says; None: no way."""

    peer: int
    primary: Path | None
    secondary: Path | None
    copies: Copies = Copies.ALL


@dataclass(frozen=True, slots=True)
class InstallKeypair:
    """Keys for the engine; see Engine.install_keypair."""

    peer: int
    local_index: int
    remote_index: int
    send_key: bytes
    receive_key: bytes
    is_initiator: bool
    created_at: float

    def __repr__(self) -> str:
        """Without the keys."""
        return f"InstallKeypair(peer={self.peer}, local_index={self.local_index:#x}, …)"


@dataclass(frozen=True, slots=True)
class ForgetKeypairs:
    """The peer's keys are too old for anything."""

    peer: int


@dataclass(frozen=True, slots=True)
class SendKeepalive:
    """An empty packet is due."""

    peer: int


@dataclass(frozen=True, slots=True)
class RelayPeer:
    """Forward what other peers send to this one: it is `relay_id` in their frames, and sends, and is reached, at
    `paths` (the first is where to forward to; none: do not)."""

    peer: int
    relay_id: int
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class AdoptSocket:
    """Receive on a socket that was opened to guess ports, and let paths use it."""

    number: int


Command = AddPeer | RemovePeer | MovePeer | RelayPeer | InstallKeypair | ForgetKeypairs | SendKeepalive | AdoptSocket


class DataPlane(Protocol):
    """The calls of tun.engine.Engine that commands come down to."""

    def add_socket(self, number: int, fd: int) -> None:
        """See tun/engine.pyi."""

    def add_peer(self, peer: int, *, roams: bool = ...) -> None:
        """See tun/engine.pyi."""

    def remove_peer(self, peer: int) -> None:
        """See tun/engine.pyi."""

    def add_route(self, network: bytes, length: int, peer: int) -> None:
        """See tun/engine.pyi."""

    def set_endpoint(
        self,
        peer: int,
        socket: int,
        host: str,
        port: int,
        relay_header: bytes = ...,
        *,
        secondary: tuple[int, str, int, bytes] | None = ...,
        copies: int = ...,
    ) -> None:
        """See tun/engine.pyi."""

    def set_relaying(self, byte_rate: float, byte_burst: float) -> None:
        """See tun/engine.pyi."""

    def set_relay_paths(self, peer: int, relay_id: int, paths: Sequence[tuple[int, str, int]]) -> bool:
        """See tun/engine.pyi."""

    def clear_endpoint(self, peer: int) -> None:
        """See tun/engine.pyi."""

    def install_keypair(
        self,
        peer: int,
        *,
        local_index: int,
        remote_index: int,
        send_key: bytes,
        receive_key: bytes,
        is_initiator: bool,
        created_at: float,
    ) -> None:
        """See tun/engine.pyi."""

    def forget_keypairs(self, peer: int) -> None:
        """See tun/engine.pyi."""

    def send_keepalive(self, peer: int) -> bool:
        """See tun/engine.pyi."""


def _no_descriptor(number: int) -> int:
    return -1


def apply(command: Command, plane: DataPlane, *, descriptor: Callable[[int], int] = _no_descriptor) -> None:
    """Carry out one command. `descriptor` gives an open socket's file descriptor by its number; the twin needs none."""
    match command:
        case AdoptSocket(number=number):
            plane.add_socket(number, descriptor(number))
        case AddPeer(peer=peer, routes=routes):
            plane.add_peer(peer)
            for network, length in routes:
                plane.add_route(network, length, peer)
        case RemovePeer(peer=peer):
            plane.remove_peer(peer)
        case MovePeer(peer=peer, primary=None):
            plane.clear_endpoint(peer)
        case MovePeer(peer=peer, primary=Path() as primary, secondary=secondary, copies=copies):
            second = None if secondary is None else _endpoint(secondary)
            plane.set_endpoint(peer, *_endpoint(primary), secondary=second, copies=copies)
        case RelayPeer(peer=peer, relay_id=relay_id, paths=paths):
            plane.set_relay_paths(peer, relay_id, [_endpoint(path)[:3] for path in paths])
        case InstallKeypair():
            plane.install_keypair(
                command.peer,
                local_index=command.local_index,
                remote_index=command.remote_index,
                send_key=command.send_key,
                receive_key=command.receive_key,
                is_initiator=command.is_initiator,
                created_at=command.created_at,
            )
        case ForgetKeypairs(peer=peer):
            plane.forget_keypairs(peer)
        case SendKeepalive(peer=peer):
            plane.send_keepalive(peer)


def _endpoint(path: Path) -> tuple[int, str, int, bytes]:
    header = b"" if path.relay is None else path.relay.header()
    return path.socket, path.remote.host, path.remote.port, header
