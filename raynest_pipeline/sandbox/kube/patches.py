"""JSON merge patch (RFC 7386), JSON patch (RFC 6902) and strategic merge patch."""

from __future__ import annotations

from typing import Any

from raynest_pipeline.sandbox.kube import errors, schema
from raynest_pipeline.sandbox.kube.schema import Schema
from raynest_pipeline.sandbox.kube.values import copied

_DIRECTIVE = "$"


def merge(value: Any, patch: Any) -> Any:
    """RFC 7386: objects merge, null removes, everything else replaces."""
    if not isinstance(patch, dict):
        return copied(patch)
    merged = copied(value) if isinstance(value, dict) else {}
    for key, inner in patch.items():
        if inner is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), inner)
    return merged


def strategic(value: Any, patch: Any, kind: Schema) -> Any:
    """Kubernetes' own merge: as `merge`, with keyed lists merged by item and `$patch` directives.

    `$setElementOrder` is not needed to get a right result, only a tidy order, and is ignored."""
    if isinstance(patch, list):
        return _strategic_list(value if isinstance(value, list) else [], patch, kind)
    if not isinstance(patch, dict):
        return copied(patch)
    if patch.get("$patch") == "replace":
        return {key: copied(inner) for key, inner in patch.items() if key != "$patch"}
    if patch.get("$patch") == "delete":
        return {}
    merged = copied(value) if isinstance(value, dict) else {}
    retained = patch.get("$retainKeys")
    if retained is not None:
        merged = {key: inner for key, inner in merged.items() if key in retained}
    for key, inner in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.partition("/")[2]
            merged[field] = [one for one in merged.get(field, []) if one not in inner]
        elif key.startswith(_DIRECTIVE):
            continue
        elif inner is None:
            merged.pop(key, None)
        else:
            merged[key] = strategic(merged.get(key), inner, schema.child(kind, key) or schema.ANYTHING)
    return merged


def _strategic_list(value: list[Any], patch: list[Any], kind: Schema) -> list[Any]:
    kind_of_list = kind.get("x-kubernetes-list-type", "atomic")
    if kind_of_list == "set":
        return [*value, *(copied(one) for one in patch if one not in value)]
    if kind_of_list != "map":
        return copied([one for one in patch if not (isinstance(one, dict) and "$patch" in one)])
    # The strategic merge key is the first of the list's keys (ports merge by port alone, env by name).
    key = kind["x-kubernetes-list-map-keys"][0]
    merged = copied(value)
    below = schema.items(kind)
    for item in patch:
        if item.get("$patch") == "replace":
            return [copied(one) for one in patch if "$patch" not in one]
        index = next((at for at, one in enumerate(merged) if one.get(key) == item.get(key)), None)
        if item.get("$patch") == "delete":
            if index is not None:
                del merged[index]
        elif index is None:
            merged.append(strategic({}, item, below))
        else:
            merged[index] = strategic(merged[index], item, below)
    return merged


def json_patch(value: Any, operations: Any) -> Any:
    """RFC 6902. 400 for a malformed patch, 422 for one that doesn't fit the object."""
    if not isinstance(operations, list):
        raise errors.bad_request(
            "error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch"
        )
    document = {"": copied(value)}
    for operation in operations:
        try:
            _operate(document, operation)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            path = operation.get("path") if isinstance(operation, dict) else operation
            message = f"the server rejected our request due to an error in our request: {path}: {error}"
            raise errors.ApiError(422, message, reason="Invalid") from error
    return document[""]


def _operate(document: dict[str, Any], operation: dict[str, Any]) -> None:
    name, path = operation["op"], operation["path"]
    parent, key = _locate(document, path)
    if name == "test":
        if _value(parent, key) != operation["value"]:
            raise ValueError(f"testing value {path} failed")
    elif name == "remove":
        _value(parent, key)
        del parent[key]
    elif name == "replace":
        _value(parent, key)
        parent[key] = copied(operation["value"])
    elif name == "add":
        _add(parent, key, copied(operation["value"]))
    elif name in ("copy", "move"):
        source, from_key = _locate(document, operation["from"])
        moved = copied(_value(source, from_key))
        if name == "move":
            del source[from_key]
        _add(parent, key, moved)
    else:
        raise ValueError(f"unexpected kind: {name}")


def _locate(document: dict[str, Any], path: str) -> tuple[Any, Any]:
    """The container of a JSON pointer's last token, and that token as a key of it."""
    tokens = [token.replace("~1", "/").replace("~0", "~") for token in path.split("/")]
    parent: Any = document
    for token in tokens[:-1]:
        parent = parent[int(token)] if isinstance(parent, list) else parent[token]
    last = tokens[-1]
    if isinstance(parent, list):
        return parent, len(parent) if last == "-" else int(last)
    return parent, last


def _value(parent: Any, key: Any) -> Any:
    return parent[key]


def _add(parent: Any, key: Any, value: Any) -> None:
    if isinstance(parent, list):
        if key > len(parent):
            raise IndexError(f"unable to access invalid index: {key}")
        parent.insert(key, value)
    else:
        parent[key] = value
