"""A cluster's API in memory, behind KubeClient's verbs; a RayService on it becomes what a test says."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from raynest_pipeline.errors import Verdict
from raynest_pipeline.kube.errors import NO_SUCH_KIND, KubeError
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.kube.kinds import Kind, Object, Objects, mapping, mappings
from raynest_pipeline.kube.rayservice import serve_config
from raynest_pipeline.kube.rayservice.serve import Deployed
from raynest_pipeline.kube.rayservice.status import AppStatus
from raynest_pipeline.kube.watching import WatchEvent
from raynest_pipeline.waiting import Deadline

APP = "raynest"
Key = tuple[str, str, str]


def kube_error(verdict: Verdict, status: int | None = None, code: str = "") -> KubeError:
    return KubeError(
        "Could not read it.", verdict=verdict, status=status, code=code, why=f"HTTP {status} {code}".strip()
    )


def unauthorized() -> KubeError:
    return kube_error(Verdict.PERMANENT, 401, "Unauthorized")


def unreachable() -> KubeError:
    return kube_error(Verdict.RETRYABLE)


def no_kuberay() -> KubeError:
    return kube_error(Verdict.PERMANENT, 404, NO_SUCH_KIND)


def served(app: str = APP) -> dict[str, Any]:
    """A status of KubeRay 1.3 and later that says Ready."""
    return status_of("RUNNING", ready="True", reason="NonZeroServeEndpoints", app=app)


def status_of(
    app_status: str,
    *,
    ready: str = "False",
    reason: str = "Initializing",
    message: str = "",
    app: str = APP,
) -> dict[str, Any]:
    applications = {app: {"status": app_status, "message": message}} if app_status else {}
    return {
        "serviceStatus": "Running" if ready == "True" else "",
        "numServeEndpoints": 1 if ready == "True" else 0,
        "conditions": [{"type": "Ready", "status": ready, "reason": reason, "message": ""}],
        "activeServiceStatus": {"rayClusterName": "sd-abcde", "applicationStatuses": applications},
    }


class FakeKube:
    """All clients of a test share one; `operator` makes a status from a RayService after each apply."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.applied: list[Object] = []
        self.deleted: list[str] = []
        self.fail: dict[str, list[BaseException]] = {}
        """Raised by the next calls of a verb."""
        self.operator: Callable[[Object], dict[str, Any]] = lambda _: served()
        self.script: list[dict[str, Any]] = []
        """Statuses that the watch shows, one after another."""
        self.declared = False
        self.version = "v1.32.1"
        self.stuck = False
        """Whether a finalizer holds what is deleted."""
        self.clients = self.closed = 0

    def from_file(self, *_: Any) -> Self:
        self.clients += 1
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1

    def close(self) -> None:
        self.closed += 1

    def _may_fail(self, verb: str) -> None:
        if self.fail.get(verb):
            raise self.fail[verb].pop(0)

    def put(self, obj: Mapping[str, Any], *, manager: str = "raynest") -> Object:
        """As a server-side apply by `manager`; a changed spec has a new generation."""
        metadata = obj["metadata"]
        key = (obj["kind"], metadata.get("namespace", ""), metadata["name"])
        before = self.objects.get(key, {})
        changed = before.get("spec") != obj.get("spec")
        generation = before.get("metadata", {}).get("generation", 0) + int(changed)
        managers = [{"manager": manager, "operation": "Apply"}]
        new = {**before, **copy.deepcopy(dict(obj))}
        new["metadata"] = {**metadata, "generation": generation, "managedFields": managers}
        if obj["kind"] == "RayService":
            new["status"] = self.operator(new)
        self.objects[key] = new
        return new

    # -- KubeClient's verbs --------------------------------------------------------------------------

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object | None:
        self._may_fail("get")
        return copy.deepcopy(self.objects.get((kind.kind, namespace or "", name)))

    def list(
        self, kind: Kind, namespace: str | None = None, *, labels: Mapping[str, str] | None = None
    ) -> Objects:
        self._may_fail("list")
        wanted = (labels or {}).items()
        return [
            copy.deepcopy(obj)
            for (kind_name, where, _), obj in self.objects.items()
            if kind_name == kind.kind
            and where == (namespace or "")
            and wanted <= mapping(obj["metadata"].get("labels")).items()
        ]

    def apply(self, obj: Mapping[str, Any], *, force: bool = True, dry_run: bool = False) -> Object:
        self._may_fail("apply")
        self.applied.append(copy.deepcopy(dict(obj)))
        return self.put(obj)

    def delete(
        self, kind: Kind, name: str, namespace: str | None = None, *, propagation: str = "Foreground"
    ) -> bool:
        self._may_fail("delete")
        self.deleted.append(f"{kind.kind}/{name}")
        key = (kind.kind, namespace or "", name)
        if self.stuck and key in self.objects:
            self.objects[key]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            return True
        return self.objects.pop(key, None) is not None

    def watch(
        self, kind: Kind, namespace: str | None, name: str, *, deadline: Deadline, tick: float = 10.0
    ) -> Iterator[WatchEvent]:
        key = (kind.kind, namespace or "", name)
        while True:
            if self.script and key in self.objects:
                self.objects[key]["status"] = self.script.pop(0)
            known = copy.deepcopy(self.objects.get(key))
            yield WatchEvent("MODIFIED" if known else "DELETED", known)
            if deadline.passed:
                return
            deadline.clock.sleep(tick)

    def events(self, obj: Mapping[str, Any]) -> Objects:
        return []

    def pod_logs(self, namespace: str, pod: str, **_: Any) -> str:
        return ""

    def server_version(self) -> str:
        self._may_fail("server_version")
        return self.version

    def declares(self, kind: Kind, path: tuple[str, ...]) -> bool:
        self._may_fail("declares")
        return self.declared

    def service_proxy(self, namespace: str, service: str, port: int | str) -> HttpTarget:
        self._may_fail("service_proxy")
        return HttpTarget(
            f"https://47.1.0.1:6443/api/v1/namespaces/{namespace}/services/{service}:{port}/proxy",
            headers={"Authorization": "Bearer s3cr3t"},
        )


