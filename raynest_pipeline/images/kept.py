"""The batch's own copy of its prompts, beside the images: `prompts.csv`, `.jsonl` or whatever it was.

With it a batch can be made again when the file it came from has gone or changed.
"""

import hashlib
from pathlib import Path

from raynest_pipeline.images.batch_store import BatchStore
from raynest_pipeline.images.prompt_file import PromptFile

PROMPTS = "prompts"


def kept_prompts(store: BatchStore) -> Path | None:
    """A local file with the batch's own prompts; None when it has none."""
    names = _names(store)
    return store.local(names[0]) if names else None


def has_copy(store: BatchStore, prompts: PromptFile) -> bool:
    """Whether a prompt file is the batch's own already."""
    return _names(store) == [_own_name(prompts)] and _same(store.local(_own_name(prompts)), prompts)


def keep_copy(store: BatchStore, prompts: PromptFile) -> bool:
    """Make a prompt file the batch's own; whole or not at all.

    Args:
        store: Held (`exclusive`): another process may be making the batch of the prompts that are there.
        prompts: The new ones.

    Returns:
        Whether the batch had other prompts before, or none.

    Raises:
        StorageError: It cannot be written.
    """
    if has_copy(store, prompts):
        return False
    own = _own_name(prompts)
    store.put_file(prompts.path, own)
    for name in _names(store):
        if name != own:
            store.remove(name)
    return True


def _own_name(prompts: PromptFile) -> str:
    return f"{PROMPTS}{prompts.path.suffix.lower()}"


def _names(store: BatchStore) -> list[str]:
    return [name for name in store.names() if name.startswith(f"{PROMPTS}.")]


def _same(path: Path | None, prompts: PromptFile) -> bool:
    if path is None or path.stat().st_size != prompts.path.stat().st_size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == prompts.sha256
