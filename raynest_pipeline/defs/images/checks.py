"""What is asked of a finished batch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import dagster as dg

from raynest_pipeline.defs.images.metadata import UNNAMED
from raynest_pipeline.images.again import TOLERANCE, Again
from raynest_pipeline.images.batch_store import BatchStore
from raynest_pipeline.images.lookalikes import lookalikes
from raynest_pipeline.images.manifest import latest_records
from raynest_pipeline.images.record import Record
from raynest_pipeline.images.result import BatchResult
from raynest_pipeline.images.side_by_side import side_by_side

COMPLETE = "complete"
VALID = "valid"
DISTINCT = "no_near_duplicates"
SAME_SEED = "same_seed"
PACE = "pace"

MOST_READ_BACK = 5_000
"""Images read back whole; of a larger batch, so many at even distances. All were checked when they came."""
MOST_COMPARED = 1_000
"""Images compared with each other; of a larger batch, so many at even distances."""
LISTED = 20
EARLIER_BATCHES = 5
LEAST_MADE = 4
"""A run that made fewer images says nothing about the pace."""


@dataclass(frozen=True)
class Pace:
    """Images per second of a batch, and what made them."""

    images_per_second: float
    made: int
    model: str
    images: int = 0
    """Of the whole batch."""

    @property
    def tells(self) -> bool:
        """Whether it is the endpoint's pace: a run that found most of a batch there was busy with looking."""
        return self.made >= LEAST_MADE and 2 * self.made >= self.images


def check_specs(asset: str) -> list[dg.AssetCheckSpec]:
    """The checks that every run of a batch answers."""
    told = {
        COMPLETE: "Every prompt of the batch has its image.",
        VALID: "Every recorded image is in the store with the recorded SHA-256 and size "
        f"(of more than {MOST_READ_BACK:,}, so many at even distances).",
        DISTINCT: "No two images with different seeds look the same (difference hash and colours; of more "
        f"than {MOST_COMPARED:,} images, so many at even distances). A warning.",
        SAME_SEED: "One image asked for again, with its seed, is the same within "
        f"{TOLERANCE} of 255 in every pixel. A warning where the endpoint does not promise that: it does in "
        "float32 on the CPU.",
        PACE: "Images/s are not below batch.min_pace_share of the median of the last "
        f"{EARLIER_BATCHES} batches by the same model. A warning.",
    }
    return [dg.AssetCheckSpec(name, asset=asset, description=text) for name, text in told.items()]


def stored_checks(store: BatchStore, images: int, finished_of_these: int) -> list[dg.AssetCheckResult]:
    """`complete`, `valid`, `no_near_duplicates`: read back from the store, whatever the engine believes.

    Args:
        store: Of the batch.
        images: That the prompts ask for.
        finished_of_these: Of them, as the run counted. The store may hold images of earlier prompts, too.
    """
    finished = sum(1 for _ in latest_records(store, finished=True))
    read_back = damaged = 0
    names: list[str] = []

    def whole(record: Record) -> tuple[Record, bool]:
        return record, store.holds(str(record.file), int(record.size_bytes or 0), str(record.sha256))

    chosen = evenly(latest_records(store, finished=True), finished, MOST_READ_BACK)
    for record, good in side_by_side(whole, chosen):
        read_back += 1
        if not good:
            damaged += 1
            names += [record.id] if len(names) < LISTED else []
    sample = evenly(latest_records(store, finished=True), finished, MOST_COMPARED)
    compared, pairs = lookalikes(sample, store.read)
    missing = max(0, images - min(finished, finished_of_these))
    return [
        dg.AssetCheckResult(
            check_name=COMPLETE, passed=missing == 0, metadata={"images": images, "missing": missing}
        ),
        dg.AssetCheckResult(
            check_name=VALID,
            passed=not damaged,
            metadata={"checked": read_back, "damaged": damaged, "ids": ", ".join(names) or "none"},
        ),
        dg.AssetCheckResult(
            check_name=DISTINCT,
            passed=not pairs,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={
                "compared": compared,
                "pairs": len(pairs),
                "ids": ", ".join(f"{pair.first} = {pair.second}" for pair in pairs[:LISTED]) or "none",
            },
        ),
    ]


