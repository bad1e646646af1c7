"""Rules of the whole project: who imports whom, what loading costs, sizes, and pins that agree."""

import ast
import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raynest_pipeline"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 400

BASE = {"settings", "settings_model", "settings_sections", "errors", "waiting", "files"}
"""What every room may use."""
KUBE_FROM_IMAGES = {"kube"}
"""The endpoint's client talks through kube's HttpTarget."""
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "waiting": {"errors"},
    "settings_model": set(),
    "settings_sections": set(),
    # The application's options are checked with the settings; serving is a leaf, and they are light.
    "settings_service": {"settings_model", "settings_sections", "serving"},
    "settings_batches": {"settings_sections"},
    "settings": {"errors", "settings_batches", "settings_sections", "settings_service"},
    "alibaba": BASE,
    "kube": BASE,
    # The bulk job paints with the Serve application's own code.
    "images": BASE | KUBE_FROM_IMAGES | {"serving"},
    "serving": set(),
    "sandbox": set(),
    "chain": BASE | {"alibaba", "kube"},
    "dagster_home": BASE,
    "defs": BASE | {"chain", "images", "dagster_home"},
    "definitions": BASE | {"defs"},
    "docs": BASE | {"chain"},
    "cli": BASE | {"chain", "defs", "definitions", "images", "kube", "dagster_home"},
}
"""Room or module -> the others it may import; downwards only."""
SANDBOX_CONTROL = {"sandbox.control", "sandbox.faults"}
"""Starting and breaking the sandbox: all that the rest may know of it."""
KNOW_THE_SANDBOX = {"chain/profile.py", "cli/"}

HEAVY = re.compile(
    r"(ray|kubernetes|torch|diffusers|transformers|PIL|numpy|pandas|pyarrow|fsspec|Tea|darabonba"
    r"|alibabacloud_\w+)(\.|$)"
)


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    return relative(path).removesuffix(".py").split("/")[0]


