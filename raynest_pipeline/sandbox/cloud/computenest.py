"""Compute Nest, user and supplier side: service instances."""

from __future__ import annotations

import re
from typing import Any

from raynest_pipeline.sandbox.cloud import catalog, deployment, policies, template
from raynest_pipeline.sandbox.cloud.computenest_service import check_service, summary_of_service
from raynest_pipeline.sandbox.cloud.context import Call, Handler, new_id, new_uuid
from raynest_pipeline.sandbox.cloud.errors import CloudError, invalid
from raynest_pipeline.sandbox.cloud.wire import compact, has_tags, page_by_token, tag_list, utc
from raynest_pipeline.sandbox.cloud.world import Cluster, Instance

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
#: A page of resources is smaller than asked for: whoever reads only the first page misses some.
_RESOURCES_PAGE = 5


def create_service_instance(call: Call) -> dict[str, Any]:
    """CreateServiceInstance: order an instance, or with DryRun only check parameters and permissions."""
    dry_run = call.params.boolean("DryRun")
    token = "" if dry_run else call.params.text("ClientToken")
    return call.once(token, lambda: _create(call, dry_run), mismatch="IdempotentParameterMismatch")


def _create(call: Call, dry_run: bool) -> dict[str, Any]:
    check_service(call)
    name = check_name(call.params.required("Name"))
    values = template.complete(call.params.json_object("Parameters"))
    if values["CsOptions"] == "ExistCs" and values["ClusterId"] not in call.world.clusters:
        message = f"The cluster {values['ClusterId']} does not exist."
        raise CloudError(400, "StackValidationFailed", message)
    for actions in policies.DEPLOY_ACTIONS.values():
        for action in actions:
            call.cloud.require(action)
    answer = {"Status": "Created", "ServiceInstanceId": "", "MarketInstanceId": "", "OrderId": ""}
    if dry_run:
        return answer
    instance = Instance(
        id=new_id("si-"),
        name=name,
        service_region=call.params.text("RegionId", catalog.REGION),
        parameters=template.masked(values),
        tags=call.params.tags(),
        created=call.now,
        began=call.now,
        updated=call.now,
        stack_id=new_uuid(),
    )
    deployment.log(call.cloud, instance, "Created", "The service instance is created.")
    call.world.instances[instance.id] = instance
    return {**answer, "ServiceInstanceId": instance.id}


def check_name(name: str) -> str:
    """The API's own rule: upper case and "_" pass here, and fail as a namespace ten minutes later."""
    if not _NAME.fullmatch(name):
        raise invalid("Name", "must start with a letter or digit; letters, digits, - and _; at most 64")
    return name


def get_service_instance(call: Call) -> dict[str, Any]:
    """GetServiceInstance."""
    instance = find_instance(call, call.params.required("ServiceInstanceId"))
    return _summary(call, instance) | {
        "Outputs": compact(_outputs(instance)),
        "Resources": compact([{"StackId": instance.stack_id}]),
        "SupplierUid": catalog.SUPPLIER_UID,
        "IsOperated": False,
        "NetworkConfig": {},
    }


def list_service_instances(call: Call) -> dict[str, Any]:
    """ListServiceInstances. One ServiceInstanceName is a fuzzy search, several are exact names."""
    filters = call.params.filters()
    wanted = call.params.tags()
    found = [
        each
        for each in call.world.instances.values()
        if each.service_region == call.params.text("RegionId", catalog.REGION)
        and has_tags(each.tags, wanted)
        and _matches(each, filters)
    ]
    found.sort(key=lambda each: each.created, reverse=True)
    page, token, size = page_by_token((_summary(call, each) for each in found), call.params)
    return {"TotalCount": len(found), "MaxResults": size, "NextToken": token, "ServiceInstances": page}


def _matches(instance: Instance, filters: dict[str, list[str]]) -> bool:
    if instance.status == "Deleted":
        return False
    for name, values in filters.items():
        if name == "ServiceInstanceName":
            fuzzy = len(values) == 1 and values[0].strip("*") in instance.name
            if not fuzzy and instance.name not in values:
                return False
        elif name == "Name":
            if not any(value.strip("*") in catalog.SERVICE_NAME for value in values):
                return False
        else:
            fields = {
                "ServiceInstanceId": instance.id,
                "ServiceId": catalog.SERVICE_ID,
                "Version": catalog.SERVICE_VERSION,
                "Status": instance.status,
                "DeployType": "ros",
                "ServiceType": "private",
            }
            if name not in fields:
                raise invalid("Filter", f"has an unknown name {name}")
            if fields[name] not in values:
                return False
    return True


def list_service_instance_resources(call: Call) -> dict[str, Any]:
    """ListServiceInstanceResources: what the instance's stack made, in no helpful order."""
    instance = find_instance(call, call.params.required("ServiceInstanceId"))
    cluster = call.world.clusters.get(instance.cluster_id)
    items = _resources(call, cluster) if cluster is not None and cluster.owner == instance.id else []
    page, token, size = page_by_token(items, call.params, most=_RESOURCES_PAGE)
    return {"MaxResults": size, "NextToken": token, "Resources": page}


