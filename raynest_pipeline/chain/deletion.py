"""Taking off a cluster what raynest applied to it, and only that."""

from collections.abc import Mapping
from typing import Any

from raynest_pipeline.chain.desired import KEPT_KINDS, is_ours
from raynest_pipeline.chain.link import OnStep, Step
from raynest_pipeline.chain.serving import LINK
from raynest_pipeline.kube.client import CONFIG_MAP, RAY_SERVICE, SERVICE, Kind, KubeClient
from raynest_pipeline.kube.kinds import Object, name_of, namespace_of
from raynest_pipeline.kube.rayservice import manifest
from raynest_pipeline.kube.rayservice.user_manifest import CLUSTER_WIDE, UserManifest
from raynest_pipeline.waiting import Backoff, Deadline, Done, Waiting, wait_for

_POLL = Backoff(first=0.5, factor=1.5, most=4.0)


def applied_with(client: KubeClient, name: str, namespace: str, users: UserManifest | None) -> list[Object]:
    """What was applied together with the RayService `name`, last applied first.

    By its labels: a manifest may have changed since, so that Services and ConfigMaps are looked for anyway.
    """
    places = {(kind, namespace): None for kind in (SERVICE, CONFIG_MAP)}
    for obj in reversed(users.objects if users else []):
        if obj["kind"] not in (*KEPT_KINDS, "RayService"):
            place = "" if obj["kind"] in CLUSTER_WIDE else namespace_of(obj)
            places[Kind.of(obj), place] = None
    labels = manifest.owner_labels(name)
    found = [obj for kind, place in places for obj in client.list(kind, place or None, labels=labels)]
    return [obj for obj in found if is_ours(obj)]


def delete(client: KubeClient, obj: Object, deadline: Deadline, on_step: OnStep) -> None:
    """Delete an object and wait until it is gone.

    Raises:
        NotReadyError: A finalizer holds it.
    """
    kind, name, namespace = Kind.of(obj), name_of(obj), namespace_of(obj) or None
    client.delete(kind, name, namespace)

    def probe() -> Done[None] | Waiting:
        if client.get(kind, name, namespace) is None:
            return Done(None)
        return Waiting(f"{kind.kind} {name} is being deleted")

    operator = "Is the KubeRay operator running? Its finalizer holds the object until it has cleaned up."
    wait_for(
        probe,
        what=f"The deletion of {kind.kind} {name}",
        deadline=deadline,
        backoff=_POLL,
        on_progress=lambda w: on_step(Step(LINK, w.cause)),
        fix=operator if kind == RAY_SERVICE else "See which finalizer holds it: `kubectl get -o yaml`.",
    )


def described(obj: Mapping[str, Any]) -> str:
    """For people: kind, namespace and name."""
    namespace = namespace_of(obj)
    return f"{obj['kind']} {namespace + '/' if namespace else ''}{name_of(obj)}"
