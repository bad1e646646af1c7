"""Compute Nest, user and supplier side: the service on offer, its price, and checks beforehand."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from raynest_pipeline.sandbox.cloud import catalog, deployment, policies, template
from raynest_pipeline.sandbox.cloud.context import Call, Handler
from raynest_pipeline.sandbox.cloud.errors import CloudError, invalid, missing
from raynest_pipeline.sandbox.cloud.wire import compact, page_by_token

_SERVICES = {
    catalog.SERVICE_ID: (catalog.SERVICE_NAME, catalog.TEMPLATE_NAME),
    catalog.OTHER_SERVICE_ID: (catalog.OTHER_SERVICE_NAME, "单机版"),
}


def summary_of_service(service_id: str) -> dict[str, Any]:
    """A service as it is described everywhere: id, version, names, deployment metadata (JSON text)."""
    name, template_name = _SERVICES[service_id]
    configs = [{"Name": template_name, "Url": "", "AllowedRegions": [catalog.REGION]}]
    return {
        "ServiceId": service_id,
        "Version": catalog.SERVICE_VERSION,
        "VersionName": "1.3.0",
        "Status": "Online",
        "DeployType": "ros",
        "ServiceType": "private",
        "SupplierName": "raynest sandbox",
        "PublishTime": "2025-02-20T08:00:00Z",
        "DeployMetadata": compact({"TemplateConfigs": configs}),
        "OperationMetadata": compact({"ModifyParametersConfig": [{"TemplateName": template_name}]}),
        "ServiceInfos": [{"Locale": "zh-CN", "Name": name, "Image": "", "ShortDescription": name}],
    }


def check_service(call: Call) -> None:
    """The service, version and template of the request. Raises CloudError for any that doesn't exist."""
    service_id = call.params.required("ServiceId")
    if service_id not in _SERVICES:
        raise _no_service(service_id)
    if service_id != catalog.SERVICE_ID:
        raise CloudError(400, "StackValidationFailed", "This service can't be deployed in the sandbox.")
    if call.params.text("ServiceVersion", catalog.SERVICE_VERSION) != catalog.SERVICE_VERSION:
        message = f"The version {call.params.text('ServiceVersion')} of the service does not exist."
        raise CloudError(404, "EntityNotExist.ServiceVersion", message)
    if call.params.text("TemplateName", catalog.TEMPLATE_NAME) != catalog.TEMPLATE_NAME:
        raise invalid("TemplateName", f"is not a template of the service: {catalog.TEMPLATE_NAME}")


def get_service(call: Call) -> dict[str, Any]:
    """GetService by ServiceId; the user side also takes the exact ServiceName."""
    service_id = call.params.text("ServiceId")
    name = call.params.text("ServiceName")
    if not service_id and call.product == "computenest" and name:
        service_id = next((key for key, (each, _) in _SERVICES.items() if each == name), name)
    if not service_id:
        raise missing("ServiceId")
    if service_id not in _SERVICES:
        raise _no_service(service_id)
    return summary_of_service(service_id)


def list_services(call: Call) -> dict[str, Any]:
    """ListServices: Name and FuzzyKeyword find parts of names."""
    filters = call.params.filters()
    names = filters.get("Name", []) + ([keyword] if (keyword := call.params.text("FuzzyKeyword")) else [])
    found = [
        summary_of_service(key)
        for key, (name, _) in _SERVICES.items()
        if all(each.strip("*") in name for each in names)
        and key in filters.get("ServiceId", [key])
        and "Online" in filters.get("Status", ["Online"])
    ]
    # The exact match is not the first: fuzzy means fuzzy.
    found.reverse()
    page, token, size = page_by_token(found, call.params)
    return {"TotalCount": len(found), "MaxResults": size, "NextToken": token, "Services": page}


def get_service_estimate_cost(call: Call) -> dict[str, Any]:
    """GetServiceEstimateCost: prices by resource; one has none, so that the sum is a lower bound."""
    check_service(call)
    values = template.complete(call.params.json_object("Parameters"))
    resources: dict[str, Any] = {}
    module = "AckOrAcsClusterModule."
    if values["CsOptions"] == "NewAck":
        kind = catalog.INSTANCE_TYPES[values["WorkerInstanceType"]]
        worker = catalog.worker_price(
            kind, values["WorkerSystemDiskCategory"], values["WorkerSystemDiskSize"]
        )
        count = values["WorkerInstanceCount"]
        resources = {
            module + "EcsInstanceWorker": _price(
                "ALIYUN::ECS::InstanceGroup", worker * count, quantity=count
            ),
            module + "ManagedKubernetesCluster": _price(
                "ALIYUN::CS::ManagedKubernetesCluster", catalog.CLUSTER_PRICE
            ),
            module + "SlbInstanceApiServer": _price("ALIYUN::SLB::LoadBalancer", catalog.LOAD_BALANCER_PRICE),
            module + "SlbInstanceIngress": _price("ALIYUN::SLB::LoadBalancer", catalog.LOAD_BALANCER_PRICE),
        }
        if values["VpcOption"] == "NewVPC":
            resources[module + "NatGateway"] = _price("ALIYUN::VPC::NatGateway", catalog.NAT_PRICE)
            resources[module + "Eip"] = _price("ALIYUN::VPC::EIP", catalog.EIP_PRICE)
            resources[module + "EipTraffic"] = _price(
                "ALIYUN::VPC::EIP", catalog.TRAFFIC_PRICE_PER_GB, unit="/GB"
            )
    resources["FluxHelmApplicationModule"] = {
        "Type": "MODULE::ACS::ComputeNest::FluxOciHelmDeploy",
        "Success": False,
    }
    return {"Resources": resources, "Commodity": {}}


