"""What travels to the cluster: all that the job imports, nothing of the rest, the same bytes every time."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from raynest_pipeline.images.bulk.package import JOB_MODULE, build_package


def names(data: bytes) -> set[str]:
    return set(zipfile.ZipFile(io.BytesIO(data)).namelist())


def project(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "raynest_pipeline" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_the_job_s_package_has_its_rooms_and_no_other() -> None:
    found = names(build_package().data)
    assert "raynest_pipeline/images/bulk/job.py" in found
    assert "raynest_pipeline/serving/painter.py" in found, "the painters are the Serve replica's own"
    rooms = {name.split("/")[1].removesuffix(".py") for name in found}
    modules = {"__init__", "errors", "files", "waiting", "settings_sections", "settings_model"}
    assert rooms <= {"images", "serving", *modules}
    assert not [name for name in found if not name.endswith(".py")]


def test_the_same_code_is_the_same_package() -> None:
    first = build_package()
    build_package.cache_clear()
    again = build_package()
    assert (first.data, first.name) == (again.data, again.name)
    assert first.uri == f"gcs://{first.name}"
    assert first.name.startswith("_ray_pkg_") and first.name.endswith(".zip"), "as Ray names its uploads"
    assert len(first.data) < 1_000_000


def test_times_and_owners_of_files_do_not_matter(tmp_path: Path) -> None:
    files = {"__init__.py": "", "a.py": "x = 1\n"}
    one, two = project(tmp_path / "1", files), project(tmp_path / "2", files)
    (two / "raynest_pipeline" / "a.py").touch()
    assert build_package("raynest_pipeline.a", one) == build_package("raynest_pipeline.a", two)


def test_a_changed_file_is_another_package(tmp_path: Path) -> None:
    one = project(tmp_path / "1", {"__init__.py": "", "a.py": "x = 1\n"})
    two = project(tmp_path / "2", {"__init__.py": "", "a.py": "x = 2\n"})
    assert build_package("raynest_pipeline.a", one).name != build_package("raynest_pipeline.a", two).name


@pytest.mark.parametrize(
    "line",
    [
        "from raynest_pipeline.b import thing",
        "from raynest_pipeline import b",
        "import raynest_pipeline.b",
        "def f():\n    from raynest_pipeline.b import thing",
        "if True:\n    import raynest_pipeline.b as other",
    ],
)
def test_imports_are_followed_wherever_they_stand(tmp_path: Path, line: str) -> None:
    files = {"__init__.py": "", "a.py": line + "\n", "b.py": "import json\n", "c.py": ""}
    assert names(build_package("raynest_pipeline.a", project(tmp_path, files)).data) == {
        "raynest_pipeline/__init__.py",
        "raynest_pipeline/a.py",
        "raynest_pipeline/b.py",
    }


def test_a_package_s_init_and_circles_are_followed_too(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "a.py": "import raynest_pipeline.room.b\n",
        "room/__init__.py": "from raynest_pipeline.c import x\n",
        "room/b.py": "import raynest_pipeline.a\n",
        "c.py": "x = 1\n",
    }
    found = names(build_package("raynest_pipeline.a", project(tmp_path, files)).data)
    assert found == {f"raynest_pipeline/{name}" for name in files}


def test_the_job_starts_from_its_package_alone(tmp_path: Path) -> None:
    """As on a stock Ray image: none of the project beside it, none of the libraries that only we install."""
    zipfile.ZipFile(io.BytesIO(build_package().data)).extractall(tmp_path)
    script = f"""
import sys
class Absent:
    names = {{"dagster", "kubernetes", "httpx", "pydantic_settings", "cronsim", "torch", "diffusers"}}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, {str(tmp_path)!r})
import importlib
job = importlib.import_module({JOB_MODULE!r})
assert job.__file__.startswith({str(tmp_path)!r}), job.__file__
print("started")
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "started", done.stderr
