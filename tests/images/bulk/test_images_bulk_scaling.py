"""The arithmetic of docs/scaling.md, worked out again from its own inputs and from the code's."""

import re
from decimal import Decimal
from pathlib import Path

import pytest

from raynest_pipeline.images.bulk.engine import MAX_LOST
from raynest_pipeline.images.bulk.job import WAVE
from raynest_pipeline.images.bulk.painters import CALLER_CPUS, CALLERS_AT_ONCE, REPLICAS_PER_CALLER
from raynest_pipeline.sandbox.cloud import catalog
from raynest_pipeline.settings import Settings

PAGE = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text(encoding="utf-8")
RATE, BYTES = 0.4, 480_000
FIXED = catalog.CLUSTER_PRICE + 2 * catalog.LOAD_BALANCER_PRICE + catalog.NAT_PRICE + catalog.EIP_PRICE


def words() -> str:
    """The page's text in one line."""
    return " ".join(PAGE.split())


def worker() -> Decimal:
    settings = Settings.model_fields["alibaba"].get_default(call_default_factory=True)
    kind = catalog.INSTANCE_TYPES[settings.worker_instance_type]
    return catalog.worker_price(kind, settings.worker_disk_category, settings.worker_disk_gib)


def rows() -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if re.match(r"\| 10* \|", line)
    ]


def test_the_inputs_are_named() -> None:
    assert f"r = {RATE}" in PAGE and f"b = {BYTES // 1000} kB" in PAGE
    assert f"fixed {FIXED} CNY" in PAGE
    assert f"{worker():.4f} for a worker" in words()


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_each_row_follows_from_them(row: list[str]) -> None:
    gpus = int(row[0])
    rate = gpus * RATE
    hourly = FIXED + gpus * worker()
    assert float(row[1]) == pytest.approx(rate)
    assert row[2] == f"{1e6 / rate / 3600:.1f} h"
    assert float(row[3].removesuffix(" MB/s")) == pytest.approx(rate * BYTES / 1e6, abs=0.005)
    assert float(row[4]) == pytest.approx(2 * rate)
    assert Decimal(row[5]) == round(hourly, 2)
    assert float(row[6]) == pytest.approx(float(hourly) / 3.6 / rate, abs=0.006)


def test_all_four_scales_are_there() -> None:
    assert [row[0] for row in rows()] == ["1", "10", "100", "1000"]


def test_the_public_address_s_share() -> None:
    settings = Settings.model_fields["alibaba"].get_default(call_default_factory=True)
    images = settings.eip_bandwidth_mbps * 1e6 / 8 / BYTES
    assert f"{images:.0f} images a second, {images / RATE:.0f} GPUs" in words()


def test_the_numbers_of_the_code() -> None:
    callers = CALLERS_AT_ONCE * -(-1000 // REPLICAS_PER_CALLER)
    assert f"called by {callers}, " in words()
    assert f"{callers * CALLER_CPUS:.1f} CPUs" in words()
    assert f"{WAVE:,} images that the driver hands to Ray Data in one pass" in words()
    assert f"{WAVE * 75 / 1e6:.0f} MB for the" in words()
    assert MAX_LOST == 5 and "at most five times" in words()
