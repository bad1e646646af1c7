"""The messages of errors, word for word: clients and people match on them."""

from __future__ import annotations

import json

import pytest

from raynest_pipeline.sandbox.kube import errors
from raynest_pipeline.sandbox.kube.responses import answer, encode, failure, page_not_found

CAUSE = {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.x"}
OTHER = {"reason": "FieldValueInvalid", "message": "Invalid value: 1: no", "field": "spec.y"}

MESSAGES = [
    (errors.not_found("pods", "", "p"), 404, "NotFound", 'pods "p" not found'),
    (errors.not_found("rayservices", "ray.io", "s"), 404, "NotFound", 'rayservices.ray.io "s" not found'),
    (errors.already_exists("pods", "", "p"), 409, "AlreadyExists", 'pods "p" already exists'),
    (
        errors.modified("rayservices", "ray.io", "s"),
        409,
        "Conflict",
        'Operation cannot be fulfilled on rayservices.ray.io "s": the object has been modified; please apply '
        "your changes to the latest version and try again",
    ),
    (errors.bad_request("nonsense"), 400, "BadRequest", "nonsense"),
    (
        errors.invalid("Pod", "", "p", [CAUSE]),
        422,
        "Invalid",
        'Pod "p" is invalid: spec.x: Required value',
    ),
    (
        errors.invalid("RayService", "ray.io", "s", [CAUSE, OTHER]),
        422,
        "Invalid",
        'RayService.ray.io "s" is invalid: [spec.x: Required value, spec.y: Invalid value: 1: no]',
    ),
    (errors.forbidden("pods", "", "p", "because"), 403, "Forbidden", 'pods "p" is forbidden: because'),
    (errors.forbidden("pods", "", "", "because"), 403, "Forbidden", "pods is forbidden: because"),
    (errors.unauthorized(), 401, "Unauthorized", "Unauthorized"),
    (errors.expired_version(1, 200), 410, "Expired", "too old resource version: 1 (200)"),
    (errors.unavailable("nobody"), 503, "ServiceUnavailable", "nobody"),
]


@pytest.mark.parametrize(("error", "code", "reason", "message"), MESSAGES)
def test_messages(error: errors.ApiError, code: int, reason: str, message: str) -> None:
    status = error.status()
    assert (status["code"], status["reason"], status["message"]) == (code, reason, message)
    assert (status["kind"], status["apiVersion"], status["status"]) == ("Status", "v1", "Failure")


def test_details_leave_out_what_is_empty() -> None:
    assert errors.details("", "pods", "p") == {"name": "p", "kind": "pods"}
    assert errors.details("ray.io", "rayservices") == {"group": "ray.io", "kind": "rayservices"}
    assert errors.details("", "", "", [CAUSE]) == {"causes": [CAUSE]}


def test_an_answer_ends_its_line_and_is_not_cached() -> None:
    response = answer({"a": "ü"}, 201)
    assert (response.status, response.body) == (201, '{"a":"ü"}\n'.encode())
    assert response.headers["Cache-Control"] == "no-cache, private"
    assert encode([1, 2]) == b"[1,2]\n"


def test_warnings_are_quoted() -> None:
    response = answer({}, warnings=['unknown field "spec.a"', "back\\slash"])
    wanted = ['299 - "unknown field \\"spec.a\\""', '299 - "back\\\\slash"']
    assert response.headers.getall("Warning") == wanted


def test_failures_carry_their_code() -> None:
    response = failure(errors.unauthorized())
    assert response.status == 401
    assert isinstance(response.body, bytes)
    assert json.loads(response.body)["message"] == "Unauthorized"


def test_a_path_that_is_no_api_is_answered_in_text() -> None:
    response = page_not_found()
    assert (response.status, response.content_type, response.text) == (
        404,
        "text/plain",
        "404 page not found\n",
    )
