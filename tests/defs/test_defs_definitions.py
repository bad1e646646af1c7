"""Exactly what Dagster loads, for each profile, and what loading it costs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from raynest_pipeline.definitions import build_definitions
from raynest_pipeline.settings import Settings

LINKS = {"cluster", "public_ip", "kubeconfig", "ray_service"}
IMAGES = {"batch_images", "gallery"}
BATCH_CHECKS = {
    f"batch_images/{name}" for name in ("complete", "valid", "no_near_duplicates", "same_seed", "pace")
}


def of_profile(profile: str) -> dg.Definitions:
    more: dict[str, Any] = {"kubeconfig": {"path": "kc.yaml"}} if profile == "kubeconfig" else {}
    return build_definitions(Settings(profile=profile, **more))  # type: ignore[arg-type]


def assets(defs: dg.Definitions) -> dict[str, Any]:
    graph = defs.resolve_asset_graph()
    return {key.to_user_string(): graph.get(key) for key in graph.get_all_asset_keys()}


def checks(defs: dg.Definitions) -> set[str]:
    return {
        f"{key.asset_key.to_user_string()}/{key.name}" for key in defs.resolve_asset_graph().asset_check_keys
    }


@pytest.mark.parametrize("profile", ["alibaba", "sandbox"])
def test_a_profile_that_buys_has_everything(profile: str) -> None:
    defs = of_profile(profile)
    assert set(assets(defs)) == LINKS | IMAGES | {"preflight"}
    assert checks(defs) == {
        "cluster/healthy",
        "public_ip/healthy",
        "public_ip/worker_egress",
        "kubeconfig/healthy",
        "ray_service/healthy",
        *BATCH_CHECKS,
    }


def test_the_kubeconfig_profile_skips_what_is_there_already() -> None:
    defs = of_profile("kubeconfig")
    assert set(assets(defs)) == {"ray_service", *IMAGES}
    assert checks(defs) == {"ray_service/healthy", *BATCH_CHECKS}


@pytest.mark.parametrize("profile", ["alibaba", "sandbox", "kubeconfig"])
def test_jobs_sensors_schedules_and_resources(profile: str) -> None:
    defs = of_profile(profile)
    dg.Definitions.validate_loadable(defs)
    repository = defs.get_repository_def()
    jobs = {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")}
    assert jobs == {"provision", "redeploy", "plan", "teardown", "generate_batch"}
    assert {sensor.name for sensor in repository.sensor_defs} == {"cluster_health", "inbox"}
    assert {schedule.name for schedule in repository.schedule_defs} == {"daily_batch"}
    assert set(repository.get_top_level_resources()) == {"raynest"}


@pytest.mark.parametrize(
    ("profile", "order"),
    [
        (
            "alibaba",
            ["preflight", "cluster", "public_ip", "kubeconfig", "ray_service", "batch_images", "gallery"],
        ),
        ("kubeconfig", ["ray_service", "batch_images", "gallery"]),
    ],
)
def test_the_graph_reads_from_left_to_right(profile: str, order: list[str]) -> None:
    found = assets(of_profile(profile))
    parents = {name: [key.to_user_string() for key in node.parent_keys] for name, node in found.items()}
    assert parents == {name: order[max(0, i - 1) : i] for i, name in enumerate(order)}


def test_every_asset_is_described_owned_and_grouped() -> None:
    for name, node in assets(of_profile("alibaba")).items():
        assert node.description and len(node.description) > 40, name
        assert node.owners, name
        assert node.kinds, name
        assert node.group_name == ("images" if name in IMAGES else "chain")
        assert len(name) <= 28, "longer names are cut in the graph"


def test_every_check_job_sensor_and_schedule_is_described() -> None:
    defs = of_profile("alibaba")
    graph = defs.resolve_asset_graph()
    for key in graph.asset_check_keys:
        assert graph.get_check_spec(key).description, key
    repository = defs.get_repository_def()
    for job in repository.get_all_jobs():
        assert job.description or job.name.startswith("__"), job.name
    assert all(item.description for item in (*repository.sensor_defs, *repository.schedule_defs))


def test_only_batches_are_partitioned() -> None:
    found = assets(of_profile("alibaba"))
    assert {name for name, node in found.items() if node.partitions_def} == IMAGES
    assert {found[name].partitions_def.name for name in IMAGES} == {"batches"}


@pytest.mark.parametrize(
    ("per_run", "policy"),
    [
        (0, dg.BackfillPolicy.single_run()),
        (1, dg.BackfillPolicy.multi_run(1)),
        (7, dg.BackfillPolicy.multi_run(7)),
    ],
)
def test_a_backfill_takes_as_many_batches_a_run_as_the_settings_say(
    per_run: int, policy: dg.BackfillPolicy
) -> None:
    found = assets(build_definitions(Settings(batch={"batches_per_run": per_run})))  # type: ignore[arg-type]
    assert {found[name].backfill_policy for name in IMAGES} == {policy}


def test_batches_share_the_pool_of_the_endpoint() -> None:
    found = assets(of_profile("alibaba"))
    assert {name: node.pools for name, node in found.items() if node.pools} == {
        "batch_images": {"gpu_endpoint"}
    }


@pytest.mark.parametrize(
    ("profile", "job", "selected"),
    [
        ("alibaba", "provision", LINKS | {"preflight"}),
        ("alibaba", "redeploy", LINKS),
        ("alibaba", "generate_batch", IMAGES),
        ("kubeconfig", "provision", {"ray_service"}),
        ("kubeconfig", "redeploy", {"ray_service"}),
    ],
)
def test_what_each_job_materializes(profile: str, job: str, selected: set[str]) -> None:
    job_def = of_profile(profile).resolve_job_def(job)
    assert {key.to_user_string() for key in job_def.asset_layer.selected_asset_keys} == selected
    assert job_def.executor_def is dg.in_process_executor, "a process for each short step costs seconds"


@pytest.mark.parametrize(
    ("job", "changes"), [("provision", True), ("redeploy", True), ("teardown", True), ("plan", False)]
)
def test_what_changes_the_chain_says_so(job: str, changes: bool) -> None:
    tags = of_profile("alibaba").resolve_job_def(job).tags
    assert (tags.get("raynest/changes") == "chain") is changes


def test_the_settings_shape_the_sensor_and_the_schedule() -> None:
    settings = Settings(
        health={"interval_seconds": 45},  # type: ignore[arg-type]
        schedule={"cron": "30 5 * * *", "timezone": "Europe/Berlin"},  # type: ignore[arg-type]
    )
    defs = build_definitions(settings)
    sensor = defs.resolve_sensor_def("cluster_health")
    assert sensor.minimum_interval_seconds == 45
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    schedule = defs.resolve_schedule_def("daily_batch")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 5 * * *", "Europe/Berlin")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED, "nothing is drawn unasked"


PROBE = """
import json, sys, warnings
import dagster as dg
before = set(sys.modules)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import raynest_pipeline.definitions as module
    dg.Definitions.validate_loadable(module.defs)
modules = sorted({name.split(".")[0] for name in set(sys.modules) - before})
told = [str(w.message) for w in caught if "raynest" in w.filename
        or isinstance(w.message, (dg.BetaWarning, dg.PreviewWarning, dg.SupersessionWarning))]
print(json.dumps({"modules": modules, "warnings": told}))
"""
HEAVY = ("ray", "kubernetes", "torch", "diffusers", "transformers", "PIL", "alibabacloud", "Tea", "darabonba")


def test_loading_is_cheap_and_warns_of_nothing(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAYNEST_")}
    result = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(result.stdout)
    heavy = [name for name in found["modules"] if name in HEAVY or name.startswith("alibabacloud")]
    assert heavy == []
    assert found["warnings"] == []
    assert list(tmp_path.iterdir()) == [], "loading writes nothing"


def test_settings_that_are_wrong_are_told_when_dagster_loads(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", "import raynest_pipeline.definitions"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "RAYNEST_NAME": "Not_A_Name"},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "name: must be 1 to 63" in result.stderr
