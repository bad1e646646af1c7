"""The typed ports of raynest_pipeline.alibaba, answered by a World."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from chain_clock import START, cloud_error
from chain_world import Binding, BoughtEip, BoughtInstance, World
from pydantic import SecretStr

from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.alibaba.computenest import (
    CloudResource,
    DeployCheck,
    MissingPermission,
    Provision,
    Service,
    ServiceInstance,
)
from raynest_pipeline.alibaba.cs import Cluster, ClusterResource, Task, TemporaryKubeconfig
from raynest_pipeline.alibaba.ecs import InstanceType, ZoneStock
from raynest_pipeline.alibaba.egress import Egress
from raynest_pipeline.alibaba.price import Price
from raynest_pipeline.alibaba.ros import StackResource
from raynest_pipeline.alibaba.sts import Caller
from raynest_pipeline.alibaba.vpc import Eip
from raynest_pipeline.errors import Verdict

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: admin
clusters: [{{name: c, cluster: {{server: '{server}'}}}}]
contexts: [{{name: admin, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{token: '{token}'}}}}]
"""


def cloud_of(world: World) -> Cloud:
    """All products, over one world."""
    return Cloud(
        access=None,  # type: ignore[arg-type]  # nothing below the ports is used
        instances=_Instances(world),
        clusters=_Clusters(world),  # type: ignore[arg-type]
        network=_Network(world),  # type: ignore[arg-type]
        machines=_Machines(world),  # type: ignore[arg-type]
        identity=_Identity(world),  # type: ignore[arg-type]
        policies=_Policies(world),  # type: ignore[arg-type]
        stacks=_Stacks(world),  # type: ignore[arg-type]
    )


class _Port:
    def __init__(self, world: World) -> None:
        self._world = world


class _Instances(_Port):
    def resolve_service(self) -> Service:
        return self._world.call("resolve_service", lambda: self._world.service)

    def _view(self, item: BoughtInstance) -> ServiceInstance:
        status = self._world.status_of(item)
        return ServiceInstance(
            id=item.id,
            name=item.name,
            status=status,
            status_detail=item.detail if status in ("DeployedFailed", "DeletedFailed") else "",
            progress=30 if status == "Deploying" else None,
            tags=item.tags,
            parameters=item.parameters,
            outputs={"Instruction": "http://192.168.0.9:8265\n"} if status == "Deployed" else {},
            stack_ids=("stack-1",),
            created=START,
            service_version="3",
            deploy_region=item.region or str(item.parameters.get("RegionId", "")),
        )

    def find_instances(self, name: str) -> list[ServiceInstance]:
        world = self._world

        def effect() -> list[ServiceInstance]:
            listed = [
                self._view(i)
                for i in world.instances.values()
                if i.name == name and world.clock.seconds >= i.made_at + world.listing_delay
            ]
            return [view for view in reversed(listed) if view.status != "Deleted"]

        return world.call("find_instances", effect)

    def get_instance(self, instance_id: str) -> ServiceInstance | None:
        def effect() -> ServiceInstance | None:
            item = self._world.instances.get(instance_id)
            view = self._view(item) if item else None
            return view if view and view.status != "Deleted" else None

        return self._world.call("get_instance", effect)

    def create_instance(
        self,
        name: str,
        service: Service,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        client_token: str,
        *,
        dry_run: bool = False,
    ) -> str:
        world = self._world

        def buy() -> str:
            number = len(world.instances) + 1
            made = BoughtInstance(
                f"si-{number:020x}",
                name,
                dict(tags),
                {key: value for key, value in parameters.items() if key != "LoginPassword"},
                world.clock.seconds,
                f"c{number:032x}",
                fate=world.deploy_fate,
                detail="quota of vCPUs exceeded" if world.deploy_fate != "Deployed" else "",
            )
            world.instances[made.id] = made
            world.bought.append(made.id)
            return made.id

        if "LoginPassword" in parameters:
            world.passwords.append(parameters["LoginPassword"])
        arguments = (name, service.service_id, service.version, parameters, tags)
        return world.call("create_instance", lambda: world.once("create", client_token, arguments, buy))

    def delete_instance(self, instance_id: str, client_token: str) -> None:
        world = self._world

        def delete() -> str:
            item = world.instances.get(instance_id)
            if item is not None:
                item.deleted_at = world.clock.seconds
            return ""

        world.call("delete_instance", lambda: world.once("delete", client_token, instance_id, delete))

    def resources(self, instance_id: str) -> list[CloudResource]:
        def effect() -> list[CloudResource]:
            head = "arn:acs:cs:ap-southeast-1:1234"
            pool = CloudResource(f"{head}:nodepool/np1234", "cs", "nodepool", "active")
            cluster = f"{head}:cluster/{self._world.instances[instance_id].cluster_id}"
            found = (
                [CloudResource(cluster, "CS", "cluster", "running")] if self._world.resources_listed else []
            )
            return [pool, *found]

        return self._world.call("resources", effect)

    def instance_logs(self, instance_id: str) -> list[str]:
        return self._world.call("instance_logs", lambda: list(self._world.logs))

    def missing_permissions(
        self, service: Service, parameters: Mapping[str, Any]
    ) -> list[MissingPermission] | None:
        return self._world.call("missing_permissions", lambda: self._world.missing)

    def provisions(self, service: Service, parameters: Mapping[str, Any] | None = None) -> list[Provision]:
        return self._world.call("provisions", lambda: self._world.provisions)

    def estimate_cost(self, service: Service, parameters: Mapping[str, Any]) -> Price | None:
        return self._world.call("estimate_cost", lambda: self._world.estimate)

    def check_deployable(self, service: Service, post_paid_amount: Decimal) -> Sequence[DeployCheck] | None:
        return self._world.call("check_deployable", lambda: self._world.deployable)


