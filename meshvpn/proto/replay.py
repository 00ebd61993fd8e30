"""The sliding window against replays (RFC 6479), readable: twin of tun/window.pxd."""

from __future__ import annotations

WINDOW_BITS = 8192
"""Counters below the greatest that may still come: a switch from a slow relay to a direct path at 10,000 packets/s
leaves up to 800 ms of them in flight."""


class ReplayWindow:
    """Accepts each counter once; those more than WINDOW_BITS behind the greatest, never."""

    def __init__(self) -> None:
        self.received = 0
        self._greatest = -1
        self._seen = 0
        """Bit i: the counter `greatest - i` was accepted."""

    @property
    def expected(self) -> int:
        """The greatest counter accepted, plus one."""
        return self._greatest + 1

    @property
    def lost(self) -> int:
        """Counters below the greatest that did not come (yet)."""
        return self._greatest + 1 - self.received

    def may_accept(self, counter: int) -> bool:
        """True if `accept` would; changes nothing."""
        behind = self._greatest - counter
        return behind < 0 or (behind < WINDOW_BITS and not self._seen >> behind & 1)

    def has_seen(self, counter: int) -> bool:
        """True for a counter that was accepted and that the window still reaches."""
        behind = self._greatest - counter
        return 0 <= behind < WINDOW_BITS and bool(self._seen >> behind & 1)

    def accept(self, counter: int) -> bool:
        """Note an authenticated packet's counter; False if it was seen before or is too old."""
        if not self.may_accept(counter):
            return False
        if counter > self._greatest:
            ahead = counter - self._greatest
            self._seen = (self._seen << ahead) & ((1 << WINDOW_BITS) - 1) if ahead < WINDOW_BITS else 0
            self._greatest = counter
        self._seen |= 1 << (self._greatest - counter)
        self.received += 1
        return True
