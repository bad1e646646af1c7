"""The same seed twice: one image of a batch asked for again and held against the first."""

from dataclasses import dataclass

from raynest_pipeline.errors import RaynestError
from raynest_pipeline.images.client import imagine
from raynest_pipeline.images.lookalikes import difference
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.record import Record
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.settings import Batch
from raynest_pipeline.waiting import Clock, Deadline, retry

TOLERANCE = 2
"""Of 255, in any channel of any pixel: what the serving application promises for the same seed."""


@dataclass(frozen=True)
class Again:
    """What came of it.

    Attributes:
        id: Of the prompt.
        difference: Largest of any channel of any pixel, 0 to 255; None when there was nothing to compare.
        reason: Why there was nothing to compare; "" otherwise.
    """

    id: str = ""
    difference: int | None = None
    reason: str = ""

    @property
    def same(self) -> bool | None:
        """Whether it is the same image; None when that is not known."""
        return None if self.difference is None else self.difference <= TOLERANCE


def paint_again(
    target: HttpTarget, record: Record, first: bytes | None, settings: Batch, clock: Clock
) -> Again:
    """Ask the endpoint for a recorded image again.

    Never raises for what the endpoint does: a batch that is finished does not fail on this.
    """
    if first is None:
        return Again(record.id, reason="its file is missing")
    prompt = Prompt(
        record.id,
        record.prompt,
        record.seed,
        record.negative_prompt,
        record.size,
        record.steps,
        record.guidance,
    )
    deadline = Deadline.after(settings.timeout_seconds * settings.attempts, clock)
    try:
        second = retry(
            lambda: imagine(target, prompt, settings),
            deadline=deadline,
            attempts=settings.attempts,
            repeat_unknown=True,
        )
        if (
            record.model
            and second.model
            and (second.model, second.revision) != (record.model, record.revision)
        ):
            return Again(record.id, reason=f"the endpoint has another model by now: {second.model}")
        found = difference(first, second.data)
    except RaynestError as error:
        return Again(record.id, reason=error.what)
    except ValueError as error:
        return Again(record.id, reason=str(error))
    return Again(record.id, 255 if found is None else found)
