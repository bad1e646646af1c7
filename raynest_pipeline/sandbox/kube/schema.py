"""Structural schemas: the OpenAPI subset that CRDs use, and what the API server does with one.

The schema that a resource is checked against is the very document published under `/openapi/v3`, so a
client and the server can't disagree. Builders first, then pruning, defaulting and validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raynest_pipeline.sandbox.kube.errors import Cause
from raynest_pipeline.sandbox.kube.values import copied

Schema = dict[str, Any]

PRESERVE = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
ANYTHING: Schema = {PRESERVE: True}
QUANTITY: Schema = {INT_OR_STRING: True, "anyOf": [{"type": "integer"}, {"type": "string"}]}


def object_of(fields: dict[str, Schema], *, required: tuple[str, ...] = (), open: bool = False) -> Schema:
    """An object with declared fields; `open` keeps undeclared ones instead of pruning them."""
    schema: Schema = {"type": "object", "properties": fields}
    if required:
        schema["required"] = list(required)
    if open:
        schema[PRESERVE] = True
    return schema


def map_of(value: Schema, *, atomic: bool = False) -> Schema:
    """A map with free keys; `atomic` is owned as a whole under server-side apply."""
    schema: Schema = {"type": "object", "additionalProperties": value}
    return schema | {"x-kubernetes-map-type": "atomic"} if atomic else schema


def list_of(items: Schema, *, keys: tuple[str, ...] = (), unique: bool = False) -> Schema:
    """A list: atomic, or merged by `keys`, or a set of scalars (`unique`)."""
    schema: Schema = {"type": "array", "items": items}
    if keys:
        return schema | {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}
    return schema | {"x-kubernetes-list-type": "set" if unique else "atomic"}


def child(schema: Schema, key: str) -> Schema | None:
    """The schema of a field: declared, a map's value, anything below an open object; None if undeclared."""
    declared = schema.get("properties", {}).get(key)
    if declared is not None:
        return dict(declared)
    values = schema.get("additionalProperties")
    if values is not None:
        return dict(values)
    return ANYTHING if schema.get(PRESERVE) or not schema else None


def items(schema: Schema) -> Schema:
    """The schema of a list's items (anything, when the list itself is undeclared)."""
    return dict(schema.get("items", ANYTHING))


def undeclared(value: Any, schema: Schema, path: str = "") -> Iterator[str]:
    """Paths of fields that the schema doesn't declare, as `spec.containers[0].nope`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            below = f"{path}.{key}" if path else key
            found = child(schema, key)
            if found is None:
                yield below
            else:
                yield from undeclared(inner, found, below)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from undeclared(inner, items(schema), f"{path}[{index}]")


def pruned(value: Any, schema: Schema) -> Any:
    """A copy without undeclared fields, and without nulls where the schema doesn't allow them."""
    if isinstance(value, dict):
        kept = {}
        for key, inner in value.items():
            found = child(schema, key)
            if found is None or (inner is None and "type" in found and not found.get("nullable")):
                continue
            kept[key] = pruned(inner, found)
        return kept
    if isinstance(value, list):
        return [pruned(inner, items(schema)) for inner in value]
    return value


def defaulted(value: Any, schema: Schema) -> Any:
    """A copy with the schema's defaults filled in, at every level that is present."""
    if isinstance(value, dict):
        filled = {}
        for key, inner in value.items():
            filled[key] = defaulted(inner, child(schema, key) or ANYTHING)
        for key, declared in schema.get("properties", {}).items():
            if key not in filled and "default" in declared:
                filled[key] = copied(declared["default"])
        return filled
    if isinstance(value, list):
        return [defaulted(inner, items(schema)) for inner in value]
    return value


def type_name(value: Any) -> str:
    """JSON's name for a value's type, as Kubernetes' messages print it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    for kind, name in ((str, "string"), (int, "integer"), (float, "number"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object"


def matches(value: Any, schema: Schema) -> bool:
    """Is the value of the schema's own type (its children aren't looked at)?"""
    if schema.get(INT_OR_STRING):
        return isinstance(value, int | str) and not isinstance(value, bool)
    wanted = schema.get("type")
    found = type_name(value)
    return wanted in (None, found) or (wanted == "number" and found == "integer")


def violations(value: Any, schema: Schema, path: str = "") -> Iterator[Cause]:
    """Every broken rule as a `StatusCause`: type, required, enum, minimum, maxLength, pattern-free."""
    if value is None and schema.get("nullable"):
        return
    if not matches(value, schema):
        wanted = schema.get("type", "integer or string")
        found = type_name(value)
        yield {
            "reason": "FieldValueTypeInvalid",
            "message": f'Invalid value: "{found}": {path} in body must be of type {wanted}: "{found}"',
            "field": path,
        }
        return
    yield from _own_violations(value, schema, path)
    if isinstance(value, dict):
        for key, inner in value.items():
            found_schema = child(schema, key)
            if found_schema is not None:
                yield from violations(inner, found_schema, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from violations(inner, items(schema), f"{path}[{index}]")


def _own_violations(value: Any, schema: Schema, path: str) -> Iterator[Cause]:
    if isinstance(value, dict):
        for key in schema.get("required", ()):
            if key not in value:
                below = f"{path}.{key}" if path else key
                yield {"reason": "FieldValueRequired", "message": "Required value", "field": below}
    if "enum" in schema and value not in schema["enum"]:
        allowed = ", ".join(f'"{one}"' for one in schema["enum"])
        yield {
            "reason": "FieldValueNotSupported",
            "message": f'Unsupported value: "{value}": supported values: {allowed}',
            "field": path,
        }
    if "minimum" in schema and isinstance(value, int) and value < schema["minimum"]:
        least = schema["minimum"]
        yield {
            "reason": "FieldValueInvalid",
            "message": f"Invalid value: {value}: {path} in body should be greater than or equal to {least}",
            "field": path,
        }
