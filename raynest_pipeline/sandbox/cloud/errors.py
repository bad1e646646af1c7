"""The refusals of the emulated cloud."""

from __future__ import annotations

from typing import Any


class CloudError(Exception):
    """An error answer: HTTP status, code, message, and fields that only some errors have."""

    def __init__(self, status: int, code: str, message: str, **extra: Any) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.extra = extra


def missing(parameter: str) -> CloudError:
    """A mandatory parameter isn't there."""
    message = f"{parameter} is mandatory for this action."
    return CloudError(400, "MissingParameter", message)


def invalid(parameter: str, why: str) -> CloudError:
    """A parameter has a value that isn't allowed; `why` completes "The specified parameter X"."""
    return CloudError(400, f"InvalidParameter.{parameter}", f"The specified parameter {parameter} {why}.")
