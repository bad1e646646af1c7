"""Copies of JSON values."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def copied(value: T) -> T:
    """A deep copy of a JSON value: several times faster than `copy.deepcopy`, which the store would feel."""
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [copied(inner) for inner in value]  # type: ignore[return-value]
    return value
