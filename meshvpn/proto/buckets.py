"""Token buckets, in tables of bounded size: how often somebody may do something."""

from __future__ import annotations

MAX_TABLE = 65_536
"""Sources that a table remembers (about 250 bytes each)."""


class Bucket:
    """Tokens that come at a rate, up to a burst; full at first."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, *, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def has(self, amount: float = 1.0, *, now: float) -> bool:
        """True if there are that many tokens; takes none."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)
        return self._tokens >= amount

    def take(self, amount: float = 1.0, *, now: float) -> bool:
        """Take tokens; False, and nothing is taken, if there are not enough."""
        if not self.has(amount, now=now):
            return False
        self._tokens -= amount
        return True

    def charge(self, amount: float = 1.0, *, now: float) -> None:
        """Take tokens whether they are there or not; a debt is paid off before there are tokens again."""
        self.has(amount, now=now)
        self._tokens -= amount


class Buckets:
    """Buckets by key. The key that was silent for longest is forgotten first, which gives it a full bucket."""

    def __init__(self, rate: float, burst: float, *, size: int = MAX_TABLE) -> None:
        self._rate = rate
        self._burst = burst
        self._size = size
        self._buckets: dict[object, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def has(self, key: object, *, now: float) -> bool:
        """See Bucket.has; a key that is asked for only is not remembered."""
        bucket = self._buckets.get(key)
        return self._burst >= 1.0 if bucket is None else bucket.has(now=now)

    def take(self, key: object, *, now: float, amount: float = 1.0) -> bool:
        """See Bucket.take."""
        return self._recall(key, now).take(amount, now=now)

    def charge(self, key: object, *, now: float) -> None:
        """See Bucket.charge."""
        self._recall(key, now).charge(now=now)

    def forget(self, key: object) -> None:
        """The key will not come again."""
        self._buckets.pop(key, None)

    def _recall(self, key: object, now: float) -> Bucket:
        bucket = self._buckets.pop(key, None) or Bucket(self._rate, self._burst, now=now)
        self._buckets[key] = bucket
        if len(self._buckets) > self._size:
            del self._buckets[next(iter(self._buckets))]
        return bucket
