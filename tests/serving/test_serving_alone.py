"""`serving` is shipped alone: only its own top-level files, small, text, importing nothing else of ours, and
cheap to import.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import raynest_pipeline.serving as serving

ROOM = Path(serving.__file__).parent
SHIPPED = sorted(ROOM.glob("*.py"))


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_file_imports_only_shipped_files_of_ours(path: Path) -> None:
    ours = {name for name in imported_modules(path) if name.startswith("raynest_pipeline")}
    allowed = {f"raynest_pipeline.serving.{shipped.stem}" for shipped in SHIPPED}
    assert ours <= allowed


def test_what_is_shipped_fits_a_config_map() -> None:
    assert "app.py" in {path.name for path in SHIPPED}
    assert sum(len(path.read_text(encoding="utf-8").encode()) for path in SHIPPED) < 200_000


@pytest.fixture
def shipped_to(tmp_path: Path) -> Path:
    """A folder as the ConfigMap mounts it: nothing but the shipped files beside an empty package."""
    target = tmp_path / "raynest_pipeline" / "serving"
    target.mkdir(parents=True)
    (tmp_path / "raynest_pipeline" / "__init__.py").touch()
    for path in SHIPPED:
        shutil.copy(path, target)
    return tmp_path


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_shipped_copy_builds_its_application_without_torch(shipped_to: Path) -> None:
    out = run(
        "import sys, raynest_pipeline.serving.app as app\n"
        "built = app.build({'num_cpus': 2, 'num_gpus': 1, 'max_batch_size': 4, 'queue_size': 6})\n"
        "print(app.__file__)\n"
        "print(sorted(m for m in ('torch', 'diffusers', 'transformers', 'PIL') if m in sys.modules))\n"
        "print(app.entrypoint is app.build, type(built).__name__)\n",
        shipped_to,
    ).splitlines()
    assert out == [str(shipped_to / "raynest_pipeline/serving/app.py"), "[]", "True Application"]


def test_the_shipped_copy_paints(shipped_to: Path) -> None:
    out = run(
        "from raynest_pipeline.serving.contract import ImageRequest\n"
        "from raynest_pipeline.serving.engine import Engine\n"
        "from raynest_pipeline.serving.options import ServingOptions\n"
        "from raynest_pipeline.serving.sources import load_model\n"
        "engine = Engine(lambda: load_model(ServingOptions()), 1, 2)\n"
        "print(engine.submit([ImageRequest('x', 0, steps=1)]).result()[0].pixels.shape)\n",
        shipped_to,
    )
    assert out.strip() == "(64, 64, 3)"
