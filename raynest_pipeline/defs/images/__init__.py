"""The batches in Dagster: partitions, the asset, its job and schedule."""
