"""`ray_service.serving` reaches the Serve application; what that would refuse is refused before."""

import re
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from raynest_pipeline.kube.rayservice.manifest import build_manifest
from raynest_pipeline.serving.options import resolve_options
from raynest_pipeline.settings import RayServiceSettings, Settings


def arguments(**changes: Any) -> dict[str, Any]:
    settings = Settings(ray_service=RayServiceSettings(code="image", image="example/ray", **changes))
    *_, service = build_manifest(settings, serving_files={}, token_auth=False, namespace="demo", nonce=None)
    found: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    return found


def test_options_of_the_application_come_from_the_settings() -> None:
    wanted = {"compile": "default", "bucket_batches": [1, 8], "scheduler": "dpmsolver++"}
    options = resolve_options(arguments(serving=wanted), {})
    assert (options.compile, options.bucket_batches, options.scheduler) == ("default", (1, 8), "dpmsolver++")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"serving": {"max_batch_size": 2}}, "a setting of its own: ray_service.max_batch_size"),
        ({"serving": {"num_gpus": 2}}, "a setting of its own: ray_service.gpus_per_replica"),
        ({"serving": {"max_replicas": 2}}, "a setting of its own: ray_service.max_replicas"),
        ({"serving": {"compiled": "default"}}, "unknown key 'compiled'; allowed: model, "),
        ({"serving": {"bucket_batches": [16]}}, "bucket_batches has 16; max_batch_size is 8"),
        ({"serving": {"max_steps": "many"}}, "max_steps: Input should be a valid integer"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas is 2, but replicas, the fewest, is 3"),
    ],
)
def test_what_cannot_work_is_told_with_the_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        RayServiceSettings(**settings)


def test_autoscaling_reaches_serve_and_the_worker_group() -> None:
    settings = Settings(ray_service=RayServiceSettings(replicas=2, max_replicas=5))
    *_, service = build_manifest(settings, serving_files={}, token_auth=False, namespace="demo")
    config = service["spec"]["rayClusterConfig"]
    (group,) = config["workerGroupSpecs"]
    assert config["enableInTreeAutoscaling"] is True
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 5)
    options = resolve_options(arguments(replicas=2, max_replicas=5), {})
    assert (options.fewest_replicas, options.most_replicas) == (2, 5)


def test_without_a_maximum_nothing_scales_by_itself() -> None:
    *_, service = build_manifest(Settings(), serving_files={}, token_auth=False, namespace="demo")
    assert "enableInTreeAutoscaling" not in service["spec"]["rayClusterConfig"]
    assert arguments()["replicas"] == 1


def test_without_them_nothing_is_added() -> None:
    assert not {"compile", "scheduler", "dtype"} & set(arguments())
