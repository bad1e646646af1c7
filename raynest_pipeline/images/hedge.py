"""When a slow image is worth a second request (Dean and Barroso, "The Tail at Scale", 2013)."""

from collections import deque

LEAST_ANSWERS = 20
"""Before so many, what is slow is not known."""
LATEST_ANSWERS = 200


class Hedge:
    """Tells which age of a request is beyond a percentile of the latest answers, within a budget."""

    def __init__(self, percentile: float | None) -> None:
        """
        Args:
            percentile: 50 to 100; None: nothing is hedged.
        """
        self._percentile = percentile
        self._latest: deque[float] = deque(maxlen=LATEST_ANSWERS)
        self._answers = 0
        self._hedged = 0

    def answered(self, seconds: float) -> None:
        """An answer took so long."""
        if self._percentile is not None:
            self._answers += 1
            self._latest.append(seconds)

    def hedged(self) -> None:
        """A second request has been sent."""
        self._hedged += 1

    def after(self) -> float | None:
        """Seconds after which to send a second request; None: don't."""
        if self._percentile is None or len(self._latest) < LEAST_ANSWERS:
            return None
        # When the endpoint as a whole slows down everything is beyond the percentile, and twice the
        # requests would be the last thing it needs.
        if 100 * self._hedged >= (100 - self._percentile) * self._answers + 100:
            return None
        ordered = sorted(self._latest)
        return ordered[min(len(ordered) - 1, int(self._percentile / 100 * len(ordered)))]