def _resources(call: Call, cluster: Cluster) -> list[dict[str, Any]]:
    ids = cluster.ids
    pairs = [("ecs", "ECS", f"instance/{worker}") for worker in cluster.workers]
    pairs += [
        ("vpc", "VPC", f"vpc/{ids['vpc']}"),
        ("vpc", "VPC", f"vswitch/{ids['vswitch']}"),
        ("ess", "ESS", f"scalinggroup/{ids['scaling_group']}"),
        ("cs", "CS", f"nodepool/{ids['nodepool']}"),
        ("slb", "SLB", f"loadbalancer/{ids['api_slb']}"),
        ("slb", "SLB", f"loadbalancer/{ids['ingress_slb']}"),
        ("cs", "CS", f"cluster/{cluster.id}"),
    ]
    if ids["nat"]:
        pairs += [("vpc", "NAT", f"natgateway/{ids['nat']}"), ("vpc", "EIP", f"eip/{ids['nat_eip']}")]
    return [
        {
            "ResourceARN": f"arn:acs:{product}:{cluster.region}:{call.world.account_id}:{path}",
            "ProductCode": product,
            "ProductType": kind,
            "PayType": "PayAsYouGo",
            "CreateTime": utc(cluster.created).rstrip("Z"),
            "Status": cluster.state if kind == "CS" else "CREATE_COMPLETE",
        }
        for product, kind, path in pairs
    ]


def list_service_instance_logs(call: Call) -> dict[str, Any]:
    """ListServiceInstanceLogs: newest first, unless SortOrder is Ascending."""
    instance = find_instance(call, call.params.required("ServiceInstanceId"))
    source = call.params.text("LogSource")
    logs = [entry for entry in instance.logs if source in ("", entry["Source"])]
    if call.params.text("SortOrder") != "Ascending":
        logs.reverse()
    page, token, size = page_by_token(({**entry} for entry in logs), call.params)
    return {"MaxResults": size, "NextToken": token, "ServiceInstancesLogs": page}


def delete_service_instances(call: Call) -> dict[str, Any]:
    """DeleteServiceInstances: accepted now, gone later."""
    ids = call.params.items("ServiceInstanceId")
    if not ids:
        raise CloudError(400, "MissingParameter", "ServiceInstanceId is mandatory for this action.")
    for instance in [find_instance(call, each) for each in ids]:
        if instance.status not in ("Deleting", "Deleted"):
            instance.status, instance.status_detail = "Deleting", ""
            instance.began, instance.stage = call.now, 0
            cluster = call.world.clusters.get(instance.cluster_id)
            if cluster is not None and cluster.owner == instance.id:
                cluster.state = "deleting"
            deployment.log(call.cloud, instance, "Deleting", "Start to delete the service instance.")
    return {}


def validate_service_instance_name(call: Call) -> dict[str, Any]:
    """ValidateServiceInstanceName: empty when the name is valid and free."""
    name = check_name(call.params.required("ServiceInstanceName"))
    if any(each.name == name and each.status != "Deleted" for each in call.world.instances.values()):
        message = f"The service instance name {name} already exists."
        raise CloudError(400, "ServiceInstanceNameAlreadyExists", message)
    return {}


def find_instance(call: Call, instance_id: str) -> Instance:
    """An instance of the request's region. Raises CloudError ServiceInstanceNotFound."""
    instance = call.world.instances.get(instance_id)
    if instance is None or instance.service_region != call.params.text("RegionId", catalog.REGION):
        message = f"The specified service instance {instance_id} does not exist."
        raise CloudError(404, "ServiceInstanceNotFound", message)
    return instance


def _summary(call: Call, instance: Instance) -> dict[str, Any]:
    return {
        "ServiceInstanceId": instance.id,
        "Name": instance.name,
        "Status": instance.status,
        "StatusDetail": instance.status_detail,
        "Progress": instance.progress,
        "BizStatus": "Normal",
        "Source": "User",
        "PayType": "Permanent",
        "ServiceType": "private",
        "TemplateName": catalog.TEMPLATE_NAME,
        "CreateTime": utc(instance.created),
        "UpdateTime": utc(instance.updated),
        "ResourceGroupId": "rg-acfmsandbox",
        "Parameters": compact(instance.parameters),
        "EnableInstanceOps": False,
        "UserId": int(call.world.account_id),
        "Service": summary_of_service(catalog.SERVICE_ID),
        "Tags": tag_list(instance.tags),
    }


def _outputs(instance: Instance) -> dict[str, str]:
    if instance.status != "Deployed":
        return {}
    chart = "oci://compute-nest-chart-registry.cn-hangzhou.cr.aliyuncs.com/ray-cluster"
    return {
        "Instruction": f"http://{deployment.dashboard_address(instance)}:8265\n",
        "UpdateDesc": f"helm upgrade ray-cluster {chart} --version 1.3.0 -f values.yaml -n {instance.name}",
    }


HANDLERS: dict[str, Handler] = {
    "CreateServiceInstance": create_service_instance,
    "GetServiceInstance": get_service_instance,
    "ListServiceInstances": list_service_instances,
    "ListServiceInstanceResources": list_service_instance_resources,
    "ListServiceInstanceLogs": list_service_instance_logs,
    "DeleteServiceInstances": delete_service_instances,
}

#: What only the user side has.
USER_HANDLERS: dict[str, Handler] = {"ValidateServiceInstanceName": validate_service_instance_name}
