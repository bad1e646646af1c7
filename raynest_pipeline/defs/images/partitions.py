"""Batches are dynamic partitions: one per batch id, never one per prompt (100,000 is Dagster's own limit)."""

import dagster as dg

BATCHES = dg.DynamicPartitionsDefinition(name="batches")
