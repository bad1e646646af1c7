"""Reads of what Serve itself says, through any `HttpTarget`: the truth that a status may lag behind."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from raynest_pipeline.errors import InputError, Verdict
from raynest_pipeline.kube.errors import KubeError, answer_error, transport_error
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.kube.kinds import mapping, mappings
from raynest_pipeline.kube.rayservice import serve_config
from raynest_pipeline.kube.rayservice.status import AppStatus, parse_applications

RAY_TOKEN_HEADER = "x-ray-authorization"
"""Ray's own token: the API server's proxy strips Authorization."""

SMOKE_PROMPT = "a red apple on a wooden table"
_SMOKE_SIZES = (64, 96, 128, 256)
_SMOKE_STEPS = 2
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Deployed:
    """An application as Serve itself reports it."""

    status: AppStatus
    variables: Mapping[str, str]
    """The env_vars of the configuration that it runs, or is changing to."""


def routes(target: HttpTarget, *, timeout: float = 10.0) -> dict[str, str]:
    """Route prefix -> application, from /-/routes. It still lists the prefix of a failed application.

    Raises:
        KubeError: No answer, or not this one.
    """
    answer = _get(target, "/-/routes", "ask Serve for its routes", timeout)
    document = _json(answer, "ask Serve for its routes")
    return {str(prefix): str(app) for prefix, app in document.items()}


def applications(
    target: HttpTarget, *, token: str | None = None, timeout: float = 10.0
) -> dict[str, Deployed]:
    """The applications by name as the dashboard has them: fresher than the RayService's status.

    Args:
        target: The dashboard (port 8265 of a head service).
        token: Ray's token, where token authentication is on.
        timeout: Seconds.

    Raises:
        KubeError: No answer, or not this one.
    """
    asked = target.with_headers({RAY_TOKEN_HEADER: f"Bearer {token}"}) if token else target
    operation = "ask the Ray dashboard for its applications"
    document = _json(_get(asked, "/api/serve/applications/", operation, timeout), operation)
    found = mapping(document.get("applications"))
    configured = {str(name): mapping(mapping(app).get("deployed_app_config")) for name, app in found.items()}
    return {
        app.name: Deployed(
            app, {key: str(value) for key, value in serve_config.variables_of(configured[app.name]).items()}
        )
        for app in parse_applications(found, deployments_key="deployments")
    }


def smoke_image(
    target: HttpTarget, *, prompt: str = SMOKE_PROMPT, timeout: float = 120.0, path: str = "/imagine"
) -> bytes:
    """One real image, as small and quick as the application offers; the bytes of a complete PNG.

    What the application takes is read from its openapi.json: a stock one takes prompt and img_size only,
    and sizes that aren't multiples of 8 are an error 500 there.

    Raises:
        KubeError: No image. PERMANENT when another try cannot help: bad request, not an image.
    """
    operation = "draw a first image"
    params: dict[str, str | int | float] = {"prompt": prompt, **_smallest(_offered(target, path))}
    answer = _get(target, path, operation, timeout, params=params)
    kind = answer.headers.get("content-type", "").split(";")[0].strip()
    if kind != "image/png":
        raise _not_served(operation, f"the answer is {kind or 'of no type'}, not image/png")
    problem = png_problem(answer.content)
    if problem:
        raise _not_served(operation, problem)
    return answer.content


def png_problem(data: bytes) -> str:
    """Why `data` is not a complete PNG; "" when it is one. Checks every chunk's length and CRC."""
    if not data.startswith(_PNG_MAGIC):
        return "the answer does not begin as a PNG does"
    position = len(_PNG_MAGIC)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(data):
            return "the PNG is cut off"
        if zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return f"the PNG's chunk {kind.decode('latin-1')!r} is damaged"
        position = end + 4
        if kind == b"IEND":
            return "" if position == len(data) else "bytes follow the end of the PNG"
    return "the PNG has no end"


def _offered(target: HttpTarget, path: str) -> dict[str, Mapping[str, Any]]:
    """Query parameters of an application's path by name, with their schemas; empty when it doesn't tell."""
    try:
        answer = _get(target, "/openapi.json", "read the application's description", 10.0)
        document = _json(answer, "read the application's description")
    except KubeError:
        return {}
    operation = mapping(mapping(mapping(document.get("paths")).get(path)).get("get"))
    return {
        str(item.get("name")): mapping(item.get("schema"))
        for item in mappings(operation.get("parameters"))
        if item.get("in") == "query"
    }


def _smallest(offered: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """The least work that the described limits allow."""
    params: dict[str, int] = {}
    if "img_size" in offered and (size := _least_size(offered["img_size"])):
        params["img_size"] = size
    if "steps" in offered:
        params["steps"] = max(_SMOKE_STEPS, int(_limit(offered["steps"], "minimum") or 0))
    return params


def _least_size(schema: Mapping[str, Any]) -> int | None:
    """A size within the limits; None without a stated minimum: then only the application knows what works."""
    least = _limit(schema, "minimum")
    if least is None:
        return None
    most = _limit(schema, "maximum")
    fitting = [size for size in _SMOKE_SIZES if size >= least and (most is None or size <= most)]
    return fitting[0] if fitting else None


def _limit(schema: Mapping[str, Any], name: str) -> float | None:
    """A limit of a number, also inside `anyOf: [integer, null]` as FastAPI writes optional parameters."""
    for candidate in (schema, *mappings(schema.get("anyOf"))):
        value = candidate.get(name)
        if isinstance(value, int | float):
            return float(value)
    return None


def _get(
    target: HttpTarget,
    path: str,
    operation: str,
    timeout: float,
    *,
    params: Mapping[str, str | int | float] | None = None,
) -> httpx.Response:
    try:
        with target.client(timeout) as client:
            answer = client.get(target.url(path, params))
    except (httpx.TransportError, OSError) as error:
        raise transport_error(operation, error) from error
    except httpx.InvalidURL as error:
        raise InputError(f"{target.base_url} is not a usable URL.", why=str(error)) from error
    if answer.is_success:
        return answer
    raise answer_error(operation, answer.status_code, answer.text, headers=dict(answer.headers))


def _json(answer: httpx.Response, operation: str) -> dict[str, Any]:
    try:
        document = json.loads(answer.content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _not_served(operation, "the answer is not a JSON object")
    return document


def _not_served(operation: str, why: str) -> KubeError:
    return KubeError(f"Could not {operation}.", verdict=Verdict.PERMANENT, why=why)
