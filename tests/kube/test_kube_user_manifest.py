"""A user's own YAML: taken as it is, checked before anything is sent; and the redeploy nonce in it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.errors import InputError, UnreachableError
from raynest_pipeline.kube.rayservice.manifest import app_names, load_user_manifest, nonce_of, with_nonce
from raynest_pipeline.kube.rayservice.serve_config import MANIFEST_VARIABLE, marks_of, with_variables

STOCK = """\
# As KubeRay's sample has it (shortened).
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: stable-diffusion
spec:
  serveConfigV2: |
    applications:
      - name: stable_diffusion
        import_path: stable_diffusion.stable_diffusion:entrypoint
        runtime_env:
          working_dir: "https://github.com/ray-project/serve_config_examples/archive/b8af221.zip"
          pip: ["diffusers==0.32.2", "transformers==4.48.2"]
  rayClusterConfig:
    rayVersion: "2.46.0"
    headGroupSpec:
      rayStartParams: {}
      template:
        spec:
          containers:
            - name: ray-head
              image: rayproject/ray-ml:2.46.0.0e19ea-py39-gpu
"""
OWN = """\
apiVersion: v1
kind: Secret
metadata: {name: hf, namespace: elsewhere}
---
---
apiVersion: v1
kind: Namespace
metadata: {name: demo}
---
apiVersion: ray.io/v1
kind: RayService
metadata: {name: mine}
spec:
  serveConfigV2: |
    applications:
      - {name: a, import_path: "x:y"}
      - {import_path: "x:z", route_prefix: /z}
  rayClusterConfig: {headGroupSpec: {}}
