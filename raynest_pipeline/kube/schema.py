"""Reading a server's OpenAPI v3 document: does its schema of a kind have a field?"""

from collections.abc import Mapping
from typing import Any

from raynest_pipeline.kube.kinds import Kind, mapping, mappings


def has_field(document: Mapping[str, Any], kind: Kind, path: tuple[str, ...]) -> bool:
    """Whether the schema of `kind` in an OpenAPI v3 document declares the field at `path`.

    List items are stepped into without an entry in `path`. False also when the document does not
    describe the kind, as then nothing is known.
    """
    schemas = mapping(mapping(document.get("components")).get("schemas"))
    node = next((schema for schema in schemas.values() if _describes(schema, kind)), None)
    if node is None:
        return False
    for name in path:
        node = mapping(_resolved(node, schemas).get("properties")).get(name)
        if not isinstance(node, Mapping):
            return False
    return True


def path_of(api_version: str) -> str:
    """Where the API server keeps the document of a group and version."""
    return f"/openapi/v3/{'apis' if '/' in api_version else 'api'}/{api_version}"


def _describes(schema: object, kind: Kind) -> bool:
    group, _, version = kind.api_version.rpartition("/")
    named = mappings(mapping(schema).get("x-kubernetes-group-version-kind"))
    return {"group": group, "version": version, "kind": kind.kind} in [dict(item) for item in named]


def _resolved(node: object, schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema behind `$ref`, a single `allOf` and list items; a reference may lead to the next one."""
    current = mapping(node)
    for _ in range(8):
        step: object
        if "$ref" in current:
            step = schemas.get(str(current["$ref"]).rpartition("/")[2])
        elif current.get("allOf"):
            step = next(iter(mappings(current["allOf"])), None)
        elif "items" in current:
            step = current["items"]
        else:
            break
        current = mapping(step)
    return current
