"""Field sets: encoding, what an apply claims, what a write changes; and what holds for any object."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.sandbox.kube import apply as ssa
from raynest_pipeline.sandbox.kube import fieldset, schema
from raynest_pipeline.sandbox.kube.managed import Owner, Ownership

Object = dict[str, Any]

ITEM = schema.object_of({"name": schema.STRING, "value": schema.STRING, "tags": schema.map_of(schema.STRING)})
WHOLE = schema.object_of(
    {
        "text": schema.STRING,
        "free": schema.map_of(schema.STRING),
        "sealed": schema.map_of(schema.STRING, atomic=True),
        "keyed": schema.list_of(ITEM, keys=("name",)),
        "unique": schema.list_of(schema.STRING, unique=True),
        "atomic": schema.list_of(ITEM),
    }
)


def name_of(item: Any) -> str:
    return str(item["name"])


names = st.sampled_from(["a", "b", "c"])
texts = st.sampled_from(["1", "2"])
maps = st.dictionaries(names, texts, max_size=3)
entries: st.SearchStrategy[Object] = st.builds(
    lambda name, rest: {"name": name, **rest},
    names,
    st.fixed_dictionaries({}, optional={"value": texts, "tags": maps}),
)
objects = st.fixed_dictionaries(
    {},
    optional={
        "text": texts,
        "free": maps,
        "sealed": maps,
        "keyed": st.lists(entries, max_size=3, unique_by=name_of),
        "unique": st.lists(names, max_size=3, unique=True),
        "atomic": st.lists(entries, max_size=2),
    },
)


@given(objects)
def test_encoding_and_decoding_gives_the_same_set(obj: Object) -> None:
    paths = frozenset(fieldset.nodes(obj, WHOLE))
    assert fieldset.decode(fieldset.encode(paths)) == paths


@given(objects)
def test_an_object_is_no_different_from_itself(obj: Object) -> None:
    assert fieldset.compare(obj, deepcopy(obj), WHOLE) == (fieldset.EMPTY, fieldset.EMPTY)


@given(objects, objects)
def test_what_is_written_one_way_is_written_or_removed_the_other_way(one: Object, other: Object) -> None:
    written, removed = fieldset.compare(one, other, WHOLE)
    back_written, back_removed = fieldset.compare(other, one, WHOLE)
    assert removed <= back_written
    assert back_removed <= written
    assert (written | removed == fieldset.EMPTY) == (back_written | back_removed == fieldset.EMPTY)


@given(objects)
def test_an_apply_claims_only_what_is_there(obj: Object) -> None:
    assert frozenset(fieldset.applied(obj, WHOLE)) <= frozenset(fieldset.nodes(obj, WHOLE))


@given(objects)
def test_applying_an_object_to_nothing_makes_it(obj: Object) -> None:
    assert ssa.merge({}, obj, WHOLE) == obj


@given(objects, objects)
def test_merging_twice_is_merging_once(live: Object, config: Object) -> None:
    once = ssa.merge(live, config, WHOLE)
    assert ssa.merge(once, config, WHOLE) == once


@given(objects, objects)
def test_a_merge_contains_everything_that_was_applied(live: Object, config: Object) -> None:
    merged = frozenset(fieldset.nodes(ssa.merge(live, config, WHOLE), WHOLE))
    assert frozenset(fieldset.applied(config, WHOLE)) <= merged


@given(objects)
def test_removing_all_that_is_claimed_leaves_no_leaf(obj: Object) -> None:
    claimed = frozenset(fieldset.applied(obj, WHOLE))
    left = ssa.without(obj, WHOLE, claimed)
    assert not frozenset(fieldset.applied(left, WHOLE)) & claimed


def test_an_applied_set_as_recorded() -> None:
    obj = {"keyed": [{"name": "x", "tags": {}}], "sealed": {"a": "1"}, "free": {"k": "v"}, "unique": ["u"]}
    assert fieldset.encode(fieldset.applied(obj, WHOLE)) == {
        "f:free": {"f:k": {}},
        "f:keyed": {'k:{"name":"x"}': {".": {}, "f:name": {}, "f:tags": {}}},
        "f:sealed": {},
        "f:unique": {'v:"u"': {}},
    }


def test_an_updated_set_marks_the_containers_it_made() -> None:
    written, removed = fieldset.compare({}, {"keyed": [{"name": "x"}]}, WHOLE)
    assert removed == fieldset.EMPTY
    assert fieldset.encode(written) == {"f:keyed": {".": {}, 'k:{"name":"x"}': {".": {}, "f:name": {}}}}


def test_a_missing_key_counts_as_its_default() -> None:
    port = schema.object_of({"port": schema.INTEGER, "protocol": schema.STRING | {"default": "TCP"}})
    ports = schema.list_of(port, keys=("port", "protocol"))
    assert fieldset.item_key({"port": 80}, ports) == 'k:{"port":80,"protocol":"TCP"}'


def test_identity_is_nobodys() -> None:
    paths = [
        ("f:metadata", "f:name"),
        ("f:metadata", "f:labels"),
        ("f:kind",),
        ("f:status", "f:x"),
        ("f:spec",),
    ]
    assert fieldset.owned(paths, status=None) == {
        ("f:metadata", "f:labels"),
        ("f:status", "f:x"),
        ("f:spec",),
    }
    assert fieldset.owned(paths, status=True) == {("f:status", "f:x")}
    assert fieldset.owned(paths, status=False) == {("f:metadata", "f:labels"), ("f:spec",)}


def test_a_claim_has_the_time_of_its_owners_last_write() -> None:
    ownership, one, two = Ownership(), Owner("Apply", "one"), Owner("Update", "two")
    mine, other = frozenset([("f:a",)]), frozenset([("f:b",)])
    ownership.settle(one, mine, lost=fieldset.EMPTY, version="v1", now="T1")
    ownership.settle(two, other, lost=fieldset.EMPTY, version="v1", now="T2")
    ownership.settle(one, mine, lost=fieldset.EMPTY, version="v1", now=None)
    assert [entry["time"] for entry in ownership.encoded()] == ["T1", "T2"]
    ownership.settle(one, mine | other, lost=other, version="v1", now="T4")
    assert [(entry["manager"], entry["time"]) for entry in ownership.encoded()] == [("one", "T4")]


def test_managed_fields_are_read_back_as_they_were_written() -> None:
    ownership = Ownership()
    ownership.settle(
        Owner("Update", "x", "status"), frozenset([("f:status",)]), lost=fieldset.EMPTY, version="v1", now="T"
    )
    encoded = ownership.encoded()
    assert Ownership.of({"metadata": {"managedFields": encoded}}).encoded() == encoded
