"""`raynest prompts`: look at a prompt file or prompt set before it is drawn."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from raynest_pipeline.images.prompts import Prompt

MOST_PROBLEMS = 1000
MOST_SHOWN = 100_000
OPTIONAL = ("size", "steps", "guidance", "negative_prompt")
"""Columns of the table that are there if any of the prompts has them."""

prompts_app = typer.Typer(
    help="Look at a prompt file (CSV, JSONL, TXT, Parquet) or a prompt set (YAML) before it is drawn.",
    no_args_is_help=True,
)
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)


@prompts_app.callback()
def _group() -> None:
    """Keeps `preview` a command of its own: Typer makes a single command the whole group."""


@prompts_app.command("preview")
def preview_command(
    file: Annotated[Path, typer.Argument(help="The prompt file or prompt set.")],
    count: Annotated[int, typer.Option(min=0, max=MOST_SHOWN, help="How many prompts to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")] = False,
) -> None:
    """Check it whole and show how many images it asks for, the first prompts, and what is in it twice.

    Nothing is sent. Exit code 2 if something is wrong in it; all of that is listed.
    """
    from raynest_pipeline.images.batch import batch_id_for
    from raynest_pipeline.images.preview import preview
    from raynest_pipeline.images.prompt_file import open_prompts

    checked = open_prompts(file, most_problems=MOST_PROBLEMS)
    seen = preview(checked, count)
    if as_json:
        document = {
            "file": str(file),
            "batch": batch_id_for(checked),
            "sha256": checked.sha256,
            "combinations": checked.combinations,
            **asdict(seen),
        }
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return
    part = "" if seen.examined == seen.images else f" among the first {seen.examined:,}"
    possible = "" if checked.combinations is None else f" of {checked.combinations:,} possible"
    rows = {
        "file": str(file),
        "batch": batch_id_for(checked),
        "images": f"{seen.images:,}",
        "prompts": f"{seen.prompts:,} different texts{possible}{part}",
        "repeated": f"{seen.repeated or 'no'} images{part} repeat another: same prompt, parameters, seed",
    }
    for key, text in rows.items():
        out.print(f"{key + ':':<10}{text}", soft_wrap=True, markup=False)
    for twin in seen.repetitions:
        out.print(f"          {twin.id} is {twin.same_as}", soft_wrap=True, markup=False)
    if seen.first:
        out.print(_table(seen.first, seen.images - len(seen.first)))


def _table(first: "tuple[Prompt, ...]", more: int) -> Table:
    columns = [name for name in OPTIONAL if any(getattr(prompt, name) not in (None, "") for prompt in first)]
    table = Table(box=None, pad_edge=False)
    for name in ("id", "seed", *columns, "prompt"):
        table.add_column(name, overflow="fold", no_wrap=name == "seed")
    for prompt in first:
        table.add_row(*(_cell(getattr(prompt, name)) for name in ("id", "seed", *columns, "prompt")))
    if more:
        table.add_row(Text(f"and {more:,} more"))
    return table


def _cell(value: Any) -> Text:
    return Text("" if value is None else str(value))
