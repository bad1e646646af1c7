"""How many images to have in flight: decided from what the endpoint does with them, by no clock of its own.

An endpoint that paints in batches takes longer for each image the more it is given, by design, so latency
alone says nothing. What counts is images per second:

- doubling, at the start, until they no longer grow; then hold a level with some room above the lowest that
  was as fast (the next batch must be waiting when one is done);
- a refusal (503, 429), a deadline (504) or a timeout halves the level, once for all that were sent before;
  from there it climbs in even steps, as long as that pays, and stays below where it was refused;
- while it holds, a step more is tried now and then: there may be more replicas by now; and when images per
  second fall by half (so that each takes twice as long), the level is eased by a third, unless that makes it
  slower still, and never below where it started.

Additive increase and multiplicative decrease are those of TCP (RFC 5681); judging by throughput instead of
loss alone is the idea of BBR (Cardwell et al., 2016).
"""

from dataclasses import dataclass, field
from enum import StrEnum

from raynest_pipeline.images.rate import BurstRate

MAX_RETRY_AFTER = 120.0
"""A server that asks for more seconds is asked again after this many."""
GROWN = 1.1
"""Images per second must be so many times what they were for more in flight to have paid."""
SLOWED = 0.5
"""Images per second, as a share of what they were, at which the endpoint has slowed down."""
EASED = 0.7
NEARLY = 0.95
LEAST_EPOCH = 8
"""Images that a decision rests on, at least."""
PROBE_EPOCHS = 8
"""Epochs at a level before a step more is tried; twice as many after each that did not pay."""
CEILING_SECONDS = 30.0
"""How long a level at which it was refused is not tried again; twice as long each time."""


class Phase(StrEnum):
    """What a pace is about."""

    DOUBLING = "doubling"
    CLIMBING = "climbing"
    HOLDING = "holding"
    PROBING = "probing"
    EASING = "easing"


@dataclass
class _Ceiling:
    """Where it was refused: stay below `level` until `until`."""

    level: float = float("inf")
    until: float = 0.0
    seconds: float = CEILING_SECONDS

    def below(self, now: float) -> float:
        return self.level - 1 if now < self.until else float("inf")

    def set(self, level: int, now: float) -> None:
        if now >= self.until:
            self.level, self.until = level, now + self.seconds
            self.seconds = min(self.seconds * 2, CEILING_SECONDS * 16)
        else:
            self.level = min(self.level, level)


