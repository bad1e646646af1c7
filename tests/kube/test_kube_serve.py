"""Reads of Serve: routes, health, applications, and one real image, from servers good and bad."""

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.errors import Verdict
from raynest_pipeline.kube.client import KubeClient
from raynest_pipeline.kube.errors import KubeError
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.kube.rayservice import serve


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0\0"))
        + chunk(b"IEND", b"")
        + extra
    )


@pytest.fixture
def site(tools: Any, tmp_path: Path) -> Any:
    with tools.serving(None, tmp_path) as server:
        server.require_token = False
        yield server


@pytest.fixture
def target(site: Any) -> HttpTarget:
    return HttpTarget.plain(site.url)


def image(tools: Any, body: bytes = png(), kind: str = "image/png", status: int = 200) -> Any:
    return tools.Answer(status, body, {"Content-Type": kind})


def test_routes(site: Any, target: HttpTarget) -> None:
    site.on("GET /-/routes", {"/": "stable_diffusion"})
    assert serve.routes(target) == {"/": "stable_diffusion"}


def test_routes_that_are_not_routes(site: Any, target: HttpTarget, tools: Any) -> None:
    site.on("GET /-/routes", tools.Answer(200, "<html>", {"Content-Type": "text/html"}))
    with pytest.raises(KubeError) as caught:
        serve.routes(target)
    assert caught.value.verdict is Verdict.PERMANENT


def test_routes_of_a_service_without_pods(site: Any, target: HttpTarget, tools: Any) -> None:
    body = tools.status_object(503, "ServiceUnavailable", 'no endpoints available for service "s:8000"')
    site.on("GET /-/routes", tools.Answer(503, body))
    with pytest.raises(KubeError) as caught:
        serve.routes(target)
    assert caught.value.verdict is Verdict.RETRYABLE
    assert "no pod is behind the service" in caught.value.why


def test_routes_of_a_server_that_is_gone(tools: Any, tmp_path: Path) -> None:
    with tools.serving(None, tmp_path) as server:
        gone = HttpTarget.plain(server.url)
    with pytest.raises(KubeError) as caught:
        serve.routes(gone)
    assert "refused" in caught.value.why


def test_applications_of_the_dashboard_with_rays_own_token(config_file: Path, api: Any, tools: Any) -> None:
    path = "/api/v1/namespaces/demo/services/sd-head-svc:8265/proxy/api/serve/applications/"
    recorded = tools.data("serve_applications")["kill_11.63"]
    config = {"name": recorded["name"], "runtime_env": {"env_vars": {"PYTHONPATH": "/srv/app"}}}
    listed = {recorded["name"]: {**recorded, "deployed_app_config": config}}
    api.on(f"GET {path}", {"applications": listed, "proxies": {}})
    with KubeClient.from_file(config_file) as client:
        dashboard = client.service_proxy("demo", "sd-head-svc", 8265)
        deployed = serve.applications(dashboard, token="ray-token")["stable_diffusion"]
    found = deployed.status
    assert deployed.variables == {"PYTHONPATH": "/srv/app"}
    assert (found.name, found.status) == ("stable_diffusion", "UNHEALTHY")
    assert {d.name: d.status for d in found.deployments} == {"Model": "UNHEALTHY", "APIIngress": "HEALTHY"}
    asked = api.calls(f"GET {path}")[0]
    assert asked.headers["x-ray-authorization"] == "Bearer ray-token"
    assert asked.headers["authorization"] == f"Bearer {tools.token}"


def test_no_applications_yet(site: Any, target: HttpTarget) -> None:
    site.on("GET /api/serve/applications/", {"controller_info": {}, "proxies": {}, "applications": {}})
    assert serve.applications(target) == {}


def openapi(**parameters: Any) -> dict[str, Any]:
    listed = [{"name": name, "in": "query", "schema": schema} for name, schema in parameters.items()]
    return {"openapi": "3.1.0", "paths": {"/imagine": {"get": {"parameters": listed}}}}


