"""Sums of money: what is added, what never is."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.alibaba.price import Price, parse_amount, parse_estimate


def part(amount: Any = 0.64, currency: Any = "CNY", unit: Any = "/Hour", **supplement: Any) -> dict[str, Any]:
    """One resource of an estimate, in ROS's shape (facts, section 8)."""
    order = {"Currency": currency, "TradeAmount": amount, "OriginalAmount": amount, "DiscountAmount": 0}
    more = {"ChargeType": "PostPaid", "PriceType": "Total", "PriceUnit": unit, "Quantity": 1, **supplement}
    return {"Type": "ALIYUN::X::Y", "Success": True, "Result": {"Order": order, "OrderSupplement": more}}


def priced(**parts: Any) -> Price:
    price = parse_estimate(parts)
    assert price is not None
    return price


def test_adds_up_exactly() -> None:
    price = priced(A=part(0.1), B=part(0.2), C=part("18.065"))
    assert price.amount == Decimal("18.365")
    assert (price.currency, price.lower_bound) == ("CNY", False)
    assert [line.name for line in price.lines] == ["A", "B", "C"]


def test_a_failed_inquiry_makes_it_a_lower_bound() -> None:
    price = priced(A=part(1), B={"Type": "T", "Success": False})
    assert (price.amount, price.lower_bound) == (Decimal(1), True)
    assert price.lines[1].amount is None
    assert price.lines[1].note


@pytest.mark.parametrize(
    ("other", "note"),
    [
        (part(0.8, unit="/GB"), "priced per GB"),
        (part(87.5, unit="", ChargeType="PrePaid", Period=1, PeriodUnit="Month"), "priced per Month"),
        (part(87.5, unit="/Hour", ChargeType="PrePaid", PeriodUnit="Year"), "priced per Year"),
        (part(87.5, unit="/Hour", ChargeType="PrePaid"), "priced per Month"),
        (part(5, unit=None), "priced without a unit"),
        (part(5, currency="USD"), "in USD"),
        (part(5, currency=None), "without a currency"),
        (part("n/a"), "no price given"),
        (part(-1), "no price given"),
        (part(float("nan")), "no price given"),
        ({"Type": "T", "Success": True, "Result": {}}, "no price given"),
        ("text", "in a form that raynest does not know"),
        (None, "in a form that raynest does not know"),
    ],
)
def test_what_is_not_added(other: Any, note: str) -> None:
    price = priced(A=part(1), B=part(2), C=other)
    assert (price.amount, price.lower_bound) == (Decimal(3), True)
    assert price.lines[2].note == note


def test_the_list_price_counts_not_the_discounted_one() -> None:
    discounted = part(125)
    discounted["Result"]["Order"]["TradeAmount"] = 87.5
    assert priced(A=discounted).amount == Decimal(125)


def test_without_a_list_price_the_other_one_counts() -> None:
    only = part(3)
    del only["Result"]["Order"]["OriginalAmount"]
    assert priced(A=only).amount == Decimal(3)


def test_a_price_for_several_hours_is_divided() -> None:
    assert priced(A=part(24, Period=24)).amount == Decimal(1)


def test_units_are_read_in_any_writing() -> None:
    assert priced(A=part(1, unit="hour"), B=part(1, unit=None, PeriodUnit="Hour")).amount == Decimal(2)


def test_nested_resources_are_found() -> None:
    nested = {
        "Type": "MODULE",
        "Success": True,
        "Result": {"Worker": part(18), "Nat": part(0.184), "Note": 5},
    }
    price = priced(M=nested, L={"Result": [part(1), "x"]})
    assert price.amount == Decimal("19.184")
    assert [line.name for line in price.lines] == ["M.Worker", "M.Nat", "L.0"]


def test_a_bottomless_answer_ends() -> None:
    node: dict[str, Any] = part(1)
    for _ in range(50):
        node = {"Success": True, "Result": {"X": node}}
    assert parse_estimate({"A": node}) is None


@pytest.mark.parametrize(
    "odd", [None, {}, [], "x", 5, {"test": "test"}, {"A": {"Success": False}}, {"A": part(1, unit="/GB")}]
)
def test_an_unknown_shape_is_no_price(odd: Any) -> None:
    assert parse_estimate(odd) is None


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        ("10,000.00", "10000.00"),
        (1, "1"),
        (0.1, "0.1"),
        (" 2 ", "2"),
        ("", None),
        (True, None),
        ("1e999999999999", None),
        ("Infinity", None),
        ([], None),
    ],
)
def test_amounts(value: Any, amount: str | None) -> None:
    assert parse_amount(value) == (None if amount is None else Decimal(amount))


KEYS = ["Order", "Result", "Success", "OrderSupplement", "Currency", "OriginalAmount", "PriceUnit", "x"]
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=20,
)


@given(json_values)
def test_nothing_makes_it_fall(resources: Any) -> None:
    price = parse_estimate(resources)
    assert price is None or (price.amount >= 0 and price.currency)


lines = st.builds(
    part,
    amount=st.decimals(0, 1000, places=4),
    currency=st.sampled_from(["CNY", "USD"]),
    unit=st.sampled_from(["/Hour", "/GB", "/Month", ""]),
)


@given(st.lists(lines, min_size=1, max_size=8))
def test_the_sum_is_of_one_currency_and_of_hours(parts: list[dict[str, Any]]) -> None:
    price = parse_estimate({str(index): item for index, item in enumerate(parts)})
    hourly = [item["Result"] for item in parts if item["Result"]["OrderSupplement"]["PriceUnit"] == "/Hour"]
    if price is None:
        assert hourly == []
        return
    own = [r["Order"]["OriginalAmount"] for r in hourly if r["Order"]["Currency"] == price.currency]
    assert price.amount == sum(own, Decimal(0))
    assert price.lower_bound == (len(own) < len(parts))
    assert len(price.lines) == len(parts)