class _Clusters(_Port):
    def _view(self, item: BoughtInstance) -> Cluster:
        world = self._world
        busy = any(t.cluster_id == item.cluster_id and not t.applied for t in world.tasks.values())
        return Cluster(
            id=item.cluster_id,
            name=item.name,
            state="updating" if busy else world.cluster_state,
            region="ap-southeast-1",
            vpc_id="vpc-1",
            vswitch_ids=("vsw-1",),
            api_server_endpoint=world.endpoint_of(item.cluster_id),
            version="1.32.1-aliyun.1",
        )

    def get_cluster(self, cluster_id: str) -> Cluster | None:
        def effect() -> Cluster | None:
            for item in self._world.instances.values():
                if item.cluster_id == cluster_id and self._world.status_of(item) == "Deployed":
                    return self._view(item)
            return None

        return self._world.call("get_cluster", effect)

    def find_clusters(self, name: str) -> list[Cluster]:
        def effect() -> list[Cluster]:
            items = self._world.instances.values()
            return [self._view(i) for i in items if i.name == name and self._world.status_of(i) == "Deployed"]

        return self._world.call("find_clusters", effect)

    def resources(self, cluster_id: str) -> list[ClusterResource]:
        return self._world.call("cluster_resources", lambda: list(self._world.cluster_resources))

    def bind_eip(self, cluster_id: str, eip_id: str, client_token: str) -> str:
        arguments = (cluster_id, eip_id)
        return self._world.call(
            "bind_eip",
            lambda: self._world.once(
                "modify", client_token, arguments, lambda: self._start(cluster_id, eip_id)
            ),
        )

    def unbind_eip(self, cluster_id: str) -> str:
        def effect() -> str:
            bound = next((e.id for e in self._world.eips.values() if e.bound_to == cluster_id), "")
            return self._start(cluster_id, bound)

        return self._world.call("unbind_eip", effect)

    def _start(self, cluster_id: str, eip_id: str) -> str:
        world = self._world
        if any(t.cluster_id == cluster_id and not t.applied for t in world.tasks.values()):
            raise cloud_error(Verdict.RETRYABLE, "TaskConflict", status=409)
        task = Binding(
            f"T-{len(world.tasks) + 1}", cluster_id, eip_id, world.clock.seconds, world.bind_failure
        )
        world.tasks[task.id] = task
        return task.id

    def task(self, task_id: str) -> Task:
        def effect() -> Task:
            task = self._world.tasks[task_id]
            if not task.applied:
                return Task(task_id, "running", "")
            return Task(task_id, "fail" if task.fails else "success", task.fails)

        return self._world.call("task", effect)

    def kubeconfig(self, cluster_id: str, minutes: int) -> TemporaryKubeconfig:
        world = self._world
        expires = world.clock.now() + timedelta(minutes=minutes)

        def effect() -> TemporaryKubeconfig:
            token = jwt(expires, world.kubeconfig_token)
            text = KUBECONFIG.format(server=world.endpoint_of(cluster_id), token=token)
            return TemporaryKubeconfig(SecretStr(text), expires)

        return world.call("kubeconfig", effect)


