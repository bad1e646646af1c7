"""Sends images to the endpoint as fast as it takes them, again where that helps, and hands on what comes.

All of it runs on one event loop; what costs time (reading prompts, checking, storing) goes to helper
threads through `Work`. How many are in flight is `Pace`'s decision, what a failure means the classifier's
(failures.py), whether the endpoint is gone `Outage`'s.
"""

import asyncio
import heapq
import itertools
import math
import random
from collections.abc import Coroutine, Sequence
from typing import Any

from raynest_pipeline.errors import RemoteError, Verdict
from raynest_pipeline.images.client import Answer, Client
from raynest_pipeline.images.client_many import ask_many, not_offered
from raynest_pipeline.images.company import Company
from raynest_pipeline.images.failures import from_status
from raynest_pipeline.images.flight import Arrival, Flight, Group, Try, Work
from raynest_pipeline.images.hedge import Hedge
from raynest_pipeline.images.outage import Outage, ends_batch, may_be_outage
from raynest_pipeline.images.pace import MAX_RETRY_AFTER, Pace
from raynest_pipeline.settings_sections import Batch
from raynest_pipeline.waiting import Backoff, Clock

SETTLERS = 4
"""Threads that check and store: most of their time they wait for the disk."""
MOST_SETTLED = 32
"""Images that one of them takes at a time."""
SHARE_OF_LIMIT = 4
"""A request for several images asks for up to this part of the limit, so that they come and go evenly."""
LOOK_SECONDS = 0.05
"""How often a hedging dispatcher looks for slow images."""
REFUSALS = frozenset({429, 503})
FAILED = 500


