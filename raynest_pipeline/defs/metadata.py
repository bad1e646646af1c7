"""Facts to Dagster metadata: numbers that plot, links that open, paths that copy."""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal

import dagster as dg

from raynest_pipeline.chain.link import Fact, Observation


def metadata_of(facts: Mapping[str, Fact]) -> dict[str, dg.MetadataValue]:
    """One metadata value per fact; facts without a value are left out."""
    return {key: _value(key, fact) for key, fact in facts.items() if fact is not None and fact != ""}


def observation_metadata(seen: Observation) -> dict[str, dg.MetadataValue]:
    """What the Checks tab shows of an observation."""
    state: dict[str, Fact] = {"state": str(seen.state), "cause": seen.cause}
    return metadata_of({**state, **seen.facts})


def _value(key: str, fact: Fact) -> dg.MetadataValue:
    if isinstance(fact, bool):
        return dg.MetadataValue.bool(fact)
    if isinstance(fact, int):
        return dg.MetadataValue.int(fact)
    if isinstance(fact, (float, Decimal)):
        return dg.MetadataValue.float(round(float(fact), 4))
    if isinstance(fact, timedelta):
        return dg.MetadataValue.float(round(fact.total_seconds(), 3))
    if isinstance(fact, tuple):
        return dg.MetadataValue.text(", ".join(fact))
    text = str(fact)
    if key.endswith("path"):
        return dg.MetadataValue.path(text)
    if text.startswith(("http://", "https://")):
        return dg.MetadataValue.url(text)
    return dg.MetadataValue.text(text)
