"""The service's ROS template: its parameters, their published defaults, and what the engine refuses.

The defaults are the template's own, and they are traps: an existing cluster, three workers, 120 GiB disks and
a password that everyone can read.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raynest_pipeline.sandbox.cloud import catalog
from raynest_pipeline.sandbox.cloud.errors import CloudError

#: What NoEcho parameters look like once they are in.
MASK = "******"

_PASSWORD = re.compile(r"[A-Za-z0-9()`~!@#$%^&*_\-+=|{}\[\]:;<>,.?/]{8,30}")
_CLASSES = (r"[A-Z]", r"[a-z]", r"[0-9]", r"[^A-Za-z0-9]")


@dataclass(frozen=True)
class Parameter:
    """A template parameter: its default (None = it has none), allowed values, range, and pattern."""

    kind: type[str] | type[int] | type[dict]  # type: ignore[type-arg]
    default: Any = None
    allowed: tuple[str, ...] = ()
    low: int = 0
    high: int = 0
    pattern: str = ""


_TEXT = Parameter(str)

PARAMETERS: dict[str, Parameter] = {
    "RegionId": _TEXT,
    "CsOptions": Parameter(str, "ExistCs", allowed=("ExistCs", "NewAck", "NewAcs")),
    "ClusterId": Parameter(str, pattern=r"[0-9a-z]+"),
    "PayType": Parameter(str, "PostPaid", allowed=("PostPaid", "PrePaid")),
    "PayPeriodUnit": Parameter(str, "Month", allowed=("Month", "Year")),
    "PayPeriod": Parameter(int, 1, low=1, high=9),
    "ZoneId": _TEXT,
    "VpcOption": Parameter(str, "NewVPC", allowed=("NewVPC", "ExistingVPC")),
    "VpcId": _TEXT,
    "VSwitchId": _TEXT,
    "VpcCidrBlock": Parameter(str, "192.168.0.0/16"),
    "VSwitchCidrBlock": Parameter(str, "192.168.0.0/24"),
    "LoginPassword": Parameter(str, "computenest*12345"),
    "WorkerInstanceType": _TEXT,
    "WorkerInstanceCount": Parameter(int, 3, low=1, high=5000),
    "WorkerSystemDiskCategory": Parameter(
        str, "cloud_essd", allowed=("cloud_efficiency", "cloud_ssd", "cloud_essd")
    ),
    "WorkerSystemDiskSize": Parameter(int, 120, low=20, high=2048),
    "AckNetworkPlugin": Parameter(str, "flannel", allowed=("flannel", "terway-eniip")),
    "PodCidr": Parameter(str, "10.0.0.0/16"),
    "ServiceCidr": Parameter(str, "172.16.0.0/16"),
    "ChartValues": Parameter(dict, {}),
}


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the published defaults put in, each in its type.

    Raises CloudError StackValidationFailed, with ROS's kind of message, for the first that is wrong.
    """
    unknown = sorted(set(given) - set(PARAMETERS))
    if unknown:
        raise _refused(f"The Parameter ({unknown[0]}) was not defined in template.")
    values = {name: _value(name, spec, given.get(name)) for name, spec in PARAMETERS.items()}
    if values["RegionId"] != catalog.REGION:
        raise _refused(f"The region {values['RegionId']} is not an allowed region: {catalog.REGION}.")
    if values["CsOptions"] == "ExistCs":
        _require(values, "ClusterId")
        return values
    _require(values, "ZoneId")
    if values["ZoneId"] not in catalog.ZONES[catalog.REGION]:
        raise _refused(f"The zone {values['ZoneId']} does not exist in {values['RegionId']}.")
    _check_network(values)
    if values["CsOptions"] == "NewAck":
        _require(values, "WorkerInstanceType")
        if values["WorkerInstanceType"] not in catalog.INSTANCE_TYPES:
            raise _refused(f"The instance type {values['WorkerInstanceType']} does not exist.")
        _check_password(values["LoginPassword"])
    return values


def masked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as they are shown afterwards: without the password."""
    return {**values, "LoginPassword": MASK}


def _value(name: str, spec: Parameter, given: Any) -> Any:
    if given is None or given == "":
        return spec.default
    convert: dict[type, Callable[[str, Any], Any]] = {str: _text, int: _number, dict: _json}
    value = convert[spec.kind](name, given)
    if spec.allowed and value not in spec.allowed:
        raise _refused(f"The value ({value}) of Parameter ({name}) is not in {list(spec.allowed)}.")
    if spec.high and not spec.low <= value <= spec.high:
        raise _refused(f"The value ({value}) of Parameter ({name}) is not in [{spec.low}, {spec.high}].")
    if spec.pattern and not re.fullmatch(spec.pattern, value):
        raise _refused(f"The value ({value}) of Parameter ({name}) does not match {spec.pattern}.")
    return value


def _text(name: str, given: Any) -> str:
    if not isinstance(given, str):
        raise _refused(f"Parameter ({name}) is not a string.")
    return given


def _number(name: str, given: Any) -> int:
    if isinstance(given, bool) or not re.fullmatch(r"-?[0-9]+", str(given)):
        raise _refused(f"Parameter ({name}) is not a number.")
    return int(given)


def _json(name: str, given: Any) -> dict[str, Any]:
    try:
        value = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise _refused(f"Parameter ({name}) is not valid JSON.") from error
    if not isinstance(value, dict):
        raise _refused(f"Parameter ({name}) is not a JSON object.")
    return value


def _require(values: Mapping[str, Any], name: str) -> None:
    if not values[name]:
        raise _refused(f"The Parameter ({name}) was not provided.")


def _check_password(password: str) -> None:
    classes = sum(bool(re.search(each, password)) for each in _CLASSES)
    if not _PASSWORD.fullmatch(password) or classes < 3:
        # The value itself stays out of the message.
        raise _refused(
            "Parameter (LoginPassword) must have 8 to 30 characters, of three of: upper case, lower case, "
            "digits, special characters."
        )


def _check_network(values: Mapping[str, Any]) -> None:
    if values["VpcOption"] == "ExistingVPC":
        _require(values, "VpcId")
        _require(values, "VSwitchId")
        return
    names = ("VpcCidrBlock", "VSwitchCidrBlock", "PodCidr", "ServiceCidr")
    vpc, vswitch, pods, services = (_network(values, name) for name in names)
    if not any(vpc.subnet_of(ipaddress.IPv4Network(each)) for each in _PRIVATE):
        raise _refused(f"The VPC's block {vpc} is not inside {', '.join(_PRIVATE)}.")
    if not vswitch.subnet_of(vpc):
        raise _refused(f"The vSwitch's block {vswitch} is not inside the VPC's block {vpc}.")
    if not 16 <= services.prefixlen <= 24:
        raise _refused("Parameter (ServiceCidr) must be a block from /16 to /24.")
    for name, block in (("ServiceCidr", services), ("PodCidr", pods)):
        if block.overlaps(vpc) and (name == "ServiceCidr" or values["AckNetworkPlugin"] == "flannel"):
            raise _refused(f"Parameter ({name}) {block} overlaps the VPC's block {vpc}.")


_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")


def _network(values: Mapping[str, Any], name: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(values[name])
    except ValueError as error:
        raise _refused(f"Parameter ({name}) is not a CIDR block.") from error


def _refused(message: str) -> CloudError:
    return CloudError(400, "StackValidationFailed", message)
