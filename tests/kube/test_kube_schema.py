"""Does the server's schema have a field?"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.kube import schema
from raynest_pipeline.kube.kinds import CONFIG_MAP, RAY_SERVICE, Kind


def named(kind: Kind) -> list[dict[str, str]]:
    group, _, version = kind.api_version.rpartition("/")
    return [{"group": group, "version": version, "kind": kind.kind}]


DOCUMENT: dict[str, Any] = {
    "components": {
        "schemas": {
            "io.ray.v1.RayService": {
                "x-kubernetes-group-version-kind": named(RAY_SERVICE),
                "properties": {"spec": {"$ref": "#/components/schemas/io.ray.v1.Spec"}},
            },
            "io.ray.v1.Spec": {
                "properties": {
                    "serveConfigV2": {"type": "string"},
                    "rayClusterConfig": {"allOf": [{"$ref": "#/components/schemas/io.ray.v1.Cluster"}]},
                }
            },
            "io.ray.v1.Cluster": {
                "properties": {
                    "authOptions": {"properties": {"mode": {"type": "string"}}},
                    "workerGroupSpecs": {"type": "array", "items": {"properties": {"groupName": {}}}},
                    "loop": {"$ref": "#/components/schemas/loop"},
                }
            },
            "loop": {"$ref": "#/components/schemas/loop"},
        }
    }
}


@pytest.mark.parametrize(
    ("path", "there"),
    [
        (("spec", "serveConfigV2"), True),
        (("spec", "rayClusterConfig", "authOptions"), True),
        (("spec", "rayClusterConfig", "authOptions", "mode"), True),
        (("spec", "rayClusterConfig", "workerGroupSpecs", "groupName"), True),
        (("spec", "rayClusterConfig", "workerGroupSpecs", "nope"), False),
        (("spec", "suspend"), False),
        (("spec", "serveConfigV2", "deeper"), False),
        (("spec", "rayClusterConfig", "loop", "x"), False),
    ],
)
def test_paths(path: tuple[str, ...], there: bool) -> None:
    assert schema.has_field(DOCUMENT, RAY_SERVICE, path) is there


def test_a_kind_that_is_not_described_has_nothing() -> None:
    assert not schema.has_field(DOCUMENT, CONFIG_MAP, ("data",))
    assert not schema.has_field({}, RAY_SERVICE, ())


KEYS = ["components", "schemas", "properties", "$ref", "allOf", "items", "spec", "x"]
JSON = st.recursive(
    st.none() | st.text(max_size=8),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=20,
)


@given(JSON)
def test_any_document_is_survived(value: Any) -> None:
    document = value if isinstance(value, dict) else {}
    assert schema.has_field(document, RAY_SERVICE, ("spec",)) is False


def test_where_the_documents_are() -> None:
    assert schema.path_of("ray.io/v1") == "/openapi/v3/apis/ray.io/v1"
    assert schema.path_of("v1") == "/openapi/v3/api/v1"
