"""Prompt sets as tests write them down: a small one, and its prompts."""

from pathlib import Path
from textwrap import dedent

from raynest_pipeline.images.prompt_file import PromptFile, open_prompts
from raynest_pipeline.images.prompts import Prompt, prompts_of_row
from raynest_pipeline.images.sets.reading import read_set

SHAPES = """
templates:
  - a {size} {colour} {shape}
variables:
  size: [small, large]
  colour: [red, blue, black]
  shape: [circle, cross]
"""


def opened(folder: Path, text: str, name: str = "set.yaml") -> PromptFile:
    path = folder / name
    path.write_text(dedent(text), encoding="utf-8")
    return open_prompts(path)


def prompts(text: str) -> list[Prompt]:
    """The prompts of a set, each row checked as a file's."""
    found = []
    for number, (line, row) in enumerate(read_set(dedent(text)).rows(), start=1):
        made, problems = prompts_of_row(line, number, row)
        assert problems == []
        found += made
    return found
