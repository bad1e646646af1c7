"""What differs between the KubeRay releases that the sandbox can play."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """One operator release, as far as a client can tell it from another.

    cluster_infix: what stands between a RayService's name and the random suffix of its RayCluster.
    finalizer: put on a RayService before anything else (since 1.6.2), or None.
    declarative_query: whether the operator asks the dashboard for declarative applications only (since 1.5).
    deletion_delay_field: whether spec.rayClusterDeletionDelaySeconds is known (since 1.5).
    initializing_timeout: whether the annotation ray.io/initializing-timeout ends a slow start (since 1.5).
    validation_condition: whether an invalid spec shows as Ready=False/ValidationFailed (since 1.6).
    hash_ignores_tolerations: tolerations are left out of the cluster's hash (since 1.6).
    token_auth: whether rayClusterConfig.authOptions is known (since 1.5.1).
    """

    version: str
    cluster_infix: str
    finalizer: str | None
    declarative_query: bool
    deletion_delay_field: bool
    initializing_timeout: bool
    validation_condition: bool
    hash_ignores_tolerations: bool
    token_auth: bool


RELEASES = {
    "1.3.0": Release(
        version="1.3.0",
        cluster_infix="-raycluster-",
        finalizer=None,
        declarative_query=False,
        deletion_delay_field=False,
        initializing_timeout=False,
        validation_condition=False,
        hash_ignores_tolerations=False,
        token_auth=False,
    ),
    "1.7.0": Release(
        version="1.7.0",
        cluster_infix="-",
        finalizer="ray.io/rayservice-finalizer",
        declarative_query=True,
        deletion_delay_field=True,
        initializing_timeout=True,
        validation_condition=True,
        hash_ignores_tolerations=True,
        token_auth=True,
    ),
}


def release(version: str) -> Release:
    """The release of that number, "v" or not. Raises ValueError naming the releases that can be played."""
    found = RELEASES.get(version.removeprefix("v"))
    if found is None:
        raise ValueError(f"no KubeRay release {version!r} here; there are {', '.join(RELEASES)}")
    return found
