"""The engine `ray`: the plan that follows from the settings."""

import pytest

from raynest_pipeline.errors import InputError
from raynest_pipeline.images.bulk.by_actors import options_of
from raynest_pipeline.images.bulk.engine import ray_batch
from raynest_pipeline.images.bulk.plan import Plan
from raynest_pipeline.settings import load_settings


def test_the_plan_follows_the_settings() -> None:
    settings = load_settings(
        profile="kubeconfig",
        kubeconfig={"path": "k"},
        batch={"ray_mode": "actors", "ray_actors": 7, "size": 64, "attempts": 2},
        ray_service={"model": "m", "gpus_per_replica": 2, "pip_index_url": "https://example.org/simple"},
    )
    made = ray_batch(settings, "b", "oss://bucket/out", "f" * 64)
    plan = made.plan
    assert (plan.mode, plan.actors, plan.gpus, plan.size, plan.attempts) == ("actors", 7, 2.0, 64, 2)
    assert plan.serving == {"model": "m", "num_gpus": 2.0, "replicas": 1, "max_batch_size": 8}
    assert made.pip(["ossfs", "yaml"]) == {
        "packages": ["ossfs", "pyyaml"],
        "pip_install_options": ["--index-url", "https://example.org/simple"],
    }, "no model's packages for a missing driver"
    assert made.pip(["torch", "ossfs"])["packages"] == [*settings.ray_service.pip_packages, "ossfs"]
    assert Plan.from_json(plan.to_json()) == plan


def test_actors_get_the_options_of_the_serve_replicas() -> None:
    settings = load_settings(
        profile="kubeconfig",
        kubeconfig={"path": "k"},
        batch={"ray_mode": "actors", "ray_gpus": 0.5, "deadline_seconds": 60, "verify": True},
        ray_service={
            "model": "oss://bucket/sd",
            "replicas": 3,
            "serving": {"scheduler": "unipc", "compile": "default", "max_images_per_request": 300},
            "pip_packages": ["torch", "diffusers"],
        },
    )
    made = ray_batch(settings, "b", "oss://bucket/out", "f" * 64)
    assert made.plan.serving == settings.ray_service.serving_args() | {"num_gpus": 0.5}
    options = options_of(made.plan)
    assert (options.scheduler, options.compile, options.num_gpus) == ("unipc", "default", 0.5)
    assert made.model_packages == ("torch", "diffusers", "ossfs")
    assert (made.plan.deadline_seconds, made.plan.verify, made.plan.limits) == (60, True, True)


@pytest.mark.parametrize(("mode", "known"), [("serve", False), ("actors", True)])
def test_a_manifest_of_the_user_s_own_has_limits_of_its_own(mode: str, known: bool) -> None:
    settings = load_settings(
        profile="kubeconfig",
        kubeconfig={"path": "k"},
        batch={"ray_mode": mode},
        ray_service={"manifest": "own.yaml"},
    )
    assert ray_batch(settings, "b", "oss://bucket/out", "f" * 64).plan.limits is known


def test_a_folder_of_this_machine_is_refused_before_anything_is_sent() -> None:
    settings = load_settings(profile="kubeconfig", kubeconfig={"path": "k"}, batch={"engine": "ray"})
    with pytest.raises(InputError, match="is on this machine") as caught:
        ray_batch(settings, "b", "/home/me/images", "f" * 64)
    assert "batch.ray_output" in caught.value.fix


def test_a_mounted_folder_is_named_as_the_nodes_see_it() -> None:
    settings = load_settings(
        profile="kubeconfig", kubeconfig={"path": "k"}, batch={"ray_output": "/mnt/images/"}
    )
    assert ray_batch(settings, "b", "/home/me/images", "f" * 64).plan.root == "/mnt/images"


@pytest.mark.parametrize("there", ["images", "./images", "~/images", "/"])
def test_a_folder_that_each_node_would_take_for_another_is_refused(there: str) -> None:
    settings = load_settings(profile="kubeconfig", kubeconfig={"path": "k"}, batch={"ray_output": there})
    with pytest.raises(InputError, match="no absolute path on the nodes"):
        ray_batch(settings, "b", "/home/me/images", "f" * 64)


def test_the_sandbox_s_nodes_are_on_this_machine_and_have_no_gpu() -> None:
    plan = ray_batch(load_settings(), "b", "/home/me/images", "f" * 64).plan
    assert (plan.root, plan.gpus) == ("/home/me/images", 0.0)
