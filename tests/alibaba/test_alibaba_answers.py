"""Reading answers: what is absent, what is wrong, and lists with an end."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.alibaba.answers import PAGE_LIMIT, Answer, all_by_number, all_by_token, rpc
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.errors import Verdict


def answer(**fields: Any) -> Answer:
    return Answer(fields, "vpc:DescribeEipAddresses")


def test_absent_fields_are_empty() -> None:
    empty = answer()
    assert (empty.text("a"), empty.number("a"), empty.integer("a"), empty.flag("a")) == ("", None, None, None)
    assert (empty.texts("a"), empty.children("a"), empty.tags("a"), empty.mapping("a")) == ((), [], {}, {})
    assert (empty.json("a"), empty.moment("a"), empty.has("a")) == (None, None, False)
    assert empty.child("a").child("b").text("c") == ""


@pytest.mark.parametrize("value", [5, True, [], {}])
def test_a_text_must_be_one(value: Any) -> None:
    with pytest.raises(CloudError, match="DescribeEipAddresses") as caught:
        answer(Status=value).text("Status")
    assert "The field Status is no text" in caught.value.why


def test_the_error_says_where() -> None:
    with pytest.raises(CloudError) as caught:
        answer(Eips=[{"Id": "a"}, {"Tags": {"Key": 5}}]).children("Eips")[1].child("Tags").text("Key")
    assert "Eips[1].Tags.Key" in caught.value.why


def test_numbers() -> None:
    assert answer(a=1.5).number("a") == 1.5
    assert answer(a="100").integer("a") == 100
    assert answer(a=3.0).integer("a") == 3
    assert answer(a="").integer("a") is None
    for wrong in (True, "x", [], "NaN", float("inf"), 1.5):
        with pytest.raises(CloudError):
            answer(a=wrong).integer("a")


def test_flags_are_no_texts() -> None:
    assert answer(a=False).flag("a") is False
    with pytest.raises(CloudError):
        answer(a="true").flag("a")


def test_lists_and_their_elements() -> None:
    assert answer(a=["x"]).texts("a") == ("x",)
    for wrong in ("x", {}, [5], [None]):
        with pytest.raises(CloudError):
            answer(a=wrong).texts("a")
    for wrong in ("x", {}, ["x"], [None]):
        with pytest.raises(CloudError):
            answer(a=wrong).children("a")


def test_json_in_a_text() -> None:
    assert answer(a='{"b": 1}').json("a") == {"b": 1}
    assert answer(a="null").json("a") is None
    with pytest.raises(CloudError) as caught:
        answer(a="{").json("a")
    assert "holds no valid JSON" in caught.value.why


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-02-24T10:37:49Z", datetime(2025, 2, 24, 10, 37, 49, tzinfo=UTC)),
        ("2025-02-24T18:37:49+08:00", datetime(2025, 2, 24, 10, 37, 49, tzinfo=UTC)),
        ("2025-02-24T10:37:49", datetime(2025, 2, 24, 10, 37, 49, tzinfo=UTC)),
        ("yesterday", None),
        ("", None),
    ],
)
def test_moments_are_in_utc(text: str, moment: datetime | None) -> None:
    assert answer(a=text).moment("a") == moment


def test_tags() -> None:
    assert answer(a=[{"Key": "k", "Value": "v"}, {"Key": "bare"}]).tags("a") == {"k": "v", "bare": ""}
    with pytest.raises(CloudError):
        answer(a=[{"Value": "v"}]).tags("a")


def test_an_rpc_answer_has_a_request_id() -> None:
    assert rpc(answer(RequestId="R")).text("RequestId") == "R"
    with pytest.raises(CloudError) as caught:
        rpc(answer())
    assert caught.value.verdict is Verdict.UNKNOWN


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
def test_any_value_is_read_or_refused(value: Any) -> None:
    """No method lets another exception out, whatever a server sends."""
    it = answer(a=value)
    readers = (it.text, it.number, it.integer, it.flag, it.child, it.children, it.texts, it.mapping)
    for read in (*readers, it.json, it.json_object, it.json_list, it.moment, it.tags):
        try:
            read("a")
        except CloudError as error:
            assert error.verdict is Verdict.UNKNOWN


class TestPages:
    def test_by_token(self) -> None:
        pages: dict[str | None, tuple[list[int], str]] = {
            None: ([1], "t1"),
            "t1": ([2], "t2"),
            "t2": ([3], ""),
        }
        assert all_by_token(lambda token: pages[token]) == [1, 2, 3]

    def test_an_empty_page_with_a_token_is_not_the_end(self) -> None:
        pages: dict[str | None, tuple[list[int], str]] = {None: ([], "t1"), "t1": ([2], "")}
        assert all_by_token(lambda token: pages[token]) == [2]

    def test_a_token_that_repeats_ends_it(self) -> None:
        assert all_by_token(lambda token: ([1], "same")) == [1, 1]

    def test_a_server_that_goes_in_circles_ends(self) -> None:
        count = iter(range(10**6))
        assert len(all_by_token(lambda token: ([1], f"t{next(count)}"))) == PAGE_LIMIT

    def test_by_number(self) -> None:
        assert all_by_number(lambda number: ([number], 3)) == [1, 2, 3]
        assert all_by_number(lambda number: ([], 3)) == []
        assert all_by_number(lambda number: ([1, 2], 2)) == [1, 2]
