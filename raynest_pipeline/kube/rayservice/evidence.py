"""Gathering what can be known about a RayService that is not ready: objects, events, pods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from raynest_pipeline.kube.client import EVENT, POD, RAY_CLUSTER, KubeClient
from raynest_pipeline.kube.errors import KubeError
from raynest_pipeline.kube.kinds import Object, Objects, event_time, mapping, name_of, namespace_of, text
from raynest_pipeline.kube.rayservice.status import RayServiceStatus, parse

T = TypeVar("T")

CLUSTER_LABEL = "ray.io/cluster"


@dataclass(frozen=True)
class Evidence:
    """What was found."""

    ray_service: Mapping[str, Any]
    status: RayServiceStatus
    events: Sequence[Object] = ()
    """About the RayService, newest last."""
    clusters: Sequence[Object] = ()
    """Its RayClusters: the pending one first, since it is the one that is to become ready."""
    pods: Sequence[Object] = ()
    """Of these clusters, in the same order."""
    pod_events: Sequence[Object] = ()
    """About these pods and clusters, newest last."""
    unreadable: tuple[str, ...] = ()
    """What could not be read, and why."""

    @property
    def warnings(self) -> list[Object]:
        """Warning events, newest last."""
        found = [event for event in (*self.events, *self.pod_events) if event.get("type") == "Warning"]
        return sorted(found, key=event_time)


def gather(client: KubeClient, ray_service: Mapping[str, Any]) -> Evidence:
    """Read everything; what cannot be read is noted in `unreadable`."""
    unreadable: list[str] = []

    def attempt(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except KubeError as error:
            unreadable.append(f"{error.what} {error.why}".strip())
            return otherwise

    status = parse(ray_service)
    namespace = namespace_of(ray_service)
    nothing: Objects = []
    clusters: Objects = []
    for name in cluster_names(status):
        found = attempt(lambda name=name: client.get(RAY_CLUSTER, name, namespace), None)  # type: ignore[misc]
        clusters += [found] if found else []
    pods = attempt(lambda: cluster_pods(client, ray_service), nothing)
    names = {name_of(obj) for obj in (*clusters, *pods)}
    every_event = attempt(lambda: client.list(EVENT, namespace), nothing)
    about = [event for event in every_event if _about(event) in names]
    return Evidence(
        ray_service=ray_service,
        status=status,
        events=attempt(lambda: client.events(ray_service), nothing),
        clusters=clusters,
        pods=pods,
        pod_events=sorted(about, key=event_time),
        unreadable=tuple(dict.fromkeys(unreadable)),
    )


def cluster_names(status: RayServiceStatus) -> list[str]:
    """Names of its RayClusters, the pending one first."""
    return [name for name in (status.pending.name, status.active.name) if name]


def cluster_pods(client: KubeClient, ray_service: Mapping[str, Any]) -> Objects:
    """The pods of its pending and active RayClusters.

    Raises:
        KubeError: They cannot be listed.
    """
    namespace = namespace_of(ray_service)
    pods: Objects = []
    for name in cluster_names(parse(ray_service)):
        pods += client.list(POD, namespace, labels={CLUSTER_LABEL: name})
    return pods


def _about(event: Mapping[str, Any]) -> str:
    return text(mapping(event.get("involvedObject")).get("name"))
