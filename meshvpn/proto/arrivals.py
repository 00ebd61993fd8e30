"""How a peer's packets arrive, from their counters and arrival times alone; readable twin of tun/arrivals.pxd.

Jitter is RFC 3550's (§6.4.1), J += (|D| - J) / 16, where D compares the time between two arrivals with the time
between their sendings. Nothing tells the latter, so it is taken from the stream itself: the counters say how many
packets lie between, and a peer that talks sends at a constant rate, which is smoothed in the same way. One call gives
the figure that RFC 3550 would. Many calls of one peer are a stream whose packets are not evenly spaced; the figure then
contains that unevenness, which is below the time between two packets of one call.

The engine reads the clock once for all that it takes from a socket together. Such packets are one sample, so at high
rates the figure is that of the batches; and it contains the time until the receive thread ran, which delays the call
as well.
"""

from __future__ import annotations

from dataclasses import dataclass

JITTER_GAIN = 16
SILENCE = 0.2
"""Seconds. After a longer pause (silence suppression, the end of a call) a stream starts anew."""


@dataclass(slots=True)
class Arrivals:
    """Counts since the peer was added."""

    reordered_packets: int = 0
    """Came after one that was sent later (RFC 4737 §3)."""
    duplicate_packets: int = 0
    """Counter seen before, or behind the window: told by the datagram alone, before it is authentic."""
    marked_packets: int = 0
    """Delivered with a DSCP inside."""
    kept_marks: int = 0
    """Of these, the outer header still had it on arrival."""
    jitter: float = 0.0
    """Seconds."""
    _spacing: float = 0.0
    _index: int = 0
    _counter: int = 0
    _sampled_at: float = 0.0

    def note(self, index: int, counter: int, expected: int, *, now: float) -> None:
        """An authentic packet of the keypair `index`; `expected` is its greatest counter so far, plus one."""
        elapsed = now - self._sampled_at
        if counter < expected:
            self.reordered_packets += 1
            return
        if index == self._index and elapsed <= 0.0:
            return
        if index != self._index or counter <= self._counter or elapsed > SILENCE:
            self._spacing = 0.0
        else:
            steps = counter - self._counter
            if self._spacing == 0.0:
                self._spacing = elapsed / steps
            else:
                self.jitter += (abs(elapsed - self._spacing * steps) - self.jitter) / JITTER_GAIN
                self._spacing += (elapsed / steps - self._spacing) / JITTER_GAIN
        self._index, self._counter, self._sampled_at = index, counter, now

    def note_marks(self, inner: int, outer: int) -> None:
        """Traffic classes of a packet and of the datagram that brought it."""
        if inner >> 2:
            self.marked_packets += 1
            self.kept_marks += inner >> 2 == outer >> 2
