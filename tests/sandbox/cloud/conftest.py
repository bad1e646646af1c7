"""Makes the helpers beside the tests importable, here and in the sandboxes that the tests start."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)

from sandbox_account import Account  # noqa: E402  (needs the path above)


@pytest.fixture
def account(tmp_path: Path) -> Account:
    """An emulated account in this process, on a clock that stands still."""
    return Account(tmp_path)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Starts real sandbox processes, without Kubernetes; stops all of them in the end."""
    from raynest_pipeline.sandbox import control

    for name in list(os.environ):
        if name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    path = os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    started: set[Path] = set()

    def run(state_dir: Path, **options: Any) -> control.SandboxInfo:
        started.add(state_dir)
        given = {"kube_factory": "sandbox_kube_double:KubeDouble", "time_scale": 0.2, **options}
        return control.start(state_dir, options=control.SandboxOptions(**given))

    yield run
    for state_dir in started:
        control.stop(state_dir)
