"""Whether an application spoils images that it paints at the same time, as the stock one does.

That one paints from several threads with one pipeline, whose solver counts its steps: of images that were
in work together some fail (500), and those that come may be wrong. Ours says how many it paints at a time;
of one that does not, this finds out. While it is not sure:

- an image that came while another one failed beside it is not believed, but asked for again;
- when more than a third of those in company fail, fewer are sent from then on, for the rest of the run,
  unless the first of those that failed fails alone as well: then the company was not the reason;
- no image is given up for a 500 before it has failed with nobody beside it (`dispatch`).
"""

from collections import deque
from collections.abc import Iterator

from raynest_pipeline.images.flight import Arrival, Flight, Try
from raynest_pipeline.images.pace import Pace

LATEST = 16
"""Answers to images in company that are kept in mind."""
LEAST = 4
"""Before so many, nothing is concluded."""
CLEARED = 8
"""After so many, most of them good, an image is believed whatever fails beside it."""
TOLERATED = 1 / 3
"""Share of them that may fail."""


class Company:
    """What came of images that were in work beside others, at an endpoint that does not say what it bears."""

    def __init__(self, pace: Pace, *, wary: bool) -> None:
        """
        Args:
            pace: Is told to send fewer.
            wary: False: the endpoint is made for company, and nothing is watched.
        """
        self.wary = wary
        self._pace = pace
        self._open: set[Try] = set()
        self._latest: deque[bool] = deque(maxlen=LATEST)
        self._lowered_at = float("-inf")
        self._on_trial = False
        """Whether fewer are sent, and none that failed in company has been asked for alone yet."""
        self._held: list[tuple[Try, Arrival]] = []

    def sent(self, one: Try) -> None:
        """A request for one image is on its way."""
        if not self.wary:
            return
        self._open = {other for other in self._open if other.open}
        for other in self._open:
            other.company.add(one)
        one.company |= self._open
        self._open.add(one)

    def came(self, one: Try, *, good: bool, now: float) -> None:
        """An answer: an image, or a 500 (`good=False`)."""
        if not self.wary:
            return
        if not good:
            for other in one.company:
                other.doubtful = True
        if not one.company:
            if one.flight.spoilt:
                self._alone(good, now)
            return
        one.flight.spoilt = one.flight.spoilt or not good
        if one.sent_at < self._lowered_at:
            return
        self._latest.append(good)
        if len(self._latest) >= LEAST and not self._tolerable():
            self._lower(now)

    def hold(self, one: Try, arrival: Arrival) -> None:
        """Keep an image until all that were in work beside it have come or failed."""
        self._held.append((one, arrival))

    def released(self) -> Iterator[tuple[Flight, Arrival, bool]]:
        """The images that are held for nothing more, and whether each can be believed."""
        held, self._held = self._held, []
        for one, arrival in held:
            if any(other.open for other in one.company):
                self._held.append((one, arrival))
                continue
            one.company.clear()
            yield one.flight, arrival, not one.doubtful or self._cleared()

    def _tolerable(self) -> bool:
        return self._latest.count(False) <= TOLERATED * len(self._latest)

    def _cleared(self) -> bool:
        return len(self._latest) >= CLEARED and self._tolerable()

    def _lower(self, now: float) -> None:
        # One of which not a single image came in company bears none.
        self._pace.cap(self._pace.limit // 2 if any(self._latest) else 1, now)
        self._latest.clear()
        self._lowered_at, self._on_trial = now, True

    def _alone(self, good: bool, now: float) -> None:
        if self._on_trial and not good:
            self._pace.uncap(now)
        self._on_trial = False