PROMPT = {"type": "string"}


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        (None, {}),
        ({}, {}),
        (openapi(prompt=PROMPT), {}),
        # The stock application: no limits stated, so its own default is the only size known to work.
        (openapi(prompt=PROMPT, img_size={"type": "integer", "default": 512}), {}),
        (
            openapi(prompt=PROMPT, img_size={"type": "integer", "minimum": 32, "maximum": 1024}),
            {"img_size": "64"},
        ),
        (
            openapi(img_size={"anyOf": [{"type": "integer", "minimum": 80}, {"type": "null"}]}),
            {"img_size": "96"},
        ),
        (openapi(img_size={"type": "integer", "minimum": 512}), {}),
        (openapi(img_size={"type": "integer", "minimum": 32, "maximum": 40}), {}),
        (openapi(steps={"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}), {"steps": "2"}),
        (openapi(steps={"type": "integer", "minimum": 4}), {"steps": "4"}),
    ],
)
def test_the_smallest_image_that_is_offered(
    site: Any, target: HttpTarget, tools: Any, description: Any, expected: dict[str, str]
) -> None:
    if description is not None:
        site.on("GET /openapi.json", description)
    site.on("GET /imagine", image(tools))
    assert serve.smoke_image(target) == png()
    assert site.calls("GET /imagine")[0].query == {"prompt": serve.SMOKE_PROMPT, **expected}


def test_our_own_application_describes_its_limits(site: Any, target: HttpTarget, tools: Any) -> None:
    fastapi = pytest.importorskip("fastapi")
    from raynest_pipeline.serving.api import create_api
    from raynest_pipeline.serving.options import ServingOptions

    described = create_api(None, ServingOptions())
    assert isinstance(described, fastapi.FastAPI)
    site.on("GET /openapi.json", described.openapi())
    site.on("GET /imagine", image(tools))
    serve.smoke_image(target)
    assert site.calls("GET /imagine")[0].query == {
        "prompt": serve.SMOKE_PROMPT,
        "img_size": "64",
        "steps": "2",
    }


@pytest.mark.parametrize(
    ("body", "kind", "problem"),
    [
        (b"{}", "application/json", "application/json, not image/png"),
        (b"<html>", "text/html; charset=utf-8", "text/html"),
        (b"\xff\xd8\xff", "image/png", "does not begin"),
        (png()[:-20], "image/png", "cut off"),
        (png()[:-12], "image/png", "no end"),
        (png().replace(b"IDAT", b"IDAX"), "image/png", "damaged"),
        (png(b"trailing"), "image/png", "follow the end"),
        (b"", "image/png", "does not begin"),
    ],
)
def test_what_is_no_image_is_refused_for_good(
    site: Any, target: HttpTarget, tools: Any, body: bytes, kind: str, problem: str
) -> None:
    site.on("GET /imagine", image(tools, body, kind))
    with pytest.raises(KubeError) as caught:
        serve.smoke_image(target)
    assert problem in caught.value.why
    assert caught.value.verdict is Verdict.PERMANENT


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(422, Verdict.PERMANENT), (503, Verdict.RETRYABLE), (504, Verdict.RETRYABLE), (500, Verdict.RETRYABLE)],
)
def test_refused_images(site: Any, target: HttpTarget, tools: Any, status: int, verdict: Verdict) -> None:
    site.on("GET /imagine", tools.Answer(status, {"detail": "the queue is full"}, {"Retry-After": "3"}))
    with pytest.raises(KubeError) as caught:
        serve.smoke_image(target)
    assert caught.value.verdict is verdict
    assert "the queue is full" in caught.value.why
    assert caught.value.retry_after == 3.0


@given(st.binary(max_size=300))
def test_any_bytes_are_judged(data: bytes) -> None:
    assert serve.png_problem(data)


@given(st.integers(0, len(png()) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_found(position: int, change: int) -> None:
    data = bytearray(png())
    data[position] ^= change
    assert serve.png_problem(bytes(data))


@given(st.integers(0, len(png()) - 1))
def test_any_cut_is_found(length: int) -> None:
    assert serve.png_problem(png()[:length])
    assert serve.png_problem(png()) == ""
