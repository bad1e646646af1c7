"""JSON merge patch, JSON patch and strategic merge patch."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.sandbox.kube import patches, pod_schema
from raynest_pipeline.sandbox.kube.errors import ApiError

keys = st.sampled_from("abc")
values = st.recursive(
    st.integers(0, 3) | st.text("xy", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(keys, values, max_size=3)

# The examples of RFC 7386, appendix A, that concern objects.
RFC_7386 = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("value", "patch", "wanted"), RFC_7386)
def test_merge_patch_examples(value: Any, patch: Any, wanted: Any) -> None:
    assert patches.merge(value, patch) == wanted


@given(documents, documents)
def test_a_merge_patch_changes_neither_argument_and_is_idempotent(value: Any, patch: Any) -> None:
    before = deepcopy((value, patch))
    once = patches.merge(value, patch)
    assert (value, patch) == before
    assert patches.merge(once, patch) == once


# Examples of RFC 6902, appendix A.
RFC_6902 = [
    ({"foo": "bar"}, {"op": "add", "path": "/baz", "value": "qux"}, {"foo": "bar", "baz": "qux"}),
    ({"foo": ["a", "c"]}, {"op": "add", "path": "/foo/1", "value": "b"}, {"foo": ["a", "b", "c"]}),
    ({"foo": ["a"]}, {"op": "add", "path": "/foo/-", "value": ["b"]}, {"foo": ["a", ["b"]]}),
    ({"baz": 1, "foo": 2}, {"op": "remove", "path": "/baz"}, {"foo": 2}),
    ({"foo": ["a", "b"]}, {"op": "remove", "path": "/foo/0"}, {"foo": ["b"]}),
    ({"baz": 1}, {"op": "replace", "path": "/baz", "value": 2}, {"baz": 2}),
    ({"a": {"b": 1}, "c": {}}, {"op": "move", "from": "/a/b", "path": "/c/d"}, {"a": {}, "c": {"d": 1}}),
    ({"a": {"b": 1}}, {"op": "copy", "from": "/a", "path": "/c"}, {"a": {"b": 1}, "c": {"b": 1}}),
    ({"a/b": 1, "m~n": 2}, {"op": "test", "path": "/a~1b", "value": 1}, {"a/b": 1, "m~n": 2}),
    ({"a/b": 1, "m~n": 2}, {"op": "remove", "path": "/m~0n"}, {"a/b": 1}),
    ({"a": 1}, {"op": "replace", "path": "", "value": {"b": 2}}, {"b": 2}),
]


@pytest.mark.parametrize(("value", "operation", "wanted"), RFC_6902)
def test_json_patch_examples(value: Any, operation: dict[str, Any], wanted: Any) -> None:
    before = deepcopy(value)
    assert patches.json_patch(value, [operation]) == wanted
    assert value == before


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/missing"},
        {"op": "replace", "path": "/missing", "value": 1},
        {"op": "test", "path": "/a", "value": 2},
        {"op": "add", "path": "/list/9", "value": 1},
        {"op": "add", "path": "/no/such", "value": 1},
        {"op": "jump", "path": "/a"},
        {"op": "add", "path": "/a"},
        "not an operation",
    ],
)
def test_a_json_patch_that_does_not_fit_is_422(operation: Any) -> None:
    with pytest.raises(ApiError) as caught:
        patches.json_patch({"a": 1, "list": []}, [operation])
    assert (caught.value.code, caught.value.reason) == (422, "Invalid")


def test_a_json_patch_must_be_a_list() -> None:
    with pytest.raises(ApiError) as caught:
        patches.json_patch({}, {"op": "add"})
    assert caught.value.code == 400


POD = pod_schema.pod_spec()


def spec(**env: str) -> dict[str, Any]:
    variables = [{"name": name, "value": value} for name, value in env.items()]
    return {"containers": [{"name": "main", "image": "i:1", "env": variables}]}


def env_of(value: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in value["containers"][0]["env"]}


def test_strategic_merges_keyed_lists_by_key() -> None:
    patch = {"containers": [{"name": "main", "env": [{"name": "B", "value": "2"}]}]}
    merged = patches.strategic(spec(A="1"), patch, POD)
    assert env_of(merged) == {"A": "1", "B": "2"}
    assert merged["containers"][0]["image"] == "i:1"


def test_strategic_deletes_an_item_by_directive() -> None:
    patch = {"containers": [{"name": "main", "env": [{"name": "A", "$patch": "delete"}]}]}
    assert env_of(patches.strategic(spec(A="1", B="2"), patch, POD)) == {"B": "2"}


def test_strategic_replaces_a_list_by_directive() -> None:
    patch = {"containers": [{"$patch": "replace"}, {"name": "other", "image": "i:2"}]}
    assert patches.strategic(spec(A="1"), patch, POD) == {"containers": [{"name": "other", "image": "i:2"}]}


def test_strategic_replaces_and_empties_maps_by_directive() -> None:
    live = {"nodeSelector": {"a": "1"}}
    assert patches.strategic(live, {"nodeSelector": {"$patch": "replace", "b": "2"}}, POD) == {
        "nodeSelector": {"b": "2"}
    }
    assert patches.strategic(live, {"nodeSelector": {"$patch": "delete"}}, POD) == {"nodeSelector": {}}


def test_strategic_ignores_the_order_directive_and_keeps_retained_keys() -> None:
    live = {"volumes": [{"name": "v", "emptyDir": {}}]}
    patch = {
        "$setElementOrder/volumes": [{"name": "v"}],
        "volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}],
    }
    assert patches.strategic(live, patch, POD) == {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}


def test_strategic_replaces_an_atomic_list_and_removes_by_null() -> None:
    live = {"tolerations": [{"key": "a"}], "hostname": "h"}
    patch = {"tolerations": [{"key": "b"}], "hostname": None}
    assert patches.strategic(live, patch, POD) == {"tolerations": [{"key": "b"}]}


def test_strategic_on_sets() -> None:
    from raynest_pipeline.sandbox.kube.core_schema import metadata

    live = {"finalizers": ["a", "b"]}
    assert patches.strategic(live, {"finalizers": ["b", "c"]}, metadata()) == {"finalizers": ["a", "b", "c"]}
    removal = {"$deleteFromPrimitiveList/finalizers": ["a"]}
    assert patches.strategic(live, removal, metadata()) == {"finalizers": ["b"]}


@given(documents, documents)
def test_strategic_is_a_merge_patch_where_nothing_is_declared(value: Any, patch: Any) -> None:
    assert patches.strategic(value, patch, {}) == patches.merge(value, patch)
