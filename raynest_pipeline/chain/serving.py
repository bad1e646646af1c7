"""What a RayService serves, judged: by its status, by what Serve itself says, and by one real image."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from raynest_pipeline.chain import taken_up
from raynest_pipeline.chain.desired import HASH_ANNOTATION
from raynest_pipeline.chain.endpoint import EndpointFinder, Route
from raynest_pipeline.chain.link import Fact, Observation, OnStep, State, Step
from raynest_pipeline.chain.taken_up import TakeUp
from raynest_pipeline.errors import NotReadyError, RemoteError, Verdict
from raynest_pipeline.kube.client import RAY_CLUSTER, KubeClient
from raynest_pipeline.kube.kinds import Object, mapping, name_of, namespace_of, text
from raynest_pipeline.kube.rayservice import manifest, serve, status
from raynest_pipeline.waiting import Backoff, Deadline, Done, Waiting, retry, wait_for

T = TypeVar("T")

LINK = "ray_service"
"""Name of the link that this is about."""

_MOST_CRASHES = 5
"""So many HTTP 500 to a plain request for a first image mean that the application itself is at fault."""
_LOOKS = 4
"""How often a Serve that does not answer is asked before anything is rebuilt for it."""
_BROKEN_ANSWERS = frozenset({404, 503})
"""Nothing at this address, no pod behind the service: what Serve or the proxy to it really says. Anything
else (no answer, refused credentials, throttling) tells nothing about the application."""
_VERSION_ANNOTATION = "ray.io/kuberay-version"
_POLL = Backoff(first=0.5, factor=1.5, most=4.0)


def judge(
    client: KubeClient, live: Object, endpoints: EndpointFinder, patience: Deadline | None = None
) -> Observation:
    """By its status, and then by what Serve itself says: `Ready=True` alone is not believed.

    Args:
        client: Of the cluster.
        live: The RayService.
        endpoints: The roads to Serve and its dashboard.
        patience: Within it a Serve that does not answer is asked again.

    Raises:
        RemoteError: Serve could not be asked, which says nothing about it.
        RefusedError: The settings ask for a route that isn't there.
    """
    facts = _facts(live)
    readiness = status.judge(status.parse(live))
    states = {
        status.ReadyState.PENDING: State.PENDING,
        status.ReadyState.FAILED: State.BROKEN,
        status.ReadyState.DEGRADED: State.BROKEN,
        status.ReadyState.UNKNOWN: State.PENDING,
    }
    if readiness.state is not status.ReadyState.READY:
        return Observation(LINK, states[readiness.state], readiness.cause, facts)
    route = endpoints.find(client, namespace_of(live), name_of(live))
    try:
        routes = _patiently(lambda: serve.routes(route.target), patience)
    except RemoteError as error:
        if error.status not in _BROKEN_ANSWERS:
            raise
        cause = f"the status says ready, but Serve does not answer: {error.why or error.what}"
        return Observation(LINK, State.BROKEN, cause, facts)
    missing = [app for app in manifest.app_names(live) if app not in routes.values()]
    if missing:
        return Observation(LINK, State.BROKEN, f"Serve has no route to {', '.join(missing)}", facts)
    dashboard = endpoints.dashboard(client, namespace_of(live), name_of(live))
    facts |= {
        "endpoint": route.target.base_url,
        "route": route.kind,
        "dashboard": dashboard.target.base_url,
        "routes": ", ".join(sorted(routes)),
        "kuberay_version": _kuberay_version(client, live),
    }
    return _confirm(client, live, dashboard, facts)


def _confirm(client: KubeClient, live: Object, dashboard: Route, facts: dict[str, Fact]) -> Observation:
    """READY only if Serve does not report another configuration than the RayService has."""
    try:
        token = taken_up.ray_token(client, live)
        report = taken_up.compare(live, serve.applications(dashboard.target, token=token, timeout=5.0))
    except RemoteError:
        report = taken_up.compare(live, None)
    facts["confirmed"] = report.verdict is TakeUp.RUNNING
    states = {TakeUp.NOT_YET: State.PENDING, TakeUp.FAILED: State.BROKEN}
    return Observation(LINK, states.get(report.verdict, State.READY), report.cause, facts)


def _kuberay_version(client: KubeClient, live: Object) -> str:
    """Of the operator that made the active RayCluster; "" when that cannot be read."""
    try:
        cluster = client.get(RAY_CLUSTER, status.parse(live).cluster.name, namespace_of(live)) or {}
    except RemoteError:
        return ""
    return text(mapping(mapping(cluster.get("metadata")).get("annotations")).get(_VERSION_ANNOTATION))


def _facts(live: Object) -> dict[str, Fact]:
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


def first_image(
    client: KubeClient, live: Object, endpoints: EndpointFinder, deadline: Deadline, on_step: OnStep
) -> int:
    """The last word: one real small image; its size in bytes.

    Raises:
        NotReadyError: None was drawn.
        RemoteError: The credential ran out (401).
    """
    crashes = 0

    def probe() -> Done[int] | Waiting:
        nonlocal crashes
        route = endpoints.find(client, namespace_of(live), name_of(live))
        try:
            return Done(len(serve.smoke_image(route.target)))
        except RemoteError as error:
            if error.status == 401:
                raise
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
        on_progress=lambda w: on_step(Step(LINK, f"waiting for a first image: {w.cause}")),
    )
    on_step(Step(LINK, f"drew a first image of {size} bytes"))
    return size


def _patiently(ask: Callable[[], T], patience: Deadline | None) -> T:
    if patience is None:
        return ask()
    return retry(ask, deadline=patience, attempts=_LOOKS, backoff=_POLL, repeat_unknown=True)


def _image(cluster_spec: Mapping[str, Any]) -> str:
    containers = cluster_spec.get("headGroupSpec", {}).get("template", {}).get("spec", {}).get(
        "containers"
    ) or [{}]
    return str(containers[0].get("image", ""))
