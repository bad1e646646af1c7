"""The chain of tests/chain in memory, opened by the definitions as if it were a cloud account's."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHAIN = str(Path(__file__).parents[1] / "chain")
if CHAIN not in sys.path:
    sys.path.insert(0, CHAIN)

import dagster as dg  # noqa: E402
from chain_fixtures import *  # noqa: E402, F403  (needs the path above)
from chain_fixtures import _own_settings  # noqa: E402, F401
from chain_world import World  # noqa: E402

from raynest_pipeline.chain.chain import Chain  # noqa: E402


@pytest.fixture
def opened(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let the resource open the chain in memory; the arguments it was opened with."""
    calls: list[dict[str, Any]] = []

    def open_chain(settings: Any, **more: Any) -> Chain:
        calls.append(more)
        return chain

    monkeypatch.setenv("RAYNEST_PROFILE", "alibaba")
    monkeypatch.setenv("RAYNEST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("raynest_pipeline.defs.resources.open_chain", open_chain)
    return calls


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def definitions() -> dg.Definitions:
    """Of a profile that buys."""
    from raynest_pipeline.definitions import build_definitions
    from raynest_pipeline.settings import Settings

    return build_definitions(Settings(profile="alibaba"))


@pytest.fixture
def run(
    definitions: dg.Definitions, instance: dg.DagsterInstance, opened: list[dict[str, Any]], world: World
) -> Callable[..., dg.ExecuteInProcessResult]:
    """Executes a job by its name."""

    def execute(job: str, **more: Any) -> dg.ExecuteInProcessResult:
        job_def = definitions.resolve_job_def(job)
        return job_def.execute_in_process(instance=instance, raise_on_error=False, **more)

    return execute
