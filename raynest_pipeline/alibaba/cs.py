"""Container Service (CS 2015-12-15): the ACK cluster, its API server's address, its kubeconfig."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import SecretStr

from raynest_pipeline.alibaba.access import CloudAccess, check_token
from raynest_pipeline.alibaba.answers import LIST_BODY, Answer, all_by_number
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.errors import Verdict

_CLUSTER_PAGE_SIZE = 50


@dataclass(frozen=True)
class Cluster:
    """An ACK cluster."""

    id: str
    name: str
    state: str
    """initial, failed, running, updating, upgrading, removing, deleting, deleted, delete_failed, ..."""
    region: str
    vpc_id: str = ""
    vswitch_ids: tuple[str, ...] = ()
    api_server_endpoint: str = ""
    """https://<public address>:6443, or "" when no address is bound."""
    intranet_endpoint: str = ""
    version: str = ""
    deletion_protection: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """An asynchronous operation on a cluster."""

    id: str
    state: str
    """running | success | fail (others exist). Trust this, not the presence of a message."""
    message: str = ""


@dataclass(frozen=True)
class TemporaryKubeconfig:
    """A kubeconfig with a credential that ends."""

    text: SecretStr
    expires_at: datetime | None
    """UTC; None when the answer didn't say."""


@dataclass(frozen=True)
class ClusterResource:
    """A cloud resource that the cluster made: what a deletion takes along, and what it leaves."""

    id: str
    type: str
    """e.g. ALIYUN::VPC::NatGateway"""
    state: str
    creator: str
    """user | system | addon"""
    deleted_with_cluster: bool | None
    """None: the answer didn't say."""
    owner: str = ""
    """The Kubernetes object it was made for, e.g. `Service default/web`."""


class Clusters:
    """ACK clusters of the settings' region. Every method raises `CloudError`."""

    def __init__(self, access: CloudAccess) -> None:
        self._access = access

    def get_cluster(self, cluster_id: str) -> Cluster | None:
        """One cluster; None when it is gone."""
        try:
            cluster = self._access.read(
                "cs",
                "DescribeClusterDetail",
                lambda client, models: client.describe_cluster_detail(cluster_id),
                _cluster,
            )
        except CloudError as error:
            if error.verdict is Verdict.GONE:
                return None
            raise
        return None if cluster.state == "deleted" else cluster

    def find_clusters(self, name: str) -> list[Cluster]:
        """All clusters of exactly this name in the region."""

        def page(number: int) -> tuple[list[Cluster], int]:
            return self._access.read(
                "cs",
                "DescribeClustersV1",
                lambda client, models: client.describe_clusters_v1(
                    models.DescribeClustersV1Request(
                        # The API's own match is fuzzy.
                        name=name,
                        region_id=self._access.region_id,
                        page_number=number,
                        page_size=_CLUSTER_PAGE_SIZE,
                    )
                ),
                lambda answer: (
                    [_cluster(item) for item in answer.children("clusters")],
                    _total(answer, "page_info"),
                ),
            )

        return [item for item in all_by_number(page) if item.name == name and item.state != "deleted"]

    def bind_eip(self, cluster_id: str, eip_id: str, client_token: str) -> str:
        """Give the API server a public address; returns the task id. It restarts the API server."""
        check_token(client_token)
        return self._modify(
            cluster_id,
            {"api_server_eip": True, "api_server_eip_id": eip_id, "client_token": client_token},
            repeat_unknown=True,
        )

    def unbind_eip(self, cluster_id: str) -> str:
        """Take the API server's public address away; returns the task id. It restarts the API server."""
        return self._modify(cluster_id, {"api_server_eip": False}, repeat_unknown=False)

    def task(self, task_id: str) -> Task:
        """How far a task is."""
        return self._access.read(
            "cs", "DescribeTaskInfo", lambda client, models: client.describe_task_info(task_id), _task
        )

    def kubeconfig(self, cluster_id: str, minutes: int) -> TemporaryKubeconfig:
        """A new temporary credential for the public endpoint, valid `minutes` (15 to 4320).

        Look first whether there is a public endpoint: without one the text names no server one can reach.
        """
        return self._access.read(
            "cs",
            "DescribeClusterUserKubeconfig",
            lambda client, models: client.describe_cluster_user_kubeconfig(
                cluster_id,
                models.DescribeClusterUserKubeconfigRequest(
                    private_ip_address=False, temporary_duration_minutes=minutes
                ),
            ),
            lambda answer: TemporaryKubeconfig(
                text=SecretStr(answer.required("config")), expires_at=answer.moment("expiration")
            ),
        )

    def resources(self, cluster_id: str) -> list[ClusterResource]:
        """What the cluster consists of, for the audit: ask before it is deleted. Empty when it is gone."""
        try:
            return self._access.read(
                "cs",
                "DescribeClusterResources",
                lambda client, models: client.describe_cluster_resources(
                    cluster_id, models.DescribeClusterResourcesRequest()
                ),
                lambda answer: [_resource(item) for item in answer.children(LIST_BODY)],
            )
        except CloudError as error:
            if error.verdict is Verdict.GONE:
                return []
            raise

    def _modify(self, cluster_id: str, change: Mapping[str, Any], *, repeat_unknown: bool) -> str:
        return self._access.write(
            "cs",
            "ModifyCluster",
            lambda client, models: client.modify_cluster(cluster_id, models.ModifyClusterRequest(**change)),
            lambda answer: answer.required("task_id"),
            repeat_unknown=repeat_unknown,
        )


def _total(answer: Answer, page: str) -> int:
    total = answer.child(page).integer("total_count")
    if total is None:
        raise answer.bad(f"{page}.total_count", "is missing")
    return total


def _cluster(item: Answer) -> Cluster:
    urls = Answer(item.json_object("master_url"), item.operation, "master_url.")
    return Cluster(
        id=item.required("cluster_id"),
        name=item.required("name"),
        state=item.required("state"),
        region=item.text("region_id"),
        vpc_id=item.text("vpc_id"),
        vswitch_ids=item.texts("vswitch_ids"),
        # Without an address the key is empty or absent; both occur.
        api_server_endpoint=urls.text("api_server_endpoint"),
        intranet_endpoint=urls.text("intranet_api_server_endpoint"),
        version=item.text("current_version"),
        deletion_protection=bool(item.flag("deletion_protection")),
        tags=item.tags("tags", "key", "value"),
    )


def _task(answer: Answer) -> Task:
    error = answer.child("error")
    state = answer.required("state")
    # The official sample shows an error beside the state `running`.
    message = error.text("message") if state.startswith("fail") else answer.text("current_stage")
    return Task(id=answer.required("task_id"), state=state, message=message)


def _resource(item: Answer) -> ClusterResource:
    owner = item.child("associated_object")
    place = "/".join(part for part in (owner.text("namespace"), owner.text("name")) if part)
    return ClusterResource(
        id=item.text("instance_id"),
        type=item.required("resource_type"),
        state=item.text("state"),
        creator=item.text("creator_type"),
        deleted_with_cluster=item.child("delete_behavior").flag("delete_by_default"),
        owner=f"{owner.text('kind')} {place}".strip(),
    )
