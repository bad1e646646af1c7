"""Structural schemas: pruning, defaults, validation."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.sandbox.kube import pod_schema, schema
from raynest_pipeline.sandbox.kube.values import copied

Object = dict[str, Any]

INNER = schema.object_of(
    {"port": schema.INTEGER, "protocol": schema.STRING | {"default": "TCP"}}, required=("port",)
)
WHOLE = schema.object_of(
    {
        "text": schema.STRING,
        "mode": schema.STRING | {"enum": ["a", "b"]},
        "count": schema.INTEGER | {"minimum": 0, "default": 1},
        "free": schema.map_of(schema.STRING),
        "size": schema.QUANTITY,
        "ports": schema.list_of(INNER),
        "open": schema.object_of({"known": schema.STRING}, open=True),
        "when": schema.STRING | {"nullable": True},
    },
    required=("text",),
)

values = st.recursive(
    st.none() | st.integers(0, 3) | st.text("ab", max_size=1),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["text", "x", "port"]), inner)
    ),
    max_leaves=5,
)
fields = st.sampled_from(["text", "mode", "count", "free", "size", "ports", "open", "when", "unknown"])
objects = st.dictionaries(fields, values, max_size=5)


@given(objects)
def test_pruning_leaves_nothing_undeclared_and_is_done_once(obj: Object) -> None:
    pruned = schema.pruned(obj, WHOLE)
    assert list(schema.undeclared(pruned, WHOLE)) == []
    assert schema.pruned(pruned, WHOLE) == pruned


@given(objects)
def test_defaulting_keeps_what_is_there_and_is_done_once(obj: Object) -> None:
    before = deepcopy(obj)
    once = schema.defaulted(obj, WHOLE)
    assert obj == before
    assert set(obj) <= set(once)
    assert schema.defaulted(once, WHOLE) == once


@given(objects)
def test_every_violation_names_a_field_below_the_root(obj: Object) -> None:
    for cause in schema.violations(obj, WHOLE):
        assert cause["field"]
        assert cause["message"]


@given(values)
def test_a_copy_is_equal_and_separate(value: Any) -> None:
    made = copied(value)
    assert made == value
    if isinstance(value, dict | list) and value:
        assert made is not value
        made.clear()
        assert value


def test_undeclared_paths() -> None:
    obj = {"nope": 1, "ports": [{"port": 1}, {"nope": 2}], "open": {"any": 1}, "free": {"any": "x"}}
    assert list(schema.undeclared(obj, WHOLE)) == ["nope", "ports[1].nope"]


def test_nulls_are_dropped_unless_they_mean_something() -> None:
    obj = {"text": None, "when": None, "open": {"any": None, "known": None}}
    assert schema.pruned(obj, WHOLE) == {"when": None, "open": {"any": None}}


def test_defaults_reach_into_lists() -> None:
    assert schema.defaulted({"ports": [{"port": 1}]}, WHOLE) == {
        "ports": [{"port": 1, "protocol": "TCP"}],
        "count": 1,
    }


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        (
            {"text": 1},
            "FieldValueTypeInvalid",
            'Invalid value: "integer": text in body must be of type string',
        ),
        ({"count": True}, "FieldValueTypeInvalid", "must be of type integer"),
        ({"count": -1}, "FieldValueInvalid", "count in body should be greater than or equal to 0"),
        ({"mode": "c"}, "FieldValueNotSupported", 'Unsupported value: "c": supported values: "a", "b"'),
        ({"size": []}, "FieldValueTypeInvalid", "must be of type integer or string"),
        ({"ports": {}}, "FieldValueTypeInvalid", "must be of type array"),
        ({"ports": [{}]}, "FieldValueRequired", "Required value"),
        ({"free": {"a": 1}}, "FieldValueTypeInvalid", "free.a in body must be of type string"),
    ],
)
def test_violations(change: Object, reason: str, message: str) -> None:
    (cause,) = schema.violations({"text": "x"} | change, WHOLE)
    assert cause["reason"] == reason
    assert message in cause["message"]


@pytest.mark.parametrize("value", [{}, {"size": 1}, {"size": "1Gi"}, {"when": None}, {"open": {"x": [1]}}])
def test_what_is_allowed(value: Object) -> None:
    assert list(schema.violations({"text": "x"} | value, WHOLE)) == []


def test_a_missing_field_is_required_at_its_own_path() -> None:
    (cause,) = schema.violations({}, WHOLE)
    assert (cause["field"], cause["reason"]) == ("text", "FieldValueRequired")


def test_every_row_of_the_pod_table_can_be_built() -> None:
    for name in pod_schema._ROWS:
        built = pod_schema.row(name)
        assert built["properties"]
        assert set(built.get("required", ())) <= set(built["properties"])


def test_keyed_lists_have_keys_that_their_items_declare() -> None:
    def check(kind: Object) -> None:
        for below in kind.get("properties", {}).values():
            check(below)
        inner = kind.get("items")
        if inner:
            assert set(kind.get("x-kubernetes-list-map-keys", ())) <= set(inner.get("properties", {}))
            check(inner)

    check(pod_schema.pod_template())