class _Network(_Port):
    def _view(self, item: BoughtEip) -> Eip:
        return Eip(item.id, item.ip, self._world.eip_status(item), instance_id=item.bound_to, tags=item.tags)

    def allocate_eip(
        self, *, region: str, bandwidth_mbps: int, name: str, tags: Mapping[str, str], client_token: str
    ) -> Eip:
        world = self._world

        def buy() -> str:
            number = len(world.purchases("eip-")) + 1
            made = BoughtEip(f"eip-{number}", f"47.1.0.{number}", dict(tags), world.clock.seconds)
            world.eips[made.id] = made
            world.bought.append(made.id)
            return made.id

        arguments = (region, bandwidth_mbps, name, tags)
        eip_id = world.call("allocate_eip", lambda: world.once("allocate", client_token, arguments, buy))
        return Eip(eip_id, f"47.1.0.{eip_id.removeprefix('eip-')}", "", tags=dict(tags))

    def find_eips(self, tags: Mapping[str, str]) -> list[Eip]:
        world = self._world

        def effect() -> list[Eip]:
            return [
                self._view(e)
                for e in (*world.nat_addresses(), *world.eips.values())
                if tags.items() <= e.tags.items() and world.clock.seconds >= e.made_at + world.listing_delay
            ]

        return world.call("find_eips", effect)

    def get_eip(self, eip_id: str) -> Eip | None:
        def effect() -> Eip | None:
            item = self._world.eips.get(eip_id)
            return self._view(item) if item else None

        return self._world.call("get_eip", effect)

    def release_eip(self, eip_id: str) -> None:
        def effect() -> None:
            assert "nat" not in eip_id, "the NAT gateway's address was touched"
            item = self._world.eips.get(eip_id)
            if item is not None and item.bound_to:
                raise cloud_error(Verdict.RETRYABLE, "IncorrectEipStatus", status=400)
            if item is not None:
                item.releasing = True

        self._world.call("release_eip", effect)

    def unassociate_eip(self, eip_id: str, client_token: str) -> None:
        def effect() -> None:
            assert "nat" not in eip_id, "the NAT gateway's address was touched"
            self._world.unassociations.append(client_token)
            if eip_id in self._world.eips:
                self._world.eips[eip_id].bound_to = ""

        self._world.call("unassociate_eip", effect)

    def egress(self, vpc_id: str, vswitch_ids: Sequence[str]) -> Egress:
        return self._world.call("egress", lambda: self._world.egress)


class _Machines(_Port):
    def instance_type(self, type_id: str) -> InstanceType | None:
        machine = self._world.machine
        return self._world.call("instance_type", lambda: machine and replace(machine, id=type_id))

    def zones_in_stock(self, region: str, type_id: str, disk_category: str) -> list[ZoneStock]:
        return self._world.call("zones_in_stock", lambda: self._world.stock)

    def hourly_price(
        self, type_id: str, *, count: int, disk_category: str, disk_gib: int, zone_id: str | None = None
    ) -> Price | None:
        return self._world.call("hourly_price", lambda: self._world.workers_price)


class _Identity(_Port):
    def caller(self) -> Caller:
        return self._world.call("caller", lambda: self._world.caller)


class _Policies(_Port):
    def attached_policies(self, caller: Caller) -> set[str] | None:
        return self._world.call("attached_policies", lambda: self._world.policies)


class _Stacks(_Port):
    def stack_resources(self, stack_id: str, region: str) -> list[StackResource]:
        def effect() -> list[StackResource]:
            ids = [i.cluster_id for i in self._world.instances.values()]
            kind = "ALIYUN::CS::ManagedKubernetesCluster"
            parts = [StackResource("Vpc", "ALIYUN::ECS::VPC", "vpc-1", "CREATE_COMPLETE")]
            if self._world.stack_listed and ids:
                parts.append(StackResource("Cluster", kind, ids[0], "CREATE_COMPLETE"))
            return parts

        return self._world.call("stack_resources", effect)


def jwt(expires: datetime, secret: str) -> str:
    """An unsigned token that says when it ends."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": expires.timestamp()}).encode()).decode().rstrip("=")
    return f"e30.{claims}.{secret}"
