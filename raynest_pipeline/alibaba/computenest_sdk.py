"""Compute Nest over its two SDKs.

What the chain needs is wire-identical on both sides save for host and version (facts 1.2): one body serves
both, and the user side adds the two calls that the supplier side does not have.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

from raynest_pipeline.alibaba import computenest_answers as answers
from raynest_pipeline.alibaba.access import CloudAccess, check_token
from raynest_pipeline.alibaba.answers import Answer, all_by_token, rpc
from raynest_pipeline.alibaba.computenest import (
    STATUS_DELETED,
    CloudResource,
    DeployCheck,
    MissingPermission,
    Provision,
    Service,
    ServiceInstance,
    ServiceInstances,
)
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.alibaba.price import Price, parse_estimate
from raynest_pipeline.errors import Verdict
from raynest_pipeline.settings import Alibaba

PAGE_SIZE = 100
PASSWORD_PARAMETER = "LoginPassword"
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_LOG_SOURCES = ("computeNest", answers.ROS)


def service_instances(access: CloudAccess, alibaba: Alibaba) -> ServiceInstances:
    """The port for the side of the API that `alibaba.sdk` names."""
    return (UserSide if alibaba.sdk == "user" else SupplierSide)(access, alibaba)


class SupplierSide:
    """`ServiceInstances` over alibabacloud-computenestsupplier20210521."""

    product = "computenestsupplier"

    def __init__(self, access: CloudAccess, alibaba: Alibaba) -> None:
        self._access = access
        self._alibaba = alibaba
        # Not where the cluster goes: that is the template's parameter RegionId.
        self._region = access.control_region_id

    def resolve_service(self) -> Service:
        """See `ServiceInstances`."""
        wanted = self._alibaba
        if wanted.service_id:
            service = self._service(service_id=wanted.service_id)
        else:
            service = self._service_by_name(wanted.service_name)
        if service.template_names and wanted.template_name not in service.template_names:
            raise self._gone(
                "GetService",
                f"{service.name} has no template {wanted.template_name!r}, only: "
                f"{', '.join(service.template_names)}.",
            )
        return service

    def find_instances(self, name: str) -> list[ServiceInstance]:
        """See `ServiceInstances`."""

        def page(token: str | None) -> tuple[list[ServiceInstance], str]:
            def send(client: Any, models: Any) -> Any:
                # One value matches names that contain it; hence the comparison below.
                named = models.ListServiceInstancesRequestFilter(name="ServiceInstanceName", value=[name])
                return client.list_service_instances(
                    models.ListServiceInstancesRequest(
                        region_id=self._region, filter=[named], max_results=PAGE_SIZE, next_token=token
                    )
                )

            parse = partial(answers.instances, name=name, first=token is None)
            return self._access.read(self.product, "ListServiceInstances", send, parse)

        found = [item for item in all_by_token(page) if item.status != STATUS_DELETED]
        return sorted(found, key=lambda item: item.created or _LONG_AGO, reverse=True)

    def get_instance(self, instance_id: str) -> ServiceInstance | None:
        """See `ServiceInstances`."""
        try:
            instance = self._access.read(
                self.product,
                "GetServiceInstance",
                lambda client, models: client.get_service_instance(
                    models.GetServiceInstanceRequest(region_id=self._region, service_instance_id=instance_id)
                ),
                lambda answer: answers.instance(rpc(answer)),
            )
        except CloudError as error:
            if error.verdict is Verdict.GONE:
                return None
            raise
        return None if instance.status == STATUS_DELETED else instance

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
        """See `ServiceInstances`."""
        check_token(client_token)

        def send(client: Any, models: Any) -> Any:
            return client.create_service_instance(
                models.CreateServiceInstanceRequest(
                    name=name,
                    **self._of(service),
                    parameters=dict(parameters),
                    tag=[models.CreateServiceInstanceRequestTag(key=k, value=v) for k, v in tags.items()],
                    client_token=client_token,
                    dry_run=True if dry_run else None,
                )
            )

        def parse(answer: Answer) -> str:
            return rpc(answer).text("ServiceInstanceId") if dry_run else answer.required("ServiceInstanceId")

        try:
            return self._access.write(
                self.product,
                "CreateServiceInstance",
                send,
                parse,
                repeat_unknown=True,
                secrets=_secrets(parameters),
            )
        except CloudError as error:
            # Several products answer a dry run that would work with an error of this name.
            if dry_run and error.code.startswith("DryRunOperation"):
                return ""
            raise

    def delete_instance(self, instance_id: str, client_token: str) -> None:
        """See `ServiceInstances`."""
        check_token(client_token)
        try:
            self._access.write(
                self.product,
                "DeleteServiceInstances",
                lambda client, models: client.delete_service_instances(
                    models.DeleteServiceInstancesRequest(
                        region_id=self._region, service_instance_id=[instance_id], client_token=client_token
                    )
                ),
                rpc,
                repeat_unknown=True,
            )
        except CloudError as error:
            if error.verdict is not Verdict.GONE:
                raise

    def resources(self, instance_id: str) -> list[CloudResource]:
        """See `ServiceInstances`."""

        def page(token: str | None) -> tuple[list[CloudResource], str]:
            return self._access.read(
                self.product,
                "ListServiceInstanceResources",
                lambda client, models: client.list_service_instance_resources(
                    models.ListServiceInstanceResourcesRequest(
                        region_id=self._region,
                        service_instance_id=instance_id,
                        service_instance_resource_type="AliyunResource",
                        max_results=PAGE_SIZE,
                        next_token=token,
                    )
                ),
                answers.resources,
            )

        return all_by_token(page)

    def instance_logs(self, instance_id: str) -> list[str]:
        """See `ServiceInstances`."""
        lines: list[answers.LogLine] = []
        for source in _LOG_SOURCES:
            try:
                lines += self._log_page(instance_id, source)
            except CloudError as error:
                # Logs explain another failure; that one must not hide behind a denied log.
                if error.verdict not in (Verdict.PERMANENT, Verdict.GONE):
                    raise
        return answers.most_telling_first(lines)

    def missing_permissions(
        self, service: Service, parameters: Mapping[str, Any]
    ) -> list[MissingPermission] | None:
        """See `ServiceInstances`."""
        try:
            return self._access.read(
                self.product,
                "GenerateServicePolicy",
                lambda client, models: client.generate_service_policy(
                    models.GenerateServicePolicyRequest(
                        **self._of(service),
                        operation_types=["CreateServiceInstance"],
                        parameters=_without_password(parameters),
                    )
                ),
                answers.missing_permissions,
            )
        except CloudError as error:
            if error.access or error.status == 403:
                return None
            raise

    def provisions(self, service: Service, parameters: Mapping[str, Any] | None = None) -> list[Provision]:
        """See `ServiceInstances`."""
        return self._access.read(
            self.product,
            "GetServiceProvisions",
            lambda client, models: client.get_service_provisions(
                models.GetServiceProvisionsRequest(
                    **self._of(service), parameters=_without_password(parameters or {}) or None
                )
            ),
            answers.provisions,
        )

    def estimate_cost(self, service: Service, parameters: Mapping[str, Any]) -> Price | None:
        """See `ServiceInstances`."""
        return self._access.read(
            self.product,
            "GetServiceEstimateCost",
            lambda client, models: client.get_service_estimate_cost(
                models.GetServiceEstimateCostRequest(**self._of(service), parameters=dict(parameters))
            ),
            lambda answer: parse_estimate(rpc(answer).mapping("Resources")),
            secrets=_secrets(parameters),
        )

    def check_deployable(self, service: Service, post_paid_amount: Decimal) -> Sequence[DeployCheck] | None:
        """See `ServiceInstances`. The supplier side has no such call."""
        return None

    def _of(self, service: Service) -> dict[str, str]:
        """What every request about one service says."""
        return {
            "region_id": self._region,
            "service_id": service.service_id,
            "service_version": service.version,
            "template_name": self._alibaba.template_name,
        }

    def _service(self, **which: str) -> Service:
        return self._access.read(
            self.product,
            "GetService",
            lambda client, models: client.get_service(
                models.GetServiceRequest(
                    region_id=self._region, service_version=self._alibaba.service_version, **which
                )
            ),
            partial(
                answers.service,
                name=self._alibaba.service_name,
                template_name=self._alibaba.template_name,
            ),
        )

    def _service_by_name(self, name: str) -> Service:
        """By GetService, which takes a name; else by the catalogue."""
        try:
            found = self._service(service_name=name)
        except CloudError as error:
            if error.access or error.verdict not in (Verdict.GONE, Verdict.PERMANENT):
                raise
        else:
            if found.name == name:
                return found
        ids = all_by_token(partial(self._catalogue_page, name))
        if not ids:
            raise self._gone("ListServices", f"There is no service {name!r} in {self._region}.")
        return self._service(service_id=ids[0])

    def _catalogue_page(self, name: str, token: str | None) -> tuple[list[str], str]:
        def send(client: Any, models: Any) -> Any:
            one = models.ListServicesRequestFilter
            filters = [one(name="Name", value=[name]), one(name="Status", value=["Online"])]
            return client.list_services(
                models.ListServicesRequest(
                    region_id=self._region, filter=filters, max_results=PAGE_SIZE, next_token=token
                )
            )

        return self._access.read(self.product, "ListServices", send, partial(answers.service_ids, name=name))

    def _log_page(self, instance_id: str, source: str) -> list[answers.LogLine]:
        return self._access.read(
            self.product,
            "ListServiceInstanceLogs",
            lambda client, models: client.list_service_instance_logs(
                models.ListServiceInstanceLogsRequest(
                    region_id=self._region,
                    service_instance_id=instance_id,
                    log_source=source,
                    sort_order="Descending",
                    max_results=PAGE_SIZE,
                )
            ),
            partial(answers.log_lines, source=source),
        )

    def _gone(self, action: str, message: str) -> CloudError:
        return CloudError(
            message,
            verdict=Verdict.GONE,
            product=self.product,
            action=action,
            code="ServiceNotFound",
            fix="Set alibaba.service_id and template_name to those that the Compute Nest console shows.",
        )


class UserSide(SupplierSide):
    """`ServiceInstances` over alibabacloud-computenest20210601."""

    product = "computenest"

    def check_deployable(self, service: Service, post_paid_amount: Decimal) -> Sequence[DeployCheck] | None:
        """See `ServiceInstances`."""
        return self._access.read(
            self.product,
            "CheckServiceDeployable",
            lambda client, models: client.check_service_deployable(
                models.CheckServiceDeployableRequest(
                    **self._of(service), post_paid_amount=str(post_paid_amount), pre_paid_amount="0"
                )
            ),
            answers.failed_checks,
        )


def _secrets(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    password = parameters.get(PASSWORD_PARAMETER)
    return (password,) if isinstance(password, str) else ()


def _without_password(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if key != PASSWORD_PARAMETER}
