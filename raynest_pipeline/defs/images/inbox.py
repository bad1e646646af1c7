"""The `inbox` sensor: files that are dropped there become batches."""

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import dagster as dg

from raynest_pipeline.chain.intent import is_wanted
from raynest_pipeline.defs.images.jobs import GENERATE
from raynest_pipeline.defs.images.partitions import BATCHES
from raynest_pipeline.defs.images.tags import BATCH_TAG, CONTENT_TAG
from raynest_pipeline.defs.resources import RaynestResource
from raynest_pipeline.errors import RaynestError
from raynest_pipeline.images.arrivals import keep_prompts
from raynest_pipeline.images.batch_store import open_batch
from raynest_pipeline.images.inbox import Action, Found, Inbox, Judged, Watched, decide, judge, settled
from raynest_pipeline.settings import Settings

INBOX = "inbox"
TICK_SECONDS = 20.0
"""No further file is looked at after this; Dagster stops a sensor at 60 s."""


def build_inbox_sensor(settings: Settings) -> dg.SensorDefinition:
    """The `inbox` sensor for these settings."""

    @dg.sensor(
        name=INBOX,
        job_name=GENERATE,
        minimum_interval_seconds=settings.inbox.interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Prompt files dropped into the inbox become batches, once per content: a partition and a "
        "run each. What is taken goes to taken/, what cannot be read to bad/ with the reason beside it.",
    )
    def inbox(context: dg.SensorEvaluationContext, raynest: RaynestResource) -> dg.SensorResult:
        try:
            return _tick(context, raynest.settings())
        except RaynestError as error:
            context.log.warning(str(error))
            return dg.SensorResult(skip_reason=error.what, cursor=context.cursor)

    return inbox


def _tick(context: dg.SensorEvaluationContext, settings: Settings) -> dg.SensorResult:
    place = Inbox(settings.inbox_url)
    found = place.look()
    ready, watched = settled(
        found, load(context.cursor), now=time.time(), settle_seconds=settings.inbox.settle_seconds
    )
    cursor = dump(watched)
    if not ready:
        seen = f"{len(found)} still being written" if found else "empty"
        return dg.SensorResult(skip_reason=f"{place.url}: {seen}", cursor=cursor)
    if not is_wanted(settings):
        reason = f"{place.url}: {len(ready)} wait until the chain is up (raynest up)"
        context.log.info(reason)
        return dg.SensorResult(skip_reason=reason, cursor=cursor)
    with contextlib.ExitStack() as held:
        paths = _judge(context, place, ready[: settings.inbox.max_files], settings, held)
        hashes = {file.sha256 for file in paths if file.sha256}
        on_record = {sha256: batch for sha256 in hashes if (batch := _batch_of(context.instance, sha256))}
        actions = decide(list(paths), on_record)
        requests = _carry_out_all(context, place, actions, paths, on_record, settings)
    keys = [str(request.partition_key) for request in requests]
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[BATCHES.build_add_request(keys)] if keys else [],
        skip_reason=None if requests else f"{place.url}: {_told(actions)}",
        cursor=cursor,
    )


def _judge(
    context: dg.SensorEvaluationContext,
    place: Inbox,
    ready: list[Found],
    settings: Settings,
    held: contextlib.ExitStack,
) -> dict[Judged, Path | None]:
    """The judged files with where each lies on this machine while `held` lasts.

    One that cannot be read is told and left, so that it doesn't keep the others from their batches.
    """
    judged: dict[Judged, Path | None] = {}
    until = time.monotonic() + TICK_SECONDS
    for looked_at, file in enumerate(ready):
        if looked_at and time.monotonic() > until:
            context.log.info(f"{len(ready) - looked_at} files are left for the next look")
            break
        if file.size > settings.inbox.max_mb * 1e6:
            judged[Judged(file, "", error=_too_large(file, settings.inbox.max_mb))] = None
            continue
        try:
            path = held.enter_context(place.fetched(file))
            if path is not None:
                judged[judge(path, file, check_bytes=settings.inbox.check_mb * 1e6)] = path
        except RaynestError as error:
            context.log.warning(f"{file.shown} is left: {error}")
    return judged


def _too_large(file: Found, most_mb: float) -> str:
    return (
        f"{file.shown} has {file.size / 1e6:,.0f} MB; inbox.max_mb allows {most_mb:,.0f}. "
        "`raynest generate --prompts FILE` takes any size."
    )


def _carry_out_all(
    context: dg.SensorEvaluationContext,
    place: Inbox,
    actions: list[Action],
    paths: Mapping[Judged, Path | None],
    on_record: Mapping[str, str],
    settings: Settings,
) -> list[dg.RunRequest]:
    """What becomes runs. A file that cannot be moved or kept is told, and the others go on."""
    requests = []
    for action in actions:
        file = action.judged
        try:
            if action.kind == "request":
                requests += _requested(context, place, file, paths[file], settings)
            else:
                _put_away(context, place, action, on_record)
        except RaynestError as error:
            context.log.warning(f"{file.found.shown} is left: {error}")
    return requests


def _put_away(
    context: dg.SensorEvaluationContext, place: Inbox, action: Action, on_record: Mapping[str, str]
) -> None:
    file = action.judged
    name = file.found.shown
    if action.kind == "reject":
        if place.reject(file.found, file.error):
            context.log.warning(f"{name} went to bad/: {file.error}")
    elif action.kind == "take" and place.take(file.found, file.sha256):
        # Only now: the run is on record, so the file is no longer the only trace of the batch.
        context.log.info(f"{name} is batch {on_record[file.sha256]}; the file went to taken/")


def _requested(
    context: dg.SensorEvaluationContext, place: Inbox, file: Judged, path: Path | None, settings: Settings
) -> list[dg.RunRequest]:
    """The run of a file's batch; none when the file was written over meanwhile."""
    if path is None:
        return []
    keep_prompts(open_batch(settings.output_dir, file.batch), path)
    if not place.unchanged(file.found):
        # What was judged, and what was kept, may be of two files. The next look judges anew.
        context.log.info(f"{file.found.shown} was written over while it was read, and is looked at again")
        return []
    count = "its images" if file.images is None else f"{file.images:,} images"
    context.log.info(f"{file.found.shown} becomes batch {file.batch}: {count}")
    return [
        dg.RunRequest(
            # Dagster starts no second run for a key, however often it is asked.
            run_key=f"inbox:{file.sha256}",
            partition_key=file.batch,
            tags={BATCH_TAG: file.batch, CONTENT_TAG: file.sha256},
        )
    ]


def _batch_of(instance: dg.DagsterInstance, sha256: str) -> str:
    """The batch for whose content there is a run; "" when there is none."""
    runs = instance.get_runs(dg.RunsFilter(tags={CONTENT_TAG: sha256}), limit=1)
    return runs[0].tags.get(BATCH_TAG) or "of an earlier run" if runs else ""


def _told(actions: list[Action]) -> str:
    names = {"take": "taken", "reject": "bad", "wait": "waiting"}
    counts = {names[kind]: sum(a.kind == kind for a in actions) for kind in ("take", "reject", "wait")}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing to do"


def dump(watched: Mapping[str, Watched]) -> str:
    """The cursor."""
    return json.dumps({"v": 1, "files": {name: asdict(seen) for name, seen in watched.items()}})


def load(cursor: str | None) -> dict[str, Watched]:
    """What a cursor says; nothing when it is not one of ours."""
    try:
        document = json.loads(cursor or "null")
        if not isinstance(document, dict) or document.get("v") != 1:
            return {}
        return {str(name): Watched(**seen) for name, seen in document["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
