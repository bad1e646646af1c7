"""Mode `serve`: Ray Data actors that call the warm Serve replicas by deployment handle."""

import random
import time
from collections.abc import Iterator
from typing import Any

from raynest_pipeline.errors import RaynestError
from raynest_pipeline.images.bulk.keeper import Keeper, fatal, request_of, table
from raynest_pipeline.images.bulk.plan import Plan
from raynest_pipeline.images.bulk.todo import Row, failure, unpacked
from raynest_pipeline.serving.contract import PainterBusy, PainterUnavailable, Painting, PaintingFailed
from raynest_pipeline.waiting import Backoff, Deadline, SystemClock

PAINTER = "Painter"
"""Name of the deployment that paints (serving/painter.py)."""
_BUSY = Backoff(first=0.25, factor=1.6, most=5.0, jitter=0.5)
_NOT_NOW = (PainterBusy, PainterUnavailable)
"""The first comes before any work on the image, the other of a device that has failed: Serve replaces it."""


class ServeCaller:
    """One caller: gives a chunk of rows to the replicas at once, and stores what comes back."""

    def __init__(self, plan: str) -> None:
        from ray import serve

        self._plan = Plan.from_json(plan)
        self._broken: RaynestError | None = None
        try:
            self._keeper = Keeper(self._plan)
        except RaynestError as error:
            # Raised in a constructor it would reach the driver as Ray's error, without its words.
            self._broken = error
        self._painter = serve.get_deployment_handle(PAINTER, self._plan.application)
        self._clock = SystemClock()

    def __call__(self, batch: Any) -> Iterator[Any]:
        """`batch`: an Arrow table with one packed chunk a row."""
        if self._broken is not None:
            yield table([fatal(self._broken)])
            return
        for chunk in batch["chunk"].to_pylist():
            try:
                answers = self._make(unpacked(chunk))
            except RaynestError as error:
                answers = [fatal(error)]
            yield table(answers)

    def _make(self, rows: list[Row]) -> list[Row]:
        answers: list[Row] = []
        todo, attempt, busy = rows, 1, 0
        deadline = Deadline.after(self._plan.deadline_seconds, self._clock)
        while todo:
            started = time.monotonic()
            calls = [(row, self._painter.paint.remote(request_of(row))) for row in todo]
            again: list[Row] = []
            refused = 0
            for row, call in calls:
                outcome = self._outcome(call, deadline)
                if isinstance(outcome, _NOT_NOW) and not deadline.passed:
                    refused += 1
                    again.append(row)
                    continue
                latency = (time.monotonic() - started) * 1000
                answer = self._settle(row, outcome, attempt, latency)
                fruitless = answer["status"] == "failed" and answer["fruitless"]
                if fruitless and attempt < self._plan.attempts and not deadline.passed:
                    again.append(row)
                else:
                    answers.append(answer)
            todo = again
            # No failed attempt: the queue is shared with whoever else asks, and a replica is replaced.
            if refused and refused == len(again):
                self._clock.sleep(_BUSY.pause(busy))
                busy += 1
            elif again:
                self._clock.sleep(_BUSY.pause(attempt) * random.uniform(0.5, 1.0))
                attempt, busy = attempt + 1, 0
        return answers

    def _settle(self, row: Row, outcome: Painting | Exception, attempt: int, latency: float) -> Row:
        if isinstance(outcome, Painting):
            return self._keeper.settle(row, outcome, attempt, latency)
        return failure(row, str(outcome), attempt, fruitless=True)

    def _outcome(self, call: Any, deadline: Deadline) -> Painting | Exception:
        """What became of a call; Ray's own errors as the contract's.

        A slow answer is waited for, and not asked for a second time meanwhile: the replica, which drops what
        waited too long in its queue, would paint the image twice, and a slow one never get anywhere.
        """
        from ray.exceptions import RayError
        from ray.serve.exceptions import BackPressureError, RayServeException

        try:
            outcome: Painting | Exception = call.result(timeout_s=deadline.remaining())
        except BackPressureError:
            return PainterBusy("the queue is full")
        except TimeoutError:
            call.cancel()
            return PaintingFailed(
                f"no image after {self._plan.deadline_seconds:g} s (batch.deadline_seconds)"
            )
        except (RayError, RayServeException) as error:
            return PaintingFailed(f"{type(error).__name__}: {_first_line(error)}")
        return outcome


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[-1][:300]
