"""Images per second, measured so that bursts do not blur it."""

from collections import deque
from dataclasses import dataclass, field

RECENT_SECONDS = 30.0
"""What "recent" means in a progress line."""
MOST_CAP = 4
"""An epoch ends after this many times its least count, gap or no gap."""


@dataclass
class BurstRate:
    """Images per second over epochs that begin and end between bursts.

    A batching endpoint lets go of a whole batch at a time. Cut in the middle of one, a short epoch would be
    wrong by half a batch; so it ends where the pause is at least half of its longest.
    """

    _start: float | None = field(default=None, init=False)
    _last: float = field(default=0.0, init=False)
    _count: int = field(default=0, init=False)
    _longest: float = field(default=0.0, init=False)

    def restart(self) -> None:
        """Begin a new epoch with the next image."""
        self._start = None

    def add(self, now: float, least: int) -> float | None:
        """Count an image that came at `now`; images per second if that ended an epoch of `least` or more."""
        if self._start is None:
            self._begin(now)
            return None
        gap = now - self._last
        between_bursts = gap > 0 and gap >= self._longest / 2
        if self._count >= least and now > self._start and (between_bursts or self._count >= MOST_CAP * least):
            rate = self._count / (now - self._start)
            self._begin(now)
            return rate
        self._longest = max(self._longest, gap)
        self._last = now
        self._count += 1
        return None

    def _begin(self, now: float) -> None:
        self._start = self._last = now
        self._count, self._longest = 1, 0.0


class RecentRate:
    """Images per second over the last half minute, from running totals looked at now and then."""

    def __init__(self, seconds: float = RECENT_SECONDS) -> None:
        self._seconds = seconds
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, now: float, total: int) -> float:
        """Take the total at `now` (seconds); images per second since the oldest look within the span."""
        if not self._seen or now - self._seen[-1][0] >= self._seconds / 100:
            self._seen.append((now, total))
        while len(self._seen) > 2 and now - self._seen[1][0] >= self._seconds:
            self._seen.popleft()
        at, before = self._seen[0]
        return (total - before) / (now - at) if now > at else 0.0
