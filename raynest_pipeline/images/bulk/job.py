"""The driver of a bulk job, on the cluster: `python -m raynest_pipeline.images.bulk.job PLAN`.

It holds the batch and is the only one that writes its manifest; workers write the images. What it prints is
for the one who watches (`plan.say`), and its end is one of: result, error, needs.
"""

import importlib.util
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from types import FrameType
from typing import Any

from raynest_pipeline.errors import InputError, RaynestError, RefusedError, UnreachableError
from raynest_pipeline.images.batch_store import BatchStore
from raynest_pipeline.images.bulk.keeper import FATAL, open_store
from raynest_pipeline.images.bulk.limits import refusals
from raynest_pipeline.images.bulk.painters import Painters, painters_for
from raynest_pipeline.images.bulk.plan import MODEL_MODULES, Plan, error_of, say, words_of
from raynest_pipeline.images.bulk.todo import Row, Todo, chunks, failure, packed, settled, unpacked
from raynest_pipeline.images.kept import kept_prompts
from raynest_pipeline.images.manifest import Manifest
from raynest_pipeline.images.object_errors import PACKAGES
from raynest_pipeline.images.prompt_file import PromptFile, open_prompts
from raynest_pipeline.images.result import BatchResult, Failure, Tally
from raynest_pipeline.waiting import Deadline, Done, SystemClock, Waiting, wait_for

WAVE, WAVE_CHUNKS = 500_000, 50_000
"""Images in one pass of Ray Data: about 75 MB of packed rows in the driver; and chunks, each of which is a
block to Ray."""
HOPELESS_IMAGES = 10
"""With this many images per image in flight failed in a row, none made, the painters are taken for broken."""
NEEDED = ("pandas", "pyarrow", "pydantic", "yaml")
"""Modules without which nothing works, as far as Ray itself does not bring them."""
EXIT_NEEDS, EXIT_STOPPED = 3, 143


def main(arguments: list[str]) -> int:
    """Make the batch; the exit code is 0 when it was gone through, whatever failed in it."""
    plan = Plan.from_json(arguments[0])
    signal.signal(signal.SIGTERM, _stop)
    if missing := missing_modules(plan):
        say("needs", modules=missing)
        return EXIT_NEEDS
    try:
        result = make(plan)
    except RaynestError as error:
        say("error", **words_of(error))
        return 1
    say("result", **asdict(result))
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    """Ray stops a job by SIGTERM: the batch is let go of in good order."""
    raise SystemExit(EXIT_STOPPED)


def missing_modules(plan: Plan) -> list[str]:
    """What this image lacks for the plan's mode."""
    wanted, urls = [*NEEDED], [plan.root]
    if plan.mode == "actors":
        wanted += MODEL_MODULES
        urls.append(str(plan.serving.get("model", "")))
    drivers = [PACKAGES[scheme] for url in urls if (scheme := url.partition("://")[0]) in PACKAGES]
    names = dict.fromkeys([*wanted, *drivers])
    return [name for name in names if importlib.util.find_spec(name) is None]


def make(plan: Plan) -> BatchResult:
    """Make what is missing of the batch.

    Raises:
        InputError: The prompts in the store are not those of the plan.
        RefusedError: Another process is making this batch.
        UnreachableError: No image could be made at all.
        NotReadyError: There are no painters: no such application, no free GPU, no model.
        StorageError: The store cannot be written.
    """
    store = open_store(plan)
    prompts = own_prompts(store, plan)
    tally, started = Tally(), time.monotonic()
    # In this order: a job that is stopped has three seconds, and Ray's own end may take them all.
    with (
        _connected(),
        _held(store, plan),
        store.open_manifest() as manifest,
        _told(tally, len(prompts)),
    ):
        painters = painters_for(plan)
        todo = Todo(store, manifest, plan.batch, painters.offer, tally, plan.verify)
        refusal = refusals(plan)

        def acceptable() -> Iterator[Row]:
            for row in todo.missing(prompts):
                if (why := refusal(row)) is None:
                    yield row
                else:
                    _settle(failure(row, why, 0, fruitless=False), manifest, tally, painters)

        rows = acceptable()
        size = min(WAVE, WAVE_CHUNKS * painters.chunk)
        while wave := [packed(chunk) for chunk in chunks(islice(rows, size), painters.chunk)]:
            for answer in _answers(wave, painters):
                _settle(answer, manifest, tally, painters)
        return BatchResult(
            made=tally.made,
            reused=tally.reused,
            failed=tally.failed,
            seconds=time.monotonic() - started,
            p50_latency_ms=tally.percentile(0.50),
            p95_latency_ms=tally.percentile(0.95),
            failures=tuple(tally.failures),
            ignored=tuple(sorted(tally.ignored)),
            model=painters.offer.model,
            revision=painters.offer.revision,
        )


