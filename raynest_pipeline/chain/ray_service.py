"""The last link: the RayService that serves the model, ready when it has truly served an image."""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raynest_pipeline.chain.endpoint import EndpointFinder
from raynest_pipeline.chain.kubeconfig import KubeAccess
from raynest_pipeline.chain.link import Change, Fact, Observation, OnStep, State, Step, silent
from raynest_pipeline.errors import InputError, NotReadyError, RefusedError, RemoteError, Verdict
from raynest_pipeline.kube.client import CONFIG_MAP, EVENT, NAMESPACE, RAY_SERVICE, Kind, KubeClient
from raynest_pipeline.kube.errors import NO_SUCH_KIND
from raynest_pipeline.kube.rayservice import diagnosis, manifest, serve, status
from raynest_pipeline.settings import Settings
from raynest_pipeline.waiting import Backoff, Deadline, Done, Waiting, wait_for

Object = dict[str, Any]

HASH_ANNOTATION = "raynest/manifest-hash"
"""On the RayService: what was applied, without the redeploy nonce, so that drift can be seen."""

_STALE_SECONDS = 45.0
"""A failure seen this soon after a change may be the old one: the operator looks every 2 s and Serve takes
6 to 9 s to rebuild an application (kuberay-and-serve facts 2.5)."""
_MOST_CRASHES = 5
"""So many HTTP 500 to a plain request for a first image mean that the application itself is at fault."""
_POLL = Backoff(first=0.5, factor=1.5, most=4.0)


