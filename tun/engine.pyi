"""Types of the compiled engine. The same shapes are met by its readable twin, meshvpn.proto.dataplane."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Self, final

class PeerStats(NamedTuple):
    """What the engine counted for one peer since `add_peer`. Times are monotonic seconds, 0.0 = never.

    `rx_…` and `tx_…` count IP packets; `received_packets` all authentic messages, keepalives too, and `lost_packets`
    the counters below the greatest that did not come: it falls when one comes late, their sum never does.
    `reordered_packets` to `kept_marks`: see meshvpn.proto.arrivals. Without the feature
    recv_tos no marks are counted.
    """

    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    received_packets: int
    lost_packets: int
    reordered_packets: int
    duplicate_packets: int
    jitter: float
    marked_packets: int
    kept_marks: int
    first_sent_at: float
    first_received_at: float
    more_arrived: bool
    last_authenticated_at: float
    last_sent_at: float
    last_received_at: float
    keypair_created_at: float

class Datagram(NamedTuple):
    """A datagram for Python: anything but a transport message of a known index."""

    socket: int
    host: str
    port: int
    relay_source: int
    relay_destination: int
    is_relayed: bool
    data: bytes

class EngineEvent(NamedTuple):
    """Something Python must act on. `kind` is one of the module's EVENT_ constants."""

    kind: int
    peer: int
    local_index: int
    socket: int
    host: str
    port: int
    relay_source: int
    relay_destination: int
    is_relayed: bool

EVENT_HANDSHAKE_WANTED: int
EVENT_REKEY_WANTED: int
EVENT_KEYPAIR_CONFIRMED: int
EVENT_PATH_SEEN: int
DROP_REASONS: tuple[str, ...]
FEATURES: tuple[str, ...]
"""Of the kernel; without any of them packets pass all the same, at a greater cost or without their marks."""
MAX_PEERS: int
MAX_SOCKETS: int

@final
class Engine:
    """One network's packet pump: TUN → route → seal → UDP, and UDP → index → open → window → source → TUN.

    Two threads without the GIL. `without`: names in FEATURES that are not used though the kernel has them; `vnet_hdr`
    itself is chosen when the device is opened, here it stands for the two that need it. The argument `vnet_hdr`: None
    for a TUN device, which says what it can; for what stands in for one, whether it has a virtio_net_hdr in front of
    each packet. The engine takes no ownership of the file descriptors: close them after `stop()`.
    All methods may be called from any Python thread, before or after `start()`.
    """

    def __new__(
        cls,
        tun_fd: int,
        sockets: Sequence[int],
        *,
        slow_queue: int = ...,
        without: Collection[str] = ...,
        vnet_hdr: bool | None = ...,
    ) -> Self: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    @property
    def slow_fd(self) -> int:
        """An eventfd, readable while `take_datagrams` or `take_events` has something."""
    @property
    def error(self) -> int:
        """The errno that ended a thread (the TUN device is gone), or 0; `slow_fd` becomes readable then."""
    @property
    def features(self) -> Mapping[str, bool]:
        """Kernel features by name: whether all sockets, or the device, have it and it is in use."""
    def add_socket(self, number: int, fd: int) -> None:
        """Receive on one more UDP socket, a nonblocking one, and let paths use it.

        Those of the constructor are numbered from 0. Raises ValueError for a number in use or not below MAX_SOCKETS,
        OSError for what is no socket.
        """
    def remove_socket(self, number: int) -> None:
        """Forget a socket. From the return on nothing is done with its descriptor, which may be closed.

        What still goes out by a path on it is dropped as send_failed. Raises ValueError if there is none.
        """
    def add_peer(self, peer: int, *, roams: bool = ...) -> None:
        """Raises ValueError for a number in use or beyond MAX_PEERS."""
    def remove_peer(self, peer: int) -> None: ...
    def add_route(self, network: bytes, length: int, peer: int) -> None:
        """`network` is 4 or 16 bytes. A route that exists moves to `peer`."""
    def remove_route(self, network: bytes, length: int) -> None: ...
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
        """Where to send. What `copies` (meshvpn/proto/copies.py) says goes to `secondary` too, sealed once."""
    def set_relaying(self, byte_rate: float, byte_burst: float) -> None:
        """Forward peers' frames to peers (meshvpn/proto/forwarder.py), so many bytes a second in all; 0: none."""
    def set_relay_paths(self, peer: int, relay_id: int, paths: Sequence[tuple[int, str, int]]) -> bool:
        """The peer's proven direct paths (socket, host, port), at most 4, the one to forward to first; none: none.

        False: another peer has that id and keeps it, nothing is relayed for this one. Raises ValueError for id 0.
        """
    def relayed(self) -> tuple[int, int]:
        """Packets and bytes (with the relay header) that were forwarded for others."""
    def clear_endpoint(self, peer: int) -> None: ...
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
        """Initiator: the keypair is current at once, what was staged is sent. Responder: it is `next` until used."""
    def forget_keypairs(self, peer: int) -> None: ...
    def send_keepalive(self, peer: int) -> bool:
        """Seal and send an empty packet; False if there is no usable keypair or endpoint."""
    def stats(self, peer: int) -> PeerStats: ...
    def take_datagrams(self, limit: int = ...) -> list[Datagram]: ...
    def take_events(self, limit: int = ...) -> list[EngineEvent]: ...
    def drops(self) -> dict[str, int]:
        """Packets not forwarded, by DropReason value (the names in DROP_REASONS)."""

def memory_blocks() -> int:
    """Blocks of memory that all engines hold."""
