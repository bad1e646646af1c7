"""Ray's Jobs REST API, through whatever road leads to the dashboard, without ray: releases may differ.

Paths and answers: facts of Ray 2.60's dashboard (`/api/jobs/`, `/api/packages/`), older ones are the same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from raynest_pipeline.errors import Verdict
from raynest_pipeline.images.bulk.package import Package
from raynest_pipeline.kube.errors import KubeError, answer_error, transport_error
from raynest_pipeline.kube.http import HttpTarget

OVER = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
TIMEOUT_SECONDS = 20.0
UPLOAD_SECONDS = 120.0


@dataclass(frozen=True)
class Job:
    """A job as the dashboard knows it."""

    id: str
    """The submission id."""
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    metadata: Mapping[str, str]

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in OVER


class JobsApi:
    """The calls. Use it as a context manager. Each raises KubeError when it gets no proper answer."""

    def __init__(self, target: HttpTarget) -> None:
        """`target`: the dashboard, with its credentials."""
        self._target = target

    def __enter__(self) -> "JobsApi":
        self._client = self._target.client(TIMEOUT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ensure_package(self, package: Package) -> None:
        """Put the package there, unless it is. Asking also keeps it from being swept away for ten minutes."""
        path = f"/api/packages/gcs/{package.name}"
        if self._call("GET", path, "look for the job's code", none_at=404) is None:
            self._call("PUT", path, "upload the job's code", content=package.data, seconds=UPLOAD_SECONDS)

    def submit(self, request: Mapping[str, Any]) -> bool:
        """Start a job; False when one of this submission id is there already."""
        try:
            self._call("POST", "/api/jobs/", "submit the job", document=request, seconds=UPLOAD_SECONDS)
        except KubeError as error:
            if error.status == 500 and self.get(str(request["submission_id"])) is not None:
                return False
            raise
        return True

    def get(self, job_id: str) -> Job | None:
        """A job; None when the cluster doesn't know it."""
        answer = self._call("GET", f"/api/jobs/{job_id}", "look at the job", none_at=404)
        return None if answer is None else _job(_document(answer, "look at the job"))

    def jobs(self) -> list[Job]:
        """All submitted jobs that the cluster remembers."""
        answer = self._call("GET", "/api/jobs/", "list the jobs")
        assert answer is not None
        found = _decoded(answer, "list the jobs", (list, dict))
        entries = list(found.values()) if isinstance(found, dict) else found
        return [_job(each) for each in entries if isinstance(each, dict) and each.get("submission_id")]

    def logs(self, job_id: str) -> str | None:
        """The driver's output so far; None when it cannot be had now."""
        answer = self._call("GET", f"/api/jobs/{job_id}/logs", "read the job's log", none_at=404)
        if answer is None:
            return None
        return str(_document(answer, "read the job's log").get("logs") or "")

    def stop(self, job_id: str) -> None:
        """Ask the job to end: SIGTERM now, SIGKILL after Ray's own three seconds. Harmless when it has."""
        self._call("POST", f"/api/jobs/{job_id}/stop", "stop the job", none_at=404)

    def _call(
        self,
        method: str,
        path: str,
        operation: str,
        *,
        document: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        seconds: float = TIMEOUT_SECONDS,
        none_at: int | None = None,
    ) -> httpx.Response | None:
        try:
            answer = self._client.request(
                method, self._target.url(path), json=document, content=content, timeout=seconds
            )
        except (httpx.TransportError, OSError) as error:
            raise transport_error(operation, error, write=method != "GET") from error
        if answer.is_success:
            return answer
        # The proxy's own 404 (no such service) says nothing about a job.
        if answer.status_code == none_at and '"kind":"Status"' not in answer.text.replace(" ", ""):
            return None
        raise answer_error(
            operation,
            answer.status_code,
            _last_words(answer.text),
            headers=dict(answer.headers),
            write=method != "GET",
        )


def _last_words(text: str) -> str:
    """A traceback's last words say what happened (a full stop may stand alone under them)."""
    lines = [line for line in text.splitlines() if len(line.strip()) > 1]
    return lines[-1] if lines and text.startswith("Traceback") else text


def _document(answer: httpx.Response, operation: str) -> dict[str, Any]:
    document: dict[str, Any] = _decoded(answer, operation, (dict,))
    return document


def _decoded(answer: httpx.Response, operation: str, kinds: tuple[type, ...]) -> Any:
    try:
        document = json.loads(answer.content)
    except ValueError:
        document = None
    if isinstance(document, kinds):
        return document
    raise KubeError(f"Could not {operation}.", verdict=Verdict.UNKNOWN, why="the answer is not Ray's JSON")


def _job(entry: Mapping[str, Any]) -> Job:
    metadata = entry.get("metadata") or {}
    return Job(
        id=str(entry.get("submission_id") or ""),
        status=str(entry.get("status") or ""),
        message=str(entry.get("message") or ""),
        metadata={str(key): str(value) for key, value in metadata.items()},
    )
