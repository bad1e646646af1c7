"""Kubernetes resource quantities: "500m", "8Gi", "12G" to exact numbers and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

GPU = "nvidia.com/gpu"
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {"n": "1e-9", "u": "1e-6", "m": "1e-3", "": "1", "k": "1e3", "M": "1e6", "G": "1e9"}
_DECIMAL |= {"T": "1e12", "P": "1e15", "E": "1e18"}


def parse(quantity: str | int | float) -> Decimal:
    """The number behind a quantity. Raises ValueError for text that is none."""
    text = str(quantity).strip()
    suffix = text.lstrip("+-0123456789.")
    try:
        if suffix in _BINARY:
            return Decimal(text.removesuffix(suffix)) * _BINARY[suffix]
        if suffix in _DECIMAL:
            return Decimal(text.removesuffix(suffix) if suffix else text) * Decimal(_DECIMAL[suffix])
        return Decimal(text)  # exponents: 1e3
    except InvalidOperation:
        raise ValueError(f"{quantity!r} is not a resource quantity") from None


def show(amount: Decimal, *, binary: bool = False) -> str:
    """The shortest exact form: whole numbers plain, binary multiples with a suffix, parts in milli."""
    if binary and amount:
        for suffix, factor in reversed(_BINARY.items()):
            if amount % factor == 0:
                return f"{int(amount / factor)}{suffix}"
    if amount == amount.to_integral_value():
        return str(int(amount))
    return f"{int((amount * 1000).to_integral_value())}m"


def container_requests(container: Mapping[str, Any]) -> dict[str, Decimal]:
    """What a container asks for; a limit without a request counts as the request, as on a real server."""
    resources = container.get("resources") or {}
    merged = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: parse(amount) for name, amount in merged.items()}


def pod_requests(spec: Mapping[str, Any]) -> dict[str, Decimal]:
    """The sum over a pod's containers; an init container counts where it alone asks for more."""
    total = add(container_requests(container) for container in spec.get("containers") or ())
    for container in spec.get("initContainers") or ():
        for name, amount in container_requests(container).items():
            total[name] = max(total.get(name, Decimal(0)), amount)
    return total


def add(parts: Iterable[Mapping[str, Decimal]]) -> dict[str, Decimal]:
    """Resource by resource sum."""
    total: dict[str, Decimal] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, Decimal(0)) + amount
    return total


def limit(container: Mapping[str, Any], name: str) -> Decimal | None:
    """A container's limit of a resource, else its request, else None (KubeRay's order for rayStartParams)."""
    resources = container.get("resources") or {}
    for source in ("limits", "requests"):
        amount = (resources.get(source) or {}).get(name)
        if amount is not None:
            return parse(amount)
    return None
