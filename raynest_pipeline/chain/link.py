"""What a link is: four questions, and the words for their answers.

The world is the state: a link remembers nothing between two calls, it looks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from raynest_pipeline.waiting import Deadline

Fact = str | int | float | bool | Decimal | timedelta | tuple[str, ...] | None
Facts = Mapping[str, Fact]


class State(StrEnum):
    """What is there now."""

    MISSING = "missing"
    PENDING = "pending"
    READY = "ready"
    BROKEN = "broken"
    UNKNOWN = "unknown"
    """It could not be looked at: never a reason to repair or to delete anything."""


@dataclass(frozen=True)
class Observation:
    """The answer of `observe()`."""

    link: str
    state: State
    cause: str = ""
    """In words a person can act on; empty when there is nothing to say."""
    facts: Facts = field(default_factory=dict)
    """JSON-friendly, without secrets."""

    @property
    def ready(self) -> bool:
        """Whether the link is ready."""
        return self.state is State.READY


REUSED = "is ready: reused"
"""The step of a link that had nothing to do."""
UNSEEN = "unknown"
"""The action of a link that could not be looked at, and so not planned."""


@dataclass(frozen=True)
class Change:
    """One thing that `ensure()` would do, or `remove()` did."""

    link: str
    action: str
    """create | update | adopt | wait | delete | recreate | none, or UNSEEN; after a removal also left (it may
    cost money) | keep (a person's own, left alone)"""
    what: str
    why: str = ""


@dataclass(frozen=True)
class Step:
    """A line of progress while a link works."""

    link: str
    message: str
    fraction: float | None = None


OnStep = Callable[[Step], None]


def silent(_: Step) -> None:
    """Drop progress."""


class Link(Protocol):
    """One link of the chain. See `docs/architecture.md`."""

    name: str

    def observe(self) -> Observation:
        """What is there now. Changes nothing in the world (a credential that is running out may be renewed).

        What a server answers never raises: what could not be seen is `UNKNOWN`.

        Raises:
            AccessError: There are no credentials at all.
        """
        ...

    def plan(self) -> list[Change]:
        """What `ensure` would change, without changing it."""
        ...

    def ensure(self, deadline: Deadline, on_step: OnStep = silent) -> Observation:
        """Make it ready, starting from whatever is there. Safe to repeat, safe to interrupt anywhere.

        Raises:
            RaynestError: It cannot become ready; says why and what to do.
        """
        ...

    def remove(self, deadline: Deadline, on_step: OnStep = silent) -> list[Change]:
        """Take away what this project made, and only that. Safe to repeat."""
        ...