def imports(path: Path, *, module_level: bool = False) -> Iterator[tuple[str, int]]:
    """Full names that a file imports, with their lines; `level` dots are kept as they are."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _at_import_time(tree) if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def _at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported: not inside functions, nor under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _at_import_time(child)


def ours(name: str) -> str | None:
    """`chain.link.Step` of `raynest_pipeline.chain.link.Step`; None for others."""
    return name.removeprefix("raynest_pipeline.") if name.startswith("raynest_pipeline.") else None


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 100
    known = {room(path) for path in SOURCES} - {"__init__"}
    assert known - MAY_IMPORT.keys() == set(), "a new room needs its rule"


def test_imports_go_downwards_only() -> None:
    wrong = []
    for path in SOURCES:
        here = room(path)
        for name, line in imports(path):
            target = ours(name)
            if target is None or here == "__init__":
                continue
            there = target.split(".")[0]
            if there == here or there in MAY_IMPORT[here]:
                continue
            known = any(relative(path).startswith(prefix) for prefix in KNOW_THE_SANDBOX)
            if known and any(target.startswith(allowed) for allowed in SANDBOX_CONTROL):
                continue
            wrong.append(f"{relative(path)}:{line} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("alone", ["serving", "sandbox"])
def test_what_stands_alone_imports_nothing_else_of_ours(alone: str) -> None:
    for path in (PACKAGE / alone).rglob("*.py"):
        for name, line in imports(path):
            target = ours(name)
            assert target is None or target.split(".")[0] == alone, f"{relative(path)}:{line} imports {name}"


def test_the_links_know_nothing_of_dagster() -> None:
    for path in SOURCES:
        if room(path) in ("chain", "alibaba", "kube", "images", "serving", "sandbox"):
            assert not [name for name, _ in imports(path) if name.split(".")[0].startswith("dagster")], path


def test_no_relative_imports() -> None:
    assert [
        f"{relative(path)}:{line}" for path in SOURCES for name, line in imports(path) if name[0] == "."
    ] == []


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    wrong = [
        f"{relative(path)}:{line} imports {name}"
        for path in SOURCES
        if room(path) not in ("serving", "sandbox")
        for name, line in imports(path, module_level=True)
        if HEAVY.match(name)
    ]
    assert wrong == []


def test_no_file_is_too_long() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: count for name, count in lengths.items() if count > MOST_LINES} == {}


def test_no_broad_except() -> None:
    broad = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            named = ast.unparse(node.type) if node.type else "everything"
            # One that raises again only cleans up; one may also hand the error to another thread.
            raises = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
            raises |= ".set_exception(" in ast.unparse(node)
            if re.search(r"\b(Exception|BaseException|everything)\b", named) and not raises:
                broad.append(f"{relative(path)}:{node.lineno}")
    assert broad == []


def test_only_the_clock_sleeps() -> None:
    """The sandbox plays a slow cloud, and serving stands alone; the rest waits with `waiting`."""
    found = [
        f"{relative(path)}:{number}"
        for path in SOURCES
        if room(path) not in ("waiting", "sandbox", "serving")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if "time.sleep(" in line
    ]
    assert found == []


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError")
    found = [
        f"{relative(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        relative(path)
        for path in SOURCES
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


class TestPins:
    @pytest.fixture
    def project(self) -> dict[str, list[str]]:
        document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return {"core": document["dependencies"], **document["optional-dependencies"]}

    def plain(self, name: str) -> str:
        """A distribution's name as pip compares it."""
        return re.sub(r"[-_.]+", "-", name).lower()

    def pin(self, requirements: list[str], name: str) -> str:
        (found,) = [r for r in requirements if re.split(r"[\[=<>~! ]", r)[0] == name]
        return found[len(re.match(r"[\w.-]+(\[[^]]*\])?", found)[0]) :]  # type: ignore[index]

    def test_the_dagster_family_is_pinned_to_one_release(self, project: dict[str, list[str]]) -> None:
        release = re.fullmatch(r"==1\.13\.(\d+)", self.pin(project["core"], "dagster"))
        assert release is not None
        assert self.pin(project["core"], "dagster-k8s") == f"==0.29.{release[1]}"
        assert self.pin(project["local"], "dagster-webserver") == f"==1.13.{release[1]}"
        assert self.pin(project["dev"], "dagster-dg-cli") == f"==1.13.{release[1]}"

    def test_what_is_installed_agrees(self) -> None:
        version = importlib.metadata.version
        minor = version("dagster").split(".")[2]
        assert version("dagster") == f"1.13.{minor}"
        assert version("dagster-k8s") == f"0.29.{minor}"
        assert version("kubernetes").split(".")[0] == "36"

    def test_kubernetes_stays_below_what_dagster_k8s_takes(self, project: dict[str, list[str]]) -> None:
        assert self.pin(project["core"], "kubernetes") == ">=36,<37"

    def test_one_release_of_ray_everywhere(self, project: dict[str, list[str]]) -> None:
        from raynest_pipeline.settings import RayServiceSettings

        release = self.pin(project["core"], "ray").removeprefix("==")
        assert self.pin(project["local"], "ray") == f"=={release}"
        assert RayServiceSettings().ray_version == release
        assert importlib.metadata.version("ray") == release

    def test_the_lock_holds_what_the_project_pins(self, project: dict[str, list[str]]) -> None:
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        locked = {self.plain(name): version for name, _, version in (line.partition("==") for line in lines)}
        for requirement in (*project["core"], *project["local"], *project["dev"]):
            name = re.match(r"[\w.-]+", requirement)[0]  # type: ignore[index]
            exact = re.search(r"==([\w.]+)$", requirement)
            found = locked.get(self.plain(name))
            assert found is not None, f"{name} is not in constraints.txt"
            assert exact is None or exact[1] == found, requirement

    def test_the_code_location_has_one_name(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        name = project["tool"]["dg"]["project"]["code_location_name"]
        assert f"location_name: {name}" in (ROOT / "workspace.yaml").read_text(encoding="utf-8")
