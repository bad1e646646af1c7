"""The shared vocabulary of failure: what happened, why, and what to do about it.

Every error that reaches a person is a `RaynestError`. Each class stands for one exit code of the
command line (documented in docs/operations.md), so that a script can tell "your settings are
wrong" from "the cloud said no" from "the GPU never came".
"""

from enum import StrEnum
from typing import ClassVar


class Verdict(StrEnum):
    """What a failed remote call means for the caller; decided by one table per protocol."""

    RETRYABLE = "retryable"
    """The same call may succeed later, unchanged."""
    PERMANENT = "permanent"
    """The same call will fail again: credentials, permission, bad input, quota."""
    GONE = "gone"
    """The thing asked about does not exist (any more): success during teardown."""
    UNKNOWN = "unknown"
    """The outcome is not known: the call may or may not have taken effect."""


class RaynestError(Exception):
    """An error for people.

    Args:
        what: What happened, one sentence, naming the thing concerned.
        why: The cause as far as it is known.
        fix: What the reader can do now.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what = what
        self.why = why
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(f"Why: {self.why}")
        if self.fix:
            parts.append(f"What to do: {self.fix}")
        return "\n".join(parts)


class SettingsError(RaynestError):
    """A setting is wrong; found at load time, before anything is contacted."""

    exit_code = 2


class InputError(RaynestError):
    """A file or an argument the user gave is wrong; nothing has been sent."""

    exit_code = 2


class AccessError(RaynestError):
    """No credentials, expired credentials, or a permission is missing."""

    exit_code = 3


class RefusedError(RaynestError):
    """raynest refuses to go on: price above the cap, zone sold out, insufficient spec, not ours to delete."""

    exit_code = 4


class NotReadyError(RaynestError):
    """A link is broken, or did not become ready before its deadline."""

    exit_code = 5


class BatchError(RaynestError):
    """More images failed than the settings allow; the finished ones are kept."""

    exit_code = 6


class UnreachableError(RaynestError):
    """A server does not answer: network, address, TLS."""

    exit_code = 7


class StorageError(RaynestError):
    """A file cannot be written or read: disk full, permission, path."""

    exit_code = 8


class RemoteError(RaynestError):
    """A remote call failed and has been classified.

    Attributes:
        verdict: What the failure means for the caller.
        code: The server's own error code, or "" when it sent none.
        status: HTTP status, or None when no answer came.
        retry_after: Seconds the server asked us to wait, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        verdict: Verdict,
        code: str = "",
        status: int | None = None,
        retry_after: float | None = None,
        why: str = "",
        fix: str = "",
    ) -> None:
        super().__init__(what, why=why, fix=fix)
        self.verdict = verdict
        self.code = code
        self.status = status
        self.retry_after = retry_after

    @property
    def exit_code_for_verdict(self) -> int:
        """The exit code a person should see when this error ends the program."""
        if self.status in (401, 403):
            return AccessError.exit_code
        if self.verdict in (Verdict.RETRYABLE, Verdict.UNKNOWN):
            return UnreachableError.exit_code
        return self.exit_code


def exit_code_of(error: RaynestError) -> int:
    """The exit code for an error that ends the program."""
    return error.exit_code_for_verdict if isinstance(error, RemoteError) else error.exit_code
