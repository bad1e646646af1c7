"""The chain of tests/chain in memory behind the command line, and one DAGSTER_HOME for all of it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHAIN = str(Path(__file__).parents[1] / "chain")
if CHAIN not in sys.path:
    sys.path.insert(0, CHAIN)

from chain_fixtures import *  # noqa: E402, F403  (needs the path above)
from chain_fixtures import _own_settings  # noqa: E402, F401

from raynest_pipeline.chain.chain import Chain  # noqa: E402
from raynest_pipeline.cli.app import main  # noqa: E402


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def dagster_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making the databases takes longer than any of these tests."""
    return tmp_path_factory.mktemp("dagster-home")


@pytest.fixture
def opened(
    chain: Chain, dagster_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """Let every command open the chain in memory; the arguments it was opened with."""
    calls: list[dict[str, Any]] = []

    def open_chain(settings: Any, *_: Any, **more: Any) -> Chain:
        calls.append(more)
        return chain

    monkeypatch.setenv("DAGSTER_HOME", str(dagster_home))
    monkeypatch.setenv("RAYNEST_PROFILE", "alibaba")
    monkeypatch.setenv("RAYNEST_HOME", str(tmp_path / "home"))
    for module in ("chain.profile", "defs.resources", "cli.imagine", "cli.forward"):
        monkeypatch.setattr(f"raynest_pipeline.{module}.open_chain", open_chain)
    return calls


@pytest.fixture
def raynest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command line in this process."""

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["raynest", *arguments])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        said = capsys.readouterr()
        return Said(int(code or 0), said.out, said.err)

    return run
