"""Prices: what an inquiry's answer adds up to, and what it leaves open.

GetServiceEstimateCost wraps ROS's inquiry; its schema is not published. What is read here is ROS's shape
(facts, section 8), also when nested; anything else makes the price a lower bound, or unknown.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

_HOUR = "Hour"
_DEEPEST = 8
_ABSURD = Decimal("1e12")


@dataclass(frozen=True)
class PriceLine:
    """One resource of an estimate."""

    name: str
    """The resource's name in the template, e.g. `AckOrAcsClusterModule.NatGateway`."""
    amount: Decimal | None
    """None: no price was given for it."""
    currency: str = ""
    unit: str = ""
    """Hour | Month | Year | GB | ...; only Hour is summed up."""
    note: str = ""
    """Why it is not in the sum; empty when it is."""


@dataclass(frozen=True)
class Price:
    """A list price per hour."""

    amount: Decimal
    """Per hour, in `currency`."""
    currency: str
    lower_bound: bool
    """Whether `amount` lacks something: a line without a price, not by the hour, or in another currency."""
    lines: tuple[PriceLine, ...] = ()


def parse_estimate(resources: Any) -> Price | None:
    """Add up the `Resources` of an inquiry: {name: {Type, Success, Result: {Order, OrderSupplement}}}.

    None: there is no hourly price in it, or it has another shape.
    """
    if not isinstance(resources, Mapping):
        return None
    return total([line for name, node in resources.items() for line in _lines(str(name), node)])


def total(lines: list[PriceLine]) -> Price | None:
    """Add up lines: those by the hour, in the currency that most of them have.

    None: none is by the hour.
    """
    currencies = Counter(line.currency for line in lines if _summable(line))
    if not currencies:
        return None
    currency = currencies.most_common(1)[0][0]
    noted = tuple(_noted(line, currency) for line in lines)
    amounts = [line.amount for line in noted if not line.note and line.amount is not None]
    return Price(
        amount=sum(amounts, Decimal(0)),
        currency=currency,
        lower_bound=any(line.note for line in noted),
        lines=noted,
    )


def parse_amount(value: Any) -> Decimal | None:
    """An amount of money: a number, or text such as "10,000.00". None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        return None
    try:
        amount = Decimal(str(value).replace(",", "").strip())
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and 0 <= amount < _ABSURD else None


def _summable(line: PriceLine) -> bool:
    return line.amount is not None and bool(line.currency) and line.unit == _HOUR


def _noted(line: PriceLine, currency: str) -> PriceLine:
    note = ""
    if line.amount is None:
        note = line.note or "no price given"
    elif line.unit != _HOUR:
        note = f"priced per {line.unit}" if line.unit else "priced without a unit"
    elif line.currency != currency:
        note = f"in {line.currency}" if line.currency else "without a currency"
    return PriceLine(line.name, line.amount, line.currency, line.unit, note)


def _lines(name: str, node: Any, depth: int = 0) -> Iterator[PriceLine]:
    if not isinstance(node, Mapping) or depth > _DEEPEST:
        yield PriceLine(name, None, note="in a form that raynest does not know")
        return
    if node.get("Success") is False:
        yield PriceLine(name, None, note="the inquiry for it failed")
        return
    result = node.get("Result", node)
    if isinstance(result, Mapping) and isinstance(result.get("Order"), Mapping):
        yield _line(name, result)
        return
    nested = list(_nested(result))
    if not nested:
        yield PriceLine(name, None, note="no price given")
    for part, inner in nested:
        yield from _lines(f"{name}.{part}", inner, depth + 1)


def _nested(result: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Parts of a result that look like results themselves."""
    if isinstance(result, Mapping):
        parts = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, list):
        parts = [(str(index), value) for index, value in enumerate(result)]
    else:
        return
    for key, value in parts:
        if isinstance(value, Mapping) and value.keys() & {"Order", "Result", "Success"}:
            yield key, value


def _line(name: str, result: Mapping[str, Any]) -> PriceLine:
    order = result["Order"]
    supplement = result.get("OrderSupplement")
    supplement = supplement if isinstance(supplement, Mapping) else {}
    # The list price: a discount may end while the cluster runs.
    amount = parse_amount(order.get("OriginalAmount"))
    amount = parse_amount(order.get("TradeAmount")) if amount is None else amount
    currency = order.get("Currency")
    unit = _unit(supplement)
    period = parse_amount(supplement.get("Period"))
    if amount is not None and unit == _HOUR and period is not None and period > 1:
        amount /= period
    return PriceLine(name, amount, currency if isinstance(currency, str) else "", unit)


def _unit(supplement: Mapping[str, Any]) -> str:
    """Hour for what is paid by the hour. A subscription's price is never one, whatever its PriceUnit says."""
    price_unit, period_unit = (_plain(supplement.get(key)) for key in ("PriceUnit", "PeriodUnit"))
    if supplement.get("ChargeType") == "PrePaid":
        return period_unit if period_unit not in ("", _HOUR) else "Month"
    return price_unit or period_unit


def _plain(unit: Any) -> str:
    """`/Hour` and `hour` as `Hour`; "" for what is no text."""
    text = unit.strip("/ ") if isinstance(unit, str) else ""
    return _HOUR if text.lower() == "hour" else text
