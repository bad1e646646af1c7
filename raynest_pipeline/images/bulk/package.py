"""The code that a job needs, as a zip that is the same whoever builds it.

What goes in is followed from the imports of the job's own module: it cannot be forgotten, and nothing of
the cloud, of Kubernetes or of Dagster gets onto the cluster.
"""

import ast
import functools
import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "raynest_pipeline"
JOB_MODULE = f"{PACKAGE}.images.bulk.job"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can hold: files' own times would make every build another package."""


@dataclass(frozen=True)
class Package:
    """A zip for Ray's package store, named by its content."""

    data: bytes
    name: str
    """As Ray names its own uploads."""

    @property
    def uri(self) -> str:
        """For runtime_env's working_dir."""
        return f"gcs://{self.name}"


@functools.cache
def build_package(module: str = JOB_MODULE, root: Path | None = None) -> Package:
    """The zip with `module` and all of this project that it imports, at whatever depth.

    Args:
        module: Full name.
        root: The folder that holds the package `raynest_pipeline`; default: this installation's.
    """
    base = root or Path(__file__).parents[3]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(_files(module, base)):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    data = buffer.getvalue()
    return Package(data, f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:16]}.zip")


def _files(module: str, base: Path) -> Iterator[tuple[str, bytes]]:
    todo, seen = [module], set()
    while todo:
        path = _path(todo.pop(), base)
        if path is None or path in seen:
            continue
        seen.add(path)
        data = path.read_bytes()
        # A package's own __init__ is run on the way to every module in it.
        todo += [*_imports(data), *_parents(path, base)]
        yield path.relative_to(base).as_posix(), data


def _path(module: str, base: Path) -> Path | None:
    stem = base.joinpath(*module.split("."))
    options = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((path for path in options if path.is_file()), None)


def _parents(path: Path, base: Path) -> Iterator[str]:
    parts = path.relative_to(base).parts[:-1]
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])


def _imports(source: bytes) -> Iterator[str]:
    """Modules of this project that a source names; `from a import b` may mean the module a.b."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.split(".")[0] == PACKAGE)