def _price(kind: str, amount: Decimal, *, quantity: int = 1, unit: str = "/Hour") -> dict[str, Any]:
    order = {
        "TradeAmount": float(amount),
        "OriginalAmount": float(amount),
        "DiscountAmount": 0,
        "TaxAmount": 0,
    }
    supplement = {"ChargeType": "PostPaid", "PriceType": "Total", "PriceUnit": unit, "Quantity": quantity}
    return {
        "Type": kind,
        "Success": True,
        "Result": {
            "Order": {"Currency": catalog.CURRENCY, **order, "RuleIds": []},
            "OrderSupplement": {**supplement, "Period": 1, "PeriodUnit": "Hour"},
            "InquiryType": "Buy",
            "Rules": {"Rule": []},
        },
    }


def generate_service_policy(call: Call) -> dict[str, Any]:
    """GenerateServicePolicy: what deploying needs, and what of it the caller lacks."""
    check_service(call)
    lacking = {
        service: [action for action in actions if not call.cloud.allowed(action)]
        for service, actions in policies.DEPLOY_ACTIONS.items()
    }
    statements = [
        {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
        for actions in policies.DEPLOY_ACTIONS.values()
    ]
    return {
        "Policy": compact({"Version": "1", "Statement": statements}),
        "MissingPolicy": [
            {"ServiceName": service, "Action": actions, "Resource": "*"}
            for service, actions in lacking.items()
            if actions
        ],
    }


def get_service_provisions(call: Call) -> dict[str, Any]:
    """GetServiceProvisions: which cloud services are activated, which service roles are granted."""
    check_service(call)
    roles: dict[str, list[str]] = {
        "CS": ["AliyunCSDefaultRole", "AliyunCSManagedKubernetesRole"],
        "ECS": [],
        "VPC": [],
        "ESS": [],
    }
    provisions: list[dict[str, Any]] = [
        {
            "ServiceName": service,
            "Status": "Enabled" if service == "CS" else "EnabledByDefault",
            "StatusReason": "",
            "EnableURL": f"https://common-buy.aliyun.com/?commodityCode={service.lower()}",
            "AutoEnableService": False,
            "RoleProvision": {
                "AuthorizationURL": "https://ram.console.aliyun.com/role/authorize",
                "Roles": [{"RoleName": name, "Created": True, "Function": ""} for name in names],
            },
            "CommodityProvisions": [],
        }
        for service, names in roles.items()
    ]
    return {"ServiceProvisions": provisions}


def check_service_deployable(call: Call) -> dict[str, Any]:
    """CheckServiceDeployable: whether balance and quota suffice for the amounts in the request."""
    check_service(call)
    return {"CheckResults": [{"Type": "Balance", "Value": "true", "Message": "", "Skippable": False}]}


def get_service_template_parameter_constraints(call: Call) -> dict[str, Any]:
    """GetServiceTemplateParameterConstraints: zones, and the worker types in stock in the given zone."""
    call.params.required("TemplateName")
    check_service(call)
    given = {
        each.get("ParameterKey"): each.get("ParameterValue") for each in call.params.structs("Parameters")
    }
    zones = catalog.ZONES[catalog.REGION]
    zone = given.get("ZoneId")
    types = [
        kind
        for kind in catalog.INSTANCE_TYPES
        if any(not deployment.out_of_stock(call.cloud, kind, each) for each in zones if zone in (None, each))
    ]
    constraints: tuple[tuple[str, list[str], list[str]], ...]
    constraints = (("ZoneId", list(zones), []), ("WorkerInstanceType", types, ["ZoneId"]))
    return {
        "ParameterConstraints": [
            {
                "ParameterKey": key,
                "Type": "String",
                "AllowedValues": allowed,
                "Behavior": "",
                "BehaviorReason": "",
                "AssociationParameterNames": depends,
                "OriginalConstraints": [],
            }
            for key, allowed, depends in constraints
        ],
        "FamilyConstraints": [],
    }


def _no_service(service_id: str) -> CloudError:
    return CloudError(404, "EntityNotExist.Service", f"The specified service {service_id} does not exist.")


HANDLERS: dict[str, Handler] = {
    "GetService": get_service,
    "ListServices": list_services,
    "GetServiceEstimateCost": get_service_estimate_cost,
    "GenerateServicePolicy": generate_service_policy,
    "GetServiceProvisions": get_service_provisions,
    "GetServiceTemplateParameterConstraints": get_service_template_parameter_constraints,
}

#: What only the user side has.
USER_HANDLERS: dict[str, Handler] = {"CheckServiceDeployable": check_service_deployable}
