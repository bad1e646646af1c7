"""Builder args, environment and defaults: who wins, and what a wrong value is told."""

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.serving.options import ENVIRONMENT, UNTRAINED, ServingOptions, resolve_options


def test_defaults_need_nothing() -> None:
    options = resolve_options({}, {})
    assert options.model == UNTRAINED
    assert options.device == "auto"
    assert (options.num_cpus, options.num_gpus, options.replicas) == (1.0, 0.0, 1)


@pytest.mark.parametrize(("option", "variable"), ENVIRONMENT.items())
def test_environment_fills_what_args_leave_out(option: str, variable: str) -> None:
    assert getattr(resolve_options({}, {variable: "from-env"}), option) == "from-env"
    assert getattr(resolve_options({option: "from-args"}, {variable: "from-env"}), option) == "from-args"
    assert getattr(resolve_options({option: None}, {variable: "from-env"}), option) == "from-env"


def test_an_empty_variable_counts_as_unset() -> None:
    assert resolve_options({}, {"RAYNEST_MODEL": ""}).model == UNTRAINED


def test_unknown_key_names_itself_and_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="unknown key 'modle'; allowed: model, revision"):
        resolve_options({"modle": "x"}, {})


@given(
    st.text(string.ascii_lowercase + "_", min_size=1).filter(
        lambda key: key not in ServingOptions.model_fields
    )
)
def test_no_unknown_key_passes(key: str) -> None:
    with pytest.raises(ValueError, match="unknown key"):
        resolve_options({key: 1}, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device", "tpu"),
        ("dtype", "int8"),
        ("max_batch_size", 0),
        ("max_batch_size", "many"),
        ("queue_size", 0),
        ("deadline_s", 0),
        ("deadline_s", float("nan")),
        ("max_img_size", 100),
        ("num_gpus", -1),
        ("replicas", 0),
        ("default_guidance", float("nan")),
        ("default_guidance", float("inf")),
        ("model", ""),
    ],
)
def test_wrong_value_names_its_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"serving args: {key}: ") as caught:
        resolve_options({key: value}, {})
    assert "\n" not in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        resolve_options({"device": "tpu", "replicas": 0}, {})
    assert "device" in str(caught.value)
    assert "replicas" in str(caught.value)


@given(st.integers(1, 256), st.integers(1, 10_000))
def test_a_replica_holds_a_batch_and_the_queue(batch: int, queue: int) -> None:
    options = resolve_options({"max_batch_size": batch, "queue_size": queue}, {})
    assert options.replica_capacity == batch + queue


def test_a_full_request_twice_and_a_batch_fit_into_the_default_queue() -> None:
    options = ServingOptions()
    assert options.images_per_request == options.max_images_per_request == 64
    assert options.replica_capacity >= 2 * options.max_images_per_request + options.max_batch_size


def test_the_default_of_images_per_request_gives_way_and_a_wish_does_not() -> None:
    assert resolve_options({"queue_size": 6, "max_batch_size": 4}, {}).images_per_request == 10
    small = {"queue_size": 6, "max_batch_size": 4, "replicas": 2}
    assert resolve_options({**small, "max_images_per_request": 20}, {}).images_per_request == 20
    with pytest.raises(ValueError, match="serving args: .*max_images_per_request is 21, but .* hold 20"):
        resolve_options({**small, "max_images_per_request": 21}, {})


@pytest.mark.parametrize(
    ("args", "fewest", "most"),
    [
        ({}, 1, 1),
        ({"replicas": 3}, 3, 3),
        ({"max_replicas": 4}, 1, 4),
        ({"min_replicas": 2, "max_replicas": 2}, 2, 2),
    ],
)
def test_replicas_are_fixed_or_a_range(args: dict[str, int], fewest: int, most: int) -> None:
    options = resolve_options(args, {})
    assert (options.fewest_replicas, options.most_replicas) == (fewest, most)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"min_replicas": 2}, "min_replicas needs max_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas is below min_replicas"),
        ({"replicas": 2, "max_replicas": 3}, "replicas is a fixed number"),
        ({"min_replicas": 0, "max_replicas": 3}, "min_replicas: "),
    ],
)
def test_a_range_of_replicas_that_contradicts_itself_is_refused(args: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=f"serving args: .*{reason}") as caught:
        resolve_options(args, {})
    assert "args: :" not in str(caught.value)


def test_default_steps_beyond_the_most_are_refused() -> None:
    with pytest.raises(ValueError, match="serving args: .*default_steps is 200; max_steps is 150"):
        resolve_options({"default_steps": 200}, {})


@pytest.mark.parametrize("option", ServingOptions.model_fields)
def test_every_option_is_documented_with_its_default(option: str) -> None:
    rows = re.findall(
        rf"^\| `{option}` \| (.*?) \|", Path("docs/operations.md").read_text("utf-8"), re.MULTILINE
    )
    default = ServingOptions.model_fields[option].default
    told = "unset" if default in (None, ()) else f"`{str(default).lower()}`"
    assert rows == [told]


def test_options_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolve_options({}, {}).model = "other"  # type: ignore[misc]
