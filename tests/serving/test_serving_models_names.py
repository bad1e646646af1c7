"""What `model` may say."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.serving.modelname import (
    HUB_MODELS,
    MODELSCOPE_MODEL,
    STORE_PACKAGES,
    Kind,
    ModelUnavailable,
    advice,
    one_line,
    parse_model,
)


@pytest.mark.parametrize(
    ("model", "kind", "place", "revision"),
    [
        ("tiny-untrained", Kind.UNTRAINED, "tiny-untrained", None),
        ("/models/sd", Kind.FOLDER, "/models/sd", None),
        ("./sd", Kind.FOLDER, "./sd", None),
        ("~/sd", Kind.FOLDER, "~/sd", None),
        ("a/b/c", Kind.FOLDER, "a/b/c", None),
        ("org/name", Kind.HUB, "org/name", None),
        ("gpt2", Kind.HUB, "gpt2", None),
        ("org/na.me-1_x", Kind.HUB, "org/na.me-1_x", None),
        ("modelscope://org/name", Kind.MODELSCOPE, "org/name", None),
        ("modelscope://org/name@v1.0", Kind.MODELSCOPE, "org/name", "v1.0"),
        ("s3://bucket/models/sd/", Kind.STORE, "s3://bucket/models/sd", None),
        ("oss://bucket", Kind.STORE, "oss://bucket", None),
        ("gs://bucket/sd", Kind.STORE, "gs://bucket/sd", None),
        ("file:///mnt/sd", Kind.STORE, "file:///mnt/sd", None),
        ("memory://b/sd", Kind.STORE, "memory://b/sd", None),
    ],
)
def test_each_kind_is_known_by_its_form(model: str, kind: Kind, place: str, revision: str | None) -> None:
    name = parse_model(model)
    assert (name.kind, name.place, name.revision, name.asked) == (kind, place, revision, model)


def test_a_folder_that_exists_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_model("org/name").kind is Kind.FOLDER


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("bad id!", "no Hugging Face id"),
        ("org/", "no Hugging Face id"),
        ("-org/name", "no Hugging Face id"),
        ("o" * 97, "no Hugging Face id"),
        ("https://huggingface.co/org/name", "is a web address; write org/name"),
        ("http://modelscope.cn/models/org/name", "modelscope://org/name"),
        ("modelscope://name", "must read modelscope://org/name"),
        ("modelscope://org/name@", "must read modelscope://org/name"),
        ("modelscope://org/name/more", "must read modelscope://org/name"),
        ("ftp://host/x", "known are modelscope://, s3://, oss://, gs://, file://, memory://"),
        ("s3://", "names no bucket"),
        ("oss:///", "names no bucket"),
    ],
)
def test_what_can_be_none_is_told_with_the_alternatives(model: str, told: str) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        parse_model(model)
    message = str(caught.value)
    assert repr(model) in message and told in message
    assert message.endswith(advice())


@pytest.mark.parametrize(
    "model", ["s3://AKIA:hush@bucket/sd", "oss://hush@bucket", "https://me:hush@hub.example/org/name"]
)
def test_credentials_in_a_model_s_name_are_refused_and_never_told(model: str) -> None:
    with pytest.raises(ModelUnavailable, match="carries credentials.*belong in the environment") as caught:
        parse_model(model)
    assert "hush" not in str(caught.value)
    assert parse_model("modelscope://org/name@v1").revision == "v1"
    assert parse_model("s3://bucket/team@home").place == "s3://bucket/team@home"


def test_an_error_s_line_is_without_a_url_s_credentials() -> None:
    told = one_line("GET https://me:hush@hub.example/api?to=a@b\nand http://hush@host failed")
    assert told == "GET https://***@hub.example/api?to=a@b and http://***@host failed"


@pytest.mark.parametrize("revision", ["a b", "../x", "", "-x", "refs/../x"])
def test_a_revision_that_cannot_be_one_is_refused(revision: str) -> None:
    for model in ("org/name", "modelscope://org/name"):
        if revision or model == "org/name":
            with pytest.raises(ModelUnavailable, match="no branch, tag or commit"):
                parse_model(model, revision)


def test_two_revisions_that_differ_are_refused() -> None:
    assert parse_model("modelscope://org/name@v1", "v1").revision == "v1"
    with pytest.raises(ModelUnavailable, match="contradict"):
        parse_model("modelscope://org/name@v1", "v2")


def test_the_advice_names_one_of_each_kind() -> None:
    for text in (
        "folder",
        HUB_MODELS,
        MODELSCOPE_MODEL,
        "oss://",
        "tiny-untrained",
        "HF_ENDPOINT",
        "hf-mirror.com",
    ):
        assert text in advice()
    assert parse_model(MODELSCOPE_MODEL).kind is Kind.MODELSCOPE
    for model in HUB_MODELS.split(", "):
        assert parse_model(model).kind is Kind.HUB


@given(st.text(max_size=30), st.none() | st.text(max_size=10))
def test_any_text_is_a_name_or_a_one_line_message(model: str, revision: str | None) -> None:
    try:
        name = parse_model(model, revision)
    except ModelUnavailable as error:
        assert "\n" not in str(error)
    else:
        assert name.asked == model
        assert name.kind is not Kind.STORE or name.scheme in STORE_PACKAGES


@given(st.text(max_size=400))
def test_one_line_is_one_short_line(text: str) -> None:
    assert "\n" not in one_line(text) and len(one_line(text)) <= 300


def test_names_cost_no_model_library() -> None:
    code = (
        "import sys, raynest_pipeline.serving.locate\n"
        "print(sorted(set(sys.modules) & {'torch', 'diffusers', 'huggingface_hub', 'requests', 'fsspec'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