def same_seed_check(again: Again) -> dg.AssetCheckResult:
    """`same_seed`; what could not be compared passes with the reason, or warns when it should have been.

    Another image is an error only where the endpoint promises the same one.
    """
    metadata: dict[str, Any] = {"id": again.id or "none", "tolerance": TOLERANCE}
    description = again.reason
    if again.difference is not None:
        metadata["difference"] = again.difference
    if again.same is False:
        promised = f"nothing: {again.no_promise}" if again.no_promise else f"at most {TOLERANCE}"
        description = f"It differs by {again.difference} of 255; the endpoint promises {promised}."
    if again.no_promise:
        metadata["not_promised"] = again.no_promise
    if again.reason:
        metadata["not_compared"] = again.reason
    broken = again.same is False and not again.no_promise
    asked = bool(again.id)
    return dg.AssetCheckResult(
        check_name=SAME_SEED,
        passed=again.same if again.same is not None else not asked,
        severity=dg.AssetCheckSeverity.ERROR if broken else dg.AssetCheckSeverity.WARN,
        description=description or None,
        metadata=metadata,
    )


def pace_check(own: Pace, earlier: Sequence[Pace], least_share: float) -> dg.AssetCheckResult:
    """`pace`.

    Args:
        own: Of this batch.
        earlier: Latest first.
        least_share: Of the earlier ones' median, 0 to 1.
    """
    rates = [pace.images_per_second for pace in earlier if pace.tells and pace.model == own.model]
    rates = rates[:EARLIER_BATCHES]
    metadata: dict[str, Any] = {
        "images_per_second": round(own.images_per_second, 3),
        "compared_with": len(rates),
    }
    passed = True
    if rates and own.tells:
        usual = median(rates)
        metadata |= {"median_before": round(usual, 3), "least": round(usual * least_share, 3)}
        passed = own.images_per_second >= usual * least_share
    return dg.AssetCheckResult(
        check_name=PACE, passed=passed, severity=dg.AssetCheckSeverity.WARN, metadata=metadata
    )


def pace_of(result: BatchResult) -> Pace:
    """The pace of a run."""
    return Pace(result.images_per_second, result.made, result.model, result.total)


def earlier_paces(instance: dg.DagsterInstance, asset: dg.AssetKey) -> list[Pace]:
    """The paces on record, latest first."""
    records = instance.fetch_materializations(asset, limit=4 * EARLIER_BATCHES).records
    paces = []
    for record in records:
        found = record.asset_materialization.metadata if record.asset_materialization else {}
        keys = ("images_per_second", "made", "model", "images")
        rate, made, model, images = (found[key].value if key in found else None for key in keys)
        if isinstance(rate, int | float) and isinstance(made, int) and isinstance(images, int):
            paces.append(Pace(float(rate), made, "" if model == UNNAMED else str(model or ""), images))
    return paces


def together(results: Sequence[tuple[str, Sequence[dg.AssetCheckResult]]]) -> list[dg.AssetCheckResult]:
    """One answer per check for a run of several batches: passed if all are, with the batches that are not."""
    if len(results) == 1:
        return list(results[0][1])
    answers = []
    for at, first in enumerate(results[0][1]):
        bad = [(batch, checks[at]) for batch, checks in results if not checks[at].passed]
        severe = any(check.severity is dg.AssetCheckSeverity.ERROR for _, check in bad)
        answers.append(
            dg.AssetCheckResult(
                check_name=first.check_name,
                passed=not bad,
                severity=dg.AssetCheckSeverity.ERROR if severe else dg.AssetCheckSeverity.WARN,
                metadata={
                    "batches": len(results),
                    "not_passed": ", ".join(batch for batch, _ in bad) or "none",
                },
            )
        )
    return answers


def evenly(records: Iterable[Record], count: int, most: int) -> Iterator[Record]:
    """Of `count` records at most `most`, at even distances."""
    step = max(1, -(-count // most))
    return (record for at, record in enumerate(records) if at % step == 0)
