"""One cluster's API, in the few verbs that raynest needs: objects in and out as plain JSON.

Every call raises `KubeError` only, with a verdict. Traps of the library that shaped this file are in
facts: kubernetes-api.md, "Client traps".
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from raynest_pipeline.errors import InputError, Verdict
from raynest_pipeline.kube import connection, schema
from raynest_pipeline.kube.connection import Connection
from raynest_pipeline.kube.errors import (
    NO_SUCH_KIND,
    KubeError,
    guard,
    json_answer,
    not_an_api_server,
    unknown_kind,
)
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.kube.kinds import (
    CONFIG_MAP,
    EVENT,
    NAMESPACE,
    NODE,
    POD,
    RAY_CLUSTER,
    RAY_SERVICE,
    SECRET,
    SERVICE,
    Kind,
    Object,
    Objects,
    event_time,
    mapping,
    name_of,
    namespace_of,
)
from raynest_pipeline.kube.watching import WatchEvent, follow
from raynest_pipeline.waiting import Deadline

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

__all__ = [
    "CONFIG_MAP",
    "EVENT",
    "FIELD_MANAGER",
    "NAMESPACE",
    "NODE",
    "POD",
    "RAY_CLUSTER",
    "RAY_SERVICE",
    "SECRET",
    "SERVICE",
    "Kind",
    "KubeClient",
    "Object",
    "Objects",
    "WatchEvent",
]

T = TypeVar("T")

Query = Sequence[tuple[str, str]]
FIELD_MANAGER = "raynest"
"""Who raynest is in `metadata.managedFields`."""


class KubeClient:
    """One cluster's API. It has its own connection pool and credentials; close it after use."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._cache = tempfile.TemporaryDirectory(prefix="raynest-kube-")
        self._documents: dict[str, Mapping[str, Any]] = {}

    @classmethod
    def from_file(cls, path: Path, context: str | None = None) -> Self:
        """By a kubeconfig file. Contacts nothing yet.

        Raises:
            InputError: The file is missing, or not a usable kubeconfig.
        """
        return cls(connection.from_kubeconfig(path, context))

    @classmethod
    def in_cluster(cls) -> Self:
        """By the service account of the pod this runs in.

        Raises:
            AccessError: This is not a pod with a service account.
        """
        return cls(connection.from_service_account())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Safe to repeat."""
        self._link.api.rest_client.pool_manager.clear()
        self._link.api.close()
        self._cache.cleanup()

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self._link.server

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object | None:
        """The object, or None when there is none. An unknown kind raises (code NO_SUCH_KIND)."""
        try:
            return self._read(f"read {kind.kind} {name}", kind, name, namespace)
        except KubeError as error:
            if error.verdict is Verdict.GONE:
                return None
            raise

    def list(
        self, kind: Kind, namespace: str | None = None, *, labels: Mapping[str, str] | None = None
    ) -> Objects:
        """All objects of a kind that carry `labels`; in every namespace when none is given."""
        selector = ",".join(f"{key}={value}" for key, value in (labels or {}).items())
        query = [("labelSelector", selector)] if selector else []
        answer = self._read(f"list {kind.kind}s", kind, None, namespace, query)
        # A list's items come without apiVersion and kind.
        head = {"apiVersion": kind.api_version, "kind": kind.kind}
        return [{**head, **item} for item in answer.get("items") or []]

    def apply(self, obj: Mapping[str, Any], *, force: bool = True, dry_run: bool = False) -> Object:
        """Server-side apply as field manager `raynest`; returns the object as it then is.

        Args:
            obj: Needs apiVersion, kind and metadata.name, and a namespace where its kind has one.
            force: Take over fields that another manager owns.
            dry_run: Let the server check and default it, and change nothing.
        """
        kind, name, namespace = Kind.of(obj), name_of(obj), namespace_of(obj)
        operation = f"apply {kind.kind} {name}"
        resource = self._resource(operation, kind)
        if not name or (resource.namespaced and not namespace):
            raise InputError(f"{kind.kind} {name or '(unnamed)'} lacks a name or a namespace.")
        with guard(operation, write=not dry_run):
            # The dynamic client is the only one whose apply works unchanged in releases 35 to 37.
            answer = self._dynamic.server_side_apply(
                resource,
                body=dict(obj),
                namespace=namespace or None,
                field_manager=FIELD_MANAGER,
                # In lower case, as kubectl sends it: the library would write Python's "True".
                force_conflicts=str(force).lower(),
                dry_run="All" if dry_run else None,
                serialize=False,
            )
            return json_answer(operation, answer.data)

    def delete(
        self, kind: Kind, name: str, namespace: str | None = None, *, propagation: str = "Foreground"
    ) -> bool:
        """Ask for an object's deletion; it may live on until its finalizers are done.

        Args:
            kind: Of the object.
            name: Of the object.
            namespace: None for cluster-wide kinds.
            propagation: Foreground | Background | Orphan.

        Returns:
            Whether there was something to delete.
        """
        operation = f"delete {kind.kind} {name}"
        try:
            path = self._resource(operation, kind).path(name=name, namespace=namespace)
            self._request(operation, "delete", path, [("propagationPolicy", propagation)], write=True)
        except KubeError as error:
            if error.verdict is Verdict.GONE or error.code == NO_SUCH_KIND:
                return False
            raise
        return True

    def watch(
        self, kind: Kind, namespace: str | None, name: str, *, deadline: Deadline, tick: float = 10.0
    ) -> Iterator[WatchEvent]:
        """Follow one object until the deadline; see `watching.follow` for what is yielded."""
        resource = self._resource(f"watch {kind.kind} {name}", kind)
        return follow(resource, kind, namespace, name, deadline=deadline, tick=tick)

    def events(self, obj: Mapping[str, Any]) -> Objects:
        """The core/v1 Events about an object, newest last."""
        name, namespace = name_of(obj), namespace_of(obj)
        uid = mapping(obj.get("metadata")).get("uid")
        query = [("fieldSelector", f"involvedObject.name={name}")]
        found = self._read(f"read the events of {name}", EVENT, None, namespace or None, query)
        about = [
            event
            for event in found.get("items") or []
            if mapping(event.get("involvedObject")).get("name") == name
            and mapping(event.get("involvedObject")).get("kind") == obj.get("kind")
            # An earlier object of the same name has another uid, and its events linger for an hour.
            and mapping(event.get("involvedObject")).get("uid") in (None, "", uid)
        ]
        return sorted(about, key=event_time)

    def pod_logs(
        self,
        namespace: str,
        pod: str,
        *,
        container: str | None = None,
        tail: int = 50,
        previous: bool = False,
    ) -> str:
        """The last `tail` lines of a container's log; of its previous run with `previous`."""
        operation = f"read the log of pod {pod}"
        query = [("tailLines", str(tail))]
        if container:
            query.append(("container", container))
        if previous:
            query.append(("previous", "true"))
        path = f"{self._resource(operation, POD).path(name=pod, namespace=namespace)}/log"
        return self._request(operation, "get", path, query, accept="*/*").decode(errors="replace")

    def server_version(self) -> str:
        """The release of the API server, e.g. "v1.36.2"."""
        operation = "read the API server's version"
        return str(json_answer(operation, self._request(operation, "get", "/version")).get("gitVersion", ""))

    def declares(self, kind: Kind, path: tuple[str, ...]) -> bool:
        """Whether the server's schema of a kind has a field, e.g. ("spec", "serveConfigV2").

        False when the server does not describe the kind: a server-side apply would refuse the field then.
        """
        operation = f"read the schema of {kind.api_version}"
        if kind.api_version not in self._documents:
            try:
                body = self._request(operation, "get", schema.path_of(kind.api_version))
            except KubeError as error:
                if error.verdict is not Verdict.GONE:
                    raise
                body = b"{}"
            self._documents[kind.api_version] = json_answer(operation, body)
        return schema.has_field(self._documents[kind.api_version], kind, path)

    def service_proxy(self, namespace: str, service: str, port: int | str) -> HttpTarget:
        """A target that reaches a Service through the API server, with the credentials of this client.

        The server strips Authorization before it passes a request on; Ray's own token goes in
        x-ray-authorization (facts: kubernetes-api.md).

        Args:
            namespace: Of the service.
            service: Its name.
            port: A port's number or its name.
        """
        path = f"/api/v1/namespaces/{namespace}/services/{service}:{port}/proxy"
        with guard("renew the credentials"):
            headers = self._link.authorization()
        return HttpTarget(
            base_url=f"{self.server}{path}",
            headers=headers,
            ssl=self._link.ssl,
            server_hostname=self._link.server_hostname,
        )

    @cached_property
    def _dynamic(self) -> "DynamicClient":
        from kubernetes.dynamic import DynamicClient

        # A cache file of our own: the default one is shared by every process on the machine.
        cache = str(Path(self._cache.name) / "discovery.json")
        return self._discovered(lambda: DynamicClient(self._link.api, cache_file=cache))

    def _resource(self, operation: str, kind: Kind) -> Any:
        from kubernetes.dynamic.exceptions import ResourceNotFoundError

        with guard(operation):
            resources = self._dynamic.resources
            try:
                # With the prefix it asks one group; without, every group that has such a version.
                prefix = "apis" if "/" in kind.api_version else "api"
                return self._discovered(
                    lambda: resources.get(prefix=prefix, api_version=kind.api_version, kind=kind.kind)
                )
            except ResourceNotFoundError as error:
                raise unknown_kind(operation, kind.api_version, kind.kind) from error

    def _discovered(self, discovery: Callable[[], T]) -> T:
        try:
            return discovery()
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # The library takes any answer for a list of groups: a login page, say.
            raise not_an_api_server(self.server) from error

    def _read(
        self,
        operation: str,
        kind: Kind,
        name: str | None,
        namespace: str | None,
        query: Query = (),
    ) -> Object:
        path = self._resource(operation, kind).path(name=name, namespace=namespace)
        return json_answer(operation, self._request(operation, "get", path, query))

    def _request(
        self,
        operation: str,
        method: str,
        path: str,
        query: Query = (),
        *,
        accept: str = "application/json",
        write: bool = False,
    ) -> bytes:
        with guard(operation, write=write):
            answer = self._dynamic.request(
                method,
                path,
                query_params=[*query],
                header_params={"Accept": accept},
                serialize=False,
            )
            data: bytes = answer.data
            return data
