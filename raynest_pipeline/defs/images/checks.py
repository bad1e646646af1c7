"""What is asked of a finished batch."""

import dagster as dg

from raynest_pipeline.images.batch import Outcome

COMPLETE = "complete"
VALID = "valid"


def check_specs(asset: str) -> list[dg.AssetCheckSpec]:
    """The checks that every run of a batch answers."""
    return [
        dg.AssetCheckSpec(COMPLETE, asset=asset, description="Every prompt of the batch has its image."),
        dg.AssetCheckSpec(
            VALID,
            asset=asset,
            description="Every recorded image is on disk with the recorded SHA-256 and size.",
        ),
    ]


def check_results(outcome: Outcome) -> list[dg.AssetCheckResult]:
    """The answers, read back from the folder and not from what the engine believes."""
    finished = [record for record in outcome.records if record.status != "failed" and record.file]
    damaged = [
        record.id
        for record in finished
        if not outcome.folder.holds(str(record.file), int(record.size_bytes or 0), str(record.sha256))
    ]
    missing = outcome.images - len(finished)
    return [
        dg.AssetCheckResult(
            check_name=COMPLETE,
            passed=missing == 0,
            metadata={"images": outcome.images, "missing": missing},
        ),
        dg.AssetCheckResult(
            check_name=VALID,
            passed=not damaged,
            metadata={"checked": len(finished), "damaged": ", ".join(damaged[:20]) or "none"},
        ),
    ]
