"""The `inbox` sensor: files that are dropped there become batches."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict

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
"""No further file is judged after this; Dagster stops a sensor at 60 s."""


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
    judged = _judge(context, place, ready[: settings.inbox.max_files], settings)
    on_record = {file.sha256 for file in judged if file.sha256 and _has_run(context.instance, file.sha256)}
    actions = decide(judged, on_record)
    requests = [request for action in actions if (request := _carry_out(context, place, action, settings))]
    keys = [str(request.partition_key) for request in requests]
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[BATCHES.build_add_request(keys)] if keys else [],
        skip_reason=None if requests else f"{place.url}: {_told(actions)}",
        cursor=cursor,
    )


def _judge(
    context: dg.SensorEvaluationContext, place: Inbox, ready: list[Found], settings: Settings
) -> list[Judged]:
    judged: list[Judged] = []
    until = time.monotonic() + TICK_SECONDS
    for file in ready:
        if judged and time.monotonic() > until:
            context.log.info(f"{len(ready) - len(judged)} files are left for the next look")
            break
        with place.fetched(file) as path:
            if path is not None:
                judged.append(judge(path, file, check_bytes=settings.inbox.check_mb * 1e6))
    return judged


def _carry_out(
    context: dg.SensorEvaluationContext, place: Inbox, action: Action, settings: Settings
) -> dg.RunRequest | None:
    file = action.judged
    name = file.found.name
    if action.kind == "reject":
        if place.reject(file.found, file.error):
            context.log.warning(f"{name} went to bad/: {file.error}")
    elif action.kind == "take":
        # Only now: the run is on record, so the file is no longer the only trace of the batch.
        if place.take(file.found, file.sha256):
            context.log.info(f"{name} is batch {file.batch}; the file went to taken/")
    elif action.kind == "request":
        with place.fetched(file.found) as path:
            if path is None:
                return None
            keep_prompts(open_batch(settings.output_dir, file.batch), path)
        count = "its images" if file.images is None else f"{file.images:,} images"
        context.log.info(f"{name} becomes batch {file.batch}: {count}")
        return dg.RunRequest(
            # Dagster starts no second run for a key, however often it is asked.
            run_key=f"inbox:{file.sha256}",
            partition_key=file.batch,
            tags={BATCH_TAG: file.batch, CONTENT_TAG: file.sha256},
        )
    return None


def _has_run(instance: dg.DagsterInstance, sha256: str) -> bool:
    return bool(instance.get_run_ids(dg.RunsFilter(tags={CONTENT_TAG: sha256}), limit=1))


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
