"""Field sets of server-side apply: which paths of an object a manager owns (FieldsV1).

A path is a tuple of FieldsV1 keys: `f:<field>`, `k:{"name":"x"}` for an item of a keyed list, `v:"x"` for
a member of a set. The rules are those of structured-merge-diff, held against recorded managedFields.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from raynest_pipeline.sandbox.kube.schema import ANYTHING, Schema, child, items

Path = tuple[str, ...]
FieldSet = frozenset[Path]

EMPTY: FieldSet = frozenset()

# Identity and bookkeeping belong to the server, not to a manager.
_SERVER_FIELDS = (
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_UNOWNED: FieldSet = frozenset(
    [
        ("f:apiVersion",),
        ("f:kind",),
        ("f:metadata",),
        *(("f:metadata", f"f:{name}") for name in _SERVER_FIELDS),
    ]
)


def is_atomic(value: Any, schema: Schema) -> bool:
    """Owned as a whole: scalars, atomic lists and maps, and lists whose schema says nothing."""
    if isinstance(value, dict):
        return bool(schema.get("x-kubernetes-map-type") == "atomic")
    if isinstance(value, list):
        return bool(schema.get("x-kubernetes-list-type", "atomic") == "atomic")
    return True


def item_key(item: Any, schema: Schema) -> str:
    """The FieldsV1 key of a list's item under its list's schema (`k:` by keys, `v:` by value)."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if keys and isinstance(item, dict):
        defaults = items(schema).get("properties", {})
        found = {key: item.get(key, defaults.get(key, {}).get("default")) for key in keys}
        return "k:" + _compact({key: value for key, value in found.items() if value is not None})
    return "v:" + _compact(item)


def entries(value: Any, schema: Schema) -> Iterator[tuple[str, Any, Schema]]:
    """The children of a granular map or list as (FieldsV1 key, value, schema)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"f:{key}", inner, child(schema, key) or ANYTHING
    elif isinstance(value, list):
        for inner in value:
            yield item_key(inner, schema), inner, items(schema)


def applied(value: Any, schema: Schema, path: Path = ()) -> Iterator[Path]:
    """What an apply configuration claims: leaves, list items, empty maps, keys of free maps."""
    if is_atomic(value, schema):
        yield path
        return
    if not value and path:
        yield path
    for key, inner, below in entries(value, schema):
        declared = key.startswith("f:") and key[2:] in schema.get("properties", {})
        if not declared:
            yield (*path, key)
        yield from applied(inner, below, (*path, key))


def nodes(value: Any, schema: Schema, path: Path = ()) -> Iterator[Path]:
    """Every node below (and with) a path, leaves and containers: what a new subtree adds."""
    if path:
        yield path
    if not is_atomic(value, schema):
        for key, inner, below in entries(value, schema):
            yield from nodes(inner, below, (*path, key))


def compare(old: Any, new: Any, schema: Schema) -> tuple[FieldSet, FieldSet]:
    """(written, removed): paths that were added or changed, and paths that are gone."""
    written: set[Path] = set()
    removed: set[Path] = set()
    _compare(old, new, schema, (), written, removed)
    return frozenset(written), frozenset(removed)


def _compare(old: Any, new: Any, schema: Schema, path: Path, written: set[Path], removed: set[Path]) -> None:
    if type(old) is not type(new) or is_atomic(new, schema):
        if old != new:
            written.add(path)
        return
    before = {key: (value, below) for key, value, below in entries(old, schema)}
    after = {key: (value, below) for key, value, below in entries(new, schema)}
    for key, (value, below) in after.items():
        if key in before:
            _compare(before[key][0], value, below, (*path, key), written, removed)
        else:
            written.update(nodes(value, below, (*path, key)))
    for key, (value, below) in before.items():
        if key not in after:
            removed.update(nodes(value, below, (*path, key)))


def owned(paths: Iterable[Path], *, status: bool | None) -> FieldSet:
    """What a manager can own: only below status (True), only elsewhere (False), or both (None)."""
    kept = frozenset(paths) - _UNOWNED
    if status is None:
        return kept
    return frozenset(path for path in kept if (path[0] == "f:status") is status)


def with_parents(paths: Iterable[Path]) -> FieldSet:
    """The paths and every path above them."""
    return frozenset(path[:length] for path in paths for length in range(1, len(path) + 1))


def encode(paths: Iterable[Path]) -> dict[str, Any]:
    """FieldsV1: nested objects, `.` marking a node that is itself owned and has owned children."""
    tree: dict[str, Any] = {}
    members = sorted(paths)
    for path in members:
        node = tree
        for key in path:
            node = node.setdefault(key, {})
    parents = {path[:length] for path in members for length in range(1, len(path))}
    for path in members:
        if path in parents:
            node = tree
            for key in path:
                node = node[key]
            node["."] = {}
    return _sorted(tree)


def decode(fields: dict[str, Any]) -> FieldSet:
    """The paths of a FieldsV1 object."""
    return frozenset(_decode(fields, ()))


def _decode(fields: dict[str, Any], path: Path) -> Iterator[Path]:
    for key, below in fields.items():
        if key == ".":
            yield path
        else:
            if not below:
                yield (*path, key)
            yield from _decode(below, (*path, key))


def _sorted(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: _sorted(tree[key]) for key in sorted(tree)}


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
