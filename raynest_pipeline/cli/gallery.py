"""`raynest open gallery`, and the gallery beside the UI."""

import contextlib
from collections.abc import Callable, Iterator

from raynest_pipeline.cli.foreground import until_ctrl_c
from raynest_pipeline.errors import RaynestError
from raynest_pipeline.images.gallery.place import Place
from raynest_pipeline.images.gallery.server import gallery_in_background, serve_gallery
from raynest_pipeline.settings import Settings

PORT_VARIABLE = "RAYNEST_GALLERY__PORT"


def open_gallery(settings: Settings, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve the gallery until Ctrl-C.

    Raises:
        StorageError: The port is taken, or the output can't be read.
    """
    until_ctrl_c(
        lambda ready: serve_gallery(Place(settings.output_dir), port=port, ready=ready), port, on_ready
    )


@contextlib.contextmanager
def beside_the_ui(settings: Settings, environment: dict[str, str]) -> Iterator[str | None]:
    """Serve the gallery while the UI runs; its address, or None when it isn't served.

    The port that it got goes into `environment`, for what runs under the UI: new batches link there.
    Without a gallery the UI is still worth having, so what goes wrong is said and no more.
    """
    if settings.gallery.port == 0:
        yield None
        return
    with contextlib.ExitStack() as stack:
        url = None
        for port in (settings.gallery.port, 0):
            try:
                url = stack.enter_context(gallery_in_background(Place(settings.output_dir), port))
                break
            except OSError:
                # Another home's: then a free port, and only links of earlier batches lead to the other one.
                continue
            except RaynestError as error:
                print(f"The gallery is not served: {error.what}", flush=True)
                break
        if url is not None:
            environment[PORT_VARIABLE] = url.rsplit(":", 1)[1]
        yield url