class Dispatcher:
    """One run's traffic with one endpoint."""

    def __init__(
        self,
        client: Client,
        work: Work,
        outage: Outage,
        settings: Batch,
        pace: Pace,
        *,
        items: int,
        wary: bool = False,
        url: str,
        clock: Clock,
        backoff: Backoff,
    ) -> None:
        """
        Args:
            client: Of the endpoint.
            work: Where jobs come from and answers go.
            outage: Tells whether the endpoint is gone.
            settings: Concurrency (of which `pace` is to be made, too), attempts, times, hedging.
            pace: How many may be in flight.
            items: Images that one request may ask for; 0: one each, by GET.
            wary: It may spoil images that are in work at the same time (company.py).
            url: The endpoint's, for messages.
            clock: Its monotonic time.
            backoff: Pauses between attempts.
        """
        self._client, self._work, self._outage = client, work, outage
        self._settings, self._items, self._url = settings, items, url
        self._clock, self._backoff = clock, backoff
        self.pace = pace
        self._company = Company(pace, wary=wary)
        self._lonely: list[Flight] = []
        """Those that wait to be sent with nobody beside them."""
        self._alone: Try | None = None
        """The last one that was sent so."""
        self._hedge = Hedge(None if wary else settings.hedge)
        self._flights: dict[Flight, None] = {}
        """Asked for and not settled yet, oldest first."""
        self._again: list[tuple[float, int, Flight]] = []
        """A heap of those that wait for their next attempt, by its time."""
        self._order = itertools.count()
        self._exhausted = False
        self._arrived: asyncio.Queue[tuple[Flight, Arrival]] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None

    async def run(self) -> None:
        """Work until all is settled.

        Raises:
            Exception: The first error of the work, or one that ends the batch (`outage.ends_batch`).
        """
        try:
            for _ in range(SETTLERS):
                self._spawn(self._settle())
            while self._error is None and not (self._exhausted and not self._flights):
                self._wake.clear()
                await self._send()
                if self._error is None and not (self._exhausted and not self._flights):
                    await self._sleep()
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The first ends the batch; as itself, not in an exception group.
            self._error = self._error or error
        self._wake.set()

    async def _sleep(self) -> None:
        """Until something comes, or it is time for something."""
        now = self._clock.monotonic()
        # One that is due and finds no room waits for room, not for the clock.
        waits = self._again and (self._again[0][0] > now or self.pace.room(now) > 0)
        times = [self._again[0][0]] if waits else []
        times += [self.pace.paused_until] if now < self.pace.paused_until else []
        times += [now + LOOK_SECONDS] if self._settings.hedge is not None else []
        try:
            async with asyncio.timeout(max(0.0, min(times) - now) if times else None):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _send(self) -> None:
        """Send what there is room for: first those that failed before, then new ones."""
        self._send_hedges()
        while (room := self._room()) > 0 and self._error is None:
            if self._lonely:
                flight = self._lonely.pop(0)
                self._ask_for([flight])
                self._alone = flight.tries[-1]
                return
            flights = self._due(room)
            if len(flights) < room:
                flights += await self._new(room - len(flights))
            if not flights:
                return
            self._launch(flights)

    def _room(self) -> int:
        room = self.pace.room(self._clock.monotonic())
        if self._alone is not None and self._alone.open:
            return 0
        return room if not self._lonely or self.pace.in_flight == 0 else 0

    def _due(self, most: int) -> list[Flight]:
        due: list[Flight] = []
        now = self._clock.monotonic()
        while self._again and self._again[0][0] <= now and len(due) < most:
            due.append(heapq.heappop(self._again)[2])
        return due

    async def _new(self, room: int) -> list[Flight]:
        """New flights, if it is worth a request."""
        room = min(room, self._settings.concurrency - len(self._flights))
        share = max(1, min(self._items, self.pace.limit // SHARE_OF_LIMIT))
        if self._exhausted or room < 1 or (room < share and self.pace.in_flight):
            return []
        jobs, self._exhausted = await asyncio.to_thread(self._work.take, room)
        if not jobs:
            # It looked for missing images as long as it may at a time: look again, after what else is due.
            self._wake.set()
        now = self._clock.monotonic()
        flights = [Flight(job, now) for job in jobs]
        self._flights.update(dict.fromkeys(flights))
        return flights

    def _launch(self, flights: Sequence[Flight]) -> None:
        together = [] if self._items == 0 else [flight for flight in flights if not flight.alone]
        for start in range(0, len(together), max(1, self._items)):
            self._ask_for(together[start : start + self._items])
        for flight in flights:
            if self._items == 0 or flight.alone:
                self._ask_for([flight])

    def _ask_for(self, flights: Sequence[Flight]) -> None:
        now, group = self._clock.monotonic(), Group()
        for flight in flights:
            flight.attempts += 1
            one = Try(flight, now, group)
            group.tries.append(one)
            flight.tries.append(one)
            self._company.sent(one)
        self.pace.sent(len(flights))
        group.task = self._spawn(self._ask(group))

    def _send_hedges(self) -> None:
        """A second request for each image that takes longer than almost all did lately."""
        now, after = self._clock.monotonic(), self._hedge.after()
        for flight in self._flights:
            if after is None or self.pace.room(now) < 1:
                return
            if len(flight.tries) == 1 and flight.tries[0].wanted and now - flight.tries[0].sent_at > after:
                self._hedge.hedged()
                self._ask_for([flight])
                flight.attempts -= 1
                after = self._hedge.after()

    async def _ask(self, group: Group) -> None:
        """One request and its answers."""
        now, tries = self._clock.monotonic(), group.tries
        deadline = min(one.flight.since for one in tries) + self._settings.deadline_seconds
        seconds = max(0.001, min(self._settings.timeout_seconds, deadline - now))
        requests = [one.flight.job.request for one in tries]
        try:
            if self._items:
                await ask_many(
                    self._client, requests, lambda i, answer: self._take_in(tries[i], answer), seconds=seconds
                )
            else:
                self._take_in(tries[0], await self._client.answer(requests[0], seconds))
        except RemoteError as error:
            await self._lost([one for one in tries if one.open], error)
        finally:
            for one in tries:
                if one.open:
                    one.close()
                    self.pace.dropped()
            self._release()

    def _take_in(self, one: Try, answer: Answer) -> None:
        """An answer has come."""
        now, flight = self._clock.monotonic(), one.flight
        one.close()
        error = None
        if answer.status in (200, FAILED):
            self._company.came(one, good=answer.status == 200, now=now)
        if answer.status == 200:
            self.pace.finished(now)
        else:
            error = from_status(answer.status, answer.headers, answer.body, self._client.where())
            self._tell_pace(one, error)
        self._wake.set()
        if flight.over:
            return
        if error is not None:
            if not flight.tries:
                self._part(one, error)
                self._spawn(self._failed([flight], error))
            return
        flight.over = True
        for other in list(flight.tries):
            for useless in other.group.cancel_if_useless():
                self.pace.dropped()
                useless.close()
        self._hedge.answered(now - one.sent_at)
        latency = (now - one.sent_at) * 1000
        self._company.hold(one, Arrival(flight.job, answer, flight.attempts, latency))
        self._release()

    def _release(self) -> None:
        """Hand on what has come, but for images that others failed beside."""
        for flight, arrival, believed in self._company.released():
            if believed:
                self._arrived.put_nowait((flight, arrival))
            else:
                flight.over = False
                flight.attempts -= 1
                self._ask_again(flight, 0.0)

    def _part(self, one: Try, error: RemoteError) -> None:
        """The last attempt at an image that failed in company is made without."""
        flight = one.flight
        crowded = error.status == FAILED and bool(one.company)
        flight.lonely = crowded and flight.attempts + 1 >= self._settings.attempts
        if flight.lonely:
            flight.attempts = min(flight.attempts, self._settings.attempts - 1)

    def _tell_pace(self, one: Try, error: RemoteError) -> None:
        now = self._clock.monotonic()
        if error.status in REFUSALS:
            self.pace.refused(now, one.sent_at, retry_after=error.retry_after)
        elif error.status == 504 or error.code == TimeoutError.__name__:
            self.pace.late(now, one.sent_at)
        else:
            self.pace.dropped()

    async def _lost(self, tries: Sequence[Try], error: RemoteError) -> None:
        """A request failed, or its answer broke off before these images came."""
        in_company = len(tries) > 1
        for one in tries:
            one.close()
            self._tell_pace(one, error)
        flights = [one.flight for one in tries if not one.flight.over and not one.flight.tries]
        if self._items and not_offered(error):
            self._items = 0
            for flight in flights:
                flight.attempts -= 1
                self._ask_again(flight, 0.0)
            return
        for flight in flights:
            flight.alone = flight.alone or (in_company and error.status not in REFUSALS)
        await self._failed(flights, error)

    async def _failed(self, flights: Sequence[Flight], error: RemoteError) -> None:
        """An attempt at these failed: again later, or not at all."""
        if (end := ends_batch(error, self._url)) is not None:
            raise end from None
        began = self._clock.monotonic()
        endured = bool(flights) and may_be_outage(error) and await self._outage.endured(error)
        if endured:
            self.pace.restart(self._clock.monotonic())
        for flight in flights:
            if endured:
                flight.attempts -= 1
                flight.since += self._clock.monotonic() - began
                self._ask_again(flight, 0.0)
            else:
                await self._again_or_never(flight, error)

    async def _again_or_never(self, flight: Flight, error: RemoteError) -> None:
        if error.status in REFUSALS and error.retry_after is not None:
            # The endpoint took it for now as one too many; that says nothing about the image.
            flight.attempts -= 1
        asked_for = min(error.retry_after or 0.0, MAX_RETRY_AFTER) * random.uniform(1.0, 1.1)
        pause = max(self._backoff.pause(max(0, flight.attempts - 1)), asked_for)
        spent = self._clock.monotonic() + pause - flight.since
        in_time = spent < self._settings.deadline_seconds
        if error.verdict is not Verdict.PERMANENT and flight.attempts < self._settings.attempts and in_time:
            self._ask_again(flight, pause)
            return
        if error.verdict is not Verdict.PERMANENT and not in_time:
            error = _too_late(error, self._settings.deadline_seconds)
        flight.over = True
        await asyncio.to_thread(self._work.fail, flight.job, error, max(1, flight.attempts))
        self._done(flight)

    def _ask_again(self, flight: Flight, pause: float) -> None:
        if flight.lonely:
            self._lonely.append(flight)
        else:
            heapq.heappush(self._again, (self._clock.monotonic() + pause, next(self._order), flight))
        self._wake.set()

    def _done(self, flight: Flight) -> None:
        del self._flights[flight]
        self._wake.set()

    async def _settle(self) -> None:
        """Check, store and record what has come, several at a time when several have."""
        while True:
            batch = [await self._arrived.get()]
            share = math.ceil(self._arrived.qsize() / SETTLERS)
            batch += [self._arrived.get_nowait() for _ in range(min(share, MOST_SETTLED))]
            errors = await asyncio.to_thread(self._work.settle, [arrival for _, arrival in batch])
            for (flight, _), error in zip(batch, errors, strict=True):
                if error is None:
                    self._done(flight)
                    continue
                flight.over = False
                # A hedge may still be under way; then it decides.
                if not flight.tries:
                    self._spawn(self._failed([flight], error))


def _too_late(error: RemoteError, seconds: float) -> RemoteError:
    return RemoteError(
        f"{error.what} Given up after {seconds:g} s (batch.deadline_seconds).",
        verdict=error.verdict,
        code=error.code,
        status=error.status,
        why=error.why,
    )
