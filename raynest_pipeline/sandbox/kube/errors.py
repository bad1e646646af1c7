"""The API server's own errors: one exception that knows its `Status` body.

Messages and reasons are those measured on kube-apiserver 1.36; clients match on them.
"""

from __future__ import annotations

from typing import Any

Cause = dict[str, str]


class ApiError(Exception):
    """An answer other than success; `status()` is the `v1.Status` body a client receives."""

    def __init__(
        self, code: int, message: str, *, reason: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.details = details or {}

    def status(self) -> dict[str, Any]:
        """The `v1.Status` object; `reason` and `details` are absent when empty, as measured."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details:
            body["details"] = self.details
        return body | {"code": self.code}


def details(group: str, kind: str, name: str = "", causes: list[Cause] | None = None) -> dict[str, Any]:
    """`Status.details`, leaving out what is empty (the core group has no `group` key)."""
    found: dict[str, Any] = {}
    if name:
        found["name"] = name
    if group:
        found["group"] = group
    if kind:
        found["kind"] = kind
    if causes:
        found["causes"] = causes
    return found


def qualified(resource: str, group: str) -> str:
    """`rayservices.ray.io`, or plain `pods` for the core group."""
    return f"{resource}.{group}" if group else resource


def not_found(resource: str, group: str, name: str) -> ApiError:
    """404: there is no such object."""
    return ApiError(
        404,
        f'{qualified(resource, group)} "{name}" not found',
        reason="NotFound",
        details=details(group, resource, name),
    )


def already_exists(resource: str, group: str, name: str) -> ApiError:
    """409: the name is taken."""
    return ApiError(
        409,
        f'{qualified(resource, group)} "{name}" already exists',
        reason="AlreadyExists",
        details=details(group, resource, name),
    )


def conflict(resource: str, group: str, name: str, why: str) -> ApiError:
    """409: the write can't be carried out, for the reason in `why`."""
    return ApiError(
        409,
        f'Operation cannot be fulfilled on {qualified(resource, group)} "{name}": {why}',
        reason="Conflict",
        details=details(group, resource, name),
    )


def modified(resource: str, group: str, name: str) -> ApiError:
    """A write against an older resourceVersion."""
    why = "the object has been modified; please apply your changes to the latest version and try again"
    return conflict(resource, group, name, why)


def bad_request(message: str) -> ApiError:
    """400: the request makes no sense."""
    return ApiError(400, message, reason="BadRequest")


def invalid(kind: str, group: str, name: str, causes: list[Cause]) -> ApiError:
    """422: each cause is `{"reason", "message", "field"}`; the message lists them as Go does."""
    lines = [f"{cause['field']}: {cause['message']}" for cause in causes]
    joined = lines[0] if len(lines) == 1 else f"[{', '.join(lines)}]"
    return ApiError(
        422,
        f'{qualified(kind, group)} "{name}" is invalid: {joined}',
        reason="Invalid",
        details=details(group, kind, name, causes),
    )


def forbidden(resource: str, group: str, name: str, why: str, causes: list[Cause] | None = None) -> ApiError:
    """403: not allowed, for the reason in `why`."""
    subject = f'{qualified(resource, group)} "{name}"' if name else qualified(resource, group)
    return ApiError(
        403,
        f"{subject} is forbidden: {why}",
        reason="Forbidden",
        details=details(group, resource, name, causes),
    )


def unauthorized() -> ApiError:
    """401: credentials were given and are not good."""
    return ApiError(401, "Unauthorized", reason="Unauthorized")


def expired_version(asked: int, oldest: int) -> ApiError:
    """410: a watch or a continued list from a resourceVersion that has been compacted."""
    return ApiError(410, f"too old resource version: {asked} ({oldest})", reason="Expired")


def unavailable(message: str) -> ApiError:
    """503: there is nobody to do it now."""
    return ApiError(503, message, reason="ServiceUnavailable")
