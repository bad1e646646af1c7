"""`ray_service.serving` reaches the Serve application, and gives way to settings of their own names."""

from typing import Any

import yaml

from raynest_pipeline.kube.rayservice.manifest import build_manifest
from raynest_pipeline.serving.options import resolve_options
from raynest_pipeline.settings import Settings
from raynest_pipeline.settings_sections import RayServiceSettings


def arguments(**changes: Any) -> dict[str, Any]:
    settings = Settings(ray_service=RayServiceSettings(code="image", image="example/ray", **changes))
    *_, service = build_manifest(settings, serving_files={}, token_auth=False, namespace="demo", nonce=None)
    found: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    return found


def test_options_of_the_application_come_from_the_settings() -> None:
    wanted = {"compile": "default", "bucket_batches": [1, 8], "scheduler": "dpmsolver++"}
    options = resolve_options(arguments(serving=wanted), {})
    assert (options.compile, options.bucket_batches, options.scheduler) == ("default", (1, 8), "dpmsolver++")


def test_a_setting_of_its_own_name_wins() -> None:
    assert arguments(serving={"max_batch_size": 2}, max_batch_size=4)["max_batch_size"] == 4


def test_without_them_nothing_is_added() -> None:
    assert not {"compile", "scheduler", "dtype"} & set(arguments())
