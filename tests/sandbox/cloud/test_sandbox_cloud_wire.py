"""The encodings: numbered lists, dotted structures, Python's booleans, pages, times, private files."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.sandbox.cloud.errors import CloudError
from raynest_pipeline.sandbox.cloud.wire import (
    Params,
    china,
    compact,
    has_tags,
    page_by_number,
    page_by_token,
    utc,
)
from raynest_pipeline.sandbox.state import read_json, write_json, write_private


def code(call: object) -> str:
    with pytest.raises(CloudError) as caught:
        call()  # type: ignore[operator]
    return caught.value.code


def test_texts_and_required_texts() -> None:
    params = Params({"A": "x", "B": ""})
    assert (params.text("A"), params.text("B", "d"), params.text("C", "d")) == ("x", "d", "d")
    assert params.required("A") == "x"
    assert code(lambda: params.required("B")) == "MissingParameter"


@pytest.mark.parametrize(("text", "value"), [("True", True), ("true", True), ("False", False), ("", False)])
def test_booleans_as_the_python_sdk_writes_them(text: str, value: bool) -> None:
    assert Params({"DryRun": text}).boolean("DryRun") is value
    assert Params({}).boolean("DryRun") is False


def test_a_boolean_that_is_none_is_refused() -> None:
    assert code(lambda: Params({"DryRun": "1"}).boolean("DryRun")) == "InvalidParameter.DryRun"


@pytest.mark.parametrize("text", ["x", "1.5", "0", "11", " 5", "٣"])
def test_a_number_outside_its_range_is_refused(text: str) -> None:
    assert code(lambda: Params({"N": text}).integer("N", 5, 1, 10)) == "InvalidParameter.N"


def test_a_number_that_is_missing_is_the_default() -> None:
    assert Params({"N": ""}).integer("N", 5, 1, 10) == 5


def test_lists_are_read_in_the_order_of_their_numbers() -> None:
    values = {f"Id.{number}": f"v{number}" for number in (10, 2, 1)}
    assert Params(values).items("Id") == ["v1", "v2", "v10"]


def test_structures_tags_and_filters() -> None:
    params = Params(
        {
            "Tag.1.Key": "owner",
            "Tag.1.Value": "me",
            "Tag.2.Key": "empty",
            "Filter.1.Name": "Status",
            "Filter.1.Value.1": "Deployed",
            "Filter.1.Value.2": "Deploying",
        }
    )
    assert params.tags() == {"owner": "me", "empty": ""}
    assert params.filters() == {"Status": ["Deployed", "Deploying"]}
    assert params.items("Tag") == []


def test_json_in_a_parameter() -> None:
    assert Params({"P": '{"a":1}'}).json_object("P") == {"a": 1}
    assert Params({}).json_object("P") == {}
    assert code(lambda: Params({"P": "{"}).json_object("P")) == "InvalidParameter.P"
    assert code(lambda: Params({"P": "[]"}).json_object("P")) == "InvalidParameter.P"


@pytest.mark.parametrize(
    ("wanted", "result"),
    [({}, True), ({"a": "1"}, True), ({"a": ""}, True), ({"a": "2"}, False), ({"c": ""}, False)],
)
def test_a_wanted_tag_without_a_value_matches_any(wanted: dict[str, str], result: bool) -> None:
    assert has_tags({"a": "1", "b": "2"}, wanted) is result


@given(st.integers(0, 40), st.integers(1, 100), st.integers(1, 100))
def test_following_the_tokens_gives_every_item_once(total: int, size: int, most: int) -> None:
    items = [{"n": number} for number in range(total)]
    token, found = "", []
    while True:
        params = Params({"MaxResults": str(size), "NextToken": token})
        page, token, asked = page_by_token(items, params, most=most)
        assert asked == size and len(page) <= min(size, most)
        found += page
        if not token:
            break
    assert found == items


def test_a_made_up_token_is_refused() -> None:
    params = Params({"NextToken": "abc"})
    assert code(lambda: page_by_token([], params)) == "InvalidParameter.NextToken"


@given(st.integers(0, 40), st.integers(1, 100))
def test_numbered_pages_give_every_item_once(total: int, size: int) -> None:
    items = [{"n": number} for number in range(total)]
    found = []
    for number in range(1, total // size + 2):
        page, _, _ = page_by_number(items, Params({"PageSize": str(size), "PageNumber": str(number)}))
        found += page
    assert found == items


def test_a_page_holds_ten_unless_told_otherwise() -> None:
    page, number, size = page_by_number([{"n": n} for n in range(30)], Params({}))
    assert (len(page), number, size) == (10, 1, 10)
    assert code(lambda: page_by_number([], Params({"PageSize": "101"}))) == "InvalidParameter.PageSize"


def test_times_as_the_products_write_them() -> None:
    assert utc(1740393469) == "2025-02-24T10:37:49Z"
    assert china(1740393469) == "2025-02-24T18:37:49+08:00"


def test_json_inside_json_is_compact_and_keeps_its_letters() -> None:
    assert compact({"a": [1, "版"]}) == '{"a":[1,"版"]}'


def test_private_files_are_private_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_private(path, "one")
    write_private(path, "two")
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_file_is_none_and_a_damaged_one_an_error(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none") is None
    (tmp_path / "bad").write_text("{")
    with pytest.raises(json.JSONDecodeError):
        read_json(tmp_path / "bad")
