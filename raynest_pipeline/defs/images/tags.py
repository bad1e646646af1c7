"""Tags by which a run, its batch, where that came from, and the cluster find each other."""

import dagster as dg

BATCH_TAG = "raynest/batch"
CLUSTER_TAG = "raynest/cluster"
"""The Ray cluster that drew, as the chain knew it when the run began."""
CONTENT_TAG = "raynest/prompts-sha256"
"""On runs that the inbox asked for: the content is the key."""
SCHEDULE_TAG = "raynest/schedule"
DAY_TAG = "raynest/day"
IMAGES_TAG = "raynest/images"
"""Images that a scheduled run was asked for; the cap per day counts them."""


def cluster_on_record(instance: dg.DagsterInstance) -> str:
    """The Ray cluster that serves, from the last record of `ray_service`; "" when there is none."""
    return str(_recorded(instance, "ray_service", "ray_cluster") or "")


def price_on_record(instance: dg.DagsterInstance) -> tuple[float, str] | None:
    """Price per hour and currency of the cluster, from its last record; None when there is none."""
    price = _recorded(instance, "cluster", "price_per_hour")
    if not isinstance(price, int | float):
        return None
    return float(price), str(_recorded(instance, "cluster", "price_currency") or "")


def _recorded(instance: dg.DagsterInstance, asset: str, key: str) -> object:
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    found = event.asset_materialization.metadata.get(key) if event and event.asset_materialization else None
    return None if found is None else found.value
