"""VPC (2016-04-28): elastic IP addresses, and whether workers reach the internet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raynest_pipeline.alibaba.access import CloudAccess, Send, check_token
from raynest_pipeline.alibaba.answers import Answer, all_by_number, rpc
from raynest_pipeline.alibaba.egress import Egress, find_egress
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.errors import Verdict

__all__ = ["Egress", "Eip", "Network"]

PAGE_SIZE = 100


@dataclass(frozen=True)
class Eip:
    """An elastic IP address."""

    id: str
    ip: str
    status: str
    """Associating | Unassociating | InUse | Available | Releasing; "" right after it was allocated."""
    name: str = ""
    instance_id: str = ""
    """What it is bound to; "" when nothing."""
    instance_type: str = ""
    charge_type: str = ""
    """PostPaid | PrePaid; only PostPaid can be released."""
    tags: Mapping[str, str] = field(default_factory=dict)


class Network:
    """Addresses and gateways of the settings' region. Every method raises `CloudError`."""

    def __init__(self, access: CloudAccess) -> None:
        self._access = access

    def allocate_eip(
        self,
        *,
        region: str,
        bandwidth_mbps: int,
        name: str,
        tags: Mapping[str, str],
        client_token: str,
    ) -> Eip:
        """Buy an address, paid by traffic. Same token, same address. Its status is not known yet ("")."""
        check_token(client_token)

        def send(client: Any, models: Any) -> Any:
            return client.allocate_eip_address(
                models.AllocateEipAddressRequest(
                    region_id=region,
                    bandwidth=str(bandwidth_mbps),
                    # The default is PayByBandwidth, which costs by the hour.
                    internet_charge_type="PayByTraffic",
                    instance_charge_type="PostPaid",
                    name=name,
                    tag=[models.AllocateEipAddressRequestTag(key=k, value=v) for k, v in tags.items()],
                    client_token=client_token,
                )
            )

        def parse(answer: Answer) -> Eip:
            return Eip(
                id=answer.required("AllocationId"),
                ip=answer.required("EipAddress"),
                status="",
                name=name,
                charge_type="PostPaid",
                tags=dict(tags),
            )

        return self._access.write(
            "vpc", "AllocateEipAddress", send, parse, repeat_unknown=True, region=region
        )

    def find_eips(self, tags: Mapping[str, str]) -> list[Eip]:
        """All addresses of the region that carry every one of the tags."""
        found = all_by_number(lambda number: self._page(number, tags=tags))
        # Checked again: an unknown filter is ignored by the API, and what is found may be released.
        return [eip for eip in found if tags.items() <= eip.tags.items()]

    def get_eip(self, eip_id: str) -> Eip | None:
        """One address; None when it is released."""
        try:
            found, _ = self._page(1, allocation_id=eip_id)
        except CloudError as error:
            if error.verdict is Verdict.GONE:
                return None
            raise
        return next((eip for eip in found if eip.id == eip_id), None)

    def release_eip(self, eip_id: str) -> None:
        """Give an Available address back. One that is gone already counts as done."""
        self._change(
            "ReleaseEipAddress",
            lambda client, models: client.release_eip_address(
                models.ReleaseEipAddressRequest(region_id=self._access.region_id, allocation_id=eip_id)
            ),
        )

    def unassociate_eip(self, eip_id: str, client_token: str) -> None:
        """Take an address off whatever it is bound to.

        Only when the cluster is gone: `Clusters.unbind_eip` does it otherwise, and the API server breaks
        if its address is taken away behind its back.
        """
        check_token(client_token)
        self._change(
            "UnassociateEipAddress",
            lambda client, models: client.unassociate_eip_address(
                models.UnassociateEipAddressRequest(
                    region_id=self._access.region_id, allocation_id=eip_id, client_token=client_token
                )
            ),
        )

    def egress(self, vpc_id: str, vswitch_ids: Sequence[str]) -> Egress:
        """Whether a NAT gateway with an SNAT entry serves the vSwitches: the model is pulled through it."""
        return find_egress(self._access, vpc_id, vswitch_ids)

    def _page(
        self, number: int, *, tags: Mapping[str, str] | None = None, allocation_id: str | None = None
    ) -> tuple[list[Eip], int]:
        def send(client: Any, models: Any) -> Any:
            return client.describe_eip_addresses(
                models.DescribeEipAddressesRequest(
                    region_id=self._access.region_id,
                    allocation_id=allocation_id,
                    tag=[
                        models.DescribeEipAddressesRequestTag(key=k, value=v) for k, v in (tags or {}).items()
                    ],
                    page_number=number,
                    page_size=PAGE_SIZE,
                )
            )

        return self._access.read("vpc", "DescribeEipAddresses", send, _eips)

    def _change(self, action: str, send: Send) -> None:
        """A change of an address that exists; one that is gone needs none."""
        try:
            self._access.write("vpc", action, send, rpc, repeat_unknown=True)
        except CloudError as error:
            if error.verdict is not Verdict.GONE:
                raise


def _eips(answer: Answer) -> tuple[list[Eip], int]:
    items = rpc(answer).child("EipAddresses").children("EipAddress")
    total = answer.integer("TotalCount")
    if total is None:
        raise answer.bad("TotalCount", "is missing")
    return [_eip(item) for item in items], total


def _eip(item: Answer) -> Eip:
    return Eip(
        id=item.required("AllocationId"),
        ip=item.text("IpAddress"),
        status=item.required("Status"),
        name=item.text("Name"),
        instance_id=item.text("InstanceId"),
        instance_type=item.text("InstanceType"),
        charge_type=item.text("ChargeType"),
        tags=item.child("Tags").tags("Tag"),
    )
