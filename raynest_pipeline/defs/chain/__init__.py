"""The chain in Dagster: its assets, jobs and the health sensor."""
