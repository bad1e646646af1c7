"""An image on its way: what is asked for, over how many attempts, and by which requests."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from raynest_pipeline.errors import RemoteError
from raynest_pipeline.images.client import Answer
from raynest_pipeline.images.offer import ImageRequest
from raynest_pipeline.images.prompts import Prompt


class Job(NamedTuple):
    """An image to make."""

    prompt: Prompt
    request: ImageRequest
    file: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """An answer with status 200 to a job; whether it is the image is still to be seen."""

    job: Job
    answer: Answer
    attempts: int
    latency_ms: float


class Work(Protocol):
    """What a dispatcher takes its jobs from, and gives the answers to. Every call is made in a helper thread.

    Whatever they raise, other than what is said here, ends the batch.
    """

    def take(self, most: int) -> tuple[list[Job], bool]:
        """Up to `most` images to make, and whether there are no more. May be none for now."""
        ...

    def settle(self, arrivals: Sequence[Arrival]) -> list[RemoteError | None]:
        """Check, store and record; for each, what was wrong with it, or None."""
        ...

    def fail(self, job: Job, error: RemoteError, attempts: int) -> None:
        """Record that an image could not be made."""
        ...


@dataclass(eq=False, slots=True)
class Flight:
    """One job over all its attempts. Times are seconds of the run's clock."""

    job: Job
    since: float
    """When it was first asked for; moved on by the length of an outage."""
    attempts: int = 0
    alone: bool = False
    """Whether it shares no request any more: the one with which a shared answer broke off may be it."""
    spoilt: bool = False
    """Whether it failed (500) while others were in work beside it (company.py)."""
    lonely: bool = False
    """Whether it is to be sent when nothing else is in work, and nothing beside it."""
    over: bool = False
    """Whether an answer has come: further ones are not wanted."""
    tries: "list[Try]" = field(default_factory=list)
    """The requests that are under way for it; two when it is hedged."""


@dataclass(eq=False, slots=True)
class Try:
    """One image within one request."""

    flight: Flight
    sent_at: float
    group: "Group"
    open: bool = True
    """Whether its answer is still to come."""
    company: "set[Try]" = field(default_factory=set)
    """What was in work beside it, at an endpoint that is watched for that (company.py)."""
    doubtful: bool = False
    """Whether one of those failed."""

    @property
    def wanted(self) -> bool:
        """Whether its answer is still to come, and would be of use."""
        return self.open and not self.flight.over

    def close(self) -> None:
        """Its answer has come, or will not."""
        self.open = False
        self.flight.tries.remove(self)


@dataclass(eq=False, slots=True)
class Group:
    """One request, for one image or several."""

    tries: list[Try] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None

    def cancel_if_useless(self) -> "list[Try]":
        """Break the request off when none of its answers is of use any more: that frees the endpoint.

        Returns:
            What has been broken off, still open: nothing more comes of it.
        """
        if self.task is None or any(one.wanted for one in self.tries):
            return []
        self.task.cancel()
        return [one for one in self.tries if one.open]