def own_prompts(store: BatchStore, plan: Plan) -> PromptFile:
    """The batch's kept copy of its prompts.

    Raises:
        InputError: There is none, or another one.
    """
    path = kept_prompts(store)
    if path is None:
        raise InputError(
            f"The batch {plan.batch_id!r} has no prompts in {store.place()}, as the Ray nodes see it.",
            fix="Its output folder must be the same place for this machine and the nodes: batch.ray_output.",
        )
    prompts = open_prompts(path)
    if prompts.sha256 != plan.prompts_sha256:
        raise InputError(
            f"{store.place()} holds other prompts than this job was sent for.", fix="Run it again."
        )
    return prompts


@contextmanager
def _held(store: BatchStore, plan: Plan) -> Iterator[None]:
    """The batch, exclusively; a job of a cluster that is going away is waited for."""
    clock = SystemClock()
    deadline = Deadline.after(plan.lock_seconds, clock)

    def attempt() -> Done[Any] | Waiting:
        held = store.exclusive()
        try:
            held.__enter__()
        except RefusedError as error:
            if deadline.passed:
                raise
            return Waiting(error.what)
        return Done(held)

    held = wait_for(attempt, what="The batch", deadline=deadline)
    try:
        yield
    finally:
        held.__exit__(None, None, None)


@contextmanager
def _connected() -> Iterator[None]:
    import ray

    # Workers' own output stays in Ray's logs: this job's log is read whole at every look.
    ray.init(logging_level="warning", log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A block for each answer of a worker: the default of 128 MB would hold the answers of hours back.
    context.target_max_block_size = 1
    if (advice := getattr(context, "issue_detectors_config", None)) is not None:
        advice.detectors = []
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _told(tally: Tally, total: int) -> Iterator[None]:
    """Print the counts: every second at first, every ten in the end, so that a long job's log stays small."""
    ended, started = threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.is_set():
            seconds = time.monotonic() - started
            counts = {"made": tally.made, "reused": tally.reused, "failed": tally.failed}
            say("progress", **counts, total=total, seconds=round(seconds, 2))
            ended.wait(min(10.0, max(1.0, seconds / 60)))

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _answers(wave: list[bytes], painters: Painters) -> Iterator[Row]:
    """The workers' answers to a wave of packed chunks, as they come."""
    import ray

    dataset = ray.data.from_items([{"chunk": chunk} for chunk in wave], override_num_blocks=len(wave))
    seen: set[str] = set()
    for block in painters.paint(dataset).iter_batches(batch_size=None, batch_format="pyarrow"):
        for data in block["answers"].to_pylist():
            for answer in unpacked(data):
                # A worker that died and was started anew may give an answer twice.
                if answer.get("id") not in seen:
                    seen.add(answer.get("id", ""))
                    yield answer


def _settle(answer: Mapping[str, Any], manifest: Manifest, tally: Tally, painters: Painters) -> None:
    if FATAL in answer:
        raise error_of(answer)
    record, fruitless = settled(answer)
    manifest.append(record)
    if record.status != "failed":
        tally.add_made(record.latency_ms or 0.0, record.ignored)
        return
    tally.add_failed(Failure(record.id, record.error or "", record.attempts), fruitless=fruitless)
    if tally.made == 0 and tally.fruitless >= HOPELESS_IMAGES * painters.in_flight:
        raise UnreachableError(
            f"The painters answer, but make no image: {tally.fruitless} in a row failed.",
            why=record.error or "",
            fix="See `raynest status`; then run again: it makes the missing images, these included.",
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
