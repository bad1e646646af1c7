"""Batches that nobody started by hand: their prompts are put into the batch's own folder first.

Whatever happens to the file they came from, the run, a later run and a backfill all find them there.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

from raynest_pipeline.images.batch_store import BatchStore
from raynest_pipeline.images.kept import PROMPTS
from raynest_pipeline.images.prompt_file import PromptFile
from raynest_pipeline.images.prompts import Prompt


def keep_prompts(store: BatchStore, path: Path) -> None:
    """Make a copy of a prompt file the batch's own prompts; whole or not at all, and again without harm.

    Raises:
        StorageError: It can't be written.
    """
    own = f"{PROMPTS}{path.suffix.lower()}"
    store.put_file(path, own)
    for name in store.names():
        if name.startswith(f"{PROMPTS}.") and name != own:
            store.remove(name)


def keep_reseeded(store: BatchStore, prompts: PromptFile) -> None:
    """As `keep_prompts`, with seeds that belong to this batch alone (see `reseeded`).

    Raises:
        StorageError: It can't be written.
    """
    with tempfile.TemporaryDirectory(prefix="raynest-prompts-") as folder:
        path = Path(folder, f"{PROMPTS}.jsonl")
        with path.open("w", encoding="utf-8") as lines:
            for prompt in prompts:
                lines.write(json.dumps(_row(replace(prompt, seed=reseeded(prompt, store.batch_id)))) + "\n")
        keep_prompts(store, path)


def reseeded(prompt: Prompt, batch_id: str) -> int:
    """A seed that a batch gives to a prompt: the same for the same batch, id and seed; 31 bits."""
    digest = sha256(f"{batch_id}\0{prompt.id}\0{prompt.seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _row(prompt: Prompt) -> dict[str, object]:
    return dict(_cells(prompt))


def _cells(prompt: Prompt) -> Iterator[tuple[str, object]]:
    """The columns of a JSON line that says the same."""
    for name, value in asdict(prompt).items():
        if name == "extra":
            yield from value.items()
        elif value is not None and value != "":
            yield name, value