"""


def load(tmp_path: Path, text: str, **options: Any) -> Any:
    path = tmp_path / "ray service.yaml"
    path.write_text(text, encoding="utf-8")
    return load_user_manifest(str(path), **options)


def test_the_stock_sample_is_taken_as_it_is_with_a_warning(tmp_path: Path) -> None:
    loaded = load(tmp_path, STOCK)
    assert loaded.objects == [yaml.safe_load(STOCK)]
    assert app_names(loaded.ray_service) == ("stable_diffusion",)
    assert "stabilityai/stable-diffusion-2" in loaded.notes[0] and "deleted" in loaded.notes[0]
    assert "ray-ml" in loaded.notes[1]


def test_a_manifest_of_ones_own(tmp_path: Path) -> None:
    loaded = load(tmp_path, OWN, namespace="demo")
    assert [obj["kind"] for obj in loaded.objects] == ["Secret", "Namespace", "RayService"]
    assert loaded.ray_service is loaded.objects[-1]
    assert [obj["metadata"].get("namespace") for obj in loaded.objects] == ["elsewhere", None, "demo"]
    assert loaded.notes == ()
    assert app_names(loaded.ray_service) == ("a", "default")


def test_a_list_is_its_items(tmp_path: Path) -> None:
    items = list(yaml.safe_load_all(STOCK))
    loaded = load(tmp_path, yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
    assert loaded.objects == items


def test_a_model_that_is_named_is_warned_about(tmp_path: Path) -> None:
    text = OWN.replace('"x:y"', '"x:y", args: {model: stabilityai/stable-diffusion-2}')
    assert "Repository Not Found" in load(tmp_path, text).notes[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds 0"),
        ("just text", "document 1: not a Kubernetes object, but str"),
        ("kind: RayService", "document 1: has no apiVersion"),
        ("apiVersion: v1", "document 1: has no kind"),
        ("apiVersion: v1\nkind: Pod", "document 1: has no metadata.name"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: ''}", "document 1: has no metadata.name"),
        ("a: [1\nb: {", "line 2"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: x}", "found: Pod"),
        (f"{STOCK}---\n{STOCK}", "holds 2"),
        (STOCK.replace("ray.io/v1", "example.com/v1"), "example.com/v1 is not ray.io/v1"),
        (STOCK.replace("rayClusterConfig", "rayCluster"), "no spec.rayClusterConfig"),
        (STOCK.replace("serveConfigV2: |", "serveConfigV2:"), "not a text"),
        (STOCK.replace("applications:", "applications: ["), "not valid YAML"),
        (STOCK.replace("    applications:\n", "    others:\n"), "names no application"),
        (f"{STOCK}---\n- 1\n", "document 2: not a Kubernetes object, but list"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert problem in str(caught.value)
    assert "ray service.yaml" in caught.value.what


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00k", b"x" * 2_000_001])
def test_an_unreadable_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_user_manifest(str(path))
    assert str(path) in caught.value.what


def test_yaml_that_would_run_code_does_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not valid YAML"):
        load(tmp_path, "a: !!python/object/apply:os.system ['true']")


@pytest.fixture
def site(tools: Any, tmp_path: Path) -> Any:
    with tools.serving(None, tmp_path) as server:
        server.require_token = False
        yield server


def test_a_url_is_downloaded_redirects_followed(site: Any, tools: Any) -> None:
    site.on("GET /m.yaml", tools.Answer(302, "", {"Location": f"{site.url}/real.yaml"}))
    site.on("GET /real.yaml", tools.Answer(200, STOCK, {"Content-Type": "text/plain"}))
    assert load_user_manifest(f"{site.url}/m.yaml").ray_service["metadata"]["name"] == "stable-diffusion"


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (404, "not found", "HTTP 404"),
        (200, b"\xff\xfe\x00k", "UTF-8"),
        (200, b"x" * 2_000_001, "too large"),
        (200, "<html></html>", "document 1"),
    ],
)
def test_a_url_with_something_else(site: Any, tools: Any, status: int, body: Any, problem: str) -> None:
    site.on("GET /m.yaml", tools.Answer(status, body))
    with pytest.raises(InputError, match=problem):
        load_user_manifest(f"{site.url}/m.yaml")


def test_a_url_that_does_not_answer(tools: Any, tmp_path: Path) -> None:
    with tools.serving(None, tmp_path) as server:
        url = server.url
    with pytest.raises(UnreachableError) as caught:
        load_user_manifest(f"{url}/m.yaml")
    assert "Download it elsewhere" in caught.value.fix


def test_a_nonce_goes_into_every_application(tmp_path: Path) -> None:
    service = load(tmp_path, OWN).ray_service
    before = copy.deepcopy(service)
    changed = with_nonce(service, "n1")
    assert service == before
    assert nonce_of(service) is None and nonce_of(changed) == "n1"
    apps = yaml.safe_load(changed["spec"]["serveConfigV2"])["applications"]
    assert [app["runtime_env"]["env_vars"]["RAYNEST_REDEPLOY_NONCE"] for app in apps] == ["n1", "n1"]
    assert changed["spec"]["rayClusterConfig"] == service["spec"]["rayClusterConfig"]


def test_marks_are_told_from_the_applications_own_variables(tmp_path: Path) -> None:
    service = load(tmp_path, OWN).ray_service
    assert marks_of(service) == {"a": {}, "default": {}}
    marked = with_variables(service, {MANIFEST_VARIABLE: "d1", "OTHER": "x"})
    assert marks_of(marked) == {"a": {MANIFEST_VARIABLE: "d1"}, "default": {MANIFEST_VARIABLE: "d1"}}
    assert nonce_of(marked) is None
    both = {MANIFEST_VARIABLE: "d1", "RAYNEST_REDEPLOY_NONCE": "n1"}
    assert marks_of(with_nonce(marked, "n1")) == {"a": both, "default": both}


def test_a_nonce_keeps_the_rest_of_the_environment(tmp_path: Path) -> None:
    changed = with_nonce(load(tmp_path, STOCK).ray_service, "n1")
    (app,) = yaml.safe_load(changed["spec"]["serveConfigV2"])["applications"]
    assert app["runtime_env"]["pip"] == ["diffusers==0.32.2", "transformers==4.48.2"]
    assert app["runtime_env"]["working_dir"].endswith(".zip")


def test_a_nonce_survives_what_is_no_application(tmp_path: Path) -> None:
    service = load(tmp_path, OWN).ray_service
    service["spec"]["serveConfigV2"] = "applications: [text, {name: a, runtime_env: 5}]"
    assert nonce_of(with_nonce(service, "n1")) == "n1"


@given(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20), st.text(max_size=20))
def test_the_last_nonce_counts(first: str, second: str) -> None:
    service = yaml.safe_load(STOCK)
    once = with_nonce(service, first)
    assert nonce_of(once) == first
    assert nonce_of(with_nonce(once, second)) == second
    assert with_nonce(with_nonce(once, second), first) == once