@dataclass
class Pace:
    """The limit on images in flight. Pure: give it events with their times (seconds, monotonic).

    Attributes:
        most: The limit never exceeds it (settings: batch.concurrency).
        start: The first limit, and the size of a step up is half of it.
        timeout: Seconds after which an image is given up: the limit isn't raised to where the queue alone
            would take half of that.
    """

    most: int
    start: int
    timeout: float = float("inf")
    limit: int = field(init=False)
    in_flight: int = field(default=0, init=False)
    phase: Phase = field(default=Phase.DOUBLING, init=False)
    paused_until: float = field(default=float("-inf"), init=False)
    """No image is to be sent before: an endpoint's Retry-After is for all of them."""

    def __post_init__(self) -> None:
        self.limit = max(1, min(self.start, self.most))
        self._uncapped = self.most
        self._step = max(1, self.limit // 2)
        self._meter = BurstRate()
        self._levels: list[tuple[int, float]] = []
        """Limits tried in this climb, with their images per second."""
        self._ceiling = _Ceiling()
        self._held = 0.0
        """Images per second at the level held."""
        self._before = self.limit
        """The level held before a probe or an easing."""
        self._epochs = 0
        self._patience = PROBE_EPOCHS
        self._slow_epochs = 0
        self._peak = 0
        self._lowered_at = float("-inf")

    def room(self, now: float) -> int:
        """Images that may be sent now."""
        return 0 if now < self.paused_until else max(0, self.limit - self.in_flight)

    def sent(self, count: int = 1) -> None:
        """So many images have been asked for."""
        self.in_flight += count
        self._peak = max(self._peak, self.in_flight)

    def dropped(self) -> None:
        """An image left without saying anything about the endpoint's pace."""
        self.in_flight -= 1

    def finished(self, now: float) -> None:
        """An image came."""
        self.in_flight -= 1
        rate = self._meter.add(now, least=max(self.limit, LEAST_EPOCH))
        if rate is None:
            return
        full, self._peak = self._peak >= self.limit, self.in_flight
        if full:
            self._judge(rate, now)

    def refused(self, now: float, sent_at: float, *, retry_after: float | None = None) -> None:
        """The endpoint took no more (503, 429); `sent_at` is when that image was sent."""
        in_flight = self.in_flight
        self.late(now, sent_at)
        # Never below half of what was tried: one who refuses everything says nothing about a level.
        self._ceiling.set(max(in_flight, self.limit + 1), now)
        if retry_after:
            self.paused_until = max(self.paused_until, now + min(retry_after, MAX_RETRY_AFTER))

    def late(self, now: float, sent_at: float) -> None:
        """An image did not come in time (504, a timeout)."""
        self.in_flight -= 1
        if sent_at < self._lowered_at:
            return
        # A probe that was refused takes back no more than the probe.
        self._change(self._before if self.phase is Phase.PROBING else self.limit // 2, now)
        self._lowered_at = now
        self._levels = []
        self.phase = Phase.CLIMBING

    def restart(self, now: float) -> None:
        """The endpoint was gone, and is back: what was learnt while it went says nothing."""
        if self.limit < min(self.start, self.most):
            self.phase, self._levels, self._ceiling = Phase.DOUBLING, [], _Ceiling()
            self.paused_until = float("-inf")
            self._lowered_at = now
            self._change(self.start, now)

    def cap(self, most: int, now: float) -> None:
        """From now on no more than `most`."""
        self.most = max(1, most)
        self.phase, self._levels = Phase.CLIMBING, []
        self._change(self.limit, now)

    def uncap(self, now: float) -> None:
        """The cap was a mistake: begin anew."""
        self.most = self._uncapped
        self.phase, self._levels, self._ceiling = Phase.DOUBLING, [], _Ceiling()
        self._change(self.start, now)

    def _judge(self, rate: float, now: float) -> None:
        if self.phase in (Phase.DOUBLING, Phase.CLIMBING):
            self._climb(rate, now)
        elif self.phase is Phase.PROBING:
            self._probed(rate, now)
        elif self.phase is Phase.EASING:
            self._eased(rate, now)
        else:
            self._hold(rate, now)

    def _climb(self, rate: float, now: float) -> None:
        best = max((r for _, r in self._levels[:-1]), default=0.0)
        self._levels.append((self.limit, rate))
        # With half of its batch waiting and half in work, a batching endpoint may need two rises to show.
        pays = len(self._levels) < 3 or max(rate, self._levels[-2][1]) > best * GROWN
        higher = self._highest(rate, now)
        doubled = self.limit * 2 if self.phase is Phase.DOUBLING else self.limit + self._step
        if pays and higher > self.limit:
            self._change(int(min(doubled, higher)), now)
            return
        best = max(r for _, r in self._levels)
        lowest = min(level for level, r in self._levels if r >= NEARLY * best)
        room = lowest * 2 if self.phase is Phase.DOUBLING else lowest + self._step
        self._settle(int(max(1, min(room, self._levels[-1][0]))), best, now)

    def _highest(self, rate: float, now: float) -> float:
        """How far the limit may be raised."""
        return min(self.most, self._ceiling.below(now), rate * self.timeout / 2)

    def _settle(self, level: int, rate: float, now: float) -> None:
        self.phase, self._held, self._epochs, self._slow_epochs = Phase.HOLDING, rate, 0, 0
        self._levels = []
        self._change(level, now)

    def _hold(self, rate: float, now: float) -> None:
        self._epochs += 1
        self._slow_epochs = self._slow_epochs + 1 if rate < SLOWED * self._held else 0
        if self._slow_epochs >= 2 and self.limit > self.start:
            self.phase, self._before, self._held = Phase.EASING, self.limit, rate
            self._change(max(self.start, int(self.limit * EASED)), now)
            return
        if not self._slow_epochs:
            self._held += (rate - self._held) / 4
        higher = self._highest(rate, now)
        if self._epochs >= self._patience and higher > self.limit:
            self.phase, self._before = Phase.PROBING, self.limit
            self._change(int(min(self.limit + self._step, higher)), now)

    def _probed(self, rate: float, now: float) -> None:
        if rate > GROWN * self._held:
            self._patience = PROBE_EPOCHS
            self._levels = [(self._before, self._held), (self.limit, rate)]
            self.phase = Phase.CLIMBING
            self._change(int(max(self.limit, min(self.limit + self._step, self._highest(rate, now)))), now)
        else:
            self._patience = min(self._patience * 2, PROBE_EPOCHS * 4)
            self._settle(self._before, self._held, now)

    def _eased(self, rate: float, now: float) -> None:
        slower_still = rate < NEARLY * self._held
        self._settle(self._before if slower_still else self.limit, rate, now)

    def _change(self, limit: int, now: float) -> None:
        self.limit = max(1, min(limit, self.most))
        self._meter.restart()
        self._peak = self.in_flight
