"""The `gallery` asset: a page for each batch, and one over all of them."""

from collections.abc import Mapping

import dagster as dg

from raynest_pipeline.defs.failures import as_failure
from raynest_pipeline.defs.images.metadata import gallery_url, linked_sheet
from raynest_pipeline.defs.images.partitions import BATCHES
from raynest_pipeline.defs.progress import tell
from raynest_pipeline.defs.resources import RaynestResource
from raynest_pipeline.images.batch_store import open_batch
from raynest_pipeline.images.gallery.batch_page import PAGE, write_batch_page, write_index
from raynest_pipeline.images.gallery.place import Place
from raynest_pipeline.images.manifest import latest_records
from raynest_pipeline.settings import Settings

GALLERY = "gallery"


def build_gallery(batch_images: dg.AssetsDefinition, group: str) -> dg.AssetsDefinition:
    """The `gallery` asset, downstream of the batches."""

    @dg.asset(
        name=GALLERY,
        deps=[batch_images],
        partitions_def=BATCHES,
        group_name=group,
        kinds={"html"},
        owners=["team:creators"],
        description="A static page for each batch (thumbnails, search, prompts, parameters, seeds) that "
        "opens from disk, and index.html over all. `raynest dev` and `raynest open gallery` serve them.",
    )
    def gallery(context: dg.AssetExecutionContext, raynest: RaynestResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        settings = raynest.settings()
        with as_failure():
            pages = {key: _write(context, settings, batch_images.key, key) for key in context.partition_keys}
        if len(pages) == 1:
            return dg.MaterializeResult(metadata=next(iter(pages.values())))
        for key, metadata in pages.items():
            context.add_asset_metadata(metadata, partition_key=key)
        return dg.MaterializeResult()

    # One job may not hold two policies.
    return gallery.with_attributes(backfill_policy=batch_images.backfill_policy)


def _write(
    context: dg.AssetExecutionContext, settings: Settings, batches: dg.AssetKey, key: str
) -> dict[str, dg.MetadataValue]:
    recorded = _recorded(context.instance, batches, key)
    folder = str(recorded["folder_path"].value) if "folder_path" in recorded else ""
    # A batch that was made with a folder of its own is looked for there.
    root = folder.removesuffix(f"/{key}") if folder.endswith(f"/{key}") else settings.output_dir
    store = open_batch(root, key)
    summary = write_batch_page(
        Place(store.place()), key, latest_records(store), settings.gallery, _facts(recorded)
    )
    write_index(Place(root))
    page = store.place(PAGE)
    context.log.info(f"{summary.finished:,} images, {summary.failed:,} failed: {page}")
    tell(summary)
    sheet, url = linked_sheet(settings, store), gallery_url(settings, store)
    return {
        **({"a_contact_sheet": dg.MetadataValue.md(sheet)} if sheet else {}),
        **({"page": dg.MetadataValue.url(url)} if url else {}),
        "page_path": dg.MetadataValue.path(page),
        "images": dg.MetadataValue.int(summary.finished),
        "failed": dg.MetadataValue.int(summary.failed),
    }


def _recorded(
    instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str
) -> Mapping[str, dg.MetadataValue]:
    """The metadata of a batch's last record; empty when there is none."""
    wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[partition])
    records = instance.fetch_materializations(wanted, limit=1).records
    found = records[0].asset_materialization if records else None
    return found.metadata if found else {}


def _facts(recorded: Mapping[str, dg.MetadataValue]) -> list[tuple[str, str]]:
    """What the page shows at its top, from the batch's record."""

    def number(key: str) -> float | None:
        value = recorded[key].value if key in recorded else None
        return float(value) if isinstance(value, int | float) else None

    facts = []
    if rate := number("images_per_second"):
        facts.append(("images/s", f"{rate:.2f}"))
    if (middle := number("p50_latency_ms")) is not None:
        facts.append(("p50", _time(middle)))
    if (high := number("p95_latency_ms")) is not None:
        facts.append(("p95", _time(high)))
    if cost := number("cost_per_image"):
        currency = str(recorded["currency"].value) if "currency" in recorded else ""
        facts.append(("cost per image", f"{cost:.6f} {currency}".rstrip()))
    return facts


def _time(milliseconds: float) -> str:
    """Short, for people: 812 ms, 73.8 s."""
    return f"{milliseconds:,.0f} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:,.1f} s"