@dataclass(frozen=True)
class Desired:
    """What should be on the cluster."""

    objects: Sequence[Object]
    """In the order to apply; the RayService is the last."""
    notes: tuple[str, ...] = ()

    @property
    def ray_service(self) -> Object:
        """The RayService among them."""
        return dict(self.objects[-1])

    @property
    def apps(self) -> tuple[str, ...]:
        """Its Serve applications."""
        return manifest.app_names(self.ray_service)

    @property
    def digest(self) -> str:
        """Of everything that would be applied."""
        text = json.dumps(list(self.objects), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class RayServiceLink:
    """Applies, watches, rebuilds and deletes the RayService `settings.ray_service.name`."""

    name = "ray_service"

    def __init__(
        self, settings: Settings, kube: KubeAccess, namespace: str, endpoints: EndpointFinder
    ) -> None:
        self._settings = settings
        self._kube = kube
        self.namespace = namespace
        self._endpoints = endpoints

    # -- observe ---------------------------------------------------------------------------------

    def observe(self) -> Observation:
        try:
            with self._kube() as client:
                live = self._live(client)
                if live is None:
                    return Observation(
                        self.name, State.MISSING, f"no RayService {self._name} in {self.namespace}"
                    )
                return self._judge(client, live)
        except NotReadyError as error:
            return Observation(self.name, State.MISSING, error.what)
        except InputError as error:
            return Observation(self.name, State.UNKNOWN, f"{error.what} {error.why}".strip())
        except RemoteError as error:
            state = State.BROKEN if error.code == NO_SUCH_KIND else State.UNKNOWN
            return Observation(self.name, state, f"{error.what} {error.why}".strip())

    @property
    def _name(self) -> str:
        return self._settings.ray_service.name

    def _live(self, client: KubeClient) -> Object | None:
        return client.get(RAY_SERVICE, self._name, self.namespace)

    def _judge(self, client: KubeClient, live: Object) -> Observation:
        """By its status, and then by what Serve itself says: `Ready=True` alone is not believed."""
        facts = self._facts(live)
        readiness = status.judge(status.parse(live))
        states = {
            status.ReadyState.PENDING: State.PENDING,
            status.ReadyState.FAILED: State.BROKEN,
            status.ReadyState.DEGRADED: State.BROKEN,
            status.ReadyState.UNKNOWN: State.PENDING,
        }
        if readiness.state is not status.ReadyState.READY:
            return Observation(self.name, states[readiness.state], readiness.cause, facts)
        try:
            route = self._endpoints.find(client, self.namespace, self._name)
            routes = serve.routes(route.target)
        except (RemoteError, RefusedError) as error:
            cause = f"the status says ready, but Serve does not answer: {error.why or error.what}"
            return Observation(self.name, State.BROKEN, cause, facts)
        dashboard = self._endpoints.dashboard(client, self.namespace, self._name)
        facts |= {
            "endpoint": route.description,
            "dashboard": dashboard.description,
            "routes": ", ".join(sorted(routes)),
        }
        missing = [app for app in manifest.app_names(live) if app not in routes.values()]
        if missing:
            return Observation(self.name, State.BROKEN, f"Serve has no route to {', '.join(missing)}", facts)
        return Observation(self.name, State.READY, "", facts)

    def _facts(self, live: Object) -> dict[str, Fact]:
        parsed = status.parse(live)
        spec = live.get("spec", {})
        cluster_spec = spec.get("rayClusterConfig", {})
        facts: dict[str, Fact] = {
            "name": parsed.name,
            "namespace": parsed.namespace,
            "generation": parsed.generation,
            "ray_version": str(cluster_spec.get("rayVersion", "")),
            "image": _image(cluster_spec),
            "ray_cluster": parsed.cluster.name,
            "applications": ", ".join(f"{app.name}: {app.status}" for app in parsed.cluster.apps),
            "serve_endpoints": parsed.serve_endpoints or 0,
            "manifest_hash": live.get("metadata", {}).get("annotations", {}).get(HASH_ANNOTATION, ""),
        }
        return {key: value for key, value in facts.items() if value != ""}

    # -- plan ------------------------------------------------------------------------------------

    def plan(self) -> list[Change]:
        seen = self.observe()
        what = f"RayService {self.namespace}/{self._name}"
        if seen.state is State.UNKNOWN:
            return [Change(self.name, "wait", seen.cause)]
        if seen.state is State.MISSING:
            return [Change(self.name, "create", what, seen.cause)]
        with self._kube() as client:
            drifted = self._desired(client).digest != seen.facts.get("manifest_hash")
        if drifted:
            return [Change(self.name, "update", what, "the settings or the shipped code have changed")]
        if seen.state is State.BROKEN:
            return [Change(self.name, "update", f"rebuild the applications of {what}", seen.cause)]
        return [
            Change(
                self.name, "wait" if seen.state is State.PENDING else "none", seen.cause or f"{what} is ready"
            )
        ]

    def _desired(self, client: KubeClient) -> Desired:
        """The objects that the settings ask for, on this very cluster.

        Raises:
            InputError: The user's own manifest is wrong.
        """
        own = self._settings.ray_service.manifest
        if own:
            loaded = manifest.load_user_manifest(own, namespace=self.namespace)
            others = [obj for obj in loaded.objects if obj is not loaded.ray_service]
            return Desired([*others, loaded.ray_service], loaded.notes)
        objects = manifest.build_manifest(
            self._settings,
            serving_files=manifest.source_files(),
            token_auth=self._token_auth(client),
            namespace=self.namespace,
        )
        return Desired(objects)

    def _token_auth(self, client: KubeClient) -> bool:
        wanted = self._settings.ray_service.token_auth
        if wanted != "auto":
            return wanted == "on"
        # KubeRay offers it from 1.5.1; an older one would refuse the whole manifest for the unknown field.
        return client.declares(RAY_SERVICE, ("spec", "rayClusterConfig", "authOptions"))

    # -- ensure ----------------------------------------------------------------------------------

    def ensure(self, deadline: Deadline, on_step: OnStep = silent) -> Observation:
        with self._kube() as client:
            self._ensure_namespace(client)
            desired = self._desired(client)
            for note in desired.notes:
                on_step(Step(self.name, note))
            changed = self._bring_about(client, desired, deadline, on_step)
            seen = self._wait_ready(client, changed, deadline, on_step)
            size = self._smoke(client, deadline, on_step)
            return replace(seen, facts={**seen.facts, "first_image_bytes": size})

    def _ensure_namespace(self, client: KubeClient) -> None:
        if client.get(NAMESPACE, self.namespace) is None:
            client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})

    def _bring_about(self, client: KubeClient, desired: Desired, deadline: Deadline, on_step: OnStep) -> bool:
        """Apply what is missing or differs, and rebuild what has failed; whether anything was changed."""
        live = self._live(client)
        if live is not None and not _is_ours(live):
            raise RefusedError(
                f"A RayService {self.namespace}/{self._name} exists that raynest did not apply.",
                fix="Set another ray_service.name, or delete it yourself.",
            )
        if live is not None and (live["metadata"].get("deletionTimestamp") or _is_terminal(live)):
            on_step(Step(self.name, "deleting the RayService: it cannot recover"))
            self._delete(client, RAY_SERVICE, self._name, deadline, on_step)
            live = None
        if live is None:
            on_step(Step(self.name, f"applying RayService {self.namespace}/{self._name}"))
            self._apply(client, desired, nonce=None)
            return True
        readiness = status.judge(status.parse(live))
        failed = readiness.state in (status.ReadyState.FAILED, status.ReadyState.DEGRADED)
        if not failed and readiness.state is status.ReadyState.READY:
            seen = self._judge(client, live)
            failed = seen.state is State.BROKEN
        applied = live["metadata"].get("annotations", {}).get(HASH_ANNOTATION)
        if failed:
            # An identical apply heals nothing, all the way down: the text of serveConfigV2 must change.
            on_step(Step(self.name, f"rebuilding the applications: {readiness.cause}"))
            self._apply(client, desired, nonce=uuid.uuid4().hex[:12])
            return True
        if applied != desired.digest:
            on_step(Step(self.name, "applying the changed RayService"))
            self._apply(client, desired, nonce=manifest.nonce_of(live))
            return True
        return False

    def _apply(self, client: KubeClient, desired: Desired, *, nonce: str | None) -> None:
        for obj in desired.objects[:-1]:
            client.apply(obj)
        ray_service = desired.ray_service
        if nonce:
            ray_service = manifest.with_nonce(ray_service, nonce)
        metadata = dict(ray_service["metadata"])
        metadata["annotations"] = {**metadata.get("annotations", {}), HASH_ANNOTATION: desired.digest}
        client.apply({**ray_service, "metadata": metadata})

    def _wait_ready(
        self, client: KubeClient, changed: bool, deadline: Deadline, on_step: OnStep
    ) -> Observation:
        """Follow the watch until the service is ready; give up early when waiting cannot help."""
        clock = deadline.clock
        believe_failure_at = clock.monotonic() + (_STALE_SECONDS if changed else 0.0)
        generation = int((self._live(client) or {}).get("metadata", {}).get("generation", 0))
        cause = "not looked at yet"
        for event in client.watch(RAY_SERVICE, self.namespace, self._name, deadline=deadline, tick=2.0):
            if event.type == "DELETED" or event.object is None:
                raise NotReadyError(f"The RayService {self._name} was deleted while raynest waited for it.")
            seen = self._judge(client, event.object)
            if seen.ready and not self._upgrading(event.object, generation):
                return seen
            cause = seen.cause or "an upgrade is in progress"
            fresh = seen.state is State.BROKEN and clock.monotonic() < believe_failure_at
            if seen.state is State.PENDING:
                believe_failure_at = 0.0
            if seen.state is State.BROKEN and not fresh:
                raise self._failure(client, event.object)
            self._hopeless_or_progress(client, event.object, cause, on_step)
        raise self._failure(client, self._live(client) or {}, late=f"after {deadline.seconds:.0f} s: {cause}")

    @staticmethod
    def _upgrading(live: Mapping[str, Any], generation: int) -> bool:
        parsed = status.parse(live)
        upgrade = parsed.condition("UpgradeInProgress")
        ready = parsed.condition("Ready")
        lagging = ready is not None and (ready.observed_generation or generation) < generation
        return (upgrade is not None and upgrade.status == "True") or lagging

    def _hopeless_or_progress(self, client: KubeClient, live: Object, cause: str, on_step: OnStep) -> None:
        found = diagnosis.diagnose(client, live)
        if found.hopeless:
            raise self._failure(client, live)
        pods = diagnosis.cluster_pods(client, live)
        pulling = diagnosis.pull_progress(client.list(EVENT, self.namespace), pods)
        on_step(Step(self.name, pulling or found.cause or cause))

    def _failure(self, client: KubeClient, live: Object, *, late: str = "") -> NotReadyError:
        found = diagnosis.diagnose(client, live)
        when = f" {late}" if late else ""
        return NotReadyError(
            f"The RayService {self.namespace}/{self._name} is not ready{when}.",
            why="\n  ".join((found.cause, *found.evidence)),
            fix=found.fix or "Run the same command again to go on waiting.",
        )

    def _smoke(self, client: KubeClient, deadline: Deadline, on_step: OnStep) -> int:
        """The last word: one real small image; its size in bytes."""

        crashes = 0

        def probe() -> Done[int] | Waiting:
            nonlocal crashes
            route = self._endpoints.find(client, self.namespace, self._name)
            try:
                return Done(len(serve.smoke_image(route.target)))
            except RemoteError as error:
                # A replica that is just dying answers 500, too; one that always does will not get better.
                crashes += error.status == 500
                if error.verdict is Verdict.PERMANENT or crashes >= _MOST_CRASHES:
                    raise NotReadyError(
                        "The service is up, but drew no image.", why=error.why or error.what, fix=error.fix
                    ) from error
                return Waiting(error.why or error.what)

        size = wait_for(
            probe,
            what="A first image",
            deadline=deadline,
            backoff=_POLL,
            on_progress=lambda w: on_step(Step(self.name, f"waiting for a first image: {w.cause}")),
        )
        on_step(Step(self.name, f"drew a first image of {size} bytes"))
        return size

    # -- remove ----------------------------------------------------------------------------------

    def remove(self, deadline: Deadline, on_step: OnStep = silent) -> list[Change]:
        try:
            client = self._kube()
        except NotReadyError:
            # No kubeconfig: with the cluster goes what is on it.
            return []
        with client:
            return self._remove(client, deadline, on_step)

    def _remove(self, client: KubeClient, deadline: Deadline, on_step: OnStep) -> list[Change]:
        changes = []
        live = self._live(client)
        if live is not None and not _is_ours(live):
            raise NotReadyError(
                f"The RayService {self.namespace}/{self._name} was not applied by raynest; it is left alone.",
                fix="Delete it yourself, or set another ray_service.name.",
            )
        if live is not None:
            self._delete(client, RAY_SERVICE, self._name, deadline, on_step)
            changes.append(Change(self.name, "delete", f"RayService {self.namespace}/{self._name}"))
        for config_map in client.list(CONFIG_MAP, self.namespace, labels=manifest.OWNER_LABELS):
            if _is_ours(config_map):
                name = str(config_map["metadata"]["name"])
                self._delete(client, CONFIG_MAP, name, deadline, on_step)
                changes.append(Change(self.name, "delete", f"ConfigMap {self.namespace}/{name}"))
        return changes

    def _delete(self, client: KubeClient, kind: Kind, name: str, deadline: Deadline, on_step: OnStep) -> None:
        client.delete(kind, name, self.namespace)

        def probe() -> Done[None] | Waiting:
            if client.get(kind, name, self.namespace) is None:
                return Done(None)
            return Waiting(f"{kind.kind} {name} is being deleted")

        wait_for(
            probe,
            what=f"The deletion of {kind.kind} {name}",
            deadline=deadline,
            backoff=_POLL,
            on_progress=lambda w: on_step(Step(self.name, w.cause)),
            fix="Is the KubeRay operator running? Its finalizer holds the object until it has cleaned up.",
        )


def _is_ours(obj: Mapping[str, Any]) -> bool:
    """Whether raynest applied it: the field manager is our tag in Kubernetes."""
    managers = obj.get("metadata", {}).get("managedFields") or []
    return any(m.get("manager") == "raynest" and m.get("operation") == "Apply" for m in managers)


def _is_terminal(live: Mapping[str, Any]) -> bool:
    """InitializingTimeout: the operator ignores every further edit (facts 2.3)."""
    ready = status.parse(live).condition("Ready")
    return ready is not None and ready.reason == "InitializingTimeout"


def _image(cluster_spec: Mapping[str, Any]) -> str:
    containers = cluster_spec.get("headGroupSpec", {}).get("template", {}).get("spec", {}).get(
        "containers"
    ) or [{}]
    return str(containers[0].get("image", ""))
