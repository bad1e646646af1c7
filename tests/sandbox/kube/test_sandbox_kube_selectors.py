"""Label and field selectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.sandbox.kube import selectors
from raynest_pipeline.sandbox.kube.errors import ApiError

POD = {
    "metadata": {"name": "p", "namespace": "demo", "labels": {"ray.io/node-type": "head", "app": "x"}},
    "status": {"phase": "Running"},
}


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("", True),
        ("app=x", True),
        ("app==x", True),
        ("app=y", False),
        ("app!=y", True),
        ("app!=x", False),
        ("missing!=x", True),
        ("ray.io/node-type=head,app=x", True),
        ("ray.io/node-type=head,app=y", False),
        ("app in (x, y)", True),
        ("app in (y)", False),
        ("app notin (x,y)", False),
        ("missing notin (x)", True),
        ("app in (x,y),ray.io/node-type=head", True),
        ("app", True),
        ("missing", False),
        ("!missing", True),
        ("!app", False),
    ],
)
def test_labels(selector: str, matches: bool) -> None:
    assert selectors.labels(selector)(POD) is matches


def test_an_object_without_labels_has_none() -> None:
    assert not selectors.labels("app=x")({"metadata": {"name": "p"}})
    assert selectors.labels("!app")({"metadata": {"labels": None}})


@pytest.mark.parametrize("selector", ["a=b=c", "a in x", "(a)", "a b"])
def test_a_selector_that_cannot_be_parsed_is_400(selector: str) -> None:
    with pytest.raises(ApiError) as caught:
        selectors.labels(selector)
    assert caught.value.code == 400


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("", True),
        ("metadata.name=p", True),
        ("metadata.name=q", False),
        ("metadata.name!=q", True),
        ("metadata.name=p,metadata.namespace=demo", True),
        ("status.phase=Running", True),
        ("status.phase!=Running", False),
        ("spec.nodeName=", True),
    ],
)
def test_fields(selector: str, matches: bool) -> None:
    assert selectors.fields(selector, ("status.phase", "spec.nodeName"))(POD) is matches


def test_a_field_that_the_resource_does_not_support_is_400() -> None:
    with pytest.raises(ApiError, match="field label not supported: spec.color"):
        selectors.fields("spec.color=red", ("status.phase",))
    assert not selectors.fields("spec.color=red", ("*",))(POD)


def test_a_field_selector_without_an_operator_is_400() -> None:
    with pytest.raises(ApiError, match="can't understand it"):
        selectors.fields("metadata.name", ())


@given(st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), min_size=1))
def test_an_object_matches_the_selector_made_of_its_own_labels(labels: dict[str, str]) -> None:
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    assert selectors.labels(selector)({"metadata": {"labels": labels}})
    negated = ",".join(f"{key}!={value}" for key, value in labels.items())
    assert not selectors.labels(negated)({"metadata": {"labels": labels}})
