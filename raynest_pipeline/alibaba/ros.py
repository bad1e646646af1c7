"""ROS (2019-09-10): the resources of a stack, the second way to find a cluster's id."""

from dataclasses import dataclass

from raynest_pipeline.alibaba.access import CloudAccess
from raynest_pipeline.alibaba.answers import Answer, rpc
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.errors import Verdict


@dataclass(frozen=True)
class StackResource:
    """A resource of a ROS stack."""

    logical_id: str
    type: str
    """e.g. ALIYUN::CS::ManagedKubernetesCluster"""
    physical_id: str
    status: str


class Stacks:
    """ROS stacks."""

    def __init__(self, access: CloudAccess) -> None:
        self._access = access

    def stack_resources(self, stack_id: str, region: str) -> list[StackResource]:
        """The resources of one stack in its region; empty when it is gone.

        Raises:
            CloudError: Classified.
        """
        try:
            return self._access.read(
                "ros",
                "ListStackResources",
                lambda client, models: client.list_stack_resources(
                    models.ListStackResourcesRequest(region_id=region, stack_id=stack_id)
                ),
                lambda answer: [_resource(item) for item in rpc(answer).children("Resources")],
                region=region,
            )
        except CloudError as error:
            if error.verdict is Verdict.GONE:
                return []
            raise


def _resource(item: Answer) -> StackResource:
    return StackResource(
        logical_id=item.required("LogicalResourceId"),
        type=item.required("ResourceType"),
        # A resource that isn't there yet has no physical id.
        physical_id=item.text("PhysicalResourceId"),
        status=item.text("Status"),
    )
