"""The last link: the RayService that serves the model, ready when it has truly served an image."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from raynest_pipeline.chain import desired as wanted
from raynest_pipeline.chain.deletion import applied_with, delete, described
from raynest_pipeline.chain.desired import HASH_ANNOTATION, Desired, is_ours
from raynest_pipeline.chain.endpoint import EndpointFinder
from raynest_pipeline.chain.kubeconfig import KubeAccess
from raynest_pipeline.chain.link import REUSED, UNSEEN, Change, Observation, OnStep, State, Step, silent
from raynest_pipeline.chain.serving import LINK, first_image, judge
from raynest_pipeline.chain.taken_up import Applied, nothing_applied
from raynest_pipeline.errors import (
    InputError,
    NotReadyError,
    RefusedError,
    RemoteError,
    UnreachableError,
    Verdict,
)
from raynest_pipeline.kube.client import (
    EVENT,
    NAMESPACE,
    RAY_CLUSTER,
    RAY_SERVICE,
    Kind,
    KubeClient,
)
from raynest_pipeline.kube.errors import NO_SUCH_KIND
from raynest_pipeline.kube.kinds import name_of, namespace_of
from raynest_pipeline.kube.rayservice import diagnosis, manifest, status
from raynest_pipeline.kube.rayservice.evidence import cluster_names
from raynest_pipeline.kube.rayservice.user_manifest import UserManifest
from raynest_pipeline.settings import Settings
from raynest_pipeline.waiting import Deadline

__all__ = ["HASH_ANNOTATION", "RayServiceLink"]

T = TypeVar("T")
Object = dict[str, Any]

_YOUNG_SECONDS = 60.0
"""A credential that is refused sooner than this has not run out during the work."""


class RayServiceLink:
    """Applies, watches, rebuilds and deletes the RayService: of the settings, or of a user's own manifest."""

    name = LINK

    def __init__(
        self, settings: Settings, kube: KubeAccess, namespace: str, endpoints: EndpointFinder
    ) -> None:
        self._settings = settings
        self._kube = kube
        self._default_namespace = namespace
        self._endpoints = endpoints

    @property
    def service_name(self) -> str:
        """Name of the RayService.

        Raises:
            InputError: The user's own manifest is wrong.
            UnreachableError: It cannot be downloaded.
        """
        return name_of(self._users.ray_service) if self._users else self._settings.ray_service.name

    @property
    def namespace(self) -> str:
        """Its namespace; raises as `service_name` does."""
        return namespace_of(self._users.ray_service) if self._users else self._default_namespace

    @cached_property
    def _users(self) -> UserManifest | None:
        """The user's own manifest, read when first needed; None: raynest's."""
        own = self._settings.ray_service.manifest
        return manifest.load_user_manifest(own, namespace=self._default_namespace) if own else None

    # -- observe ---------------------------------------------------------------------------------

    def observe(self) -> Observation:
        try:
            with self._kube() as client:
                live = self._live(client)
                if live is None:
                    return Observation(
                        self.name, State.MISSING, f"no RayService {self.service_name} in {self.namespace}"
                    )
                return judge(client, live, self._endpoints)
        except NotReadyError as error:
            return Observation(self.name, State.MISSING, error.what)
        except RefusedError as error:
            return Observation(self.name, State.BROKEN, error.what)
        except (InputError, UnreachableError) as error:
            return Observation(self.name, State.UNKNOWN, f"{error.what} {error.why}".strip())
        except RemoteError as error:
            state = State.BROKEN if error.code == NO_SUCH_KIND else State.UNKNOWN
            return Observation(self.name, state, f"{error.what} {error.why}".strip())

    def _live(self, client: KubeClient) -> Object | None:
        return client.get(RAY_SERVICE, self.service_name, self.namespace)

    # -- plan ------------------------------------------------------------------------------------

    def plan(self) -> list[Change]:
        seen = self.observe()
        if seen.state is State.UNKNOWN:
            return [Change(self.name, UNSEEN, "could not be looked at", seen.cause)]
        what = f"RayService {self.namespace}/{self.service_name}"
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
        if self._users:
            return wanted.of_user(self._users)
        return wanted.of_settings(self._settings, client, self.namespace)

    # -- ensure ----------------------------------------------------------------------------------

    def ensure(self, deadline: Deadline, on_step: OnStep = silent) -> Observation:
        with self._kube() as client:
            desired = self._desired(client)
            self._ensure_namespace(client, desired)
            for note in desired.notes:
                on_step(Step(self.name, note))
            applied = self._bring_about(client, desired, deadline, on_step)
        seen = self._renewing(lambda c: self._wait_ready(c, applied, deadline, on_step), deadline)
        size = self._renewing(
            lambda c: first_image(c, desired.objects[-1], self._endpoints, deadline, on_step), deadline
        )
        return replace(seen, facts={**seen.facts, "first_image_bytes": size})

    def _renewing(self, work: Callable[[KubeClient], T], deadline: Deadline) -> T:
        """Do long work that can go on from where it was; with a new credential when one ran out under it."""
        while True:
            opened = deadline.clock.monotonic()
            try:
                with self._kube() as client:
                    return work(client)
            except RemoteError as error:
                if error.status != 401 or deadline.clock.monotonic() - opened < _YOUNG_SECONDS:
                    raise

    def _ensure_namespace(self, client: KubeClient, desired: Desired) -> None:
        brought = any(
            obj["kind"] == "Namespace" and name_of(obj) == self.namespace for obj in desired.objects
        )
        if not brought and client.get(NAMESPACE, self.namespace) is None:
            client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})

    def _bring_about(
        self, client: KubeClient, desired: Desired, deadline: Deadline, on_step: OnStep
    ) -> Applied:
        """Apply what is missing or differs, and rebuild what has failed."""
        live = self._live(client)
        if live is not None and not is_ours(live):
            raise RefusedError(
                f"A RayService {self.namespace}/{self.service_name} exists that raynest did not apply.",
                fix="Set another ray_service.name, or delete it yourself.",
            )
        if live is not None and (live["metadata"].get("deletionTimestamp") or _is_terminal(live)):
            on_step(Step(self.name, "deleting the RayService: it cannot recover"))
            delete(client, live, deadline, on_step)
            live = None
        now = deadline.clock.monotonic()
        if live is None:
            on_step(Step(self.name, f"applying RayService {self.namespace}/{self.service_name}"))
            self._apply(client, desired, desired.ray_service(None))
            return Applied(None, now)
        broken = self._broken(client, live, deadline)
        nonce = manifest.nonce_of(live)
        if broken:
            on_step(Step(self.name, f"rebuilding the applications: {broken}"))
        elif live["metadata"].get("annotations", {}).get(HASH_ANNOTATION) != desired.digest:
            on_step(Step(self.name, "applying the changed RayService"))
        else:
            return nothing_applied()
        if broken or (nonce and not desired.marked):
            # An identical apply heals nothing, all the way down: the text of serveConfigV2 must change. And a
            # nonce that is the only mark must tell one configuration from the next.
            nonce = uuid.uuid4().hex[:12]
        goal = desired.ray_service(nonce)
        self._scale(client, live, goal, on_step)
        self._apply(client, desired, goal)
        return Applied(live, now)

    def _broken(self, client: KubeClient, live: Object, deadline: Deadline) -> str:
        """Why its applications must be rebuilt; "" when nothing says so for certain."""
        readiness = status.judge(status.parse(live))
        if readiness.state in (status.ReadyState.FAILED, status.ReadyState.DEGRADED):
            return readiness.cause
        try:
            seen = judge(client, live, self._endpoints, deadline)
        except RemoteError as error:
            if error.verdict not in (Verdict.RETRYABLE, Verdict.UNKNOWN):
                raise
            return ""
        return seen.cause if seen.state is State.BROKEN else ""

    def _scale(self, client: KubeClient, live: Object, goal: Object, on_step: OnStep) -> None:
        """Pass changed replica counts on to the RayCluster, which KubeRay does not."""
        counts = wanted.changed_counts(live, goal)
        for name in cluster_names(status.parse(live))[:1] if counts else ():
            cluster = client.get(RAY_CLUSTER, name, self.namespace)
            if cluster is not None:
                on_step(Step(self.name, f"scaling RayCluster {name}"))
                client.apply(wanted.with_counts(cluster, counts))

    def _apply(self, client: KubeClient, desired: Desired, ray_service: Object) -> None:
        for obj in desired.objects[:-1]:
            there = client.get(Kind.of(obj), name_of(obj), namespace_of(obj) or None)
            if there is not None and not is_ours(there) and obj["kind"] not in wanted.KEPT_KINDS:
                raise RefusedError(
                    f"A {obj['kind']} {name_of(obj)} exists that raynest did not apply.",
                    fix="Delete it, or take it out of the manifest.",
                )
            client.apply(obj)
        client.apply(ray_service)

    def _wait_ready(
        self, client: KubeClient, applied: Applied, deadline: Deadline, on_step: OnStep
    ) -> Observation:
        """Follow the watch until the service is ready; give up early when waiting cannot help."""
        clock = deadline.clock
        cause = "not looked at yet"
        events = client.watch(RAY_SERVICE, self.namespace, self.service_name, deadline=deadline, tick=2.0)
        for number, event in enumerate(events):
            if event.type == "DELETED" or event.object is None:
                raise NotReadyError(
                    f"The RayService {self.service_name} was deleted while raynest waited for it."
                )
            try:
                seen = judge(client, event.object, self._endpoints)
            except RemoteError as error:
                if error.verdict not in (Verdict.RETRYABLE, Verdict.UNKNOWN):
                    raise
                cause = error.why or error.what
                on_step(Step(self.name, cause))
                continue
            applied.saw(event.object, seen.state, clock.monotonic())
            if seen.ready and (seen.facts["confirmed"] or applied.believes_ready(clock.monotonic())):
                if number == 0 and not applied.anything:
                    on_step(Step(self.name, REUSED))
                return seen
            cause = seen.cause or "the change has not been taken up yet"
            if seen.state is State.BROKEN and applied.believes_failure(clock.monotonic()):
                raise self._failure(client, event.object, cause)
            self._hopeless_or_progress(client, event.object, cause, on_step)
        late = f"after {deadline.seconds:.0f} s: {cause}"
        raise self._failure(client, self._live(client) or {}, cause, late=late)

    def _hopeless_or_progress(self, client: KubeClient, live: Object, cause: str, on_step: OnStep) -> None:
        found = diagnosis.diagnose(client, live)
        if found.hopeless:
            raise self._failure(client, live, cause)
        pods = diagnosis.cluster_pods(client, live)
        pulling = diagnosis.pull_progress(client.list(EVENT, self.namespace), pods)
        on_step(Step(self.name, pulling or self._cause(live, cause, found.cause)))

    @staticmethod
    def _cause(live: Object, seen: str, diagnosed: str) -> str:
        """With a status that says ready, only what Serve itself said is a cause."""
        ready = status.judge(status.parse(live)).state is status.ReadyState.READY
        return seen if ready else diagnosed or seen

    def _failure(self, client: KubeClient, live: Object, cause: str, *, late: str = "") -> NotReadyError:
        found = diagnosis.diagnose(client, live)
        when = f" {late}" if late else ""
        return NotReadyError(
            f"The RayService {self.namespace}/{self.service_name} is not ready{when}.",
            why="\n  ".join((self._cause(live, cause, found.cause), *found.evidence)),
            fix=found.fix or "Run the same command again to go on waiting.",
        )

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
        live = self._live(client)
        if live is not None and not is_ours(live):
            raise NotReadyError(
                f"The RayService {self.namespace}/{self.service_name} was not applied by raynest; "
                "it is left alone.",
                fix="Delete it yourself, or set another ray_service.name.",
            )
        others = applied_with(client, self.service_name, self.namespace, self._users)
        # First what may cost money by itself: a Service of type LoadBalancer.
        first = [obj for obj in others if obj["kind"] == "Service"]
        rest = [obj for obj in others if obj["kind"] != "Service"]
        changes = []
        for obj in (*first, *([live] if live else []), *rest):
            delete(client, obj, deadline, on_step)
            changes.append(Change(self.name, "delete", described(obj)))
        return changes


def _is_terminal(live: Mapping[str, Any]) -> bool:
    """InitializingTimeout: the operator ignores every further edit (facts 2.3)."""
    ready = status.parse(live).condition("Ready")
    return ready is not None and ready.reason == "InitializingTimeout"
