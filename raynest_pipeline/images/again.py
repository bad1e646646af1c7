"""The same seed twice: one image of a batch asked for again and held against the first."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raynest_pipeline.errors import RaynestError, RemoteError
from raynest_pipeline.images.client import DESCRIBE_SECONDS, Client, imagine
from raynest_pipeline.images.lookalikes import difference
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.record import Record
from raynest_pipeline.images.threads import run_in_thread
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.settings import Batch
from raynest_pipeline.waiting import Clock, Deadline, retry

TOLERANCE = 2
"""Of 255, in any channel of any pixel: what the serving application promises for the same seed, where it
promises anything (`no_promise`).
"""


@dataclass(frozen=True)
class Again:
    """What came of it.

    Attributes:
        id: Of the prompt.
        difference: Largest of any channel of any pixel, 0 to 255; None when there was nothing to compare.
        reason: Why there was nothing to compare; "" otherwise.
        no_promise: Why the endpoint need not paint the same image; "" when it must. Found out only for one
            that differs.
    """

    id: str = ""
    difference: int | None = None
    reason: str = ""
    no_promise: str = ""

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
    again = Again(record.id, 255 if found is None else found)
    return again if again.same else replace(again, no_promise=no_promise(target, settings, deadline))


def no_promise(target: HttpTarget, settings: Batch, deadline: Deadline) -> str:
    """Why the endpoint does not promise the same image for the same seed, in any batch; "" when it does.

    Our application does in float32 on the CPU. bfloat16, float16 and CUDA's kernels round differently per
    batch size, and the stock application, which has no /health, promises nothing.
    """
    try:
        health = retry(
            lambda: run_in_thread(lambda: _health(target)),
            deadline=deadline,
            attempts=settings.attempts,
            repeat_unknown=True,
        )
    except RemoteError as error:
        if error.status in (404, 405):
            return "it has no /health"
        return f"its /health says nothing: {error.what.rstrip('.')}"
    device, dtype = health.get("device"), health.get("dtype")
    if not device or not dtype:
        return "its /health does not say on which device and in which type it paints"
    return "" if (device, dtype) == ("cpu", "float32") else f"it paints in {dtype} on {device}"


async def _health(target: HttpTarget) -> Mapping[str, Any]:
    async with Client(target, connections=1, timeout=DESCRIBE_SECONDS) as client:
        return await client.health()