class FakeServe:
    """What Serve itself answers, in place of `kube.rayservice.serve`."""

    def __init__(self, kube: FakeKube) -> None:
        self._kube = kube
        self.deployed: dict[str, Deployed] | BaseException | None = None
        """None: it runs what is applied."""
        self.tokens: list[str | None] = []
        self.routes_now: dict[str, str] | BaseException = {"/": APP}
        self.image: list[bytes | BaseException] = [b"\x89PNG-a-small-image"]
        self.asked: list[str] = []

    def routes(self, target: HttpTarget, *, timeout: float = 10.0) -> dict[str, str]:
        self.asked.append(target.base_url)
        if isinstance(self.routes_now, BaseException):
            raise self.routes_now
        return self.routes_now

    def applications(
        self, target: HttpTarget, *, token: str | None = None, timeout: float = 10.0
    ) -> dict[str, Deployed]:
        self.tokens.append(token)
        if isinstance(self.deployed, BaseException):
            raise self.deployed
        return running(self._kube) if self.deployed is None else self.deployed

    def smoke_image(self, target: HttpTarget, **_: Any) -> bytes:
        answer = self.image.pop(0) if len(self.image) > 1 else self.image[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def running(kube: FakeKube, status: str = "RUNNING") -> dict[str, Deployed]:
    """What Serve reports once it runs the RayServices that are applied now."""
    found = [obj for (kind, _, _), obj in kube.objects.items() if kind == "RayService"]
    return {
        str(app["name"]): Deployed(AppStatus(str(app["name"]), status), dict(serve_config.variables_of(app)))
        for obj in found
        for app in mappings(serve_config.read(obj).get("applications"))
    }
