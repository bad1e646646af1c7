"""What the README and docs/ say exists: commands, options, settings, variables, faults, links, files."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from raynest_pipeline import errors
from raynest_pipeline.cli.app import app
from raynest_pipeline.sandbox.faults import FAULTS
from raynest_pipeline.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PICTURE_BYTES = 300_000
COMMAND = re.compile(r"(?<![\w./-])raynest ([a-z][a-z-]*)((?: [^\s`|)#;]+)*)")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SECTIONS: dict[str, Any] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
KEY = re.compile(rf"(?<![\w/.-])({'|'.join(SECTIONS)})\.([a-z_]+)(?![\w(/])")
FILE_ENDINGS = {"py", "yaml", "yml", "json", "jsonl", "md", "log", "txt", "csv", "lock"}

on_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code_of(page: Path) -> Iterator[str]:
    """The code spans and blocks of a page."""
    yield from CODE.findall(page.read_text(encoding="utf-8"))


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


@on_every_page
def test_every_command_exists_with_its_options(page: Path) -> None:
    known, wrong = commands(), []
    for text in code_of(page):
        for name, rest in COMMAND.findall(text):
            command, words = known.get(name), rest.split()
            if command is None:
                wrong.append(f"raynest {name}")
                continue
            if hasattr(command, "commands") and words and re.fullmatch(r"[a-z-]+", words[0].strip(",")):
                command = command.commands.get(words[0].strip(","))
                if command is None:
                    wrong.append(f"raynest {name} {words[0]}")
                    continue
            allowed = {option for parameter in command.params for option in parameter.opts}
            given = [word.rstrip(",") for word in words if re.match(r"--?[a-z]", word)]
            wrong += [f"raynest {name} {option}" for option in given if option not in allowed]
    assert wrong == []


def test_the_commands_table_of_the_readme_is_complete() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in commands() if f"`raynest {name}" not in readme] == []


@on_every_page
def test_every_setting_exists(page: Path) -> None:
    wrong = [
        f"{section}.{key}"
        for text in code_of(page)
        for section, key in KEY.findall(text)
        if key not in FILE_ENDINGS and key not in SECTIONS[section].model_fields
    ]
    assert wrong == []


@on_every_page
def test_every_variable_exists(page: Path) -> None:
    others = {"RAYNEST_SETTINGS", "RAYNEST_MODEL", "RAYNEST_REVISION", "RAYNEST_CODE", "RAYNEST_MODEL_CACHE"}
    wrong = []
    for name in re.findall(r"\bRAYNEST_[A-Z0-9_]+\b(?!\*)", page.read_text(encoding="utf-8")):
        section, _, key = name.removeprefix("RAYNEST_").lower().partition("__")
        fields = SECTIONS[section].model_fields if key and section in SECTIONS else Settings.model_fields
        if name.rstrip("_") != "RAYNEST" and name not in others and (key or section) not in fields:
            wrong.append(name)
    assert wrong == []


@on_every_page
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_file() or not file.is_relative_to(ROOT) or anchor and anchor not in anchors(file):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """A page's headings as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@on_every_page
def test_every_file_of_the_project_that_is_named_exists(page: Path) -> None:
    named = re.compile(r"(?:tests|docs|deploy|examples|benchmarks|raynest_pipeline)/[\w./-]*\w")
    missing = [
        name
        for text in code_of(page)
        for name in named.findall(text)
        if not (ROOT / name).exists() and not (ROOT / "raynest_pipeline" / name).exists()
    ]
    assert missing == []


def test_every_test_that_is_named_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"\btest_\w+\.py", text)) - there == set()


def test_every_fault_is_described_and_no_other() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    part = text.partition("## Practising with faults")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(FAULTS)


def error_classes() -> list[type[errors.RaynestError]]:
    return [errors.RaynestError, *errors.RaynestError.__subclasses__()]


def test_every_exit_code_is_documented() -> None:
    codes = {cls.exit_code for cls in error_classes()} | {0, 130}
    for page in (ROOT / "README.md", ROOT / "docs" / "operations.md"):
        found = {int(code) for code in re.findall(r"^\| (\d+) \|", page.read_text(encoding="utf-8"), re.M)}
        assert found == codes, page.name


def test_the_operations_page_gives_each_class_its_code() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \| (\w[\w, ]*) \|", text, re.MULTILINE))
    told = {name: int(code) for code, names in rows.items() for name in names.split(", ")}
    assert told == {cls.__name__: cls.exit_code for cls in error_classes() if cls is not errors.RemoteError}


def test_defaults_that_the_pages_quote_are_the_settings_own() -> None:
    health = Settings.model_fields["health"].get_default(call_default_factory=True)
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    quoted = dict(re.findall(r"^\| `health\.(\w+)` \| (\d+) \|", text, re.MULTILINE))
    assert {"interval_seconds", "bad_ticks", "cooldown_seconds", "max_attempts"} <= quoted.keys()
    assert {key: int(value) for key, value in quoted.items()} == {key: getattr(health, key) for key in quoted}
    alibaba = Settings.model_fields["alibaba"].get_default(call_default_factory=True)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"`alibaba.max_price_per_hour` ({alibaba.max_price_per_hour} {alibaba.price_currency})" in readme
    assert alibaba.worker_instance_type in readme


def test_the_five_policies_are_named() -> None:
    from raynest_pipeline.chain.preflight import POLICIES

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [policy for policy in POLICIES if policy not in readme] == []


def test_the_two_commands_come_within_a_screen() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines.index("make demo") < 40


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = {
        name for page in PAGES for text in code_of(page) for name in re.findall(r"\bmake ([a-z]+)", text)
    }
    assert {"demo", "test", "dev", "clean"} <= named <= targets


def test_pictures_are_small_and_used() -> None:
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    card = ROOT / "raynest_pipeline" / "serving" / "tinymodel" / "MODEL_CARD.md"
    texts = [page.read_text(encoding="utf-8") for page in (*PAGES, card)]
    used = {Path(target).name for text in texts for target in LINK.findall(text)}
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < PICTURE_BYTES, picture.name
        assert picture.name in used, f"{picture.name} is shown nowhere"
