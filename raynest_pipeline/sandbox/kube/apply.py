"""Server-side apply: typed checks, merge, pruning of what a manager no longer applies, conflicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from raynest_pipeline.sandbox.kube import fieldset, schema
from raynest_pipeline.sandbox.kube.errors import ApiError
from raynest_pipeline.sandbox.kube.fieldset import FieldSet, Path
from raynest_pipeline.sandbox.kube.managed import Owner, Ownership
from raynest_pipeline.sandbox.kube.schema import Schema
from raynest_pipeline.sandbox.kube.values import copied

Object = dict[str, Any]


def merge(live: Any, config: Any, kind: Schema) -> Any:
    """Lay an apply configuration over the live value: maps and keyed lists merge, the rest is replaced."""
    if type(live) is not type(config) or fieldset.is_atomic(config, kind):
        return copied(config)
    if isinstance(config, dict):
        merged = copied(live)
        for key, value in config.items():
            merged[key] = merge(live.get(key), value, schema.child(kind, key) or schema.ANYTHING)
        return merged
    wanted = {fieldset.item_key(item, kind): item for item in config}
    below = schema.items(kind)
    found = []
    for item in live:
        key = fieldset.item_key(item, kind)
        found.append(merge(item, wanted.pop(key), below) if key in wanted else copied(item))
    return found + [copied(item) for item in wanted.values()]


def without(value: Any, kind: Schema, paths: FieldSet) -> Any:
    """A copy with the nodes at these paths removed."""
    if fieldset.is_atomic(value, kind) or not paths:
        return copied(value)
    if isinstance(value, dict):
        kept = {}
        for key, inner in value.items():
            name = f"f:{key}"
            if (name,) not in paths:
                kept[key] = without(inner, schema.child(kind, key) or schema.ANYTHING, _below(paths, name))
        return kept
    below = schema.items(kind)
    found = []
    for item in value:
        name = fieldset.item_key(item, kind)
        if (name,) not in paths:
            found.append(without(item, below, _below(paths, name)))
    return found


def _below(paths: FieldSet, key: str) -> FieldSet:
    return frozenset(path[1:] for path in paths if path[0] == key and len(path) > 1)


def dropped(last: FieldSet, ownership: Ownership) -> FieldSet:
    """What to remove from the object: applied last time by this manager, owned by nobody now."""
    named = frozenset(path for path in fieldset.with_parents(last) if path in last or path[-1][:2] == "f:")
    return named - fieldset.with_parents(ownership.everything()) - {("f:metadata",), ("f:spec",)}


def check_typed(obj: Object, kind: Schema, identity: str) -> None:
    """500 without a reason, as the real server answers for what its typed parser refuses.

    `identity` is `namespace/name; group/version, Kind=Kind`, from the body as it was sent."""
    errors = list(_typed_errors(obj, kind, ""))
    if errors:
        listed = errors[0] if len(errors) == 1 else "\n  ".join(["errors:", *errors])
        raise ApiError(500, f"failed to create typed patch object ({identity}): {listed}")


def _typed_errors(value: Any, kind: Schema, path: str) -> Iterator[str]:
    if value is None:
        return
    if not schema.matches(value, kind):
        wanted = {"object": "map", "array": "list", "integer": "numeric (int or float)"}
        expected = wanted.get(kind.get("type", ""), kind.get("type", "scalar"))
        yield f"{path}: expected {expected}, got &value.valueUnstructured{{Value:{_go(value)}}}"
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            below = schema.child(kind, key)
            if below is None:
                yield f"{path}.{key}: field not declared in schema"
            else:
                yield from _typed_errors(inner, below, f"{path}.{key}")
    elif isinstance(value, list):
        yield from _typed_items(value, kind, path)


def _typed_items(value: list[Any], kind: Schema, path: str) -> Iterator[str]:
    keys = kind.get("x-kubernetes-list-map-keys", ())
    defaults = schema.items(kind).get("properties", {})
    seen = set()
    for index, item in enumerate(value):
        where = f"{path}[{index}]"
        if keys and isinstance(item, dict):
            lacking = [key for key in keys if key not in item and "default" not in defaults.get(key, {})]
            if lacking:
                why = f'an element that omits key field "{lacking[0]}" (and doesn\'t have default value)'
                yield f"{path}: element {index}: associative list with keys has {why}"
                continue
        if not fieldset.is_atomic(value, kind):
            where = f"{path}{readable((fieldset.item_key(item, kind),))}"
            if where in seen:
                yield f"{path}: duplicate entries for key {where.removeprefix(path)}"
            seen.add(where)
        yield from _typed_errors(item, schema.items(kind), where)


def _go(value: Any) -> str:
    if isinstance(value, dict):
        return "map[string]interface {}{...}"
    if isinstance(value, list):
        return "[]interface {}{...}"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def readable(path: Path) -> str:
    """A path as conflicts print it: `.spec.containers[name="h"].image`."""
    found = ""
    for key in path:
        sort, rest = key[:2], key[2:]
        if sort == "f:":
            found += f".{rest}"
        elif sort == "k:":
            pairs = json.loads(rest)
            found += "[" + ",".join(f"{name}={json.dumps(value)}" for name, value in pairs.items()) + "]"
        else:
            found += f"[={rest}]"
    return found


def conflict_error(ownership: Ownership, conflicts: dict[Owner, FieldSet]) -> ApiError:
    """409 with one cause per field, and the message that kubectl prints."""
    causes = []
    groups: dict[str, list[str]] = {}
    for owner, paths in sorted(conflicts.items()):
        who = _printed(owner, ownership.claims[owner].version)
        for path in sorted(paths):
            field = readable(path)
            causes.append(
                {"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": field}
            )
            groups.setdefault(who, []).append(f"- {field}")
    if len(causes) == 1:
        listed = f"1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        lines = [line for who in sorted(groups) for line in (f"conflicts with {who}:", *groups[who])]
        listed = f"{len(causes)} conflicts: " + "\n".join(lines)
    return ApiError(409, f"Apply failed with {listed}", reason="Conflict", details={"causes": causes})


def _printed(owner: Owner, version: str) -> str:
    name = f'"{owner.manager}"'
    if owner.subresource:
        name += f' with subresource "{owner.subresource}"'
    return f"{name} using {version}" if owner.operation == "Update" else name
