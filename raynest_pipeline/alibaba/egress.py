"""Whether workers reach the internet: NAT gateways and their SNAT entries (facts, 2.5).

The cluster's public address is for kubectl, inbound; pulling the model is outbound, through SNAT. A VPC that
raynest did not make may have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from raynest_pipeline.alibaba.access import CloudAccess
from raynest_pipeline.alibaba.answers import Answer, all_by_number, rpc
from raynest_pipeline.alibaba.errors import CloudError

_PAGE_SIZE = 50


@dataclass(frozen=True)
class Egress:
    """Whether machines in a vSwitch reach the internet."""

    ok: bool | None
    """None: it could not be found out."""
    cause: str
    """In words, also when it is ok."""


@dataclass(frozen=True)
class SnatEntry:
    """A rule that lets machines out: those of one vSwitch, or of an address range."""

    vswitch_id: str
    source_cidr: str
    ip: str


@dataclass(frozen=True)
class _Gateway:
    id: str
    available: bool
    tables: tuple[str, ...]


def find_egress(access: CloudAccess, vpc_id: str, vswitch_ids: Sequence[str]) -> Egress:
    """Look at the VPC's gateways and judge.

    Raises:
        CloudError: Classified; a denied look is no error but `ok=None`.
    """
    try:
        gateways = [g for g in all_by_number(partial(_gateways, access, vpc_id)) if g.available]
        tables = {table for gateway in gateways for table in gateway.tables}
        entries = [
            entry for table in sorted(tables) for entry in all_by_number(partial(_entries, access, table))
        ]
    except CloudError as error:
        if error.access:
            return Egress(None, f"Not known: {error.denied_action or error.code} is denied.")
        raise
    return judge(vpc_id, vswitch_ids, entries, gateways=len(gateways))


def judge(vpc_id: str, vswitch_ids: Sequence[str], entries: Sequence[SnatEntry], *, gateways: int) -> Egress:
    """What the gateways and entries of a VPC mean for these vSwitches."""
    if not gateways:
        return Egress(
            False, f"{vpc_id} has no NAT gateway: give it one with an SNAT entry for the workers' vSwitch."
        )
    by_vswitch = {entry.vswitch_id: entry for entry in entries if entry.vswitch_id}
    ranges = sorted({entry.source_cidr for entry in entries if not entry.vswitch_id and entry.source_cidr})
    uncovered = [vswitch for vswitch in vswitch_ids if vswitch not in by_vswitch]
    if "0.0.0.0/0" in ranges or (entries and not uncovered):
        return Egress(True, f"by SNAT through {', '.join(sorted({entry.ip for entry in entries}))}")
    if ranges:
        return Egress(
            None, f"SNAT serves {', '.join(ranges)}; whether {', '.join(uncovered)} lies in it is not known."
        )
    named = ", ".join(uncovered) or vpc_id
    return Egress(False, f"No SNAT entry serves {named}: add one to the NAT gateway of {vpc_id}.")


def _gateways(access: CloudAccess, vpc_id: str, number: int) -> tuple[list[_Gateway], int]:
    def parse(answer: Answer) -> tuple[list[_Gateway], int]:
        items = rpc(answer).child("NatGateways").children("NatGateway")
        return [
            _Gateway(
                id=item.required("NatGatewayId"),
                available=item.required("Status") == "Available",
                tables=item.child("SnatTableIds").texts("SnatTableId"),
            )
            for item in items
        ], answer.integer("TotalCount") or 0

    return access.read(
        "vpc",
        "DescribeNatGateways",
        lambda client, models: client.describe_nat_gateways(
            models.DescribeNatGatewaysRequest(
                region_id=access.region_id, vpc_id=vpc_id, page_number=number, page_size=_PAGE_SIZE
            )
        ),
        parse,
    )


def _entries(access: CloudAccess, table_id: str, number: int) -> tuple[list[SnatEntry], int]:
    def parse(answer: Answer) -> tuple[list[SnatEntry], int]:
        items = rpc(answer).child("SnatTableEntries").children("SnatTableEntry")
        return [
            SnatEntry(item.text("SourceVSwitchId"), item.text("SourceCIDR"), item.required("SnatIp"))
            for item in items
        ], answer.integer("TotalCount") or 0

    return access.read(
        "vpc",
        "DescribeSnatTableEntries",
        lambda client, models: client.describe_snat_table_entries(
            models.DescribeSnatTableEntriesRequest(
                region_id=access.region_id, snat_table_id=table_id, page_number=number, page_size=_PAGE_SIZE
            )
        ),
        parse,
    )
