"""What the engine counted for a peer, and what of it is of late."""

from __future__ import annotations

from dataclasses import dataclass, fields

SPAN = 30.0
"""Seconds: what is of late is between one and two of them old at most."""


@dataclass(slots=True)
class Traffic:
    """The engine's last figures for the peer."""

    rx_packets: int = 0
    tx_packets: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    received_packets: int = 0
    """All authentic messages, keepalives too: of these and the lost ones, so many are lost."""
    lost_packets: int = 0
    """Not (yet) come. It falls when one comes late; the sum of the two never does."""
    reordered_packets: int = 0
    duplicate_packets: int = 0
    jitter: float = 0.0
    """Seconds; see `arrivals` for it and the next two."""
    marked_packets: int = 0
    kept_marks: int = 0


class RecentTraffic:
    """The last SPAN to 2·SPAN seconds: totals of weeks hide what is wrong now."""

    def __init__(self) -> None:
        self._older = self._newer = self._newest = Traffic()
        self._newer_at = float("-inf")

    def note(self, traffic: Traffic, *, now: float) -> None:
        """The totals, read about once a second."""
        if now >= self._newer_at + SPAN:
            self._older = self._newer if now < self._newer_at + 2 * SPAN else traffic
            self._newer, self._newer_at = traffic, now
        self._newest = traffic

    @property
    def counts(self) -> Traffic:
        """The differences; jitter is no count and stays as it is."""
        names = [field.name for field in fields(Traffic) if field.name != "jitter"]
        return Traffic(
            **{name: max(0, getattr(self._newest, name) - getattr(self._older, name)) for name in names},
            jitter=self._newest.jitter,
        )
