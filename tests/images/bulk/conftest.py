"""A loopback dashboard that speaks the Jobs API as Ray 2.60 did when it was recorded, with scripted jobs."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from images_loopback import Loopback

from raynest_pipeline.kube.http import HttpTarget

TAKEN = """Traceback (most recent call last):
  File "ray/dashboard/modules/job/job_manager.py", line 553, in submit_job
    raise ValueError(
ValueError: Job with submission_id {} already exists. Please use a different submission_id.
.
"""


@dataclass
class FakeJob:
    """One submitted job; the test plays its driver."""

    request: dict[str, Any]
    status: str = "PENDING"
    message: str = "Job has not started yet."
    log: str = ""
    stops: int = 0

    @property
    def id(self) -> str:
        return str(self.request["submission_id"])

    @property
    def plan(self) -> dict[str, Any]:
        """What the entrypoint tells the driver."""
        import shlex

        found: dict[str, Any] = json.loads(shlex.split(self.request["entrypoint"])[-1])
        return found

    def print(self, line: str) -> None:
        self.status = "RUNNING"
        self.log += line + "\n"

    def say(self, kind: str, **values: Any) -> None:
        self.print(json.dumps({"raynest": kind, **values}, separators=(",", ":")))

    def progress(self, made: int, *, reused: int = 0, failed: int = 0, total: int = 10) -> None:
        self.say("progress", made=made, reused=reused, failed=failed, total=total, seconds=1.0)

    def result(self, made: int, *, reused: int = 0, failures: Any = ()) -> None:
        counts = {"made": made, "reused": reused, "failed": len(failures), "seconds": 3.0}
        latency = {"p50_latency_ms": 10.0, "p95_latency_ms": 20.0}
        self.say("result", **counts, **latency, failures=list(failures), ignored=[], model="tiny",
                 revision="r1", stopped=False)  # fmt: skip
        self.end("SUCCEEDED", "Job finished successfully.")

    def end(self, status: str, message: str = "") -> None:
        self.status, self.message = status, message

    def document(self) -> dict[str, Any]:
        return {
            "type": "SUBMISSION",
            "job_id": None,
            "submission_id": self.id,
            "driver_info": None,
            "status": self.status,
            "entrypoint": self.request["entrypoint"],
            "message": self.message,
            "error_type": None,
            "start_time": 1795513098642,
            "end_time": None,
            "metadata": self.request.get("metadata") or {},
            "runtime_env": self.request.get("runtime_env") or {},
            "driver_agent_http_address": "http://127.0.0.1:33759",
            "driver_node_id": "b55d9710",
            "driver_exit_code": None,
        }


class FakeRay(Loopback):
    """A dashboard on a random loopback port. Set its fields to change how it behaves."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, FakeJob] = {}
        self.packages: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.refuse: int | None = None
        """Every call is answered with this status, as the API server's proxy does."""
        self.deaf_logs = False
        self.login_page = False
        """Every call is answered 200 with a page in HTML, as by a proxy in between."""
        self.lose_answers = 0
        """So many submissions are taken, and their answers lost."""

    @property
    def target(self) -> HttpTarget:
        return HttpTarget.plain(f"http://127.0.0.1:{self.port}/proxy").with_headers({"x-token": "t"})

    @property
    def last(self) -> FakeJob:
        return list(self.jobs.values())[-1]

    @property
    def submissions(self) -> int:
        return sum(call == ("POST", "/api/jobs/") for call in self.calls)

    def replace_cluster(self) -> None:
        """Another cluster stands behind the service: it knows nothing of what was."""
        self.jobs, self.packages = {}, {}

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/proxy")
        self.calls.append((request.method, path))
        self.headers.append(dict(request.headers))
        if self.refuse is not None:
            message = 'no endpoints available for service "demo-head-svc"'
            body = {"kind": "Status", "status": "Failure", "message": message, "code": self.refuse}
            return web.json_response(body, status=self.refuse)
        if self.login_page:
            return web.Response(text="<html>Sign in</html>", content_type="text/html")
        parts = path.strip("/").split("/")
        if parts[1] == "packages":
            return await self._package(request, parts[3])
        if len(parts) > 2:
            return self._job(parts[2], parts[-1])
        if request.method == "GET":
            return web.json_response([job.document() for job in self.jobs.values()])
        return await self._submit(request)

    def _job(self, name: str, what: str) -> web.StreamResponse:
        job = self.jobs.get(name)
        if job is None:
            return web.Response(status=404, text=f"Job {name} does not exist")
        if what == "logs":
            if self.deaf_logs:
                return web.Response(status=500, text="Traceback (most recent call last):\nno agent")
            return web.json_response({"logs": job.log})
        if what == "stop":
            job.stops += 1
            running = job.status in ("PENDING", "RUNNING")
            if running:
                job.end("STOPPED", "Job was intentionally stopped.")
            return web.json_response({"stopped": running})
        return web.json_response(job.document())

    async def _package(self, request: web.Request, name: str) -> web.StreamResponse:
        if request.method == "PUT":
            self.packages[name] = await request.read()
            return web.Response()
        if name not in self.packages:
            return web.Response(status=404, text=f"Package gcs://{name} does not exist")
        return web.Response()

    async def _submit(self, request: web.Request) -> web.StreamResponse:
        document = await request.json()
        name = document["submission_id"]
        if name in self.jobs:
            return web.Response(status=500, text=TAKEN.format(name))
        uri = document["runtime_env"]["working_dir"]
        assert uri.removeprefix("gcs://") in self.packages, "the code must be there first"
        self.jobs[name] = FakeJob(document)
        if self.lose_answers:
            self.lose_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"job_id": name, "submission_id": name})

    def start(self) -> None:
        app = web.Application(client_max_size=8 << 20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.serve(app)


@pytest.fixture
def ray_dashboard() -> Iterator[FakeRay]:
    fake = FakeRay()
    fake.start()
    yield fake
    fake.close()


@dataclass
class ScriptedClock:
    """Time passes only when somebody sleeps, and then the next step of the script is played."""

    steps: list[Callable[[], object]] = field(default_factory=list)
    seconds: float = 0.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.slept.append(seconds)
        assert len(self.slept) < 2000, "the script has no end"
        if self.steps:
            self.steps.pop(0)()


@pytest.fixture
def script() -> Callable[..., ScriptedClock]:
    """`script(step, step, ...)`: a clock that plays a step at each sleep."""
    return lambda *steps: ScriptedClock(list(steps))
