"""Does the peer get our data? Pings may pass where data does not: something on the way drops what it does not know.

Each pong says how many data packets the peer got so far. If we send and that figure stands still while pings are
answered, the path is deaf.
"""

from __future__ import annotations

DEAF_AFTER = 2.0
"""Seconds from the first unheard data to the ping whose pong tells: an end may read its figures but once a second."""
MIN_UNHEARD = 8
"""Packets, so that ordinary loss of a few sparse ones proves nothing."""


class Hearing:
    """What was sent to a peer since the figure last grew."""

    def __init__(self) -> None:
        self._sent = 0
        self._sent_before = 0
        self._heard: int | None = None
        self._since: float | None = None

    def note_sent(self, packets: int, now: float) -> None:
        """Our total of packets sent."""
        if packets != self._sent:
            self._sent = packets
            if self._since is None:
                self._since = now

    def note_heard(self, packets: int) -> None:
        """The peer's total of packets received."""
        if packets != self._heard:
            self._heard = packets
            self.start_anew()

    def start_anew(self) -> None:
        """What was sent so far does not count: it was heard, or sent on another path."""
        self._sent_before, self._since = self._sent, None

    def is_deaf(self, asked_at: float) -> bool:
        """`asked_at` is when the ping left whose pong brought the newest figure."""
        if self._since is None or self._sent - self._sent_before < MIN_UNHEARD:
            return False
        return asked_at >= self._since + DEAF_AFTER
