"""Types of the compiled relay pump. Its readable twin is rendezvous.relay.Relay."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Self, final

class Datagram(NamedTuple):
    """A datagram that is no relay frame, for Python; `socket` is the number of the socket that it came on."""

    socket: int
    host: str
    port: int
    data: bytes

DROP_REASONS: tuple[str, ...]
"""The keys of `RelayPump.drops`: names of meshvpn.proto.drops.DropReason."""
FEATURES: tuple[str, ...]
"""Of the kernel; without any of them frames pass all the same."""
MAX_SEATS: int
"""Ids that can be bound at a time."""

@final
class RelayPump:
    """Forwards relay frames between bound addresses, in a thread without the interpreter's lock."""

    def __new__(
        cls,
        sockets: Sequence[int],
        *,
        byte_rate: float,
        byte_burst: float,
        slow_queue: int = 4096,
        without: Collection[str] = ...,
    ) -> Self:
        """`sockets` are descriptors of UDP sockets, which stay the caller's; their place is their number.

        `without` are names in FEATURES of what is not used though the kernel has it.
        `byte_rate` (bytes a second) and `byte_burst` (bytes) bound what one account sends. Raises ValueError, OSError.
        """
    def start(self) -> None:
        """Start the thread. Raises RuntimeError if it runs."""
    def stop(self) -> None:
        """End the thread; returns when it has ended."""
    @property
    def slow_fd(self) -> int:
        """Readable while `take_datagrams` has something."""
    @property
    def features(self) -> dict[str, bool]:
        """Kernel features by name: whether it is in use."""
    def bind(self, seat: int, network: bytes, socket: int, host: str, port: int, *, account: int = 0) -> None:
        """Frames from this address count as the seat's, and frames to the seat go there. Again: it moved.

        Frames pass between seats of one `network` (16 bytes) only. `account` is another seat whose quota this one
        shares while that one is bound. Raises ValueError.
        """
    def unbind(self, seat: int) -> None:
        """Nothing is forwarded from or to the seat any more. Nothing happens if it is not bound."""
    def take_datagrams(self, limit: int = 256) -> list[Datagram]:
        """What is no frame, oldest first."""
    def forwarded(self) -> tuple[int, int]:
        """Packets and bytes forwarded."""
    def drops(self) -> dict[str, int]:
        """Datagrams not forwarded, by reason."""
