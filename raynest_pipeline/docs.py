"""Writes the reference pages that the code itself knows best: `python -m raynest_pipeline.docs [--check]`."""

import json
import sys
import types
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raynest_pipeline.chain.report import StatusReport
from raynest_pipeline.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"


def settings_page() -> str:
    """docs/settings.md: every key with its type, default and description."""
    lines = [
        "# Settings",
        "",
        "Generated from the code by `python -m raynest_pipeline.docs`; don't edit.",
        "",
        "Strongest first: `RAYNEST_*` environment variables (nested keys joined by two underscores, e.g.",
        "`RAYNEST_ALIBABA__ZONE_ID`), then `raynest.yaml` in the current directory, or the file that",
        "`RAYNEST_SETTINGS` names. A key that doesn't exist, or a value that isn't allowed, is an error at",
        "load time that names the key.",
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    lines += [_row(key, field) for key, field in _fields(Settings, "")]
    return "\n".join(lines) + "\n"


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _fields(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _row(key: str, field: FieldInfo) -> str:
    cells = (f"`{key}`", _type(field.annotation), _default(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " \\| ".join(str(value) for value in typing.get_args(annotation)).replace("\\|", "or")
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(a) for a in typing.get_args(annotation) if a is not type(None))
    if origin is not None:
        inner = ", ".join(_type(a) for a in typing.get_args(annotation) if a is not Ellipsis)
        return f"{origin.__name__} of {inner}"
    if annotation is SecretStr:
        return "secret text"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(member.value for member in annotation)
    name = str(annotation.__name__)
    return {"str": "text", "bool": "true or false", "Path": "path"}.get(name, name)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value is PydanticUndefined:
        return "unset"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, tuple):
        value = [v.model_dump(exclude_none=True) if isinstance(v, BaseModel) else v for v in value]
    return f"`{json.dumps(value, ensure_ascii=False, default=str)}`"


def status_page() -> str:
    """docs/status.md: the schema of `raynest status --json`."""
    schema = json.dumps(StatusReport.model_json_schema(), indent=2, ensure_ascii=False)
    return (
        "# `raynest status --json`\n\n"
        "Generated from the code by `python -m raynest_pipeline.docs`; don't edit.\n"
        "Exit code 0: every link is ready; 5: one is not; 7: one could not be looked at.\n\n"
        f"```json\n{schema}\n```\n"
    )


def main() -> int:
    """Write the pages, or with --check say which are out of date (exit code 1)."""
    stale = 0
    for name, text in (("settings.md", settings_page()), ("status.md", status_page())):
        path = DOCS / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in sys.argv:
            print(f"docs/{name} is out of date: run python -m raynest_pipeline.docs")
            stale = 1
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")
    return stale


if __name__ == "__main__":
    sys.exit(main())
