"""The pace against simulated endpoints: a discrete-event simulation, so nothing here takes real time."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raynest_pipeline.images.pace import MAX_RETRY_AFTER, Pace, Phase
from raynest_pipeline.images.rate import BurstRate, RecentRate


@dataclass
class Simulation:
    """A client led by a pace, and an endpoint that paints batches at a fixed rate behind a bounded queue."""

    pace: Pace
    images: int
    batch: int
    """Images painted at a time by each replica."""
    queue: int
    """Images that may wait beyond those in work; one more is refused."""
    seconds: float
    """For a batch, whatever its size."""
    fill: float = 0.02
    """Seconds a batch waits to fill."""
    way: float = 0.01
    """Seconds from the client to the endpoint, and back."""
    replicas: int = 1
    retry_after: float | None = 1.0
    jitter: float = 0.05
    seed: int = 0
    slower: Callable[[float], float] = lambda _: 1.0
    """Factor on the seconds at a time."""
    now: float = 0.0
    done: int = 0
    refusals: list[float] = field(default_factory=list)
    most_waiting: int = 0
    finished_at: list[float] = field(default_factory=list)
    sent_while_paused: int = 0

    def run(self) -> "Simulation":
        self._events: list[tuple[float, int, str, Any]] = []
        self._order, self._random = itertools.count(), random.Random(self.seed)
        self._left, self._waiting, self._busy = self.images, [], 0
        self._send()
        steps = {"arrive": self._arrive, "paint": self._paint, "painted": self._painted}
        steps |= {"come": self._come, "refused": self._refused}
        while self._events:
            self.now, _, kind, what = heapq.heappop(self._events)
            if kind in steps:
                steps[kind](what)
            self._send()
        assert self.done == self.images, "the pace came to a halt"
        return self

    @property
    def share(self) -> float:
        """Images per second over all of it, as a share of what the endpoint can do."""
        return self.done / self.now * self.seconds / (self.batch * self.replicas)

    def _at(self, when: float, kind: str, what: Any = None) -> None:
        heapq.heappush(self._events, (when, next(self._order), kind, what))

    def _send(self) -> None:
        count = min(self.pace.room(self.now), self._left)
        if count:
            self.sent_while_paused += count * (self.now < self.pace.paused_until)
            self._left -= count
            self.pace.sent(count)
            for _ in range(count):
                self._at(self.now + self.way, "arrive", self.now)
        elif self._left and self.now < self.pace.paused_until:
            self._at(self.pace.paused_until, "wake")

    def _arrive(self, sent_at: float) -> None:
        if self._busy >= self.replicas and len(self._waiting) >= self.queue:
            self.refusals.append(self.now)
            self._at(self.now + self.way, "refused", sent_at)
        else:
            self._waiting.append(sent_at)
            self.most_waiting = max(self.most_waiting, len(self._waiting))
            self._at(self.now + self.fill, "paint")

    def _paint(self, _: Any = None) -> None:
        while self._busy < self.replicas and self._waiting:
            batch, self._waiting = self._waiting[: self.batch], self._waiting[self.batch :]
            self._busy += 1
            factor = self._random.uniform(1 - self.jitter, 1 + self.jitter) * self.slower(self.now)
            self._at(self.now + self.seconds * factor, "painted", len(batch))

    def _painted(self, count: int) -> None:
        self._busy -= 1
        for _ in range(count):
            self._at(self.now + self.way, "come")
        self._paint()

    def _come(self, _: Any) -> None:
        self.done += 1
        self.finished_at.append(self.now)
        self.pace.finished(self.now)

    def _refused(self, sent_at: float) -> None:
        self._left += 1
        self.pace.refused(self.now, sent_at, retry_after=self.retry_after)


# Batch, queue, seconds, replicas: a GPU, a fast one, one at a time, short and long queues, more replicas.
ENDPOINTS = [
    (8, 64, 2.0, 1),
    (8, 64, 0.25, 1),
    (1, 64, 1.0, 1),
    (4, 8, 0.5, 1),
    (2, 1000, 0.02, 1),
    (16, 64, 3.0, 1),
    (8, 64, 1.0, 2),
    (8, 64, 1.0, 4),
]


@pytest.mark.parametrize(("batch", "queue", "seconds", "replicas"), ENDPOINTS)
def test_what_the_endpoint_tells_makes_500_images_at_97_percent(
    batch: int, queue: int, seconds: float, replicas: int
) -> None:
    at_once = batch * replicas
    pace = Pace(most=64, start=2 * at_once)
    run = Simulation(pace, 500, batch, queue, seconds, replicas=replicas).run()
    # The last batch of 500 is not full: what is not the pace's fault is not asked of it.
    possible = 500 / (at_once * -(-500 // at_once))
    assert run.share >= 0.97 * possible
    assert len(run.refusals) <= 2 * at_once


@pytest.mark.parametrize(("batch", "queue", "seconds", "replicas"), ENDPOINTS)
def test_an_endpoint_that_tells_nothing_is_found_out(
    batch: int, queue: int, seconds: float, replicas: int
) -> None:
    run = Simulation(Pace(most=64, start=4), 6000, batch, queue, seconds, replicas=replicas).run()
    assert run.share >= 0.96
    assert len(run.refusals) <= 60, "one in a hundred"


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 8),
    queue_batches=st.floats(2.0, 8.0),
    seconds=st.floats(0.02, 10.0),
    replicas=st.integers(1, 2),
    jitter=st.floats(0.0, 0.2),
    told=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_endpoint_is_kept_busy_and_none_is_hammered(
    batch: int, queue_batches: float, seconds: float, replicas: int, jitter: float, told: bool, seed: int
) -> None:
    at_once = batch * replicas
    queue = max(1, round(queue_batches * at_once))
    pace = Pace(most=128, start=2 * at_once if told else 4)
    images = 250 * at_once
    run = Simulation(
        pace,
        images,
        batch,
        queue,
        seconds,
        way=seconds / 100,
        fill=seconds / 100,
        replicas=replicas,
        jitter=jitter,
        retry_after=max(1.0, seconds),
        seed=seed,
    ).run()
    middle = run.finished_at[images // 3 : -at_once]
    rate = (len(middle) - 1) / (middle[-1] - middle[0])
    assert rate * seconds / at_once >= 0.9
    assert len(run.refusals) <= 0.05 * images + 2 * at_once
    assert run.sent_while_paused == 0
    assert 1 <= pace.limit <= 128 and pace.in_flight == 0


def test_more_in_flight_stops_when_it_pays_no_more() -> None:
    run = Simulation(Pace(most=1024, start=4), 4000, 4, 100_000, 0.1).run()
    assert run.pace.limit <= 32, "four batches"
    assert run.most_waiting <= 64, "not even on the way there"


def test_a_slow_endpoint_is_not_given_more_than_it_makes_in_time() -> None:
    pace = Pace(most=64, start=4, timeout=120.0)
    run = Simulation(pace, 60, 1, 1000, 20.0).run()
    assert run.most_waiting <= 4, "each takes 20 s: more than four would time out while they wait"


def test_replicas_that_come_later_are_used() -> None:
    class Growing(Simulation):
        def _paint(self, _: Any = None) -> None:
            self.replicas = 4 if self.done > 2000 else 1
            super()._paint()

    run = Growing(Pace(most=256, start=4), 20_000, 4, 1000, 0.5).run()
    last = run.finished_at[-2000:]
    assert 1999 / (last[-1] - last[0]) >= 0.9 * 4 * 4 / 0.5


def test_an_endpoint_that_slows_down_is_given_less_if_that_costs_nothing() -> None:
    levels: dict[float, int] = {}

    def slower(now: float) -> float:
        levels[now] = pace.limit
        return 1.0 if now < 100 else 4.0

    pace = Pace(most=64, start=8)
    run = Simulation(pace, 4000, 4, 1000, 0.5, slower=slower).run()
    before = [level for now, level in levels.items() if 80 < now < 100]
    after = [level for now, level in levels.items() if now > 100]
    assert min(after) < min(before) and min(after) >= 8
    late = run.finished_at[-400:]
    assert 399 / (late[-1] - late[0]) >= 0.9 * 4 / 2.0


def test_noise_does_not_wear_a_pace_down() -> None:
    rng = random.Random(3)
    run = Simulation(
        Pace(most=64, start=8), 20_000, 4, 1000, 0.5, slower=lambda _: rng.choice([0.3, 1.0, 1.0, 8.0])
    ).run()
    assert run.pace.limit >= 8 and run.refusals == []


def test_a_pace_from_one_image_on_climbs() -> None:
    run = Simulation(Pace(most=64, start=1), 2000, 8, 64, 0.5).run()
    assert run.share >= 0.9


def full(pace: Pace, now: float = 0.0) -> Pace:
    pace.sent(pace.room(now))
    return pace


def test_one_round_of_refusals_halves_once() -> None:
    pace = full(Pace(most=64, start=32))
    for _ in range(10):
        pace.refused(1.0, sent_at=0.0)
    assert (pace.limit, pace.in_flight) == (16, 22) and pace.room(1.0) == 0
    pace.refused(2.0, sent_at=0.5)
    assert pace.limit == 16, "sent before the first was answered"
    pace.refused(3.0, sent_at=2.0)
    assert pace.limit == 8


def test_a_pause_that_is_asked_for_is_everyones() -> None:
    pace = full(Pace(most=8, start=8))
    pace.refused(1.0, sent_at=0.0, retry_after=5.0)
    pace.refused(1.0, sent_at=0.0, retry_after=2.0)
    for _ in range(6):
        pace.finished(2.0)
    assert pace.room(5.9) == 0 and pace.room(6.0) == 4
    pace.refused(7.0, sent_at=6.5, retry_after=10_000.0)
    assert pace.paused_until == 7.0 + MAX_RETRY_AFTER


def test_it_never_goes_below_one_or_above_the_most() -> None:
    pace = Pace(most=3, start=50)
    assert pace.limit == 3
    for now in range(1, 20):
        pace.sent()
        pace.late(float(now), sent_at=now - 0.5)
    assert pace.limit == 1 and pace.room(100.0) == 1


def test_timeouts_and_deadlines_halve_without_a_pause() -> None:
    pace = full(Pace(most=64, start=16))
    pace.late(1.0, sent_at=0.0)
    assert pace.limit == 8 and pace.phase is Phase.CLIMBING and pace.paused_until < 1.0


def test_other_failures_say_nothing_about_the_pace() -> None:
    pace = full(Pace(most=64, start=16))
    for _ in range(16):
        pace.dropped()
    assert (pace.limit, pace.in_flight) == (16, 0)


def test_after_an_outage_it_starts_anew() -> None:
    pace = Pace(most=64, start=16)
    for now in range(1, 9):
        pace.sent()
        pace.refused(float(now), sent_at=now - 0.5, retry_after=60.0)
    assert pace.limit == 1 and pace.room(9.0) == 0
    pace.restart(9.0)
    assert pace.limit == 16 and pace.room(9.0) == 16 and pace.phase is Phase.DOUBLING


def test_a_pace_that_is_not_used_up_is_not_raised() -> None:
    pace = Pace(most=64, start=16)
    for now in range(1, 200):
        pace.sent()
        pace.finished(now / 10)
    assert pace.limit == 16


def test_bursts_do_not_blur_the_rate() -> None:
    meter, rates = BurstRate(), []
    for burst in range(20):
        for _ in range(8):
            if (rate := meter.add(burst * 2.0, least=12)) is not None:
                rates.append(rate)
    assert rates and all(rate == pytest.approx(4.0) for rate in rates)


def test_an_even_flow_is_measured_too_and_restarts_forget() -> None:
    meter = BurstRate()
    rates = [meter.add(i / 50, least=10) for i in range(100)]
    assert [r for r in rates if r is not None] == pytest.approx([50.0] * 9)
    meter.restart()
    assert meter.add(1000.0, least=1) is None


def test_the_recent_rate_forgets() -> None:
    recent = RecentRate(seconds=10.0)
    assert recent.update(0.0, 0) == 0.0
    assert recent.update(5.0, 50) == pytest.approx(10.0)
    for second in range(6, 30):
        latest = recent.update(float(second), 50 + 2 * (second - 5))
    assert latest == pytest.approx(2.0)
