"""One image to one file."""

from pathlib import Path

from raynest_pipeline.chain.profile import open_chain
from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.client import Image
from raynest_pipeline.images.client import imagine as ask
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.settings import Settings
from raynest_pipeline.waiting import Deadline, retry


def draw(settings: Settings, prompt: Prompt, output: Path) -> Image:
    """Ask the endpoint for one image and write it to `output`.

    Raises:
        StorageError: `output` cannot be written; found out before the image is asked for.
        NotReadyError: The chain isn't up.
        RemoteError: The endpoint drew no image.
    """
    part = output.with_name(f".{output.name}.part")
    try:
        part.write_bytes(b"")
    except OSError as error:
        raise StorageError(
            f"{output} cannot be written.", why=error.strerror or str(error), fix="Choose another -o FILE."
        ) from None
    try:
        chain = open_chain(settings, start_sandbox=False)
        with chain.endpoint() as route:
            deadline = Deadline.after(settings.batch.timeout_seconds * settings.batch.attempts, chain.clock)
            image = retry(
                lambda: ask(route.target, prompt, settings.batch),
                deadline=deadline,
                attempts=settings.batch.attempts,
                repeat_unknown=True,
            )
        part.write_bytes(image.data)
        part.replace(output)
    except OSError as error:
        raise StorageError(f"{output} cannot be written.", why=error.strerror or str(error)) from None
    finally:
        part.unlink(missing_ok=True)
    return image
