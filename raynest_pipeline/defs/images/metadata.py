"""A batch's figures as Dagster shows them: numbers that plot, tables, and the contact sheet."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from heapq import nlargest

import dagster as dg

from raynest_pipeline.images.batch import Outcome
from raynest_pipeline.images.batch_store import BatchStore, root_of
from raynest_pipeline.images.gallery.batch_page import PAGE, SHEET_SMALL
from raynest_pipeline.images.gallery.place import Place
from raynest_pipeline.images.manifest import latest_records
from raynest_pipeline.images.record import Record
from raynest_pipeline.images.result import BatchResult, HourlyPrice
from raynest_pipeline.images.sheet import small_sheet
from raynest_pipeline.settings import Settings

UNNAMED = "not told by the endpoint"
"""In the place of the model's name."""
SLOWEST = 10
FAILURES_SHOWN = 20
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Cost:
    """Of a run: per image and in all, in `currency` ("" when nobody said)."""

    per_image: Decimal
    total: Decimal
    currency: str


def batch_metadata(
    outcome: Outcome, settings: Settings, recorded_price: tuple[float, str] | None
) -> dict[str, dg.MetadataValue]:
    """All that a materialization of a batch says; writes the small sheet that the UI shows from the gallery.

    Args:
        outcome: Of the run.
        settings: For the price per hour, and where the gallery is served.
        recorded_price: Per hour, with its currency, as the cluster's record has it.
    """
    store, result = outcome.folder, outcome.result
    inline = outcome.inline_sheet
    Place(store.place()).write(SHEET_SMALL, small_sheet(store, outcome.summary))
    price, currency = price_of(settings, recorded_price) or (None, "")
    linked, page = linked_sheet(settings, store), gallery_url(settings, store)
    return {
        # Its name sorts first: the picture is what a visitor looks for.
        "a_contact_sheet": dg.MetadataValue.md(linked or inline),
        **({"sheet_offline": dg.MetadataValue.md(inline)} if linked else {}),
        **({"gallery": dg.MetadataValue.url(page)} if page else {}),
        "folder_path": dg.MetadataValue.path(store.place()),
        "sheet_path": dg.MetadataValue.path(str(store.sheet_path)),
        "manifest_path": dg.MetadataValue.path(str(store.manifest_path)),
        **figures(result, outcome.images, cost_of(result, price, currency)),
        **tables(result, latest_records(store, finished=True)),
    }


def price_of(settings: Settings, recorded: tuple[float, str] | None) -> HourlyPrice | None:
    """What the cluster costs an hour: as the settings say, else as its record has it; None: not known."""
    if settings.batch.price_per_hour is not None:
        return HourlyPrice(settings.batch.price_per_hour, settings.alibaba.price_currency)
    return HourlyPrice(Decimal(str(recorded[0])), recorded[1]) if recorded else None


def cost_of(result: BatchResult, price_per_hour: Decimal | None, currency: str) -> Cost | None:
    """What the images made in a run cost at a price per hour; None without a price, or when none was made."""
    if price_per_hour is None or result.made == 0:
        return None
    total = price_per_hour * Decimal(str(round(result.seconds, 3))) / SECONDS_PER_HOUR
    return Cost(total / result.made, total, currency)


def figures(result: BatchResult, images: int, cost: Cost | None) -> dict[str, dg.MetadataValue]:
    """What plots, and the model."""
    metadata: dict[str, dg.MetadataValue] = {
        "images": dg.MetadataValue.int(images),
        "made": dg.MetadataValue.int(result.made),
        "reused": dg.MetadataValue.int(result.reused),
        "failed": dg.MetadataValue.int(result.failed),
        "seconds": dg.MetadataValue.float(round(result.seconds, 2)),
        "images_per_second": dg.MetadataValue.float(round(result.images_per_second, 3)),
        "model": dg.MetadataValue.text(result.model or UNNAMED),
    }
    if result.p50_latency_ms is not None and result.p95_latency_ms is not None:
        metadata["p50_latency_ms"] = dg.MetadataValue.float(result.p50_latency_ms)
        metadata["p95_latency_ms"] = dg.MetadataValue.float(result.p95_latency_ms)
    if cost is not None:
        metadata["cost_per_image"] = dg.MetadataValue.float(float(round(cost.per_image, 6)))
        metadata["cost"] = dg.MetadataValue.float(float(round(cost.total, 4)))
        if cost.currency:
            metadata["currency"] = dg.MetadataValue.text(cost.currency)
    if result.ignored:
        metadata["ignored_parameters"] = dg.MetadataValue.text(", ".join(result.ignored))
    return metadata


def tables(result: BatchResult, records: Iterable[Record]) -> dict[str, dg.MetadataValue]:
    """The slowest images of a batch, and the first of its failures."""
    slowest = nlargest(
        SLOWEST, (r for r in records if r.latency_ms is not None), key=lambda r: r.latency_ms or 0
    )
    metadata: dict[str, dg.MetadataValue] = {}
    if slowest:
        rows = [
            dg.TableRecord(
                {
                    "id": r.id,
                    "latency_ms": round(r.latency_ms or 0),
                    "attempts": r.attempts,
                    "prompt": r.prompt[:120],
                }
            )
            for r in slowest
        ]
        metadata["slowest"] = _table(rows, id="string", latency_ms="int", attempts="int", prompt="string")
    if result.failures:
        rows = [
            dg.TableRecord({"id": f.id, "reason": f.reason[:200], "attempts": f.attempts})
            for f in result.failures[:FAILURES_SHOWN]
        ]
        metadata["failures"] = _table(rows, id="string", reason="string", attempts="int")
    return metadata


def _table(rows: list[dg.TableRecord], **columns: str) -> dg.MetadataValue:
    schema = dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()])
    return dg.MetadataValue.table(rows, schema)


def gallery_url(settings: Settings, store: BatchStore) -> str | None:
    """Where `raynest dev` serves a batch's page; None when it doesn't, as of a batch that lies elsewhere."""
    root = str(root_of(settings.output_dir))
    if settings.gallery.port == 0 or store.place() != f"{root}/{store.batch_id}":
        return None
    return f"http://127.0.0.1:{settings.gallery.port}/{store.batch_id}/{PAGE}"


def linked_sheet(settings: Settings, store: BatchStore) -> str | None:
    """Markdown: the small sheet from the gallery's server, leading to the page.

    The UI shows it inline, since only the length of the address counts for that (Dagster 1.13.27).
    """
    page = gallery_url(settings, store)
    if page is None:
        return None
    sheet = page.removesuffix(PAGE) + SHEET_SMALL
    return f"[![contact sheet of {store.batch_id}]({sheet})]({page})"
