"""A member that relays for two others: whose frames it forwards, from where and to where, and how many.

A frame goes on unchanged and unread, to one address, if both its ids are peers' with a proven direct path and it came
from an address of its source's: whoever forges one gains nothing that he could not send himself, and what comes back
from its receiver does not go on. Twin: tun/forward.pxd.
"""

from __future__ import annotations

from collections.abc import Sequence

from .buckets import Bucket
from .drops import DropReason
from .transport import RELAY_HEADER, Address, Path, Transmit

RELAY_PATHS = 4
"""Of one peer: addresses that its frames may come from."""
FRAME_BYTES = 9292
"""Longest frame: a sealed packet of the largest MTU, and the relay header."""


class Forwarder:
    """Off until `set_rate`. Peers are numbers."""

    def __init__(self) -> None:
        self.packets = 0
        self.bytes = 0
        self._bucket: Bucket | None = None
        self._peers: dict[int, int] = {}
        self._paths: dict[int, Sequence[Path]] = {}
        """By relay id, as the next."""

    def set_rate(self, byte_rate: float, byte_burst: float, *, now: float) -> None:
        """See Engine.set_relaying."""
        if byte_rate < 0 or byte_burst < 0:
            raise ValueError("rate and burst are not below 0")
        self._bucket = Bucket(byte_rate, byte_burst, now=now) if byte_rate else None

    def set_paths(self, peer: int, relay_id: int, paths: Sequence[Path]) -> bool:
        """See Engine.set_relay_paths."""
        if len(paths) > RELAY_PATHS or relay_id == 0:
            raise ValueError(f"{len(paths)} relay paths (at most {RELAY_PATHS}), or relay id 0")
        self.forget(peer)
        if relay_id in self._paths:
            return False
        if paths:
            self._peers[peer], self._paths[relay_id] = relay_id, tuple(paths)
        return True

    def forget(self, peer: int) -> None:
        """Nothing is relayed for the peer."""
        if (relay_id := self._peers.pop(peer, 0)) != 0:
            del self._paths[relay_id]

    def is_for_another(self, frame: bytes) -> bool:
        """Whether a frame, of at least a header, is for somebody whom we relay for."""
        return self._bucket is not None and RELAY_HEADER.unpack_from(frame)[2] in self._paths

    def handle_frame(self, frame: bytes, origin: Address, *, now: float) -> Transmit | DropReason:
        """What to send for a frame that is for another, or why not."""
        _, source, destination = RELAY_HEADER.unpack_from(frame)
        if source == destination or all(origin != path.remote for path in self._paths.get(source, ())):
            return DropReason.DISALLOWED_SOURCE
        if len(frame) > FRAME_BYTES:
            return DropReason.TOO_BIG
        if self._bucket is None or not self._bucket.take(len(frame), now=now):
            return DropReason.OVER_LIMIT
        self.packets += 1
        self.bytes += len(frame)
        return Transmit(self._paths[destination][0], frame)
