"""Answers in the API server's form: headers, Status objects, request bodies."""

from __future__ import annotations

import json
from typing import Any

import yaml
from aiohttp import web

from raynest_pipeline.sandbox.kube.errors import ApiError, bad_request

Object = dict[str, Any]

HEADERS = {"Cache-Control": "no-cache, private"}

PROTOBUF = "application/vnd.kubernetes.protobuf"

# Of a request's body, in bytes.
LIMIT = 3 * 1024 * 1024


def encode(body: Any) -> bytes:
    """JSON as the server writes it, with the newline that ends each document."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def answer(body: Any, status: int = 200, warnings: list[str] | None = None) -> web.Response:
    """A JSON answer, with a Warning header per warning."""
    response = web.Response(
        body=encode(body), status=status, content_type="application/json", headers=HEADERS
    )
    for warning in warnings or ():
        escaped = warning.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{escaped}"')
    return response


def failure(error: ApiError) -> web.Response:
    """The Status of an error."""
    return answer(error.status(), error.code)


def page_not_found() -> web.Response:
    """What the server says to a path that no API has: text, not a Status (recorded)."""
    return web.Response(
        text="404 page not found\n", status=404, content_type="text/plain", charset="utf-8", headers=HEADERS
    )


async def body_of(request: web.Request) -> Any:
    """The request's body, JSON or YAML, by its content type. 400 if it can't be read, 415, 413."""
    if request.content_type == PROTOBUF:
        message = "the body of the request was in an unknown format - accepted media types include: "
        raise ApiError(415, message + "application/json, application/yaml", reason="UnsupportedMediaType")
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        message = f"Request entity too large: limit is {LIMIT}"
        raise ApiError(413, message, reason="RequestEntityTooLarge") from error
    try:
        if "yaml" in request.content_type:
            return yaml.safe_load(raw)
        return json.loads(raw) if raw else None
    except (ValueError, yaml.YAMLError) as error:
        raise bad_request(f"error decoding the request's body: {error}") from error
